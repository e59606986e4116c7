"""What a run cost: time, processor time and memory of each stage, and what pretraining takes."""

from __future__ import annotations

from typing import Any

from mdl_physpre.report.tables.page import Table
from mdl_physpre.runs import layout
from mdl_physpre.runs.read import Run
from mdl_physpre.training.arms import FINETUNE
from mdl_physpre.utils.text_table import MISSING, shown


def method_cost(run: Run) -> str:
    """What pretraining takes beyond plain training, in seconds (the paper's section 4.1); empty where there is none."""
    parts = {}
    if run.summary.eam:
        parts["fit of the embedded-atom potential"] = run.summary.eam.seconds
    if run.summary.pretraining_set:
        parts["pretraining set"] = run.summary.pretraining_set.seconds
    for arm, result in run.summary.arms.items():
        if layout.PRETRAIN not in result.training or FINETUNE not in result.training:
            continue
        parts[f"pretraining of {arm}"] = result.training[layout.PRETRAIN].seconds
        said = ", ".join(f"{what} {seconds:,.0f} s" for what, seconds in parts.items())
        return (
            f"Beyond plain training the method took {sum(parts.values()):,.0f} s: {said}. Finetuning one network "
            f"took {result.training[FINETUNE].seconds:,.0f} s."
        )
    return ""


def cost_table(run: Run) -> Table | None:
    """Time, processor time and memory of each stage."""
    rows: list[list[str]] = []
    values: list[list[Any]] = []
    for name, stage in run.stages.items():
        seconds = stage.result.get("seconds")
        if seconds is None:
            continue
        spent = stage.spent
        used = [stage.cost.get(k) for k in ("processor_seconds", "peak_memory_mb", "peak_gpu_memory_mb")]
        numbers = [getattr(spent, k, None) for k in ("epochs", "steps", "structures")]
        seconds = max(seconds, spent.seconds if spent else 0.0)
        values.append([name, seconds, *used, *numbers])
        if not name.endswith((f"/{layout.ERRORS}", f"/{layout.COMMITTEE}")):
            forms = ("{:,.1f}", "{:,.1f}", *["{:,.0f}"] * 5)
            rows.append([name, *(shown(v, form) for v, form in zip(values[-1][1:], forms))])
    if not rows:
        return None
    head = ["stage", "seconds", "processor, s", "memory, MB", "GPU memory, MB", "epochs", "steps", "structures seen"]
    notes = (
        "Wall time since the stage was last started (training: over all its starts), processor time of all threads, "
        f"and the largest memory of the process while it ran. {MISSING}: was not recorded. cost.csv has the "
        "computation of errors and angles, too."
    )
    return Table("cost", "Time, memory and cost of each stage", head, rows, values, head, notes=notes)

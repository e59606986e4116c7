"""What of a run is done, what runs, and how long the rest will take, from the files that it keeps up to date."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from mdl_physpre.runs import layout
from mdl_physpre.runs.layout import Network
from mdl_physpre.runs.read import Run, StageFiles, read_run
from mdl_physpre.runs.recommend import first_sentences
from mdl_physpre.training.arms import FINETUNE
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.utils.processes import try_lock
from mdl_physpre.utils.record import Record
from mdl_physpre.utils.text_table import MISSING, text_table

LATEST = 20  # epochs whose mean length stands for those to come
NOTHING = StageFiles(begun=False, done=False, result={}, cost={})


class StageStatus(Record):
    """The state of one stage, by its folder.

    progress : in words. seconds : spent; ``None``: not known. left : estimated seconds; ``None``: not known.
    """

    stage: str
    state: Literal["done", "running", "stopped", "waiting"]
    progress: str = ""
    seconds: float | None = None
    left: float | None = None


class Status(Record):
    """The state of a run.

    running : whether a process works in the folder; ``None`` where the system cannot tell.
    says : the potential to use and why, once the run is finished, and which networks are not trained.
    left : sum of the seconds left that are known. unknown : how many stages are not in it.
    """

    name: str
    running: bool | None
    stages: tuple[StageStatus, ...]
    left: float | None
    unknown: int
    says: tuple[str, ...] = ()


def run_status(folder: str | Path) -> Status:
    """The state of every stage.

    Raises
    ------
    DataError : the folder is no run's.
    """
    run = read_run(folder)
    running = _locked(run.folder / ".lock")
    plan = run.plan
    shared = ((layout.EAM, plan.eam), (layout.TEACHER, plan.teacher), (layout.PRETRAINING_SET, plan.pretraining_set))
    stages = [_stage(run, name, running) for name, needed in shared if needed]
    for network in plan.networks:
        stages.append(_training(run, network, running))
        stages += [_dynamics(run, network, running)] if plan.dynamics else []
        stages += [_stage(run, f"{layout.NETWORKS}/{network.name}/{layout.ORACLE}", running)] if plan.oracle else []
        stages += [_stress(run, network, test, running) for test in plan.stress]
    stages += [_stage(run, layout.ORACLE_RUN, running)] if plan.oracle_trajectory else []
    unfinished = [one for one in stages if one.state != "done"]
    known = [one.left for one in unfinished if one.left is not None]
    return Status(
        name=run.name,
        running=running,
        stages=tuple(stages),
        left=sum(known) if known or not unfinished else None,
        unknown=len(unfinished) - len(known),
        says=tuple(first_sentences(run.summary)),
    )


def _locked(path: Path) -> bool | None:
    """Whether a process holds the lock of a run; ``None`` where the system cannot tell."""
    try:
        with open(path) as file:
            taken = try_lock(file)
    except OSError as error:
        return False if isinstance(error, FileNotFoundError) else None
    return None if taken is None else not taken


def _stage(run: Run, name: str, running: bool | None) -> StageStatus:
    found = run.stages.get(name, NOTHING)
    if found.done:
        return StageStatus(stage=name, state="done", seconds=found.result.get("seconds"), left=0.0)
    return StageStatus(stage=name, state="waiting" if not found.begun else "running" if running else "stopped")


def _training(run: Run, network: Network, running: bool | None) -> StageStatus:
    found = _stage(run, f"{layout.NETWORKS}/{network.name}", running)
    if found.state == "done":
        spent = run.stages[found.stage].spent
        return found if spent is None else found.model_copy(update={"seconds": spent.seconds})
    optim = run.config["optim"]
    finetuning = TrainingSettings(max_epochs=optim["max_epochs"], max_steps=optim.get("max_steps"))
    parts: list[str] = []
    left, spent_so_far = 0.0, 0.0
    unknown = False
    for part in (*network.arm.stages, FINETUNE):
        settings = network.arm.settings_of(part, finetuning)
        rows = run.logs[network.arm.name].get((network.name, part), [])
        spent_so_far += sum(row.get("seconds", 0.0) for row in rows)
        unit, done, whole = "epoch", float(len(rows)), settings.max_epochs
        if settings.max_steps is not None:
            unit, done, whole = "step", sum(row["steps"] for row in rows), settings.max_steps
        pace = _pace(rows, unit) or _pace_of_others(run, part, unit)
        if rows or (found.state != "waiting" and not parts):
            parts.append(f"{part}: {unit} {done:.0f} of {whole}")
        unknown |= pace is None
        left += (pace or 0.0) * max(whole - done, 0)
    progress, remaining = ", ".join(parts), None if unknown else left
    return found.model_copy(update={"progress": progress, "seconds": spent_so_far or None, "left": remaining})


def _pace(rows: list[dict[str, float]], unit: str) -> float | None:
    """Seconds of an epoch, or of a step."""
    timed = [row for row in rows[-LATEST:] if "seconds" in row]
    number = len(timed) if unit == "epoch" else sum(row["steps"] for row in timed)
    return sum(row["seconds"] for row in timed) / number if number else None


def _pace_of_others(run: Run, part: str, unit: str) -> float | None:
    """The same, of the same stage in other networks."""
    logs = [rows for own in run.logs.values() for (_, stage), rows in own.items() if stage == part]
    found = [pace for rows in logs if (pace := _pace(rows, unit))]
    return fmean(found) if found else None


def _dynamics(run: Run, network: Network, running: bool | None) -> StageStatus:
    found = _stage(run, f"{layout.NETWORKS}/{network.name}/{layout.DYNAMICS}", running)
    if found.state == "done":
        return found
    left, progress = _seconds_of_others(run, f"/{layout.DYNAMICS}"), ""
    state = _state(run.folder / found.stage / "state.npz")
    if state:
        steps = run.config["physpre"]["dynamics"]["steps"]
        progress = f"step {state['step']:,} of {steps:,}, {len(state['active'])} structures left"
        pace = state.get("seconds_per_step")
        left = left if pace is None else pace * (steps - state["step"])
    return found.model_copy(update={"progress": progress, "left": left})


def _stress(run: Run, network: Network, test: str, running: bool | None) -> StageStatus:
    name = network.stress_folder(run.folder, test).relative_to(run.folder).as_posix()
    found, ends = _stage(run, name, running), name.removeprefix(f"{layout.NETWORKS}/{network.name}")
    if found.state == "done":
        return found
    return found.model_copy(update={"left": _seconds_of_others(run, ends)})


def _seconds_of_others(run: Run, ends: str) -> float | None:
    """Mean seconds of the same stage, by the end of its path, of other networks."""
    others = [s.result["seconds"] for name, s in run.stages.items() if name.endswith(ends) and s.result.get("seconds")]
    return fmean(others) if others else None


def _state(path: Path) -> Mapping[str, Any]:
    """The state of a simulation in progress; empty where there is none."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            found: dict[str, Any] = json.loads(str(stored["plain"]))
        return found
    except (OSError, ValueError, KeyError, EOFError):
        return {}


def format_status(status: Status) -> str:
    """The state of a run as text."""
    rows = [["stage", "state", "progress", "time", "still"]]
    for one in status.stages:
        still = "" if one.state == "done" else MISSING if one.left is None else f"about {duration(one.left)}"
        spent = "" if one.seconds is None else duration(one.seconds)
        rows.append([one.stage, one.state, one.progress, spent, still])
    done = [one.state for one in status.stages].count("done")
    lines = [text_table(rows, words=3)]
    if done == len(status.stages):
        return "\n".join([*status.says, f"{status.name}: every stage is done", *lines])
    head = {True: "running", False: "not running", None: "not finished"}[status.running]
    lines.insert(0, f"{status.name}: {head}, {done} of {len(status.stages)} stages done")
    if status.left is not None:
        at_least = f" and {status.unknown} stages of which nothing is known yet" if status.unknown else ""
        lines.append(f"still about {duration(status.left)}{at_least}")
    if status.running is False:
        lines.append("the same physpre run goes on where it stopped")
    return "\n".join([*status.says, *lines])


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"

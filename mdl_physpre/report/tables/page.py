"""The tables of a report: what the page shows, and the same with all digits for a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from statistics import fmean
from typing import Any

from mdl_physpre.report.figures.stability import kind_of
from mdl_physpre.report.tables.text import MISSING, counted, shown
from mdl_physpre.runs.read import Run

CHECKS = ("-errors", "-errors-before-finetuning", "-force-angles")  # stages that only the CSV file of costs names
SHOWN_STRUCTURES = 100  # rows of the page's table of structures; the CSV file has all

ERRORS = (
    ("energy, eV", "energy_mae", "{:.3f}"),
    ("energy, meV/atom", "energy_mae_mev_per_atom", "{:.1f}"),
    ("forces, eV/Å", "forces_mae", "{:.4f}"),
    ("stress, eV/Å³", "stress_mae", "{:.5f}"),
    ("stress, GPa", "stress_mae_gpa", "{:.3f}"),
    ("total", "total", "{:.3f}"),
)
TEACHERS = {"EAM": "eam", "teacher": "teacher"}  # what the report calls them: where the summary holds them


@dataclass(frozen=True)
class Table:
    """A table of a report.

    name : of its CSV file. caption : what it holds. head : headings. rows : text.
    values : rows of the CSV file where they differ from ``rows``, with ``value_head`` as headings.
    words : columns from the left that hold words rather than numbers. notes : what a reader has to know.
    """

    name: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    values: Sequence[Sequence[Any]] | None = None
    value_head: Sequence[str] | None = None
    words: int = 1
    notes: str = ""

    def csv(self) -> str:
        """The table as comma-separated values; what is missing is empty."""
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.value_head or self.head)
        for row in self.rows if self.values is None else self.values:
            writer.writerow(["" if v is None or v == MISSING else v for v in row])
        return text.getvalue()

    def write(self, folder: Path) -> Path:
        path = folder / f"{self.name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.csv(), encoding="utf-8", newline="")
        return path


def each_of(part: Mapping[str, Any]) -> str:
    """Counts of the networks one by one, where there are several."""
    each = part.get("each") or []
    return f"; {', '.join(map(str, each))}" if len(each) > 1 else ""


def stability_table(run: Run) -> Table | None:
    """Table 1: failures by criterion."""
    found = [(arm, run.summary[arm]["dynamics"]) for arm in run.arms if run.summary[arm].get("dynamics")]
    if not found:
        return None
    head = ["arm", "networks", "failed", "atom overlap", "Lindemann index", "other reasons", "median failing time, ps"]
    rows, values = [], []
    for arm, d in found:
        others = {r: c["count"] for r, c in d["by_reason"].items() if not r.startswith(("overlap", "lindemann"))}
        named = ", ".join(f"{r.replace('_', ' ')} {n}" for r, n in others.items() if n) or "none"
        networks = d.get("networks", 1)
        time = d.get("median_failing_time_fs")
        time = None if time is None else time / 1000
        cells = [counted(d[key]) + each_of(d[key]) for key in ("failed", "overlap", "lindemann")]
        ensemble = f"{arm} ({d['settings']['ensemble'].upper()})"
        rows.append([ensemble, str(networks), *cells, named, shown(time, "{:.3g}")])
        for reason, part in (("failed", d["failed"]), ("lindemann", d["lindemann"]), *d["by_reason"].items()):
            low, high = part["interval"] or (None, None)
            each = " ".join(map(str, part.get("each", [])))
            values.append([arm, d["settings"]["ensemble"], networks, reason, part["count"], part["n"], low, high, each])
    networks = max(int(d.get("networks", 1)) for _, d in found)
    notes = (
        "In brackets: 95 % interval over structures and networks; after the semicolon: the count of each network."
        if networks > 1
        else "In brackets: Wilson 95 % interval over structures. One network stands behind each row: structures "
        "simulated with one network share its faults, and the interval does not hold the spread between trainings."
    )
    notes += " A structure can pass several bounds, so that reasons may add up to more than the failures."
    value_head = ["arm", "ensemble", "networks", "reason", "count", "n", "low_95", "high_95", "each_network"]
    return Table("table-1-stability", "Table 1. Structures that failed", head, rows, values, value_head, notes=notes)


def error_table(run: Run) -> Table | None:
    """Table 2: errors of every potential on every test set."""
    rows, values, lacking = [], [], set()
    several = False
    for test_set, who, each in error_sources(run):
        first = each[0]
        cells: list[str] = []
        numbers: list[float | None] = []
        for _, key, form in ERRORS:
            known = [e[key] for e in each if e.get(key) is not None]
            mean = fmean(known) if known else None
            numbers.append(mean)
            spread = f" ({form.format(min(known))}–{form.format(max(known))})" if len(known) > 1 else ""
            several |= bool(spread)
            cells.append(shown(mean, form) + spread)
        lacking |= {label for label in ("energy", "forces", "stress") if first.get(f"{label}_mae") is None}
        rows.append([test_set, who, f"{first['n_structures']:,}", *cells])
        values.append([test_set, who, len(each), first["n_structures"], *numbers])
    if not rows:
        return None
    weights: dict[str, float] = {}
    for _, _, each in error_sources(run):
        weights = weights or each[0].get("weights") or {}
    total = " + ".join(f"{w:g}·{label}" for label, w in weights.items())
    notes = f"Mean absolute errors. Total = {total}, in eV, eV/Å and eV/Å³, over the labels that exist."
    if several:
        notes += " Means over networks, in brackets the lowest and the highest."
    if lacking:
        notes += f" {MISSING}: no {' and no '.join(sorted(lacking))} labels, or none that the potential predicts."
    head = ["test set", "potential", "structures", *(title for title, _, _ in ERRORS)]
    value_head = ["test set", "potential", "networks", "structures", *(title for title, _, _ in ERRORS)]
    caption = "Table 2. Errors on test structures"
    return Table("table-2-errors", caption, head, rows, values, value_head, words=2, notes=notes)


def error_sources(run: Run) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    """(test set, name, errors of each network) of every arm, before finetuning, and of the teacher."""
    sets: dict[str, None] = {}
    for arm in run.arms:
        for network in run.networks(arm):
            sets.update(dict.fromkeys(network.get("errors") or {}))
    teachers = {who: (run.summary.get(key) or {}).get("errors") or {} for who, key in TEACHERS.items()}
    for errors in teachers.values():
        sets.update(dict.fromkeys(errors))
    found = []
    for name in sets:
        for key, suffix in (("errors", ""), ("errors_before_finetuning", ", before finetuning")):
            for arm in run.arms:
                each = [n[key][name] for n in run.networks(arm) if name in (n.get(key) or {})]
                if each:
                    found.append((name, f"{arm}{suffix}", each))
        found += [(name, who, [errors[name]]) for who, errors in teachers.items() if name in errors]
    return found


def structures_table(run: Run) -> Table | None:
    """Every structure with every network: verdict, first failing step, reasons."""
    simulated = run.simulated()
    if not simulated:
        return None
    places: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, found in simulated.items():
        for v in found["verdicts"]:
            places.setdefault((v["index"], v["structure_id"], v["formula"], v["n_atoms"]), {})[name] = v
    rows: list[list[str]] = []
    values: list[list[Any]] = []
    for (_, identity, formula, n_atoms), own in sorted(places.items()):
        cells = []
        for name in simulated:
            v = own.get(name)
            cells.append(MISSING if v is None else _verdict_words(v))
            if v is not None:
                values.append([
                    identity, formula, n_atoms, name, v["status"], v["first_failing_step"], v["time_fs"],
                    " ".join(v["reasons"]), v["metrics"].get("min_distance"), v["metrics"].get("lindemann_max_local"),
                    v["metrics"].get("lindemann_global"), v["steps_run"],
                ])  # fmt: skip
        if len(rows) < SHOWN_STRUCTURES:
            rows.append([identity, formula, str(n_atoms), *cells])
    head = ["structure", "formula", "atoms", *simulated]
    value_head = [
        "structure", "formula", "atoms", "network", "status", "first_failing_step", "time_fs", "reasons",
        "min_distance_A", "lindemann_max_local", "lindemann_global", "steps_run",
    ]  # fmt: skip
    notes = "What each structure failed by, in the order of the failing steps; the step is that of the first."
    if len(places) > len(rows):
        notes += f" The first {len(rows)} of {len(places):,} structures; structures.csv holds all."
    return Table("structures", "Every structure", head, rows, values, value_head, words=2, notes=notes)


def _verdict_words(verdict: Mapping[str, Any]) -> str:
    if not kind_of(verdict):
        return "stable"
    reasons = ", ".join(r.replace("_", " ") for r in verdict["reasons"])
    return f"step {verdict['first_failing_step']:,}: {reasons}"


def eam_tables(run: Run, curves: Mapping[str, Any]) -> list[Table]:
    """Parameters of the embedded-atom potential, by pair and by element."""
    found = []
    pairs = (run.summary.get("eam") or {}).get("table") or []
    if pairs:
        titles = {
            "pair": "pair", "D_eV": "D, eV", "alpha_per_A": "α, 1/Å", "r_e_A": "r_e, Å",
            "closest_A": "closest in data, Å",
            "well_depth_eV": "well depth, eV", "well_position_A": "well at, Å", "wall_at_0.5_A_eV": "wall at 0.5 Å, eV",
            "rises": "rises inwards",
        }  # fmt: skip
        keys = [k for k in titles if k in pairs[0]] + [k for k in pairs[0] if k not in titles]
        rows = [[_cell(row.get(k)) for k in keys] for row in pairs]
        values = [[row.get(k) for k in keys] for row in pairs]
        head = [titles.get(k, k.replace("_", " ")) for k in keys]
        notes = "Morse parameters of the pair term; well and wall are of two atoms alone, embedding included."
        found.append(Table("eam-pairs", "Embedded-atom potential: pairs", head, rows, values, keys, notes=notes))
    elements = curves.get("elements") or []
    if elements:
        rows = [[_cell(v) for v in row.values()] for row in elements]
        head = ["element", "B, eV", "ρ₀", "E₀, eV"]
        raw = [list(row.values()) for row in elements]
        notes = "F(ρ) = B (ρ − ρ₀)²; E₀: energy of the atom without neighbours, less F(0)."
        found.append(Table("eam-elements", "Embedded-atom potential: elements", head, rows, raw, head, notes=notes))
    return found


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return MISSING if value is None else str(value)


def set_table(run: Run) -> Table | None:
    """How the pretraining set came about: draws, and what became of them."""
    if not run.pretraining_set:
        return None
    rows = []
    for name, r in run.pretraining_set.items():
        rejected = ", ".join(f"{n:,} by {reason.replace('_', ' ')}" for reason, n in r["rejected"].items()) or "none"
        rows.append([
            name, f"{r['parents']:,}", f"{r['structures']:,} of {r['wanted']:,}", f"{r['drawn']:,}", rejected,
            f"{r['redrawn']:,}", f"{r['weakened']:,}", f"{r['given_up']:,}",
        ])  # fmt: skip
    head = ["set", "parents", "made", "draws", "rejected draws", "drawn again", "of these weaker", "given up"]
    notes = (
        "A draw is rejected where two atoms come closer than min_distance or the teacher's largest force passes "
        "max_force, and drawn again, with weaker strengths after some attempts."
    )
    return Table("pretraining-set", "Draws of the pretraining set", head, rows, notes=notes)


def method_cost(run: Run) -> str:
    """What pretraining takes beyond plain training, in seconds (the paper's section 4.1); empty where there is none."""
    parts = {"fit of the embedded-atom potential": (run.summary.get("eam") or {}).get("seconds")}
    parts["pretraining set"] = (run.summary.get("pretraining_set") or {}).get("seconds")
    for arm in run.arms:
        budgets = [(n.get("training") or {}).get("budget") or {} for n in run.networks(arm)]
        spent = [b["pretrain"]["seconds"] for b in budgets if "pretrain" in b]
        if spent:
            parts[f"pretraining of {arm}"] = fmean(spent)
            known = {what: seconds for what, seconds in parts.items() if seconds is not None}
            finetune = fmean(b["finetune"]["seconds"] for b in budgets if "finetune" in b)
            said = ", ".join(f"{what} {seconds:,.0f} s" for what, seconds in known.items())
            return (
                f"Beyond plain training the method took {sum(known.values()):,.0f} s: {said}. Finetuning one network "
                f"took {finetune:,.0f} s."
            )
    return ""


def cost_table(run: Run) -> Table | None:
    """Time, processor time and memory of each stage."""
    rows, values = [], []
    for name, stage in run.stages.items():
        done = stage["done"]
        seconds = (done.get("result") or {}).get("seconds")
        if seconds is None:
            continue
        cost = done.get("cost") or {}
        budget = ((done.get("result") or {}).get("budget") or {}).get("total") or {}
        processor, memory, gpu = (cost.get(k) for k in ("processor_seconds", "peak_memory_mb", "peak_gpu_memory_mb"))
        seconds = max(seconds, budget.get("seconds", 0.0))
        spent = [budget.get(k) for k in ("epochs", "steps", "structures")]
        values.append([name, seconds, processor, memory, gpu, *spent])
        if name.endswith(CHECKS):
            continue
        rows.append([
            name, f"{seconds:,.1f}", shown(processor, "{:,.1f}"), shown(memory, "{:,.0f}"), shown(gpu, "{:,.0f}"),
            *(shown(n, "{:,.0f}") for n in spent),
        ])  # fmt: skip
    if not rows:
        return None
    head = ["stage", "seconds", "processor, s", "memory, MB", "GPU memory, MB", "epochs", "steps", "structures seen"]
    notes = (
        "Wall time since the stage was last started (training: over all its starts), processor time of all threads, "
        f"and the largest memory of the process while it ran. {MISSING}: was not recorded. cost.csv has the "
        "computation of errors and angles, too."
    )
    return Table("cost", "Time, memory and cost of each stage", head, rows, values, head, notes=notes)


def data_table(run: Run, hashes: Mapping[str, str]) -> Table | None:
    """Structures and labels of each set, and hashes of the files."""
    data = run.summary.get("data") or {}
    rows = []
    for name, found in data.items():
        labels = [f"{found['labels'][k]:,}" for k in ("energy", "forces", "stress")]
        rows.append([name, f"{found['structures']:,}", f"{found['atoms']:,}", *labels])
    if not rows:
        return None
    head = ["set", "structures", "atoms", "with energy", "with forces", "with stress"]
    notes = "; ".join(f"{path}: SHA-256 {value}" for path, value in hashes.items())
    return Table("data", "Data", head, rows, notes=notes)

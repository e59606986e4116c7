"""The tables of a report: what the page shows, and the same with all digits for a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from mdl_physpre.analysis.energy_curves import EAMElement
from mdl_physpre.analysis.force_alignment import ForceAlignment
from mdl_physpre.dynamics.verdicts.verdict import Count, Verdict
from mdl_physpre.report.tables.breaking import median_words
from mdl_physpre.report.tables.text import (
    ERRORS,
    NULL_MODEL,
    counted,
    ensemble_name,
    error_sources,
    other_reasons,
    worded,
)
from mdl_physpre.runs.read import Run
from mdl_physpre.structures.labels import LABELS
from mdl_physpre.utils.files import write_text
from mdl_physpre.utils.text_table import MISSING, shown

SHOWN_STRUCTURES = 100  # rows of the page's table of structures; the CSV file has all


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
        """Write its CSV file into a folder."""
        path = folder / f"{self.name}.csv"
        write_text(path, self.csv())
        return path


def counted_each(part: Count) -> str:
    """A count with its interval, and the counts of the replicas one by one, where there are several."""
    return counted(part) + (f"; {', '.join(map(str, part.each))}" if len(part.each) > 1 else "")


def stability_table(run: Run) -> Table | None:
    """Table 1: failures by criterion."""
    found = {arm: result.dynamics for arm, result in run.summary.arms.items() if result.dynamics}
    if not found:
        return None
    head = ["arm", "networks", "failed", "melted", "by the paper", "atom overlap", "Lindemann index", "other reasons"]
    head.append("half failed by, ps")
    rows: list[list[str]] = []
    values: list[list[Any]] = []
    for arm, d in found.items():
        c, ensemble, called = d.counts, d.settings["ensemble"], f"{arm} ({ensemble_name(d.settings)})"
        times = run.summary.arms[arm].failure_times
        rows.append([
            called, str(c.networks), counted_each(c.failed),
            *(MISSING if part is None else counted_each(part) for part in (c.melted, c.paper)),
            *map(counted_each, (c.overlap, c.lindemann)),
            other_reasons(c, words=True), median_words(times, unit=False),
        ])  # fmt: skip
        told = {"failed": c.failed, "melted": c.melted, "paper": c.paper, "lindemann": c.lindemann, **c.by_reason}
        for reason, part in ((reason, part) for reason, part in told.items() if part is not None):
            ends, each = part.interval or (None, None), " ".join(map(str, part.each))
            values.append([arm, ensemble, c.networks, reason, part.count, part.n, *ends, each])
    notes = (
        "In brackets: 95 % interval over structures and networks; after the semicolon: the count of each network."
        if any(d.counts.networks > 1 for d in found.values())
        else "In brackets: Wilson 95 % interval over structures. One network stands behind each row: structures "
        "simulated with one network share its faults, and the interval does not hold the spread between trainings."
    )
    notes += (
        " Reasons may add up to more than the failures. Melted: only a Lindemann bound is passed, by a healthy liquid. "
        "By the paper: failed by overlap or Lindemann index, melted or not. Half failed by: "
        "Kaplan–Meier median with its 95 % interval; >: fewer than half failed before the end."
    )
    value_head = ["arm", "ensemble", "networks", "reason", "count", "n", "low_95", "high_95", "each_network"]
    return Table("table-1-stability", "Table 1. Structures that failed", head, rows, values, value_head, notes=notes)


def error_table(run: Run) -> Table | None:
    """Table 2: errors of every potential on every test set."""
    sources = error_sources(run.summary)
    if not sources:
        return None
    rows: list[list[str]] = []
    values: list[list[Any]] = []
    for test_set, who, mean, each in sources:
        cells = []
        for _, key, form in ERRORS:
            known = [own for e in each if (own := getattr(e, key)) is not None]
            spread = f" ({form.format(min(known))}–{form.format(max(known))})" if len(known) > 1 else ""
            cells.append(shown(getattr(mean, key), form) + spread)
        rows.append([test_set, who, f"{mean.n_structures:,}", *cells])
        values.append([test_set, who, len(each), mean.n_structures, *(getattr(mean, key) for _, key, _ in ERRORS)])
    weights: dict[str, float] = next((one.mean.weights for one in sources if one.mean.weights), {})
    total = " + ".join(f"{w:g}·{label}" for label, w in weights.items())
    notes = f"Mean absolute errors. Total = {total}, in eV, eV/Å and eV/Å³, over the labels that exist."
    if any(len(one.each) > 1 for one in sources):
        notes += " Means over networks, in brackets the lowest and the highest."
    if any(one.who == NULL_MODEL for one in sources):
        notes += f" {NULL_MODEL.capitalize()}: no forces, no stress, energies of composition alone."
    lacking = [k for k in LABELS if any(getattr(one.mean, f"{k}_mae") is None for one in sources)]
    if lacking:
        notes += f" {MISSING}: no {' and no '.join(lacking)} labels, or none that the potential predicts."
    titles = [title for title, _, _ in ERRORS]
    head, value_head = (
        ["test set", "potential", *own, *titles] for own in (["structures"], ["networks", "structures"])
    )
    caption = "Table 2. Errors on test structures"
    return Table("table-2-errors", caption, head, rows, values, value_head, words=2, notes=notes)


def angle_table(angles: Mapping[str, Mapping[str, ForceAlignment]]) -> Table:
    """Angles between the forces of the embedded-atom potential and of the networks (the paper's Figure B.1).

    Means on the page, and whole histograms in the CSV file. ``angles`` : test set → arm → its angles.
    """
    rows: list[list[str]] = []
    values: list[list[Any]] = []
    for test_set, by_arm in angles.items():
        for arm, found in by_arm.items():
            beyond = found.share_above_90
            rows.append([
                test_set, arm, f"{found.n_atoms:,}", shown(found.mean, "{:.1f}"),
                shown(None if beyond is None else 100 * beyond, "{:.1f} %"), shown(found.weighted_mean, "{:.1f}"),
            ])  # fmt: skip
            histogram = zip(found.edges, found.edges[1:], found.atoms, found.weighted, found.isotropic)
            values += [[test_set, arm, *row] for row in histogram]
    head = ("test set", "arm", "atoms", "mean, °", "beyond 90°", "mean weighted by force, °")
    value_head = ("test set", "arm", "from, °", "to, °", "atoms", "weight, eV/Å", "share of independent directions")
    return Table("force-angles", "Angles between forces", head, rows, values, value_head, words=2)


def structures_table(run: Run) -> Table | None:
    """Every structure with every network: verdict, first failing step, reasons."""
    simulated = run.simulated()
    if not simulated:
        return None
    places: dict[tuple[int, str, str, int], dict[str, Verdict]] = {}
    for name, found in simulated.items():
        for v in found.verdicts:
            places.setdefault((v.index, v.structure_id, v.formula, v.n_atoms), {})[name] = v
    rows: list[list[str]] = []
    values: list[list[Any]] = []
    measured = ("min_distance", "lindemann_max_local", "lindemann_global")
    for (_, identity, formula, n_atoms), own in sorted(places.items(), key=lambda item: item[0]):
        for name, v in own.items():
            values.append([
                identity, formula, n_atoms, name, v.status, v.first_failing_step, v.time_fs, " ".join(v.reasons),
                *(v.metrics.get(key) for key in measured), v.steps_run,
            ])  # fmt: skip
        if len(rows) < SHOWN_STRUCTURES:
            cells = [_verdict_words(own[name]) if name in own else MISSING for name in simulated]
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


def _verdict_words(verdict: Verdict) -> str:
    if not verdict.failed:
        return verdict.status
    return f"step {verdict.first_failing_step:,}: {', '.join(map(worded, verdict.reasons))}"


def eam_tables(run: Run, elements: Sequence[EAMElement]) -> list[Table]:
    """Parameters of the embedded-atom potential, by pair and by element."""
    found = []
    pairs = run.summary.eam.table if run.summary.eam else ()
    if pairs:
        titles = {
            "pair": "pair", "D_eV": "D, eV", "alpha_per_A": "α, 1/Å", "r_e_A": "r_e, Å",
            "closest_A": "closest in data, Å",
            "well_depth_eV": "well depth, eV", "well_position_A": "well at, Å", "wall_at_0.5_A_eV": "wall at 0.5 Å, eV",
            "rises": "rises inwards",
        }  # fmt: skip
        values = [[row.plain()[k] for k in titles] for row in pairs]
        rows = [list(map(_cell, row)) for row in values]
        notes = "Morse parameters of the pair term; well and wall are of two atoms alone, embedding included."
        head, keys = list(titles.values()), list(titles)
        found.append(Table("eam-pairs", "Embedded-atom potential: pairs", head, rows, values, keys, notes=notes))
    if elements:
        head = ["element", "B, eV", "ρ₀", "E₀, eV"]
        raw = [list(row.plain().values()) for row in elements]
        rows = [list(map(_cell, row)) for row in raw]
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
        rejected = ", ".join(f"{n:,} by {worded(reason)}" for reason, n in r.rejected.items()) or "none"
        rows.append([
            name, f"{r.parents:,}", f"{r.structures:,} of {r.wanted:,}", f"{r.drawn:,}", rejected,
            f"{r.redrawn:,}", f"{r.weakened:,}", f"{r.given_up:,}",
        ])  # fmt: skip
    head = ["set", "parents", "made", "draws", "rejected draws", "drawn again", "of these weaker", "given up"]
    notes = (
        "A draw is rejected where two atoms come closer than min_distance or the teacher's largest force passes "
        "max_force, and drawn again, with weaker strengths after some attempts."
    )
    return Table("pretraining-set", "Draws of the pretraining set", head, rows, notes=notes)


def data_table(run: Run, hashes: Mapping[str, str]) -> Table | None:
    """Structures and labels of each set, and hashes of the files."""
    rows = [
        [name, *(f"{n:,}" for n in (found.structures, found.atoms, *(found.labels.get(k, 0) for k in LABELS))),
         MISSING if name == "train" else f"{found.in_training:,}"]
        for name, found in run.summary.data.items()
    ]  # fmt: skip
    head = ["set", "structures", "atoms", *(f"with {label}" for label in LABELS), "also in training"]
    notes = "; ".join(f"{path}: SHA-256 {value}" for path, value in hashes.items())
    return Table("data", "Data", head, rows, notes=notes) if rows else None

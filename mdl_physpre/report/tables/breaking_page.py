"""The page's tables of stress tests."""

from __future__ import annotations

from typing import Any

from mdl_physpre.dynamics.verdicts.log_rank import BreakingComparison
from mdl_physpre.report.figures.style import safe_name
from mdl_physpre.report.tables.breaking import (
    breaking_head,
    median_words,
    medians_each,
    p_number,
    reasons_words,
)
from mdl_physpre.report.tables.page import SHOWN_STRUCTURES, Table
from mdl_physpre.report.tables.text import worded
from mdl_physpre.runs.read import Run
from mdl_physpre.utils.text_table import MISSING, shown

NOTES = (
    "Median: half of the structures are broken there (Kaplan–Meier), in brackets its 95 % interval over networks and "
    "structures; >: beyond the end of the test. Tests against {reference}, log-rank, stratified by structure: p of "
    "whole networks permuted between the arms, in brackets the smallest that it can be with so many networks; and p "
    "taking structures as independent, which those with one network are not. Networks needed: of each arm, for a "
    "difference of the size seen at 80 % power and a level of 5 %, in brackets with any number of structures; roughly, "
    "because it rests on the spread between the few networks seen."
)
NOT_KNOWN = " With one network of an arm its spread between trainings is not in the interval."


def breaking_table(run: Run, test: str) -> Table:
    """A row for each arm in a stress test: median, broken, tests against the reference arm, networks needed."""
    summary = run.summary
    found = summary.breaking(test)
    pairs = {pair.second: pair for pair in summary.stress_pairs.get(test, ())}
    rows: list[list[str]] = []
    values: list[list[Any]] = []
    for arm, s in found.items():
        pair = pairs.get(arm)
        rows.append([
            arm, median_words(s, unit=False), medians_each(s) if len(s.networks) > 1 else MISSING,
            f"{s.broken} of {s.n}", reasons_words(s), *_test_cells(pair),
        ])  # fmt: skip
        tests = [getattr(pair, key, None) for key in TESTED]
        low, high = s.interval or (None, None)
        values.append([
            arm, s.quantity, s.unit, len(s.networks), s.n, s.broken, s.median, low, high, s.end,
            " ".join(f"{reason}:{n}" for reason, n in s.reasons.items()), " ".join(map(str, s.median_each)), *tests,
        ])  # fmt: skip
    head = [
        "arm", "median (95 %)", "of each network", "broken", "by", "p, networks permuted", "p, structures independent",
        "networks needed",
    ]  # fmt: skip
    value_head = ["arm", "quantity", "unit", "networks", "n", "broken", "median", "low_95", "high_95", "end", "reasons",
                  "median_each", *TESTED]  # fmt: skip
    notes = NOTES.format(reference=summary.reference)
    notes += NOT_KNOWN if any(len(s.networks) == 1 for s in found.values()) else ""
    return Table(f"breaking-{safe_name(test)}", breaking_head(test, found), head, rows, values, value_head, notes=notes)


TESTED = ("z", "p_networks", "smallest_p", "p_structures", "networks_needed", "networks_at_least", "structures_needed")


def _test_cells(pair: BreakingComparison | None) -> list[str]:
    if pair is None:
        return [MISSING] * 3
    permuted = MISSING
    if pair.p_networks is not None and pair.smallest_p is not None:
        permuted = f"{p_number(pair.p_networks)} (≥ {p_number(pair.smallest_p)})"
    needed = shown(pair.networks_needed, "{:d}")
    if pair.networks_needed is not None and pair.networks_at_least is not None:
        needed += f" ({pair.networks_at_least})"
    return [permuted, MISSING if pair.p_structures is None else p_number(pair.p_structures), needed]


def points_table(run: Run) -> Table | None:
    """Every structure in every stress test with every network: where it broke, and why."""
    rows: list[list[str]] = []
    values: list[list[Any]] = []
    for arm, result in run.summary.arms.items():
        for network in result.networks:
            for test, found in network.stress.items():
                for p in found.points:
                    values.append([
                        test, arm, network.name, p.structure_id, p.formula, p.n_atoms, p.value, found.unit, p.broken,
                        p.reason, p.step, p.text,
                    ])  # fmt: skip
                    if len(rows) < SHOWN_STRUCTURES:
                        said = worded(p.reason or "broken") if p.broken else "whole to the end"
                        value = f"{'' if p.broken else '> '}{p.value:,.4g} {found.unit}"
                        rows.append([test, network.name, p.structure_id, p.formula, value, said])
    if not values:
        return None
    head = ["test", "network", "structure", "formula", "broke at", "why"]
    value_head = ["test", "arm", "network", "structure", "formula", "atoms", "value", "unit", "broken", "reason",
                  "step", "text"]  # fmt: skip
    more = len(values) > len(rows)
    notes = f"The first {len(rows)} of {len(values):,}; breaking-points.csv has all." if more else ""
    return Table("breaking-points", "Where each structure broke", head, rows, values, value_head, words=4, notes=notes)

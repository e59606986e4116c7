"""What a run says in two sentences and one table: what each arm did to stability and to errors, against the first.

A difference is only stated where its test allows it; where counts are too small to tell, that is what is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mdl_physpre.analysis.parity import paired_change
from mdl_physpre.dynamics.verdicts.statistics import permutation_p_value
from mdl_physpre.report.comparison import Simulated, paired_counts
from mdl_physpre.report.measurements import Measured
from mdl_physpre.report.tables.page import Table, each_of, error_sources
from mdl_physpre.report.tables.text import MISSING, counted, rounded
from mdl_physpre.runs.read import Run

LEVEL = 0.05  # of a p-value below which a difference is called one
QUANTITIES = (
    ("forces", "force error", "eV/Å", 4),
    ("energy_per_atom", "energy error", "meV/atom", 4),
    ("stress", "stress error", "eV/Å³", 3),
)
FEWEST = 6  # structures that fail with one network alone: with fewer, the exact test cannot reach the level


@dataclass(frozen=True)
class Comparison:
    """An arm against the reference arm, or what is missing for it."""

    arm: str
    stability: str
    errors: str


def reference_arm(run: Run) -> str:
    """What the other arms are compared with: plain training, or the first arm where there is none."""
    return "baseline" if "baseline" in run.arms else run.arms[0]


def comparisons(run: Run, measured: Measured) -> list[Comparison]:
    """A sentence on stability and one on errors for every arm but the reference."""
    first = reference_arm(run)
    return [
        Comparison(arm, _stability_sentence(run, first, arm), _error_sentence(run, measured, first, arm))
        for arm in run.arms
        if arm != first
    ]


def stability_test(run: Run, first: str, second: str) -> dict[str, Any] | None:
    """The test between two arms: over networks where there are several, over structures where there is one each."""
    one, other = (run.summary[arm].get("dynamics") for arm in (first, second))
    if not one or not other:
        return None
    counts = [d["failed"].get("each") or [d["failed"]["count"]] for d in (one, other)]
    if min(len(c) for c in counts) > 1:
        rates = [[c / (d["n"] / len(own)) for c in own] for d, own in zip((one, other), counts)]
        return {"over": "networks", "p": permutation_p_value(*rates), "networks": [len(c) for c in counts]}
    simulated = [next(iter(run.simulations[arm].items()), None) for arm in (first, second)]
    if None in simulated:
        return None
    pair = paired_counts(*(Simulated(s[0], s[1]["settings"], s[1]["verdicts"]) for s in simulated if s))
    return {"over": "structures", "p": pair["p_value"], **pair}


def _stability_sentence(run: Run, first: str, second: str) -> str:
    lacking = [arm for arm in (first, second) if not run.summary[arm].get("dynamics")]
    if lacking:
        return f"Stability: nothing can be said; molecular dynamics of {' and '.join(lacking)} is missing."
    one, other = (run.summary[arm]["dynamics"]["failed"] for arm in (first, second))
    said = f"Stability: {_broke(other)} structures failed with {second} and {_broke(one)} with {first}"
    test = stability_test(run, first, second)
    if test is None or test["p"] is None:
        return f"{said}; they share no structure, so that no test was made."
    if not one["count"] and not other["count"]:
        return f"{said}: the simulation was too mild to tell them apart."
    fewer = (other["fraction"] or 0) < (one["fraction"] or 0)
    if test["over"] == "networks":
        of = f"{test['networks'][1]} and {test['networks'][0]} networks, exact permutation test {p_value(test['p'])}"
        if test["p"] >= LEVEL:
            return f"{said}: no difference is shown ({of})."
        return f"{said}: {second} is {'more' if fewer else 'less'} stable ({of})."
    lone = f"{test['second_only']} with {second} alone, {test['first_only']} with {first} alone"
    if test["first_only"] + test["second_only"] < FEWEST:
        return f"{said}; {lone}: too few to tell them apart."
    of = f"exact McNemar test {p_value(test['p'])}"
    if test["p"] >= LEVEL:
        return f"{said}; {lone}: no difference is shown ({of})."
    return (
        f"{said}; {lone}: this {second} network is {'more' if fewer else 'less'} stable than this {first} network "
        f"({of}). Whether another training would give the same is not known from one network each."
    )  # fmt: skip


def _broke(part: Mapping[str, Any]) -> str:
    return f"{part['count']} of {part['n']}" + (
        f" ({', '.join(map(str, part['each']))})" if len(part.get("each") or []) > 1 else ""
    )


def _error_sentence(run: Run, measured: Measured, first: str, second: str) -> str:
    parts = []
    for test_set in dict.fromkeys(name for name, _, _ in error_sources(run)):
        change = force_change(run, measured, test_set, first, second)
        if change is None:
            continue
        ends = change["interval"]
        if ends and ends[0] <= 0 <= ends[1]:
            judged = "no difference is shown"
        elif change["change"] < 0:
            judged = "lower"
        else:
            judged = "higher: it did not help"
        kind = "all pairs of networks" if change["several"] else "95 %"
        interval = f", {kind} {_ends(ends)}" if ends else ""
        values = f"{rounded(change['first'])} → {rounded(change['second'])} eV/Å"
        parts.append(f"{test_set} {values} ({signed(change['change'])}{interval}; {judged})")
    if not parts:
        return f"Errors: nothing can be said; errors of {first} or {second} are missing."
    return f"Errors: force error from {first} to {second}: {', '.join(parts)}."


def _ends(interval: Sequence[float]) -> str:
    return " to ".join(map(signed, interval))


def signed(change: float) -> str:
    """A relative change in per cent."""
    return f"{100 * change:+.1f} %".replace("-", "−")


def force_change(
    run: Run, measured: Measured, test_set: str, first: str, second: str, quantity: str = "forces"
) -> dict[str, Any] | None:
    """Relative change of an error between two arms.

    With several networks: of the means over them; the interval spans the changes from every network of the one to
    every network of the other. With one each: over structures (:func:`mdl_physpre.analysis.parity.paired_change`).
    """
    key = "energy_mae_mev_per_atom" if quantity == "energy_per_atom" else f"{quantity}_mae"
    each = []
    for arm in (first, second):
        errors = [n["errors"][test_set].get(key) for n in run.networks(arm) if test_set in (n.get("errors") or {})]
        each.append([e for e in errors if e is not None])
    if not each[0] or not each[1]:
        return None
    a, b = fmean(each[0]), fmean(each[1])
    found: dict[str, Any] = {"first": a, "second": b, "change": b / a - 1 if a else 0.0, "interval": None}
    found["several"] = max(map(len, each)) > 1
    if found["several"]:
        changes = [y / x - 1 for x in each[0] for y in each[1] if x]
        found["interval"] = [min(changes), max(changes)]
        return found
    stored = measured.predictions.get(test_set, {})
    if first in stored and second in stored:
        paired = paired_change(stored[first], stored[second], quantity)
        found["interval"] = None if paired is None else paired.interval
    return found


def verdict_table(run: Run, measured: Measured) -> Table:
    """A column for each arm: failures, and errors with their change against the reference arm."""
    first = reference_arm(run)
    head = ["", *(f"{arm} (reference)" if arm == first and len(run.arms) > 1 else arm for arm in run.arms)]
    rows = [["networks", *(str(len(run.networks(arm)) or MISSING) for arm in run.arms)]]
    rows.append(["failed in molecular dynamics", *(_failed(run, arm) for arm in run.arms)])
    if len(run.arms) > 1:
        tests = [None if arm == first else stability_test(run, first, arm) for arm in run.arms]
        rows.append([f"against {first}", *(MISSING if not t or t["p"] is None else p_value(t["p"]) for t in tests)])
    for test_set in dict.fromkeys(name for name, _, _ in error_sources(run)):
        for quantity, text, unit, digits in QUANTITIES:
            cells = [_error(run, measured, test_set, first, arm, quantity, digits) for arm in run.arms]
            if any(cell != MISSING for cell in cells):
                rows.append([f"{text}, {test_set} ({unit})", *cells])
    several = any(len(run.networks(arm)) > 1 for arm in run.arms)
    notes = (
        "Failed: count, and 95 % interval over structures and networks. Errors: means over networks; in brackets their "
        "change, and its range over all pairs of networks."
        if several
        else "Failed: count, and Wilson 95 % interval. Mean absolute errors; in brackets their change, and its 95 % "
        "bootstrap interval. Both intervals are over structures alone: one network stands behind each arm, and how far "
        "another training of the same kind would differ is not in them."
    )
    return Table("verdict", "What each arm did to stability and errors", head, rows, notes=notes)


def _failed(run: Run, arm: str) -> str:
    dynamics = run.summary[arm].get("dynamics")
    return counted(dynamics["failed"]) + each_of(dynamics["failed"]) if dynamics else "not simulated"


def _error(run: Run, measured: Measured, test_set: str, first: str, arm: str, quantity: str, digits: int) -> str:
    change = force_change(run, measured, test_set, first, arm, quantity)
    if change is None:
        return MISSING
    value = rounded(change["second"], digits)
    if arm == first:
        return value
    ends = change["interval"]
    return f"{value} ({signed(change['change'])}" + (f"; {_ends(ends)})" if ends else ")")


def p_value(p: float) -> str:
    """``p = 0.031``; a small one with its power of ten."""
    if p >= 0.001:
        return f"p = {p:.2g}"
    digits, power = f"{p:.1e}".split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"p = {digits}·10{raised}"


def cautions(run: Run) -> list[str]:
    """What a reader of the verdict has to know."""
    found = []
    if run.networks(run.arms[0]) and all(len(run.networks(arm)) <= 1 for arm in run.arms):
        found.append(
            "One network was trained for each arm, from one seed. Which of two networks fails more often can depend "
            "more on the seed than on the arm: train several (physpre.n_networks) before you trust the difference."
        )
    sources = error_sources(run)
    taught = "teacher" if run.summary.get("teacher") else "EAM"
    teacher = {name: float(each[0].get("forces_mae") or 0) for name, who, each in sources if who == taught}
    for name, who, each in sources:
        own = [e["forces_mae"] for e in each if e.get("forces_mae") is not None]
        if who in run.arms and own and 0 < teacher.get(name, 0) < fmean(own):
            found.append(
                f"On {name} the force error of {who} ({rounded(fmean(own))} eV/Å) is larger than that of the teacher "
                f"({taught}, {rounded(teacher[name])} eV/Å)."
            )
    steps = {}
    for arm in run.arms:
        budgets = [n["training"]["budget"]["total"]["steps"] for n in run.networks(arm) if n.get("training")]
        if budgets:
            steps[arm] = fmean(budgets)
    if len(set(steps.values())) > 1:
        named = ", ".join(f"{arm} {n:,.0f}" for arm, n in steps.items())
        found.append(f"The arms did not take the same number of optimiser steps: {named}.")
    for arm in run.arms:
        dynamics = run.summary[arm].get("dynamics")
        if dynamics and dynamics["lindemann"]["count"] and dynamics["settings"]["temperature"] > 0:
            found.append(
                "A Lindemann index tells crystals that lose their order; a liquid, or a crystal above its melting "
                "point, passes the bound without being broken. Look at what the structures are before you read it."
            )
            break
    return found

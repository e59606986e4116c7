"""What a run says in two sentences and one table: what each arm did to stability and to errors, against the first.

A difference is only stated where its test allows it; where counts are too small to tell, that is what is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mdl_physpre.analysis.parity import paired_change
from mdl_physpre.dynamics.verdicts.log_rank import LEVEL
from mdl_physpre.dynamics.verdicts.verdict import Count
from mdl_physpre.report.comparison import compare_arms
from mdl_physpre.report.measurements import Measured
from mdl_physpre.report.tables.breaking import (
    breaking_sentences,
    correctness_sentence,
    median_words,
    p_value,
    shown_unit,
    times_sentence,
    titled,
    with_caveat,
)
from mdl_physpre.report.tables.oracle import whole_and_wrong
from mdl_physpre.report.tables.page import Table, counted_each
from mdl_physpre.report.tables.text import error_sources, rounded
from mdl_physpre.runs.oracle import dynamics_oracle_errors
from mdl_physpre.runs.pairs import ReplicaPair, StructurePair
from mdl_physpre.runs.read import Run
from mdl_physpre.utils.text_table import MISSING

QUANTITIES = (
    ("forces", "force error", "eV/Å", 4),
    ("energy_per_atom", "energy error", "meV/atom", 4),
    ("stress", "stress error", "eV/Å³", 3),
)
FEWEST = 6  # structures that fail with one network alone: with fewer, the exact test cannot reach the level


@dataclass(frozen=True)
class Sentences:
    """What is said of an arm against the reference arm, or what is missing for it."""

    arm: str
    stability: str
    errors: str


@dataclass(frozen=True)
class Change:
    """The mean error of two arms, the relative change from ``first`` to ``second``, and an interval of it.

    several : whether there are several replicas.
    """

    first: float
    second: float
    change: float
    interval: Sequence[float] | None
    several: bool

    @property
    def ends(self) -> str:
        """Both ends of the interval in per cent; empty where there is none."""
        return " to ".join(map(signed, self.interval or ()))


def reference_arm(run: Run) -> str:
    """What the other arms are compared with, see :attr:`~mdl_physpre.runs.Summary.reference`."""
    return run.summary.reference


def comparisons(run: Run, measured: Measured) -> list[Sentences]:
    """A sentence on stability and one on errors for every arm but the reference."""
    first = reference_arm(run)
    return [
        Sentences(arm, _stability_sentence(run, first, arm), _error_sentence(run, measured, first, arm))
        for arm in run.arms
        if arm != first
    ]


def verdict_sentences(run: Run, measured: Measured) -> list[str]:
    """What a run says: where structures break, what is known of those that do not, failures and errors by arm."""
    known = correctness_sentence(run.summary)
    found = [text for test in run.summary.stress_tests for text in breaking_sentences(run.summary, test)]
    found += [known] if known else []
    alone = f"{run.arms[0]} is the only arm of this run: there is nothing to compare it with."
    return found + ([text for c in comparisons(run, measured) for text in (c.stability, c.errors)] or [alone])


def _stability_sentence(run: Run, first: str, second: str) -> str:
    one, other = (run.summary.arms[arm].dynamics for arm in (first, second))
    if one is None or other is None:
        lacking = [arm for arm, found in ((first, one), (second, other)) if found is None]
        return f"Stability: nothing can be said; molecular dynamics of {' and '.join(lacking)} is missing."
    broken, counts = one.counts.failed, other.counts.failed
    test = compare_arms(run, first, second)
    said = _counts_compared(first, second, (broken, counts), test)
    times = test.times if test is not None else None
    when = [run.summary.arms[arm].failure_times for arm in (first, second)]
    later = times_sentence(times, *when) if times and times.later else ""
    return with_caveat(f"{said} {later}".rstrip())


def _counts_compared(
    first: str, second: str, counted: tuple[Count, Count], test: StructurePair | ReplicaPair | None
) -> str:
    broken, counts = counted
    said = f"Stability: {_broke(counts)} structures failed with {second} and {_broke(broken)} with {first}"
    if test is None or test.p_value is None:
        return f"{said}; they share no structure, so that no test was made."
    if not broken.count and not counts.count:
        return f"{said}: the simulation was too mild to tell them apart."
    rarer = (counts.fraction or 0) < (broken.fraction or 0)
    if isinstance(test, ReplicaPair):
        sizes = f"{len(test.second_each)} and {len(test.first_each)} networks"
        of = f"{sizes}, exact permutation test {p_value(test.p_value)}"
        if test.p_value >= LEVEL:
            return f"{said}: no difference is shown ({of})."
        return f"{said}: fewer fail with {second if rarer else first} ({of})."
    said += f"; {test.second_only} with {second} alone, {test.first_only} with {first} alone"
    if test.first_only + test.second_only < FEWEST:
        return f"{said}: too few to tell them apart."
    of = f"exact McNemar test {p_value(test.p_value)}"
    if test.p_value >= LEVEL:
        return f"{said}: no difference is shown ({of})."
    return (
        f"{said}: fewer fail with this {second if rarer else first} network than with this "
        f"{first if rarer else second} network ({of})."
    )


def _broke(part: Count) -> str:
    return f"{part.count} of {part.n}" + (f" ({', '.join(map(str, part.each))})" if len(part.each) > 1 else "")


def _error_sentence(run: Run, measured: Measured, first: str, second: str) -> str:
    parts = []
    for test_set in _test_sets(run):
        change = error_change(run, measured, test_set, first, second)
        if change is None:
            continue
        if change.interval and change.interval[0] <= 0 <= change.interval[1]:
            judged = "no difference is shown"
        else:
            judged = "lower" if change.change < 0 else "higher: it did not help"
        interval = f", {'all pairs of networks' if change.several else '95 %'} {change.ends}" if change.ends else ""
        values = f"{rounded(change.first)} → {rounded(change.second)} eV/Å"
        parts.append(f"{test_set} {values} ({signed(change.change)}{interval}; {judged})")
    if not parts:
        return f"Errors: nothing can be said; errors of {first} or {second} are missing."
    return f"Errors: force error from {first} to {second}: {', '.join(parts)}."


def _test_sets(run: Run) -> list[str]:
    return list(dict.fromkeys(tested.test_set for tested in error_sources(run.summary)))


def signed(change: float) -> str:
    """A relative change in per cent."""
    return f"{100 * change:+.1f} %".replace("-", "−")


def error_change(
    run: Run, measured: Measured, test_set: str, first: str, second: str, quantity: str = "forces"
) -> Change | None:
    """How an error changes from one arm to another; ``None`` where one of them has none.

    With several replicas the interval spans the changes from every network of the one to every network of the other.
    With one each it is over structures (:func:`mdl_physpre.analysis.parity.paired_change`).
    """
    key = "energy_mae_mev_per_atom" if quantity == "energy_per_atom" else f"{quantity}_mae"
    means: list[float] = []
    each: list[list[float]] = []
    for result in (run.summary.arms[arm] for arm in (first, second)):
        mean = getattr(result.errors.get(test_set), key, None)
        if mean is None:
            return None
        means.append(mean)
        each.append([getattr(network.errors[test_set], key) for network in result.networks])
    interval: Sequence[float] | None = None
    several = max(map(len, each)) > 1
    stored = measured.predictions.get(test_set, {})
    if several:
        changes = [y / x - 1 for x in each[0] for y in each[1] if x]
        interval = [min(changes), max(changes)] if changes else None
    elif first in stored and second in stored:
        paired = paired_change(stored[first], stored[second], quantity)
        interval = None if paired is None else paired.interval
    a, b = means
    return Change(a, b, b / a - 1 if a else 0.0, interval, several)


def verdict_table(run: Run, measured: Measured) -> Table:
    """A column for each arm: failures, and errors with their change against the reference arm."""
    first = reference_arm(run)
    head = ["", *(f"{arm} (reference)" if arm == first and len(run.arms) > 1 else arm for arm in run.arms)]
    rows = [["networks", *(str(len(run.networks(arm)) or MISSING) for arm in run.arms)]]
    rows += _breaking_rows(run, first)
    rows.append(["failed in molecular dynamics", *(_failed(run, arm) for arm in run.arms)])
    times = [median_words(run.summary.arms[arm].failure_times, unit=False) for arm in run.arms]
    rows += [["half failed by, ps", *times]] if any(cell != MISSING for cell in times) else []
    if len(run.arms) > 1:
        tests = [None if arm == first else compare_arms(run, first, arm) for arm in run.arms]
        cells = [MISSING if test is None or test.p_value is None else p_value(test.p_value) for test in tests]
        rows.append([f"against {first}", *cells])
    if dynamics_oracle_errors(run.summary):
        rows.append(["wrong by the oracle, of those not failed", *(whole_and_wrong(run, arm) for arm in run.arms)])
    for test_set in _test_sets(run):
        for quantity, text, unit, digits in QUANTITIES:
            cells = [_error(error_change(run, measured, test_set, first, arm, quantity), arm == first, digits)
                     for arm in run.arms]  # fmt: skip
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


def _breaking_rows(run: Run, first: str) -> list[list[str]]:
    """For each stress test the median breaking points, and their tests against the reference arm."""
    rows = []
    for test in run.summary.stress_tests:
        found = run.summary.breaking(test)
        unit = shown_unit(next(iter(found.values())).unit)[0]
        medians = [median_words(found.get(arm), unit=False) for arm in run.arms]
        rows.append([f"{titled(test)}: half broken at, {unit}", *medians])
        permuted = {pair.second: pair.p_networks for pair in run.summary.stress_pairs.get(test, ())}
        if any(p is not None for p in permuted.values()):
            cells = [MISSING if (p := permuted.get(arm)) is None else p_value(p) for arm in run.arms]
            rows.append([f"against {first}, networks permuted", *cells])
    return rows


def _failed(run: Run, arm: str) -> str:
    dynamics = run.summary.arms[arm].dynamics
    return counted_each(dynamics.counts.failed) if dynamics else "not simulated"


def _error(change: Change | None, reference: bool, digits: int) -> str:
    if change is None:
        return MISSING
    value = rounded(change.second, digits)
    if reference:
        return value
    return f"{value} ({signed(change.change)}" + (f"; {change.ends})" if change.ends else ")")


def cautions(run: Run) -> list[str]:
    """What a reader of the verdict has to know."""
    found = []
    if run.networks(run.arms[0]) and all(len(run.networks(arm)) <= 1 for arm in run.arms):
        found.append(
            "One network was trained for each arm, from one seed. Which of two networks fails more often can depend "
            "more on the seed than on the arm: train several (physpre.n_networks) before you trust the difference."
        )
    taught = "teacher" if run.summary.teacher else "EAM"
    sources = error_sources(run.summary)
    teacher = {tested.test_set: tested.mean.forces_mae or 0.0 for tested in sources if tested.who == taught}
    for name, who, mean, _ in sources:
        if who in run.arms and mean.forces_mae is not None and 0 < teacher.get(name, 0) < mean.forces_mae:
            found.append(
                f"On {name} the force error of {who} ({rounded(mean.forces_mae)} eV/Å) is larger than that of the "
                f"teacher ({taught}, {rounded(teacher[name])} eV/Å)."
            )
    spent = {arm: result.spent() for arm, result in run.summary.arms.items()}
    steps = {arm: own["total"].steps for arm, own in spent.items() if own}
    if len(set(steps.values())) > 1:
        named = ", ".join(f"{arm} {n:,.0f}" for arm, n in steps.items())
        found.append(f"The arms did not take the same number of optimiser steps: {named}.")
    simulated = [result.dynamics for result in run.summary.arms.values() if result.dynamics]
    if any(d.counts.melted is None and d.counts.lindemann.count and d.settings["temperature"] > 0 for d in simulated):
        found.append(
            "A Lindemann index tells crystals that lose their order; a liquid, or a crystal above its melting "
            "point, passes the bound without being broken. These results are of an earlier version, which counted "
            "melts among the failures: look at what the structures are before you read it."
        )
    return found

"""Verdicts of structures in molecular dynamics, and what a set of them says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any, Literal

from pydantic import computed_field

from mdl_physpre.utils.record import Record, without_nan

REASONS = (
    "overlap",
    "lindemann_local",
    "lindemann_global",
    "too_deep",
    "temperature",
    "not_finite",
    "escaped",
    "cell_collapsed",
    "potential_error",
)
"""Reasons of the observers of every run; ``observers`` in the settings may bring others."""

LINDEMANN = ("lindemann_local", "lindemann_global")
PAPER_REASONS = ("overlap", *LINDEMANN)
"""By which the paper counts a structure as unstable."""


class Failure(Record):
    """One way in which a structure failed: the reason, the first failing step, its time in fs, and a sentence."""

    reason: str
    step: int
    time_fs: float
    text: str


class Verdict(Record):
    """What became of one structure.

    structure_id, index, formula, n_atoms : what names it; ``index`` is its place in the list of structures.
    checks : each reason that its observers may give: ``passed``, ``failed``, or ``n/a`` where it cannot be judged.
    failures : the bounds that it passed, in the order of their first failing steps; of a melt the Lindemann indices.
    melted : whether it passed these alone and has become a healthy liquid; ``None`` in results of earlier versions.
    notes : sentences, such as why a check is ``n/a``.
    steps_run, time_run_fs, stopped : how far it ran, and whether that was before its end.
    conditions : what was asked of this structure: temperature in K, and the like.
    metrics : what was measured; ``None`` where a number is not finite.
    """

    structure_id: str
    index: int
    formula: str
    n_atoms: int
    checks: dict[str, Literal["passed", "failed", "n/a"]]
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()
    steps_run: int
    time_run_fs: float
    stopped: bool
    conditions: dict[str, int | float] = {}
    metrics: dict[str, Any] = {}
    melted: bool | None = None

    @property
    def failed(self) -> bool:
        """Whether it passed a bound, and has not just melted."""
        return bool(self.failures) and not self.melted

    @computed_field  # type: ignore[prop-decorator]
    @property
    def status(self) -> str:
        """``stable``, ``melted`` or ``failed``."""
        return "melted" if self.melted else "failed" if self.failed else "stable"

    @computed_field  # type: ignore[prop-decorator]
    @property
    def paper_status(self) -> str:
        """``stable`` or ``failed``, as the paper judges: by atom overlap and Lindemann index, melted or not."""
        return "failed" if set(self.reasons) & set(PAPER_REASONS) else "stable"

    @computed_field  # type: ignore[prop-decorator]
    @property
    def reasons(self) -> tuple[str, ...]:
        """Bounds that it passed, in the order of their first failing steps."""
        return tuple(failure.reason for failure in self.failures)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def first_failing_step(self) -> int | None:
        """The step of the earliest failure; ``None`` where it has not failed."""
        return self.failures[0].step if self.failed else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def time_fs(self) -> float | None:
        """The time of the earliest failure, fs; ``None`` where it has not failed."""
        return self.failures[0].time_fs if self.failed else None


class Count(Record):
    """How many of ``n`` structures failed in one way; ``n``: those that the check applies to.

    interval : of the fraction, 95 %.
    each : the count of each network, where there are several.
    """

    count: int
    n: int
    interval: tuple[float, float] | None
    each: tuple[int, ...] = ()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def fraction(self) -> float | None:
        """count / n; ``None`` for n = 0."""
        return self.count / self.n if self.n else None


class Counts(Record):
    """What a set of verdicts says.

    failed, melted : of these, those that failed and those that have only melted.
    paper : failed as the paper's Table 1 counts, by overlap or Lindemann index, melted or not.
    overlap, lindemann (local or global) : bounds that were passed, melted or not. by_reason: each reason in use.
        ``melted`` and ``paper`` are ``None`` in results of earlier versions, where melts are among the failed.
    median_failing_step, median_failing_time_fs : of the structures that failed.
    networks : how many networks the structures were simulated with.
    """

    n: int
    failed: Count
    overlap: Count
    lindemann: Count
    by_reason: dict[str, Count]
    median_failing_step: float | None
    median_failing_time_fs: float | None
    networks: int = 1
    melted: Count | None = None
    paper: Count | None = None


def make_verdict(
    *,
    structure_id: str,
    index: int,
    formula: str,
    n_atoms: int,
    failures: dict[str, tuple[int, str]],
    not_applicable: dict[str, str],
    steps_run: int,
    steps_asked: int,
    timestep: float,
    conditions: dict[str, int | float],
    metrics: dict[str, Any],
    reasons: Sequence[str] = REASONS,
    not_liquid: str | None = "",
) -> Verdict:
    """The verdict of one structure.

    Parameters
    ----------
    failures : reason -> (first failing step, sentence).
    not_applicable : reason -> why it cannot be judged.
    timestep : fs.
    reasons : all that the structure was judged by.
    not_liquid : why a structure that fails by its Lindemann indices alone is no healthy liquid; ``None``: it is one.
    """
    ordered = sorted(failures, key=lambda reason: (failures[reason][0], reasons.index(reason)))
    checks = {reason: "n/a" if reason in not_applicable else "passed" for reason in reasons}
    notes = [f"{reason}: {why}" for reason, why in not_applicable.items() if reason not in failures]
    melted = bool(failures) and set(failures) <= set(LINDEMANN) and not_liquid is None
    if not_liquid:
        notes.append(f"not melted: {not_liquid}")
    return Verdict(
        structure_id=structure_id,
        index=index,
        formula=formula,
        n_atoms=n_atoms,
        checks=checks | dict.fromkeys(ordered, "failed"),
        failures=tuple(
            Failure(reason=r, step=failures[r][0], time_fs=failures[r][0] * timestep, text=failures[r][1])
            for r in ordered
        ),
        notes=tuple(notes),
        melted=melted,
        steps_run=steps_run,
        time_run_fs=steps_run * timestep,
        stopped=steps_run < steps_asked,
        conditions=conditions,
        metrics=without_nan(metrics),
    )


def wilson_interval(count: float, n: float, z: float = 1.959963984540054) -> tuple[float, float] | None:
    """Wilson's score interval of a proportion (95 % by default); ``None`` for n = 0.

    (p + z²/2n ± z sqrt(p(1−p)/n + z²/4n²)) / (1 + z²/n), with p = count/n.
    """
    if n == 0:
        return None
    p = count / n
    centre, scale = p + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def summarise(verdicts: Sequence[Verdict]) -> Counts:
    """Counts over verdicts, with Wilson 95 % intervals."""

    def counted(reasons: Sequence[str]) -> Count:
        checks = [[v.checks.get(r, "n/a") for r in reasons] for v in verdicts]
        n = sum(any(c != "n/a" for c in each) for each in checks)
        return proportion(sum("failed" in each for each in checks), n)

    def proportion(count: int, n: int) -> Count:
        return Count(count=count, n=n, interval=wilson_interval(count, n))

    failed = [v for v in verdicts if v.failed]
    known = dict.fromkeys([*REASONS, *(reason for v in verdicts for reason in v.checks)])
    return Counts(
        n=len(verdicts),
        failed=proportion(len(failed), len(verdicts)),
        overlap=counted(["overlap"]),
        lindemann=counted(["lindemann_local", "lindemann_global"]),
        by_reason={reason: counted([reason]) for reason in known},
        median_failing_step=median(v.failures[0].step for v in failed) if failed else None,
        median_failing_time_fs=median(v.failures[0].time_fs for v in failed) if failed else None,
        melted=proportion(sum(bool(v.melted) for v in verdicts), len(verdicts)),
        paper=proportion(sum(v.paper_status == "failed" for v in verdicts), len(verdicts)),
    )

"""Verdicts of structures in molecular dynamics, and what a set of them says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

REASONS = (
    "overlap",
    "lindemann_local",
    "lindemann_global",
    "temperature",
    "not_finite",
    "escaped",
    "cell_collapsed",
    "potential_error",
)


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
    conditions: dict[str, float],
    metrics: dict[str, Any],
) -> dict[str, Any]:
    """The verdict of one structure, JSON-able.

    Parameters
    ----------
    failures : reason -> (first failing step, sentence).
    not_applicable : reason -> why it cannot be judged.
    timestep : fs.
    conditions : what was asked of this structure: temperature in K, and the like.

    Returns
    -------
    ``status`` (``stable`` or ``failed``), ``reasons`` in order of their first failing steps, ``first_failing_step`` and
    ``time_fs`` of the earliest, ``checks`` (each reason: ``passed``, ``failed`` or ``n/a``), ``failures`` (reason,
    step, time and sentence of each), ``notes`` (sentences), ``steps_run`` and ``time_run_fs``, ``stopped`` (whether the
    run ended early), ``conditions``, ``metrics``, and what names the structure.
    """
    ordered = sorted(failures, key=lambda reason: (failures[reason][0], REASONS.index(reason)))
    first = failures[ordered[0]][0] if ordered else None
    checks = {reason: "n/a" if reason in not_applicable else "passed" for reason in REASONS}
    checks |= dict.fromkeys(ordered, "failed")
    return {
        "structure_id": structure_id,
        "index": index,
        "formula": formula,
        "n_atoms": n_atoms,
        "status": "failed" if ordered else "stable",
        "reasons": ordered,
        "first_failing_step": first,
        "time_fs": None if first is None else first * timestep,
        "checks": checks,
        "failures": [
            {"reason": r, "step": failures[r][0], "time_fs": failures[r][0] * timestep, "text": failures[r][1]}
            for r in ordered
        ],
        "notes": [f"{reason}: {why}" for reason, why in not_applicable.items() if reason not in failures],
        "steps_run": steps_run,
        "time_run_fs": steps_run * timestep,
        "stopped": steps_run < steps_asked,
        "conditions": conditions,
        "metrics": {key: finite(value) for key, value in metrics.items()},
    }


def finite(value: Any) -> Any:
    """``value``, or ``None`` where it is a number that is not finite: JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


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


def summarise(verdicts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts over verdicts, as in the paper's Table 1, with Wilson 95 % intervals.

    Returns
    -------
    ``n``; ``failed``, ``overlap`` and ``lindemann`` (local or global), each with ``count``, ``n`` (structures that the
    check applies to), ``fraction`` and ``interval``; ``by_reason``, the same for each reason; ``median_failing_step``
    and ``median_failing_time_fs`` of those that failed.
    """

    def counted(reasons: Sequence[str]) -> dict[str, Any]:
        checks = [[v["checks"][r] for r in reasons] for v in verdicts]
        n = sum(any(c != "n/a" for c in each) for each in checks)
        return proportion(sum("failed" in each for each in checks), n)

    def proportion(count: int, n: int) -> dict[str, Any]:
        interval = wilson_interval(count, n)
        return {
            "count": count,
            "n": n,
            "fraction": count / n if n else None,
            "interval": None if interval is None else list(interval),
        }

    failed = [v for v in verdicts if v["status"] == "failed"]
    return {
        "n": len(verdicts),
        "failed": proportion(len(failed), len(verdicts)),
        "overlap": counted(["overlap"]),
        "lindemann": counted(["lindemann_local", "lindemann_global"]),
        "by_reason": {reason: counted([reason]) for reason in REASONS},
        "median_failing_step": median(v["first_failing_step"] for v in failed) if failed else None,
        "median_failing_time_fs": median(v["time_fs"] for v in failed) if failed else None,
    }


def survival_curve(verdicts: Sequence[dict[str, Any]], reasons: Sequence[str] | None = None) -> dict[str, Any]:
    """The fraction of structures that have not failed by a time (E. L. Kaplan and P. Meier, 1958).

        S(t) = Π_{t_k <= t} (1 − d_k / n_k),

    with d_k failures at time t_k among the n_k structures that were still running just before. A structure that ran to
    its end, or was stopped for a reason that is not asked for, leaves the n_k after that time without a failure.

    The 95 % band is Wilson's interval of S(t) with n = the structures that have failed by t or still run after t. While
    none has left without a failure this is the interval of a proportion; after that it is a little wider than needed.

    Parameters
    ----------
    reasons : failures that count; all where ``None``. Structures to which none of them applies are left out.

    Returns
    -------
    ``n`` structures; and lists over the times at which something failed, 0 first: ``time_fs``, ``survival``, ``low``
    and ``high`` (the band), ``at_risk`` (n_k), ``failed`` (d_k); and ``end_fs``, the longest time run.
    """
    wanted = set(REASONS if reasons is None else reasons)
    ends: list[tuple[float, bool]] = []  # time, whether it failed
    for v in verdicts:
        times = [f["time_fs"] for f in v["failures"] if f["reason"] in wanted]
        if times:
            ends.append((min(times), True))
        elif any(v["checks"][reason] != "n/a" for reason in wanted):
            ends.append((v["time_run_fs"], False))
    n, survival = len(ends), 1.0
    curve: dict[str, Any] = {name: [] for name in ("time_fs", "survival", "low", "high", "at_risk", "failed")}
    for time in [0.0, *sorted({t for t, failed in ends if failed and t > 0})] if n else []:
        at_risk = sum(t >= time for t, _ in ends)
        failed = sum(t == time and broke for t, broke in ends)
        survival *= 1 - failed / at_risk
        known = n - sum(t < time and not broke for t, broke in ends)
        low, high = wilson_interval(survival * known, known) or (0.0, 1.0)
        for name, value in zip(curve, (time, survival, low, high, at_risk, failed), strict=True):
            curve[name].append(value)
    return {"n": n, **curve, "end_fs": max((t for t, _ in ends), default=0.0)}

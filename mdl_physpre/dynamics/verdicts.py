"""Verdicts of structures in molecular dynamics, and what a set of them says."""
from __future__ import annotations

import math
from collections.abc import Sequence
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
    metrics: dict[str, Any],
) -> dict[str, Any]:
    """The verdict of one structure, JSON-able.

    Parameters
    ----------
    failures : reason -> (first failing step, sentence).
    not_applicable : reason -> why it cannot be judged.
    timestep : fs.

    Returns
    -------
    ``status`` (``stable`` or ``failed``), ``reasons`` in order of their first failing steps, ``first_failing_step`` and
    ``time_fs`` of the earliest, ``checks`` (each reason: ``passed``, ``failed`` or ``n/a``), ``notes`` (sentences),
    ``steps_run``, ``stopped`` (whether the run ended early), ``metrics``, and what names the structure.
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
        "stopped": steps_run < steps_asked,
        "metrics": {key: finite(value) for key, value in metrics.items()},
    }


def finite(value: Any) -> Any:
    """``value``, or ``None`` where it is a number that is not finite: JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def wilson_interval(count: int, n: int, z: float = 1.959963984540054) -> tuple[float, float] | None:
    """Wilson's score interval of a proportion (95 % by default); ``None`` for n = 0.

    (p + z²/2n ± z sqrt(p(1−p)/n + z²/4n²)) / (1 + z²/n), with p = count/n.
    """
    if n == 0:
        return None
    p = count / n
    centre, scale = p + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def summarise(verdicts: Sequence[dict[str, Any]]) -> dict[str, Any]:
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

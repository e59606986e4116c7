"""Tables of stress tests for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from mdl_physpre.report.tables.text import rounded, worded
from mdl_physpre.stress_tests.result import BreakingPoint, StressResult
from mdl_physpre.utils.text_table import MISSING, text_table


def median_breaking_point(points: Sequence[BreakingPoint]) -> float | None:
    """The lowest value at which Kaplan and Meier's S(v) = Π(1 − d_k/n_k) is at most one half; ``None``: it never is."""
    survival = 1.0
    for value in sorted({point.value for point in points if point.broken}):
        at_risk = sum(point.value >= value for point in points)
        survival *= 1 - sum(point.broken and point.value == value for point in points) / at_risk
        if survival <= 0.5 + 1e-12:
            return value
    return None


def format_stress(results: Mapping[str, StressResult]) -> str:
    """For each test its median breaking point and the reasons; then a row for each structure."""
    return "\n\n".join(_format(name, result) for name, result in results.items())


def _format(name: str, result: StressResult) -> str:
    points, unit = result.points, result.unit
    broken = Counter(worded(point.reason or "") for point in points if point.broken)
    median, end = median_breaking_point(points), max((point.value for point in points), default=0.0)
    at = f"above {rounded(end)} {unit}" if median is None else f"{rounded(median)} {unit}"
    reasons = ": " + ", ".join(f"{reason} {n}" for reason, n in broken.most_common()) if broken else ""
    counted = f"{broken.total()} of {len(points)} broke{reasons}"
    rows = [["structure", "atoms", f"{result.quantity}, {unit}", "step", "broke by", "why"]]
    for point in points:
        value = rounded(point.value) if point.broken else f"> {rounded(point.value)}"
        reason = worded(point.reason or "") if point.broken else MISSING
        rows.append([f"{point.structure_id} {point.formula}", str(point.n_atoms), value, str(point.step), reason,
                     point.text])  # fmt: skip
    return f"{worded(name)}: median breaking point {at}; {counted}\n{text_table(rows, words=2)}"

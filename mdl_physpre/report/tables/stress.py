"""Tables of stress tests for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from mdl_physpre.dynamics.verdicts.survival import breaking_statistics
from mdl_physpre.report.tables.text import rounded, worded
from mdl_physpre.stress_tests.result import StressResult
from mdl_physpre.utils.text_table import MISSING, text_table


def format_stress(results: Mapping[str, StressResult]) -> str:
    """For each test its median breaking point and the reasons; then a row for each structure."""
    return "\n\n".join(_format(name, result) for name, result in results.items())


def _format(name: str, result: StressResult) -> str:
    points, unit = result.points, result.unit
    found = breaking_statistics(result.observations(), result.quantity, unit)
    at = f"above {rounded(found.end)} {unit}" if found.median is None else f"{rounded(found.median)} {unit}"
    reasons = ", ".join(f"{worded(reason)} {n}" for reason, n in found.reasons.items())
    counted = f"{found.broken} of {found.n} broke{': ' if reasons else ''}{reasons}"
    doubts = {o.structure: o for o in result.uncertain_observations()}
    if doubts:
        spread = breaking_statistics([*doubts.values()], result.quantity, unit)
        where = f"above {rounded(spread.end)}" if spread.median is None else rounded(spread.median)
        counted += f"\nthe committee is uncertain from a median of {where} {unit} on: {spread.broken} of {spread.n}"
    rows = [["structure", "atoms", f"{result.quantity}, {unit}", "step", "broke by", "why"]]
    rows[0][3:3] = ["uncertain at"] * bool(doubts)
    for point in points:
        value = rounded(point.value) if point.broken else f"> {rounded(point.value)}"
        reason = worded(point.reason or "") if point.broken else MISSING
        rows.append([f"{point.structure_id} {point.formula}", str(point.n_atoms), value, str(point.step), reason,
                     point.text])  # fmt: skip
        if doubts:
            own = doubts.get(point.index)
            rows[-1].insert(3, rounded(own.value) if own is not None and own.broken else MISSING)
    return f"{worded(name)}: median breaking point {at}; {counted}\n{text_table(rows, words=2)}"

"""Stress tests of several potentials side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from mdl_physpre.dynamics.running.storage import WORK
from mdl_physpre.dynamics.verdicts.log_rank import BreakingComparison, compare_breaking
from mdl_physpre.dynamics.verdicts.survival import BreakingStatistics, Observation, breaking_statistics
from mdl_physpre.report.tables.breaking import breaking_head, breaking_rows, breaking_sentence, titled
from mdl_physpre.stress_tests.ladder import LadderSettings
from mdl_physpre.stress_tests.result import StressResult
from mdl_physpre.utils.record import Record
from mdl_physpre.utils.text_table import MISSING


class ComparedStress(Record):
    """One stress test of several potentials.

    found : by the name of a potential. pairs : each further potential with the first, on the structures of both.
    differing_settings : with their values in each.
    """

    test: str
    found: dict[str, BreakingStatistics]
    pairs: tuple[BreakingComparison, ...]
    differing_settings: dict[str, list[Any]] = {}


def compared_stress(results: Mapping[str, Mapping[str, StressResult]]) -> tuple[ComparedStress, ...]:
    """Results by the name of a potential, then by test; each test of all that did it."""
    compared = []
    for test in dict.fromkeys(test for own in results.values() for test in own):
        mine = {name: own[test] for name, own in results.items() if test in own}
        points = {name: _observations(result) for name, result in mine.items()}
        first, *others = points
        keys = dict.fromkeys(key for result in mine.values() for key in result.settings)
        values = {
            key: [result.settings.get(key, LadderSettings.LATER.get(key)) for result in mine.values()]
            for key in keys
            if key not in (*WORK, "seed", "frames")
        }
        compared.append(
            ComparedStress(
                test=test,
                found={
                    name: breaking_statistics(own, mine[name].quantity, mine[name].unit) for name, own in points.items()
                },
                pairs=tuple(compare_breaking(points[first], points[other], (first, other)) for other in others),
                differing_settings={key: each for key, each in values.items() if any(v != each[0] for v in each)},
            )
        )
    return tuple(compared)


def _observations(result: StressResult) -> list[Observation]:
    """Points whose structure is named by what it is, and by the number of earlier ones of that name."""
    seen: Counter[tuple[str, str, int]] = Counter()
    found = []
    for point in result.points:
        name = (point.structure_id, point.formula, point.n_atoms)
        found.append(Observation(point.value, point.broken, (*name, seen[name]), reason=point.reason))
        seen[name] += 1
    return found


def format_stress_comparison(compared: ComparedStress) -> str:
    """One stress test as text: a table, a sentence for each pair, and settings that differ."""
    lines = [breaking_head(compared.test, compared.found), breaking_rows(compared.found, "simulation")]
    for pair in compared.pairs:
        shared = max(s.n for s in (compared.found[pair.first], compared.found[pair.second]))
        if not pair.structures:
            lines.append(f"{titled(compared.test)}: {pair.first} and {pair.second} share no structure.")
            continue
        lines.append(breaking_sentence(compared.test, pair, compared.found))
        if pair.structures < shared:
            lines.append(f"The test is of the {pair.structures} structures that both have.")
    for key, each in compared.differing_settings.items():
        named = ", ".join(MISSING if v is None else str(v) for v in each)
        lines.append(f"They differ in {compared.test}.{key}: {named}. Compare their breaking points with care.")
    return "\n".join(lines)

"""Where structures broke, in words: medians with intervals, tests of two arms, and what they need to be told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mdl_physpre.dynamics.verdicts.log_rank import LEVEL, BreakingComparison
from mdl_physpre.dynamics.verdicts.survival import BreakingStatistics
from mdl_physpre.runs.oracle import dynamics_oracle_errors, stress_oracle_errors
from mdl_physpre.runs.summary import Summary
from mdl_physpre.utils.text_table import MISSING, text_table

SHOWN_UNITS = {"fs": ("ps", 1e-3)}  # units that are shown in others


def shown_unit(unit: str) -> tuple[str, float]:
    """The unit that values are shown in, and the factor to it."""
    return SHOWN_UNITS.get(unit, (unit, 1.0))


def point(value: float, unit: str) -> str:
    """A value of a scale without its unit: ``2,340``, ``0.85``."""
    value *= shown_unit(unit)[1]
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def interval_words(found: BreakingStatistics) -> str:
    """The 95 % interval of a median: ``1,900–2,800``, or ``1,900 to > 6,000`` where it is open; empty without any."""
    if found.interval is None:
        return ""
    low, high = found.interval
    if high is not None:
        return f"{point(low, found.unit)}–{point(high, found.unit)}"
    beyond = f"> {point(found.end, found.unit)}"
    return beyond if low >= found.end else f"{point(low, found.unit)} to {beyond}"


def median_words(found: BreakingStatistics | None, unit: bool = True) -> str:
    """``2,340 K (1,900–2,800)``; ``> 6,000 K (4,100 to > 6,000)`` where fewer than half broke."""
    if found is None or not found.n:
        return MISSING
    middle = point(found.median, found.unit) if found.median is not None else f"> {point(found.end, found.unit)}"
    interval = interval_words(found)
    named = f"{middle} {shown_unit(found.unit)[0]}" if unit else middle
    return named if interval == middle else f"{named} ({interval})"


def medians_each(found: BreakingStatistics) -> str:
    """The median of each network."""
    end = f"> {point(found.end, found.unit)}"
    return "; ".join(end if one is None else point(one, found.unit) for one in found.median_each)


def reasons_words(found: BreakingStatistics) -> str:
    """What structures broke by, with counts."""
    return ", ".join(f"{reason.replace('_', ' ')} {n}" for reason, n in found.reasons.items()) or "none"


def p_value(p: float) -> str:
    """``p = 0.031``; a small one with its power of ten."""
    return f"p = {p_number(p)}"


def p_number(p: float) -> str:
    """``0.031``, ``7.6·10⁻⁶``."""
    if p >= 0.001:
        return f"{p:.2g}"
    digits, power = f"{p:.1e}".split("e")
    return f"{digits}·10{str(int(power)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def tests_words(pair: BreakingComparison) -> str:
    """Both p-values of a comparison, and what the first can be at least."""
    independent = "" if pair.p_structures is None else f"{p_value(pair.p_structures)} taking structures as independent"
    if pair.p_networks is None or pair.smallest_p is None:
        return independent
    floor = f"the smallest that {pair.networks_first} and {pair.networks_second} networks can give"
    permuted = f"{p_value(pair.p_networks)}, " + (floor if pair.at_floor else "whole networks permuted")
    return f"{permuted}; {independent}"


def difference_words(pair: BreakingComparison) -> str:
    """Which of two arms breaks later, as far as the tests tell, and how many networks would tell."""
    if pair.p_structures is None:
        return "the two cannot be told apart, because no structure broke earlier with one than with the other"
    earlier = pair.first if pair.later == pair.second else pair.second
    tests = tests_words(pair)
    if pair.p_networks is None:
        if pair.p_structures >= LEVEL:
            return f"no difference is shown ({tests}){_structures_needed(pair)}"
        return f"this {pair.later} network breaks later than this {earlier} network ({tests})"
    if pair.p_networks < LEVEL:
        return f"{pair.later} breaks later ({tests})"
    if pair.shown:
        return f"{pair.later} breaks later, as far as so few networks can tell ({tests}){_networks_needed(pair)}"
    return f"no difference is shown ({tests}){_networks_needed(pair)}"


def _networks_needed(pair: BreakingComparison) -> str:
    if pair.networks_needed is None:
        return ""
    fewer = pair.networks_at_least
    more = f", {fewer} with many more structures" if fewer is not None and fewer < pair.networks_needed else ""
    return f"; about {pair.networks_needed} networks of each would show a difference of this size{more}"


def _structures_needed(pair: BreakingComparison) -> str:
    if pair.structures_needed is None or pair.structures_needed > 100 * max(pair.structures, 1):
        return ""
    return f"; about {pair.structures_needed} structures would show one of this size between these networks"


def breaking_sentence(test: str, pair: BreakingComparison, arms: Mapping[str, BreakingStatistics]) -> str:
    """One sentence on two arms in a stress test: medians, intervals, and what the tests say.

    ``arms`` : what is known of each arm in this test.
    """
    first, second = arms[pair.first], arms[pair.second]
    if not first.broken and not second.broken:
        end = f"{point(max(first.end, second.end), first.unit)} {shown_unit(first.unit)[0]}"
        return f"{titled(test)}: nothing broke with {pair.first} or {pair.second} up to {end}."
    return with_caveat(
        f"{titled(test)}: {pair.second} breaks at {median_words(second)}, {pair.first} at {median_words(first)}: "
        f"{difference_words(pair)}."
    )


def with_caveat(said: str) -> str:
    """What is said of two networks, with what it does not say of others."""
    if " network than with this " not in said and " network breaks later than this " not in said:
        return said
    return f"{said} Whether another training would give the same is not known from one network each."


def breaking_sentences(summary: Summary, test: str) -> list[str]:
    """A sentence on each arm with the reference arm in a stress test."""
    own = summary.breaking(test)
    return [breaking_sentence(test, pair, own) for pair in summary.stress_pairs.get(test, ())]


def correctness_sentence(summary: Summary) -> str | None:
    """What is known of whether structures that stay whole are right; ``None`` where nothing was simulated."""
    found = {"molecular dynamics": dynamics_oracle_errors(summary), **stress_oracle_errors(summary)}
    counts = []
    for what, arms in found.items():
        each = [f"{arm} {e.whole_and_wrong.count} of {e.whole_and_wrong.n}" for arm, e in arms.items()]
        counts += [f"{titled(what).lower()}: {', '.join(each)}"] if each else []
    if counts:
        first = next(own for arms in found.values() for own in arms.values())
        unknown = [titled(test).lower() for test in summary.stress_tests if test not in found]
        beyond = f" Nothing of the kind is known of those in the stress tests {', '.join(unknown)}." if unknown else ""
        return (
            f"Of the structures that did not fail, {first.oracle} finds wrong ({'; '.join(counts)}): force error above "
            f"{first.bound:g} of its forces.{beyond}"
        )
    if not summary.stress_tests and not any(result.dynamics for result in summary.arms.values()):
        return None
    asked = [arm for arm, result in summary.arms.items() if result.committee]
    committees = f"; the networks of {', '.join(asked)} were asked as committees, but on the test sets alone"
    return (
        "Whether structures that stay whole are right is not known: no reference (physpre.dynamics.oracle) "
        f"{'has looked at them' if asked else 'and no committee has looked at them'}{committees if asked else ''}. A "
        "potential can hold structures together in a deep well that is not there. So what breaks later, or less often, "
        "is not thereby the better potential."
    )


def titled(test: str) -> str:
    """The name of a test as words, with a capital."""
    return test.replace("_", " ").capitalize()


def times_sentence(
    pair: BreakingComparison, first: BreakingStatistics | None, second: BreakingStatistics | None
) -> str:
    """When half had failed with two arms or simulations, and the log-rank test; empty where none failed."""
    if first is None or second is None or not (first.broken or second.broken):
        return ""
    return (
        f"Half had failed after {median_words(second)} with {pair.second} and {median_words(first)} with {pair.first}: "
        f"{difference_words(pair)}."
    )


def breaking_text(summary: Summary) -> list[str]:
    """For the terminal: a table for each stress test, and a sentence for each pair of arms."""
    parts = []
    for test in summary.stress_tests:
        found = summary.breaking(test)
        parts += [breaking_head(test, found), breaking_rows(found)]
        parts += breaking_sentences(summary, test)
        parts.append("")
    return parts


def breaking_head(test: str, found: Mapping[str, BreakingStatistics]) -> str:
    """What a table of a stress test holds."""
    some = next(iter(found.values()))
    return f"{titled(test)}: {some.quantity} at which half of the structures are broken, {shown_unit(some.unit)[0]}"


def breaking_rows(found: Mapping[str, BreakingStatistics], first: str = "arm") -> str:
    """A row for each name; ``first``: what the names are of."""
    rows: list[Sequence[str]] = [[first, "median (95 %)", "of each network", "broken", "by"]]
    for arm, s in found.items():
        each = medians_each(s) if len(s.networks) > 1 else MISSING
        rows.append([arm, median_words(s, unit=False), each, f"{s.broken} of {s.n}", reasons_words(s)])
    return text_table(rows)

"""Tables of a run for the terminal, and the words in them that the report shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mdl_physpre.analysis.errors import Errors
from mdl_physpre.dynamics.verdicts.survival import BreakingStatistics
from mdl_physpre.dynamics.verdicts.verdict import Count, Counts, Verdict
from mdl_physpre.report.tables.breaking import breaking_text, correctness_sentence, difference_words, median_words
from mdl_physpre.runs.pairs import ReplicaPair, StructurePair
from mdl_physpre.runs.recommend import first_sentences
from mdl_physpre.runs.summary import Dynamics, Summary
from mdl_physpre.utils.text_table import MISSING, shown, text_table

NULL_MODEL = "null model"
ERRORS = (
    ("energy, eV", "energy_mae", "{:.3f}"),
    ("energy, meV/atom", "energy_mae_mev_per_atom", "{:.1f}"),
    ("forces, eV/Å", "forces_mae", "{:.4f}"),
    ("stress, eV/Å³", "stress_mae", "{:.5f}"),
    ("stress, GPa", "stress_mae_gpa", "{:.3f}"),
    ("total", "total", "{:.3f}"),
)


def rounded(value: float, digits: int = 3) -> str:
    """A number to so many significant digits, zeros at the end kept: 0.360, 9.28, 1450."""
    text = f"{value:#.{digits}g}".rstrip(".")
    return f"{value:.0f}" if "e+" in text else text


def worded(name: str) -> str:
    """The name of a reason as words."""
    return name.replace("_", " ")


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first of them headings, as a Markdown table."""
    head, *body = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows]
    rule = "|---|" + "---:|" * (len(rows[0]) - 1)
    return "\n".join([head, rule, *body])


class Tested(NamedTuple):
    """Errors of a potential on a test set: their mean over the replicas, and those of each."""

    test_set: str
    who: str
    mean: Errors
    each: Sequence[Errors]


def error_sources(summary: Summary) -> list[Tested]:
    """Errors on each test set of every arm, of what it was before finetuning, of the teacher, and of the null model."""
    arms, found = summary.arms, []
    teachers = {who: one.errors for who, one in (("EAM", summary.eam), ("teacher", summary.teacher)) if one}
    sets = dict.fromkeys(name for own in [*(arm.errors for arm in arms.values()), *teachers.values()] for name in own)
    for name in sets:
        for key, suffix in (("errors", ""), ("errors_before_finetuning", ", before finetuning")):
            for arm, result in arms.items():
                if name in getattr(result, key):
                    each = [getattr(network, key)[name] for network in result.networks]
                    found.append(Tested(name, f"{arm}{suffix}", getattr(result, key)[name], each))
        others = {**teachers, NULL_MODEL: summary.null_model}
        found += [Tested(name, who, errors[name], [errors[name]]) for who, errors in others.items() if name in errors]
    return found


def counted(part: Count) -> str:
    """``3 of 20 (5–36 %)``: a count with its 95 % interval."""
    if part.interval is None:
        return "n/a"
    low, high = part.interval
    return f"{part.count} of {part.n} ({100 * low:.0f}–{100 * high:.0f} %)"


def other_reasons(counts: Counts, words: bool = False) -> str:
    """Counts of what is neither an overlap nor a Lindemann index, by the names of the reasons."""
    others = {r: c.count for r, c in counts.by_reason.items() if c.count and not r.startswith(("overlap", "lindemann"))}
    return ", ".join(f"{worded(r) if words else r} {n}" for r, n in others.items()) or "none"


def paired_sentence(pair: StructurePair | ReplicaPair) -> str:
    """On a pair of simulations, or on two arms with several replicas each: counts, and times of failure."""
    times = f" Times of failure: {difference_words(pair.times)}." if pair.times and pair.times.later else ""
    return _counts_sentence(pair) + times


def _counts_sentence(pair: StructurePair | ReplicaPair) -> str:
    if isinstance(pair, ReplicaPair):
        first, second = (", ".join(map(str, each)) for each in (pair.first_each, pair.second_each))
        return (
            f"Broken of {pair.n_each} with each network: {pair.first} {first}; {pair.second} {second} "
            f"(exact permutation test over networks: p = {pair.p_value:.2g})."
        )
    if not pair.shared:
        return f"{pair.first} and {pair.second} share no structure."
    return (
        f"Of {pair.shared} structures simulated by both, {pair.first_only} broke with {pair.first} alone, "
        f"{pair.second_only} with {pair.second} alone, {pair.both} with both "
        f"(exact McNemar test: p = {pair.p_value:.2g})."
    )


def some_dynamics(summary: Summary) -> Dynamics | None:
    """The dynamics of the first arm that was simulated; the settings are those of all."""
    return next((arm.dynamics for arm in summary.arms.values() if arm.dynamics), None)


def ensemble_name(settings: Mapping[str, Any]) -> str:
    """An ensemble in words: ``NVT``; one of somebody else by its import path as it is."""
    name: str = settings["ensemble"]
    return name.upper() if name.isidentifier() else name


def ensemble_and_temperature(settings: Mapping[str, Any]) -> str:
    """``NVT at 300 K``, or ``NVT heated from 300 to 2000 K``; cooled where the temperature falls."""
    name, start, end = ensemble_name(settings), settings["temperature"], settings.get("temperature_end")
    if end is None or end == start:
        return f"{name} at {start:g} K"
    return f"{name} {'heated' if end > start else 'cooled'} from {start:g} to {end:g} K"


def protocol(summary: Summary) -> str:
    """What was simulated, and what counts as broken."""
    found = some_dynamics(summary)
    if found is None:
        return "No molecular dynamics was run."
    s, networks = found.settings, found.counts.networks
    several = f" with each of {networks} networks for every arm" if networks > 1 else ""
    return (
        f"{found.counts.n // networks} test structures{several}, {ensemble_and_temperature(s)}, "
        f"{s['steps']} steps of {s['timestep']:g} fs. Broken, that is failed: the smallest distance falls to "
        f"{s['overlap_ratio']:g} of its start (atom overlap), or a Lindemann index passes {s['lindemann_local']:g} "
        f"(one atom) or {s['lindemann_global']:g} (mean). Melted: only a Lindemann index passes, and the structure "
        "is a healthy liquid: not broken. By the paper: overlap or Lindemann index, melted or not."
    )


def counts_table(counts: Sequence[tuple[str, Counts, BreakingStatistics | None]], first: str) -> str:
    """Broken trajectories by criterion, and when half had broken, a row for each name; ``first``: of the names."""
    rows = [[first, "broken", "melted", "by the paper", "atom overlap", "Lindemann", "other", "half broken by, ps"]]
    for name, c, times in counts:
        parts = (c.failed, c.melted, c.paper, c.overlap, c.lindemann)
        cells = [*(MISSING if part is None else counted(part) for part in parts), other_reasons(c)]
        rows.append([name, *cells, median_words(times, unit=False)])
    return text_table(rows)


def format_summary(summary: Summary) -> str:
    """The tables of a run for the terminal; errors with their standard deviations between replicas."""
    columns = [column for column in ERRORS if column[1] != "stress_mae_gpa"]
    errors = [["test set, potential", "structures", *(title for title, _, _ in columns)]]
    for name, who, mean, _ in error_sources(summary):
        deviation = summary.arms[who].deviation.get(name) if who in summary.arms else None
        cells = []
        for _, key, form in columns:
            spread = getattr(deviation, key, None)
            cells.append(shown(getattr(mean, key), form) + (f" ± {form.format(spread)}" if spread else ""))
        errors.append([f"{name}: {who}", str(mean.n_structures), *cells])
    parts = [*first_sentences(summary), "", "Mean absolute errors on test structures", text_table(errors), ""]
    parts += breaking_text(summary)
    counts = [(arm, own.dynamics.counts, own.failure_times) for arm, own in summary.arms.items() if own.dynamics]
    if counts:
        parts += ["Molecular dynamics. " + protocol(summary), counts_table(counts, "arm")]
        parts += [*map(paired_sentence, summary.pairs), ""]
    known = correctness_sentence(summary)
    parts += [known, ""] if known else []
    spent = [["arm, stage", "epochs", "steps", "gradients", "structures seen", "seconds"]]
    for arm, result in summary.arms.items():
        for stage, s in result.spent().items():
            numbers = (s.epochs, s.steps, s.gradients, s.structures, s.seconds)
            spent.append([f"{arm}, {stage}", *(f"{n:.0f}" for n in numbers)])
    return "\n".join([*parts, "Training", text_table(spent)])


def format_verdicts(verdicts: Sequence[Verdict], found: Counts) -> str:
    """A row for each structure, and the counts; of a committee with the largest spread of the forces on an atom."""
    rows = [["structure", "atoms", "verdict", "first failing step", "reasons"]]
    spread = any(v.metrics.get("max_force_spread") is not None for v in verdicts)
    rows[0] += ["force spread, eV/Å"] * spread
    for v in verdicts:
        step, reasons = shown(v.first_failing_step, "{:d}"), ", ".join(v.reasons) or MISSING
        rows.append([f"{v.structure_id} {v.formula}", str(v.n_atoms), v.status, step, reasons])
        rows[-1] += [shown(v.metrics.get("max_force_spread"), "{:.3g}")] * spread
    counts = (
        ("broken", found.failed), ("melted", found.melted), ("broken by the paper's criteria", found.paper),
        ("atom overlap", found.overlap), ("Lindemann", found.lindemann),
    )  # fmt: skip
    return text_table(rows) + "\n" + ", ".join(f"{what} {counted(count)}" for what, count in counts if count)

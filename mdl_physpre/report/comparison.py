"""Several simulations side by side: counts with intervals, and what differs on the structures that they share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts.log_rank import compare_breaking
from mdl_physpre.dynamics.verdicts.statistics import permutation_p_value
from mdl_physpre.dynamics.verdicts.survival import BreakingStatistics, Observation, breaking_statistics, failure_times
from mdl_physpre.dynamics.verdicts.verdict import Counts, Verdict, summarise
from mdl_physpre.errors import DataError
from mdl_physpre.report.stress_comparison import ComparedStress, compared_stress, format_stress_comparison
from mdl_physpre.report.tables.text import counts_table, paired_sentence
from mdl_physpre.runs import layout
from mdl_physpre.runs.pairs import ReplicaPair, StructurePair
from mdl_physpre.runs.read import Run, Simulation, read_simulation, simulation_files
from mdl_physpre.runs.read_stress import read_stress
from mdl_physpre.stress_tests.result import StressResult
from mdl_physpre.utils.record import Record
from mdl_physpre.utils.text_table import MISSING

# how the work is done, and what else is measured, which change no verdict; the seed: other random numbers of the same
NO_PROTOCOL = (
    "seed", "skin", "max_edges", "compile", "checkpoint_steps", "checkpoint_seconds", "trajectory_interval",
    "pressure_interval",
    "rdf_interval", "rdf_start", "rdf_r_max", "rdf_bins", "rdf_smoothing",
)  # fmt: skip
PROTOCOL = tuple(name for name in DynamicsSettings.model_fields if name not in NO_PROTOCOL)
"""Settings of what was simulated and how it was judged: where they differ, counts are not of the same thing."""

SAME_START = 1e-5  # relative; more than what a structure changes by when it is written to a file and read again
NAMED = 5  # structures that a sentence names


class Compared(Record):
    """One of the simulations that are compared."""

    name: str
    settings: dict[str, Any]
    summary: Counts
    failure_times: BreakingStatistics


class Comparison(Record):
    """Simulations side by side.

    pairs : each further simulation with the first. differing_settings : with their values in each simulation.
    stress : their stress tests.
    """

    simulations: tuple[Compared, ...]
    pairs: tuple[StructurePair, ...]
    differing_settings: dict[str, list[Any]]
    stress: tuple[ComparedStress, ...] = ()


def read_simulations(folders: Sequence[str | Path]) -> list[Simulation]:
    """The simulations in folders of ``physpre md --out`` and of ``physpre run`` (one for each network).

    Raises
    ------
    DataError : a folder without verdicts, or with a damaged file.
    """
    found = []
    for folder in map(Path, folders):
        files = simulation_files(folder)
        if not files and not read_stress(folder):
            raise DataError(
                f"{folder}: holds neither {layout.VERDICTS} nor those of networks in {layout.NETWORKS}, and no stress "
                "tests; give a folder that physpre md --out, physpre stress --out or physpre run has finished"
            )
        for path in files:
            place = path.parent.parent if path.parent.name == layout.DYNAMICS else path.parent
            alone = len(files) == 1 and place in (folder, folder.parent)
            found.append(read_simulation(path, place.name if alone else f"{folder.name}: {place.name}"))
    return found


def differing_settings(simulations: Sequence[Simulation]) -> dict[str, list[Any]]:
    """Settings of the protocol that are not the same in all simulations, with the value in each.

    Where structures have their own values, the lowest and the highest stand there as text.
    """
    values = {key: [_value(s, key) for s in simulations] for key in PROTOCOL}
    return {key: found for key, found in values.items() if any(v != found[0] for v in found)}


def _value(simulation: Simulation, setting: str) -> Any:
    own = sorted({v.conditions[setting] for v in simulation.verdicts if setting in v.conditions})
    if len(own) > 1:
        return f"{own[0]:g} to {own[-1]:g}"
    default = DynamicsSettings.model_fields[setting].default  # of settings that came later
    known = list(default) if isinstance(default, tuple) else default  # as JSON has it
    return own[0] if own else simulation.settings.get(setting, known)


def same_start(first: Verdict, second: Verdict) -> bool:
    """Whether two verdicts are of the same structure at the start, as far as they tell.

    Names do not tell: structures without names are called by their places. Formula, number of atoms, smallest distance
    and volume at the start must be the same; a structure with which no step could be taken has only the first two.
    """
    if (first.n_atoms, first.formula) != (second.n_atoms, second.formula):
        return False
    for key in ("start_min_distance", "volume_start"):
        one, other = first.metrics.get(key), second.metrics.get(key)
        if one is not None and other is not None and not math.isclose(one, other, rel_tol=SAME_START):
            return False
    return True


def paired_counts(first: Simulation, second: Simulation) -> StructurePair:
    """What two simulations of the same structures (same name and :func:`same_start`) say, structure by structure.

    Structures that broke in both or in neither say nothing about a difference. Of the n = b + c that broke in one
    alone, either is as likely if there is no difference; the exact p-value is
    P = min(1, 2 Σ_{k ≤ min(b, c)} C(n, k) / 2^n) (Q. McNemar, Psychometrika 12, 153 (1947), exact form).
    """
    from scipy.stats import binomtest

    left, right = _by_structure(first), _by_structure(second)
    same = {key: same_start(left[key], right[key]) for key in left if key in right}
    pairs = [(left[k].failed, right[k].failed) for k, is_same in same.items() if is_same]
    b, c = sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs)
    times = None
    if shared := [k for k, is_same in same.items() if is_same]:
        one, other = ([_failure(own[k], k) for k in shared] for own in (left, right))
        times = compare_breaking(one, other, (first.name, second.name))
    return StructurePair(
        first=first.name,
        second=second.name,
        p_value=None if not pairs else 1.0 if b + c == 0 else float(binomtest(b, b + c).pvalue),
        shared=len(pairs),
        first_only=b,
        second_only=c,
        both=sum(x and y for x, y in pairs),
        different=tuple(key[0] for key, is_same in same.items() if not is_same),
        times=times,
    )


def _failure(verdict: Verdict, structure: tuple[str, int]) -> Observation:
    """When a structure failed, or until when it ran."""
    time = verdict.time_run_fs if verdict.time_fs is None else verdict.time_fs
    return Observation(time, verdict.failed, structure)


def _by_structure(simulation: Simulation) -> dict[tuple[str, int], Verdict]:
    """Verdicts by the name of their structure and the number of earlier ones of the same name."""
    seen: Counter[str] = Counter()
    found = {}
    for verdict in simulation.verdicts:
        name = verdict.structure_id
        found[name, seen[name]] = verdict
        seen[name] += 1
    return found


def compare_arms(run: Run, first: str, second: str) -> StructurePair | ReplicaPair | None:
    """Two arms of a run; ``None`` where one of them was not simulated.

    With one network for each arm they are compared structure by structure (:func:`paired_counts`), which leaves out
    that another training would have given other networks. With several replicas of each, the fractions of structures
    that broke with each replica are what is compared
    (:func:`~mdl_physpre.dynamics.verdicts.statistics.permutation_p_value`).
    """
    one, other = (run.summary.arms[arm].dynamics for arm in (first, second))
    if one is None or other is None:
        return None
    each = [d.counts.failed.each or (d.counts.failed.count,) for d in (one, other)]
    sizes = [d.counts.n // len(own) for d, own in zip((one, other), each)]
    if min(map(len, each)) > 1:
        p = permutation_p_value(*([count / n for count in own] for own, n in zip(each, sizes)))
        return ReplicaPair(
            first=first, second=second, p_value=p, first_each=each[0], second_each=each[1], n_each=sizes[0],
            times=run.summary.compare_breaking(layout.DYNAMICS, first, second),
        )  # fmt: skip
    simulated = [list(run.simulations[arm].values())[:1] for arm in (first, second)]
    if not all(simulated):
        return None
    return paired_counts(*(replace(own[0], name=arm) for arm, own in zip((first, second), simulated)))


def arms_with_first(run: Run) -> tuple[StructurePair | ReplicaPair, ...]:
    """The first arm of a run that was simulated with each of the others."""
    arms = [arm for arm in run.arms if run.summary.arms[arm].dynamics]
    pairs = (compare_arms(run, arms[0], other) for other in arms[1:])
    return tuple(pair for pair in pairs if pair is not None)


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Simulations and stress tests in folders, side by side.

    Raises
    ------
    DataError : as :func:`read_simulations`.
    """
    simulations = read_simulations(folders)
    stress: dict[str, dict[str, StressResult]] = {}
    for folder in map(Path, folders):
        found = read_stress(folder)
        stress |= {name if len(found) == 1 else f"{folder.name}: {name}": own for name, own in found.items()}
    return Comparison(
        simulations=tuple(
            Compared(
                name=s.name,
                settings=s.settings,
                summary=summarise(s.verdicts),
                failure_times=breaking_statistics(failure_times(s.verdicts), "time", "fs"),
            )
            for s in simulations
        ),
        pairs=tuple(paired_counts(simulations[0], other) for other in simulations[1:]),
        differing_settings=differing_settings(simulations),
        stress=compared_stress(stress),
    )


def format_comparison(found: Comparison) -> str:
    """A comparison as text."""
    parts = [format_stress_comparison(one) + "\n" for one in found.stress]
    if not found.simulations:
        return "\n".join(parts).rstrip()
    parts += [counts_table([(one.name, one.summary, one.failure_times) for one in found.simulations], "simulation")]
    for pair in found.pairs:
        parts.append(paired_sentence(pair))
        if names := pair.different:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            parts.append(
                f"Structures of the same name in {pair.first} and {pair.second} that differ in atoms or start, and are "
                f"not compared: {len(names)} ({', '.join(names[:NAMED])}{more})."
            )
    for key, values in found.differing_settings.items():
        named = ", ".join(MISSING if v is None else str(v) for v in values)
        parts.append(f"They differ in {key}: {named}. Compare their counts with care.")
    return "\n".join(parts)

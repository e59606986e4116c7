"""Figures that describe a pretraining set: spread of its labels and smallest distances, in numbers and in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from mdl_physpre.structures.labels import get_labels, largest_force
from mdl_physpre.structures.neighbours import closest_by_elements, pairs_within
from mdl_physpre.utils.record import Record

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
DISTANCE_EDGES = np.linspace(0.0, 4.0, 81)  # Å, bins of 0.05
DISTANCE_SAMPLE = 2000  # structures whose distances enter the report


class SmallestDistances(Record):
    """The smallest distance of a pair in each structure, Å: a histogram over structures, the least and the median."""

    counts: tuple[int, ...]
    minimum: float
    median: float


class DistanceReport(Record):
    """Smallest distances of pairs of elements, in bins with these ``edges``, Å; pair → ``original``, ``perturbed``."""

    edges: tuple[float, ...]
    pairs: dict[str, dict[str, SmallestDistances]]


class GivenUpDraw(Record):
    """A draw without a structure: the identifier and the number of the parent, the round, and why."""

    parent: str
    index: int
    round: int
    reason: str


class RoundReport(Record):
    """A round: its strengths, Å, structures made, how many with weaker strengths, and the mean factor of these."""

    pull: float
    perturb: float
    structures: int
    weakened: int
    mean_scale: float | None


class SetReport(Record):
    """How a pretraining set came about. ``drawn`` = ``structures`` + the sum of ``rejected``, originals aside.

    rejected : reason → draws. by_halvings : how often strengths were halved → structures.
    labels : ``perturbed`` and ``unperturbed`` → see :func:`label_quantiles`.
    """

    parents: int
    wanted: int
    drawn: int
    structures: int
    rejected: dict[str, int]
    redrawn: int
    weakened: int
    by_halvings: dict[str, int]
    given_up: int
    given_up_draws: tuple[GivenUpDraw, ...]
    rounds: tuple[RoundReport, ...]
    originals: int
    seed: int
    epoch: int
    labels: dict[str, dict[str, dict[str, float]]]
    smallest_distances: DistanceReport | None = None


def label_quantiles(structures: Sequence[Atoms]) -> dict[str, dict[str, float]]:
    """Quantiles of energy (eV/atom), largest force (eV/Å) and largest stress component (eV/Å³) over structures."""
    values: dict[str, list[float]] = {"energy_per_atom": [], "largest_force": [], "largest_stress": []}
    for atoms in structures:
        labels = get_labels(atoms)
        if labels.energy is not None:
            values["energy_per_atom"].append(labels.energy / max(1, len(atoms)))
        if labels.forces is not None:
            values["largest_force"].append(largest_force(labels))
        if labels.stress is not None:
            values["largest_stress"].append(float(np.abs(labels.stress).max()))
    return {
        name: {f"{q:g}": float(v) for q, v in zip(QUANTILES, np.quantile(found, QUANTILES))}
        for name, found in values.items()
        if found
    }


def smallest_distances(original: Sequence[Atoms], perturbed: Sequence[Atoms]) -> DistanceReport:
    """Histograms, for each pair of elements, of a structure's smallest distance, before and after perturbation.

    Of at most 2,000 structures, evenly taken.
    """
    pairs: dict[str, dict[str, SmallestDistances]] = {}
    for name, structures in (("original", original), ("perturbed", perturbed)):
        step = -(-len(structures) // DISTANCE_SAMPLE) if structures else 1
        found: dict[tuple[int, int], list[float]] = {}
        for atoms in structures[::step]:
            for pair, d in closest_by_elements(atoms.numbers, *pairs_within(atoms, float(DISTANCE_EDGES[-1]))).items():
                found.setdefault(pair, []).append(d)
        for (a, b), values in sorted(found.items()):
            pairs.setdefault(f"{chemical_symbols[a]}-{chemical_symbols[b]}", {})[name] = SmallestDistances(
                counts=np.histogram(values, DISTANCE_EDGES)[0].tolist(),
                minimum=min(values),
                median=float(np.median(values)),
            )
    return DistanceReport(edges=tuple(round(float(e), 4) for e in DISTANCE_EDGES), pairs=pairs)


def format_report(report: SetReport) -> str:
    """The report in a few lines of text."""
    rejected = ", ".join(f"{n} by {reason}" for reason, n in report.rejected.items()) or "none"
    lines = [
        f"pretraining set: {report.structures} of {report.wanted} structures from {report.parents} parents; "
        f"{report.drawn} draws, rejected {rejected}; {report.redrawn} redrawn, {report.weakened} with weaker "
        f"strengths, {report.given_up} given up"
    ]
    forces = report.labels["perturbed"].get("largest_force")
    if forces:
        lines.append(
            "largest force of a structure, eV/Å: "
            + ", ".join(f"{float(q):.0%} {value:.3g}" for q, value in forces.items())
        )
    return "\n".join(lines)

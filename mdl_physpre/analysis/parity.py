"""Predictions beside their labels, structure by structure, and what they say of a difference between two potentials."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms

from mdl_physpre.analysis.batches import MAX_EDGES, graphs_of, predicted_batches
from mdl_physpre.analysis.errors import add_errors, error_table, predicted_and_labelled
from mdl_physpre.potentials.base import Potential
from mdl_physpre.utils.record import Record

STRUCTURES = 2000  # compared at most, evenly taken
COMPONENTS = 4000  # of forces and of stresses kept for a figure


def evenly(n: int, at_most: int) -> np.ndarray:
    """At most so many of 0 … n−1, evenly spaced, the first among them."""
    return np.unique(np.linspace(0, max(n - 1, 0), min(n, at_most)).round().astype(int)) if n else np.zeros(0, int)


class LabelledPredictions(Record):
    """Predicted and labelled energies, forces and stresses of structures; NaN where there is no label.

    index : (n,), places of the structures. n_atoms : (n,).
    energy, energy_label : (n,), eV.
    forces_error, stress_error : (n,), summed absolute errors of a structure's components, eV/Å and eV/Å³.
    forces_count, stress_count : (n,), of how many components.
    forces, forces_label, stress, stress_label : (≤ 4000,), eV/Å and eV/Å³, components for a figure, evenly taken from
        those that have a label.
    """

    index: np.ndarray
    n_atoms: np.ndarray
    energy: np.ndarray
    energy_label: np.ndarray
    forces_error: np.ndarray
    forces_count: np.ndarray
    forces: np.ndarray
    forces_label: np.ndarray
    stress_error: np.ndarray
    stress_count: np.ndarray
    stress: np.ndarray
    stress_label: np.ndarray


def predictions(potential: Potential, structures: Sequence[Atoms], max_edges: int = MAX_EDGES) -> LabelledPredictions:
    """Predicted and labelled energies, forces and stresses.

    Parameters
    ----------
    potential : evaluated where it is, in its own precision, in evaluation mode.
    structures : at most 2,000 of them are taken, evenly.
    max_edges : of a batch; a limit on memory.
    """
    picked = evenly(len(structures), STRUCTURES)
    dataset = graphs_of(potential, [structures[k] for k in picked])
    table = error_table(dataset.n_atoms)
    energies = {name: np.full(len(picked), np.nan) for name in ("energy", "energy_label")}
    samples: dict[str, list[np.ndarray]] = {k: [] for k in ("forces", "forces_label", "stress", "stress_label")}
    batches = predicted_batches(potential, dataset, stress=potential.gives_stress, max_edges=max_edges)
    for rows, graph, predicted in batches:
        for label, owners, values, true in predicted_and_labelled(rows, graph, predicted):
            if label == "energy":
                energies["energy"][rows], energies["energy_label"][rows] = values, true
                continue
            add_errors(table, label, owners, values, true)
            known = np.isfinite(true)
            samples[label].append(values[known])
            samples[f"{label}_label"].append(true[known])
    found: dict[str, np.ndarray] = {"index": picked, "n_atoms": table["n_atoms"], **energies}
    for label in ("forces", "stress"):
        count = found[f"{label}_count"] = table[f"{label}_count"].astype(int)
        found[f"{label}_error"] = np.where(count > 0, table[f"{label}_absolute"], np.nan)
        both = [np.concatenate(samples[k]) if samples[k] else np.zeros(0) for k in (label, f"{label}_label")]
        kept = evenly(len(both[0]), COMPONENTS)
        found[label], found[f"{label}_label"] = both[0][kept], both[1][kept]
    return LabelledPredictions(**found)


def structure_sums(found: LabelledPredictions, quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """Numerator and denominator of a mean absolute error, structure by structure; 0 and 0 without a label.

    ``quantity`` is ``energy`` (eV), ``energy_per_atom`` (meV/atom), ``forces`` (eV/Å) or ``stress`` (eV/Å³).
    """
    if quantity.startswith("energy"):
        error = np.abs(found.energy - found.energy_label)
        if quantity == "energy_per_atom":
            error = 1000.0 * error / found.n_atoms
        known = np.isfinite(error)
        return np.where(known, error, 0.0), known.astype(float)
    error, count = getattr(found, f"{quantity}_error"), getattr(found, f"{quantity}_count").astype(float)
    known = np.isfinite(error) & (count > 0)
    return np.where(known, error, 0.0), np.where(known, count, 0.0)


class PairedChange(Record):
    """Two errors, ``change`` = second/first − 1, its interval, and on how many structures with a label."""

    first: float
    second: float
    change: float
    interval: tuple[float, float] | None
    structures: int


def paired_change(
    first: LabelledPredictions, second: LabelledPredictions, quantity: str, resamples: int = 1000
) -> PairedChange | None:
    """Relative change of the mean absolute error from ``first`` to ``second``, with an interval.

    The interval holds the middle 95 % of the changes in bootstrap resamples of the structures (B. Efron, Ann. Stat. 7,
    1 (1979)), the same structures for both. It says how much the choice of test structures matters, and nothing on
    another training of the same kind. ``None`` where no structure has a label, or the structures are not the same.
    """
    if not np.array_equal(first.index, second.index):
        return None
    (a, weight), (b, _) = (structure_sums(found, quantity) for found in (first, second))
    known = weight > 0
    if known.sum() == 0 or a.sum() == 0:
        return None
    a, b, weight = a[known], b[known], weight[known]
    rng = np.random.default_rng(0)
    changes = []
    for _ in range(resamples):
        drawn = rng.integers(0, len(a), len(a))
        below = a[drawn].sum()
        if below > 0:
            changes.append(b[drawn].sum() / below - 1.0)
    low, high = np.quantile(changes, (0.025, 0.975))
    return PairedChange(
        first=a.sum() / weight.sum(),
        second=b.sum() / weight.sum(),
        change=b.sum() / a.sum() - 1.0,
        interval=(low, high) if len(a) > 1 else None,
        structures=len(a),
    )

"""Predictions beside their labels, structure by structure, and what they say of a difference between two potentials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms

from mdl_physpre.potentials.base import Potential, evaluate
from mdl_physpre.structures.graph import GraphDataset, batch_by_edges
from mdl_physpre.utils.devices import device_of_parameters

STRUCTURES = 2000  # compared at most, evenly taken
COMPONENTS = 4000  # of forces and of stresses kept for a figure


def evenly(n: int, at_most: int) -> np.ndarray:
    """At most so many of 0 … n−1, evenly spaced, the first among them."""
    return np.unique(np.linspace(0, max(n - 1, 0), min(n, at_most)).round().astype(int)) if n else np.zeros(0, int)


def predictions(potential: Potential, structures: Sequence[Atoms], max_edges: int = 100_000) -> dict[str, np.ndarray]:
    """Predicted and labelled energies, forces and stresses.

    Parameters
    ----------
    potential : evaluated where it is, in its own precision, in evaluation mode.
    structures : at most 2,000 of them are taken, evenly.
    max_edges : of a batch; a limit on memory.

    Returns
    -------
    dict of arrays, NaN where there is no label:
    ``index`` (n,), places in ``structures``; ``n_atoms`` (n,);
    ``energy``, ``energy_label`` (n,), eV;
    ``forces_error``, ``stress_error`` (n,), summed absolute errors of a structure's components, eV/Å and eV/Å³, and
    ``forces_count``, ``stress_count`` (n,), of how many components;
    ``forces``, ``forces_label`` (≤ 4000,), eV/Å, and ``stress``, ``stress_label`` (≤ 4000,), eV/Å³: components for a
    figure, evenly taken from those that have a label.
    """
    picked = evenly(len(structures), STRUCTURES)
    parameter = next(potential.parameters(), None)
    dtype = torch.float64 if parameter is None else parameter.dtype
    dataset = GraphDataset([structures[k] for k in picked], potential.cutoff, dtype=dtype)
    n = len(picked)
    found: dict[str, np.ndarray] = {"index": picked, "n_atoms": np.asarray(dataset.n_atoms)}
    for name in ("energy", "energy_label", "forces_error", "stress_error"):
        found[name] = np.full(n, np.nan)
    for name in ("forces_count", "stress_count"):
        found[name] = np.zeros(n, int)
    samples: dict[str, list[np.ndarray]] = {k: [] for k in ("forces", "forces_label", "stress", "stress_label")}
    potential.eval()
    for batch in batch_by_edges(dataset.n_edges, max_edges):
        graph = dataset.batch(batch)
        graph = graph.on(device_of_parameters(potential))
        with torch.no_grad():
            predicted = evaluate(potential, graph, stress=potential.gives_stress)
        rows, owner = np.asarray(batch), graph.batch.cpu().numpy()
        found["energy"][rows] = predicted.energies.cpu().numpy()
        found["energy_label"][rows] = graph.energy.cpu().numpy()
        for label, values, owners in (("forces", predicted.forces, owner), ("stress", predicted.stress, None)):
            if values is None:
                continue
            ours = values.detach().cpu().double().numpy().reshape(len(values), -1)
            true = graph[label].cpu().double().numpy().reshape(len(values), -1)
            whose = rows if owners is None else rows[owners]
            known = np.isfinite(true)
            difference = np.where(known, np.abs(ours - true), 0.0)
            total = np.zeros(n)
            np.add.at(total, whose, difference.sum(1))
            np.add.at(found[f"{label}_count"], whose, known.sum(1))
            mine = np.unique(whose)
            found[f"{label}_error"][mine] = total[mine]
            samples[label].append(ours[known])
            samples[f"{label}_label"].append(true[known])
    for label in ("forces", "stress"):
        found[f"{label}_error"][found[f"{label}_count"] == 0] = np.nan
        both = [np.concatenate(samples[k]) if samples[k] else np.zeros(0) for k in (label, f"{label}_label")]
        kept = evenly(len(both[0]), COMPONENTS)
        found[label], found[f"{label}_label"] = both[0][kept], both[1][kept]
    return found


def structure_sums(found: Mapping[str, np.ndarray], quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """Numerator and denominator of a mean absolute error, structure by structure; 0 and 0 without a label.

    ``quantity`` is ``energy`` (eV), ``energy_per_atom`` (meV/atom), ``forces`` (eV/Å) or ``stress`` (eV/Å³).
    """
    if quantity.startswith("energy"):
        error = np.abs(found["energy"] - found["energy_label"])
        if quantity == "energy_per_atom":
            error = 1000.0 * error / found["n_atoms"]
        known = np.isfinite(error)
        return np.where(known, error, 0.0), known.astype(float)
    error, count = found[f"{quantity}_error"], found[f"{quantity}_count"].astype(float)
    known = np.isfinite(error) & (count > 0)
    return np.where(known, error, 0.0), np.where(known, count, 0.0)


def paired_change(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], quantity: str, resamples: int = 1000
) -> dict[str, Any] | None:
    """Relative change of the mean absolute error from ``first`` to ``second``, with an interval.

    The interval holds the middle 95 % of the changes in bootstrap resamples of the structures (B. Efron, Ann. Stat. 7,
    1 (1979)), the same structures for both. It says how much the choice of test structures matters, and nothing on
    another training of the same kind.

    Returns
    -------
    ``first``, ``second`` : the errors. ``change`` : second/first − 1. ``interval`` : its lower and upper end.
    ``structures`` : with a label. ``None`` where no structure has one, or the structures are not the same.
    """
    if not np.array_equal(first["index"], second["index"]):
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
    return {
        "first": float(a.sum() / weight.sum()),
        "second": float(b.sum() / weight.sum()),
        "change": float(b.sum() / a.sum() - 1.0),
        "interval": [float(low), float(high)] if len(a) > 1 else None,
        "structures": len(a),
    }

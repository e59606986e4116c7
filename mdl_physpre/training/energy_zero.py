"""The zero of energy of a trained potential, fitted once more to what training left."""

from __future__ import annotations

import logging

import numpy as np
import torch

from mdl_physpre.potentials.base import Backbone, Potential
from mdl_physpre.potentials.energy_reference import composition_shift
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import GraphDataset, batch_by_edges
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.utils.devices import device_of_parameters

logger = logging.getLogger(__name__)

MAX_EDGES = 100_000  # of a batch; a limit on memory


def refit_reference(potential: Potential, train: GraphDataset, val: GraphDataset) -> bool:
    """Shift E0 of each element by the fit of the remaining training errors of energy to composition.

    E0_z ← E0_z + Δ_z, Δ = argmin Σ_b [(E_b − E_pred,b − Σ_z n_bz Δ_z)/n_b]²

    Forces and stress do not change. The shift is kept if it lowers the mean absolute error per atom on ``val``.

    Returns
    -------
    bool : whether E0 was changed; never for a potential without reference energies.
    """
    if not isinstance(potential, Backbone):
        return False
    if not (train.label_count("energy") and val.label_count("energy")):
        return False
    shift = composition_shift(train.structures, energy_errors(potential, train))
    before = energy_errors(potential, val)
    after = before - np.array([float(shift[torch.as_tensor(a.numbers)].sum()) for a in val.structures])
    old, new = (float(np.nanmean(np.abs(e) / val.n_atoms)) for e in (before, after))
    if not new < old:
        return False
    potential.shift_reference(shift)
    logger.info("energy reference fitted again: validation error %.4g → %.4g meV/atom", 1000 * old, 1000 * new)
    return True


def energy_errors(potential: Potential, dataset: GraphDataset) -> np.ndarray:
    """Labelled less predicted total energy of each structure, eV; NaN where there is no label."""
    predicted = np.zeros(len(dataset))
    for batch in batch_by_edges(dataset.n_edges, MAX_EDGES):
        graph = dataset.batch(batch).on(device_of_parameters(potential))
        with torch.no_grad():
            predicted[batch] = evaluate(potential, graph, forces=False, stress=False).energies.cpu().numpy()
    labels = [get_labels(atoms).energy for atoms in dataset.structures]
    return np.array([np.nan if e is None else e for e in labels]) - predicted

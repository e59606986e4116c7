"""Predictions of a potential on structures, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from mdl_physpre.potentials.base import Potential, Predictions
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import AtomGraph, GraphDataset, batch_by_edges
from mdl_physpre.utils.devices import available_device, device_of_parameters, precision_and_device

MAX_EDGES = 100_000  # of a batch; a limit on memory


def graphs_of(potential: Potential, structures: GraphDataset | Sequence[Atoms], labels: bool = True) -> GraphDataset:
    """The graphs of structures within the potential's cutoff, in its precision."""
    if isinstance(structures, GraphDataset):
        return structures
    structures = [structures] if isinstance(structures, Atoms) else structures
    return GraphDataset(structures, potential.cutoff, dtype=precision_and_device(potential)[0], labels=labels)


@contextmanager
def evaluation(potential: Potential, device: str | torch.device | None = None) -> Iterator[torch.device]:
    """A potential in evaluation mode and, where one is named, on another device; as it was before, afterwards."""
    home, training = device_of_parameters(potential), potential.training
    place = home if device is None else available_device(device)
    potential.eval()
    if place != home:
        potential.to(place)
    try:
        yield place
    finally:
        potential.train(training)
        if place != home:
            potential.to(home)


def predicted_batches(
    potential: Potential,
    dataset: GraphDataset,
    *,
    forces: bool = True,
    stress: bool = True,
    max_edges: int = MAX_EDGES,
    device: str | torch.device | None = None,
) -> Iterator[tuple[np.ndarray, AtomGraph, Predictions]]:
    """For each batch the places of its structures in the data set, its graph with labels, and the predictions."""
    with evaluation(potential, device) as place:
        for batch in batch_by_edges(dataset.n_edges, max_edges):
            graph = dataset.batch(batch).on(place)
            with torch.no_grad():
                found = evaluate(potential, graph, forces=forces, stress=stress)
            yield np.array(batch), graph, found


def numbers(values: Tensor) -> np.ndarray:
    """A tensor in double precision, on the host."""
    return values.detach().cpu().double().numpy()

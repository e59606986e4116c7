"""Batches of graphs in an order that depends on seed and epoch alone, so that a training can be taken up again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from ase.geometry import complete_cell

from mdl_physpre.structures.graph import AtomGraph, GraphDataset, batch_by_edges, content_hash
from mdl_physpre.structures.labels import get_labels


def batch_indices(
    n_edges: np.ndarray, batch_size: int, max_edges: int | None = None, seed: int | None = None, epoch: int = 0
) -> list[list[int]]:
    """Indices of the structures of each batch.

    Parameters
    ----------
    n_edges : edges of each structure.
    batch_size : structures in a batch; the last one may be smaller.
    max_edges : a batch with more edges is cut; a single larger structure makes a batch of its own.
    seed : shuffle by (seed, epoch); keep the order of the data set where ``None``.
    epoch : counted from 0.
    """
    n = len(n_edges)
    order = np.arange(n) if seed is None else np.random.default_rng([seed, epoch]).permutation(n)
    batches = [order[k : k + batch_size] for k in range(0, n, batch_size)]
    if max_edges is None:
        return [[int(k) for k in batch] for batch in batches]
    return [part for batch in batches for part in batch_by_edges(n_edges, max_edges, batch)]


class GraphBatches:
    """The batches of one epoch: an iterable of :class:`AtomGraph` with a length, for Lightning.

    A batch is a copy of a few slices and takes well under a hundredth of the time of a training step, so there are no
    worker processes.
    """

    def __init__(self, dataset: GraphDataset, batches: list[list[int]]) -> None:
        self.dataset = dataset
        self.batches = batches
        self._cells = _completed_cells(dataset)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[AtomGraph]:
        for indices in self.batches:
            graph = self.dataset.batch(indices)
            if self._cells is not None:
                graph.cell = self._cells[indices]
            yield graph


def _completed_cells(dataset: GraphDataset) -> torch.Tensor | None:
    """All cells, missing vectors replaced by unit vectors, or ``None`` where every cell has a volume.

    The stress of a structure without volume is NaN, and would make NaN of the gradient although the loss masks it. No
    edge crosses a missing vector, so energies and forces do not change.
    """
    cells = np.array([a.cell[:] for a in dataset.structures]).reshape(-1, 3, 3)
    flat = np.abs(np.linalg.det(cells)) == 0
    if not flat.any():
        return None
    for k in np.flatnonzero(flat):
        cells[k] = complete_cell(cells[k])
    return torch.from_numpy(cells).to(dataset.dtype)


def fingerprint(dataset: GraphDataset) -> str:
    """A hash of species, positions, cells and labels of a data set, and of the cutoff and precision."""
    digest = hashlib.sha256(content_hash(dataset.structures, dataset.cutoff, str(dataset.dtype)).encode())
    for atoms in dataset.structures:
        labels = get_labels(atoms)
        for value in (labels.energy, labels.forces, labels.stress):
            digest.update(b"-" if value is None else np.asarray(value, dtype=float).tobytes())
    return digest.hexdigest()[:24]

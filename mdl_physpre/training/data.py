"""Batches of graphs in an order that depends on seed and epoch alone, so that a training can be taken up again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from ase.geometry import complete_cell

from mdl_physpre.structures.graph import AtomGraph, GraphDataset, batch_by_edges, content_hash
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.training.ranks import Ranks
from mdl_physpre.training.settings import TrainingSettings

AHEAD = 2  # batches that are cut before they are asked for


def epoch_batches(dataset: GraphDataset, settings: TrainingSettings, epoch: int | None = None) -> list[list[int]]:
    """:func:`batch_indices` of a data set under the settings; in the order of the set where no epoch is given."""
    seed = None if epoch is None else settings.seed
    filled = None if settings.batch_atoms is None else (dataset.n_atoms, settings.batch_atoms)
    return batch_indices(dataset.n_edges, settings.batch_size, settings.max_edges, seed, epoch or 0, filled)


def batch_indices(
    n_edges: np.ndarray,
    batch_size: int,
    max_edges: int | None = None,
    seed: int | None = None,
    epoch: int = 0,
    filled: tuple[np.ndarray, int] | None = None,
) -> list[list[int]]:
    """Indices of the structures of each batch.

    Parameters
    ----------
    n_edges : edges of each structure.
    batch_size : structures in a batch; the last one may be smaller.
    max_edges : a batch with more edges is cut; a single larger structure makes a batch of its own.
    seed : shuffle by (seed, epoch); keep the order of the data set where ``None``.
    epoch : counted from 0.
    filled : size of each structure, and up to which sum a batch is filled, in place of ``batch_size``; a single larger
        structure makes a batch of its own.
    """
    n = len(n_edges)
    order = np.arange(n) if seed is None else np.random.default_rng([seed, epoch]).permutation(n)
    if filled is None:
        batches = [order[k : k + batch_size].tolist() for k in range(0, n, batch_size)]
    else:
        batches = batch_by_edges(*filled, order)
    if max_edges is None:
        return batches
    return [part for batch in batches for part in batch_by_edges(n_edges, max_edges, batch)]


class GraphBatches:
    """The batches of one epoch: an iterable of :class:`AtomGraph` with a length, for Lightning.

    A batch is a copy of a few slices and takes well under a hundredth of the time of a training step on a CPU. A GPU is
    faster: for it a thread cuts the next batch meanwhile, into memory from which it is copied without waiting.

    Parameters
    ----------
    dataset, batches : the structures, and which of them each batch holds.
    ranks : of each batch this process's share is cut; all of it where ``None``. A share may be empty.
    gpu : for which a thread cuts batches, into pinned memory; ``None`` on the CPU.
    """

    def __init__(
        self,
        dataset: GraphDataset,
        batches: list[list[int]],
        ranks: Ranks | None = None,
        gpu: torch.device | None = None,
    ) -> None:
        self.dataset = dataset
        self.batches = batches
        self._ranks, self._gpu = ranks, gpu
        self._cells = _completed_cells(dataset)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[AtomGraph]:
        if self._gpu is None:
            yield from map(self._cut, self.batches)
            return
        # memory is pinned for the current device, which each thread has of its own
        with ThreadPoolExecutor(1, "mdl_physpre-batches", torch.cuda.set_device, (self._gpu,)) as thread:
            coming = [thread.submit(self._pinned, indices) for indices in self.batches[:AHEAD]]
            for k in range(len(self.batches)):
                if k + AHEAD < len(self.batches):
                    coming.append(thread.submit(self._pinned, self.batches[k + AHEAD]))
                yield coming.pop(0).result()

    def _cut(self, indices: list[int]) -> AtomGraph:
        if self._ranks is not None:
            indices = self._ranks.shares(indices, self.dataset.n_edges)
        graph = self.dataset.batch(indices)
        if self._cells is not None:
            graph.cell = self._cells[indices]
        return graph

    def _pinned(self, indices: list[int]) -> AtomGraph:
        graph = self._cut(indices)
        for key, value in list(graph._store.items()):
            graph._store[key] = value.pin_memory()
        return graph


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

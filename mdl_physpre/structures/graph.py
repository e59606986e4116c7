"""Graphs: a structure with its neighbour list, batches of them, and whole data sets whose edges are built once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from ase import Atoms
from torch import Tensor
from torch_geometric.data import Data

from mdl_physpre.errors import DataError
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.structures.neighbours import neighbour_list
from mdl_physpre.utils.files import replacing
from mdl_physpre.utils.worker_pool import run_chunks

logger = logging.getLogger(__name__)

PARALLEL_FROM = 20_000  # atoms: below this, starting processes costs more than the search


def _version(tensor: Tensor) -> int:
    """How often a tensor has been changed in place, as far as torch counts it."""
    return 0 if tensor.is_inference() else tensor._version


class AtomGraph(Data):
    """One structure or a batch of structures with their edges.

    Fields (n atoms, B structures, E edges): ``pos`` (n, 3) Å; ``cell`` (B, 3, 3) Å, rows are vectors, zero where there
    is none; ``pbc`` (B, 3); ``z`` (n,); ``n_atoms`` (B,); ``batch`` (n,); ``edge_index`` (2, E), centre and neighbour,
    sorted by centre; ``cell_offsets`` (E, 3), integer shifts. With labels: ``energy`` (B,) eV, ``forces`` (n, 3) eV/Å,
    ``stress`` (B, 3, 3) eV/Å³, NaN where a label is missing.
    """

    @classmethod
    def from_tensors(cls, base: AtomGraph | None = None, **fields: Tensor) -> AtomGraph:
        """A graph with the fields of ``base`` (shared, not copied) and ``fields`` in place of its own."""
        graph = cls()
        store = graph._store  # plain storage: the checks of Data cost more than a small batch
        if base is not None:
            for key, value in base._store.items():
                store[key] = value
            graph.__dict__["known_elements"] = base.__dict__.get("known_elements")
            if "n_atoms" not in fields:
                graph.__dict__["structures"] = base.__dict__.get("structures")
        for key, value in fields.items():
            store[key] = value
        return graph

    def with_elements(self, numbers: np.ndarray) -> AtomGraph:
        """The graph itself, told which atomic numbers are in it."""
        self.__dict__["known_elements"] = (self.z, _version(self.z), frozenset(np.unique(numbers).tolist()))
        return self

    def with_structures(self, structures: Sequence[Atoms]) -> AtomGraph:
        """The graph itself, told which structures it was made of, for all that is no tensor: charges, moments, tags."""
        self.__dict__["structures"] = tuple(structures)
        return self

    @property
    def structures(self) -> tuple[Atoms, ...] | None:
        """The structures it was made of; ``None`` where they are not known."""
        return self.__dict__.get("structures")

    @property
    def elements(self) -> frozenset[int]:
        """The atomic numbers in the graph, found once: on a GPU, to look at them is to wait for all that it does."""
        z, version, found = self.__dict__.get("known_elements") or (None, 0, frozenset())
        if z is not self.z or version != _version(z):
            found = frozenset(self.z.unique().tolist())
            self.__dict__["known_elements"] = (self.z, _version(self.z), found)
        return found

    def on(self, device: torch.device | str) -> AtomGraph:
        """The graph on a device; itself where it is there already."""
        if self.pos.device == torch.device(device):
            return self
        moved = AtomGraph.from_tensors(**{k: v.to(device, non_blocking=True) for k, v in self._store.items()})
        moved.__dict__ |= {"known_elements": (moved.z, _version(moved.z), self.elements), "structures": self.structures}
        return moved


_Task = tuple[np.ndarray, np.ndarray, np.ndarray, float]  # positions, cell, pbc, cutoff
_Edges = tuple[np.ndarray, np.ndarray, np.ndarray]  # neighbours of each atom, their numbers, shifts


def _edges_of(task: _Task) -> _Edges:
    positions, cell, pbc, cutoff = task
    i, j, shifts = neighbour_list(positions, cell, pbc, cutoff)
    counts = np.bincount(i, minlength=len(positions)).astype(np.int32)
    small = np.int8 if not len(shifts) or np.abs(shifts).max() < 128 else np.int32
    return counts, j.astype(np.int32), shifts.astype(small)


def _edges_of_chunk(tasks: list[_Task], chunk: list[int]) -> list[_Edges]:
    found = []
    for k in chunk:
        try:
            found.append(_edges_of(tasks[k]))
        except DataError as error:
            raise DataError(f"structure {k}: {error}") from None
    return found


def _all_edges(structures: Sequence[Atoms], cutoff: float, workers: int | None) -> list[_Edges]:
    tasks = [(a.positions, np.asarray(a.cell[:]), a.pbc, float(cutoff)) for a in structures]
    if sum(len(a) for a in structures) < PARALLEL_FROM:
        workers = 1
    size = max(1, len(tasks) // 64)
    chunks = [list(range(k, min(k + size, len(tasks)))) for k in range(0, len(tasks), size)]
    return [edges for part in run_chunks(partial(_edges_of_chunk, tasks), chunks, workers) for edges in part]


def content_hash(structures: Iterable[Atoms], *extra: Any) -> str:
    """A hash of species, positions, cells and periodicity, and of ``extra``."""
    digest = hashlib.sha256(repr(extra).encode())
    for a in structures:
        for array in (a.numbers, a.positions, np.asarray(a.cell[:]), a.pbc):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(b"|")
    return digest.hexdigest()[:24]


class GraphDataset:
    """A list of structures with all their edges, kept compactly, from which batches are cut.

    Parameters
    ----------
    structures : the structures; their labels are read from them.
    cutoff : Å.
    dtype : precision of the batches.
    cache_dir : where edges are kept between runs, named by a hash of the structures and the cutoff.
    workers : processes that build edges; all cores where ``None``.
    labels : whether batches carry ``energy``, ``forces`` and ``stress``.

    Raises
    ------
    DataError : a structure whose neighbours cannot be found, with its index.
    """

    FORMAT = 1

    def __init__(
        self,
        structures: Sequence[Atoms],
        cutoff: float,
        dtype: torch.dtype = torch.float32,
        cache_dir: str | Path | None = None,
        workers: int | None = None,
        labels: bool = True,
    ) -> None:
        self.structures = list(structures)
        self.cutoff = float(cutoff)
        self.dtype = dtype
        self.n_atoms = np.array([len(a) for a in self.structures], dtype=np.int64)
        self._load_or_build(cache_dir, workers)
        self._atom_start = np.concatenate([[0], np.cumsum(self.n_atoms)])
        per_atom = self._counts.astype(np.int64)
        self._edge_start = np.concatenate([[0], np.cumsum(per_atom)])[self._atom_start]
        self.n_edges = np.diff(self._edge_start)
        real = np.float32 if dtype == torch.float32 else np.float64
        self._z = np.concatenate([a.numbers for a in self.structures] or [[]]).astype(np.int64)
        self._pos = np.concatenate([a.positions for a in self.structures] or [np.zeros((0, 3))]).astype(real)
        self._cell = np.array([a.cell[:] for a in self.structures], dtype=real).reshape(-1, 3, 3)
        self._pbc = np.array([a.pbc for a in self.structures], dtype=bool).reshape(-1, 3)
        self._has_labels = labels
        if labels:
            self._read_labels(real)

    def _load_or_build(self, cache_dir: str | Path | None, workers: int | None) -> None:
        path = None
        if cache_dir is not None:
            key = content_hash(self.structures, self.cutoff, self.FORMAT)
            path = Path(cache_dir) / f"edges-{key}.npz"
            if path.exists():
                try:
                    with np.load(path, allow_pickle=False) as stored:
                        self._counts, self._j, self._shifts = (stored[k] for k in ("counts", "neighbours", "shifts"))
                    return
                except (ValueError, OSError, KeyError, EOFError, BadZipFile):
                    logger.warning("%s is damaged; edges are built again", path)
        edges = _all_edges(self.structures, self.cutoff, workers)
        wide = np.int32 if any(e[2].dtype == np.int32 for e in edges) else np.int8
        self._counts = np.concatenate([e[0] for e in edges] or [np.zeros(0, np.int32)])
        self._j = np.concatenate([e[1] for e in edges] or [np.zeros(0, np.int32)])
        self._shifts = np.concatenate([e[2].astype(wide, copy=False) for e in edges] or [np.zeros((0, 3), np.int8)])
        if path is not None:
            try:
                with replacing(path) as temporary, open(temporary, "wb") as file:
                    np.savez(file, counts=self._counts, neighbours=self._j, shifts=self._shifts)
            except DataError as error:  # the edges are here all the same
                logger.warning("edges are not kept for another time: %s", error)

    def _read_labels(self, real: type) -> None:
        n = len(self.structures)
        self._energy = np.full(n, np.nan)
        self._stress: np.ndarray = np.full((n, 3, 3), np.nan, dtype=real)
        self._forces: np.ndarray = np.full((len(self._z), 3), np.nan, dtype=real)
        for k, atoms in enumerate(self.structures):
            found = get_labels(atoms)
            if found.energy is not None:
                self._energy[k] = found.energy
            if found.forces is not None:
                self._forces[self._atom_start[k] : self._atom_start[k + 1]] = found.forces
            if found.stress is not None:
                self._stress[k] = found.stress

    def __len__(self) -> int:
        return len(self.structures)

    def label_count(self, label: str) -> int:
        """How many structures carry ``energy``, ``forces`` or ``stress``."""
        if not self._has_labels:
            return 0
        if label == "forces":
            first = self._atom_start[:-1][self.n_atoms > 0]
            return int(np.isfinite(self._forces[first, 0]).sum())
        return int(np.isfinite(self._energy if label == "energy" else self._stress[:, 0, 0]).sum())

    def batch(self, indices: Sequence[int] | np.ndarray | None = None) -> AtomGraph:
        """The graph of some structures (all where ``None``), in the order given."""
        picked = np.arange(len(self)) if indices is None else np.asarray(indices, dtype=np.int64)
        n_atoms, n_edges = self.n_atoms[picked], self.n_edges[picked]
        atoms = _ranges(self._atom_start[picked], n_atoms)
        edges = _ranges(self._edge_start[picked], n_edges)
        first_atom = np.concatenate([[0], np.cumsum(n_atoms)[:-1]]) if len(picked) else np.zeros(0, np.int64)
        centre = np.repeat(np.arange(len(atoms)), self._counts[atoms])
        neighbour = self._j[edges].astype(np.int64) + np.repeat(first_atom, n_edges)
        fields = {
            "pos": torch.from_numpy(self._pos[atoms]),
            "cell": torch.from_numpy(self._cell[picked]),
            "pbc": torch.from_numpy(self._pbc[picked]),
            "z": torch.from_numpy(self._z[atoms]),
            "n_atoms": torch.from_numpy(n_atoms.copy()),
            "batch": torch.from_numpy(np.repeat(np.arange(len(picked)), n_atoms)),
            "edge_index": torch.from_numpy(np.stack([centre, neighbour])),
            "cell_offsets": torch.from_numpy(self._shifts[edges].astype(self._pos.dtype)),
        }
        if self._has_labels:
            fields["energy"] = torch.from_numpy(self._energy[picked])
            fields["forces"] = torch.from_numpy(self._forces[atoms])
            fields["stress"] = torch.from_numpy(self._stress[picked])
        graph = AtomGraph.from_tensors(None, **fields).with_structures([self.structures[k] for k in picked])
        return graph.with_elements(self._z[atoms])


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The integers start, …, start + length − 1 of each pair, one after another."""
    if not lengths.sum():
        return np.zeros(0, np.int64)
    ends = np.cumsum(lengths)
    offsets: np.ndarray = np.repeat(starts - (ends - lengths), lengths)
    return np.arange(ends[-1]) + offsets


def build_graph(
    structures: Atoms | Sequence[Atoms], cutoff: float, dtype: torch.dtype = torch.float64, labels: bool = False
) -> AtomGraph:
    """The graph of one structure, or of a list of structures as one batch.

    Every periodic image within ``cutoff`` is an edge, own images included, in any cell, with no cap on neighbours.

    Parameters
    ----------
    structures : one ``ase.Atoms`` or a list of them.
    cutoff : Å.
    dtype : precision of positions and cells.
    labels : whether to add ``energy``, ``forces`` and ``stress``.

    Raises
    ------
    DataError : a periodic cell without volume, or positions that are not finite.
    """
    listed = [structures] if isinstance(structures, Atoms) else list(structures)
    return GraphDataset(listed, cutoff, dtype=dtype, workers=1, labels=labels).batch()


def batch_by_edges(
    n_edges: Sequence[int] | np.ndarray, max_edges: int, order: Sequence[int] | np.ndarray | None = None
) -> list[list[int]]:
    """Cut ``order`` (0, 1, … where ``None``) into runs of at most ``max_edges`` edges; a larger structure is alone."""
    batches: list[list[int]] = []
    room = 0
    for k in range(len(n_edges)) if order is None else order:
        size = int(n_edges[k])
        if not batches or size > room:
            batches.append([])
            room = max_edges
        batches[-1].append(int(k))
        room -= size
    return batches

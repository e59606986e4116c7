"""Neighbour lists with a skin for many structures, and the graphs that are cut from them at every step.

A list holds every pair within R + skin. While no atom has moved more than skin/2 since it was built, it holds every
pair within R; a structure in which one has gets a new list, the others keep theirs. At each step the edges at or beyond
the potential's cutoff are left out, so a potential sees exactly the graph that a new list would give, and one that does
not vanish at its cutoff is treated right too.

The smallest distance of a structure comes from a short list of its own. A pair changes its distance by at most one skin
between two builds, so the closest pair of any later step was within d_min + 2 skin when the list was built, where
d_min was the smallest distance then.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mdl_physpre.structures.graph import AtomGraph, batch_by_edges
from mdl_physpre.structures.neighbours import neighbour_list


class Collapsed(Exception):
    """An atom has more neighbours than allowed."""


@dataclass
class _List:
    """One structure's pairs: local centre and neighbour (2, E), images (E, 3), and the same for its closest pairs."""

    edges: Tensor
    offsets: Tensor
    shift: Tensor
    close: Tensor
    close_shift: Tensor


@dataclass
class _Chunk:
    """Structures first..last−1, evaluated together; edges are numbered from the chunk's first atom."""

    first: int
    last: int
    atoms: slice
    static: AtomGraph
    pairs: tuple[Tensor, Tensor, Tensor] | None = None  # edges, offsets, shift as in _List; None where out of date


class SkinLists:
    """Lists, chunks and graphs of the structures that are being simulated.

    Parameters
    ----------
    numbers, cells, pbc : atomic numbers (n,), cell (3, 3) in Å and periodicity (3,) of each structure.
    radii : R of each structure, Å, at least the cutoff; larger where its closest pair is farther apart than the cutoff.
    cutoff : Å, of the potential.
    skin : Å.
    dtype, device : of the graphs; distances are taken in float64.
    max_edges : edges of one chunk; a larger structure is a chunk of its own.
    max_neighbours : :class:`Collapsed` is reported for a structure where an atom has more.
    """

    def __init__(
        self,
        numbers: Sequence[np.ndarray],
        cells: Sequence[np.ndarray],
        pbc: Sequence[np.ndarray],
        radii: Sequence[float],
        *,
        cutoff: float,
        skin: float,
        dtype: torch.dtype,
        device: torch.device,
        max_edges: int,
        max_neighbours: int,
    ) -> None:
        self.numbers, self.cells, self.pbc, self.radii = list(numbers), list(cells), list(pbc), list(radii)
        self.cutoff, self.skin, self.dtype, self.device = cutoff, skin, dtype, device
        self.max_edges, self.max_neighbours = max_edges, max_neighbours
        self.reference = torch.zeros((sum(len(z) for z in numbers), 3), dtype=torch.float64, device=device)
        self.lists: list[_List] = []
        self.chunks: list[_Chunk] = []
        self.rebuilds = 0
        self._close: tuple[Tensor, Tensor, Tensor] | None = None
        self._number_atoms()

    def _number_atoms(self) -> None:
        sizes = [len(z) for z in self.numbers]
        self.first_atom = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.batch = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(self.device)

    def build_all(self, positions: Tensor, boundaries: list[int] | None = None) -> dict[int, str]:
        """New lists for all structures; returns those that have collapsed, with a sentence.

        ``boundaries`` are the first structures of the chunks, where they are not to be chosen anew.
        """
        self.lists = [self._empty()] * len(self.numbers)
        collapsed = self._build(range(len(self.numbers)), positions)
        self._cut(boundaries)
        return collapsed

    def update(self, positions: Tensor) -> dict[int, str]:
        """New lists for the structures that have moved far; returns those that have collapsed, with a sentence."""
        moved = (positions - self.reference).square().sum(1) > (0.5 * self.skin) ** 2
        if not bool(moved.any()):
            return {}
        structures = torch.unique(self.batch[moved]).tolist()
        collapsed = self._build(structures, positions)
        sizes = [self.lists[k].edges.shape[1] for k in range(len(self.lists))]
        if any(c.last - c.first > 1 and sum(sizes[c.first : c.last]) > 1.25 * self.max_edges for c in self.chunks):
            self._cut()
        changed = set(structures)
        for chunk in self.chunks:
            if any(k in changed for k in range(chunk.first, chunk.last)):
                chunk.pairs = None
        return collapsed

    def _build(self, structures: Sequence[int], positions: Tensor) -> dict[int, str]:
        collapsed: dict[int, str] = {}
        where = positions.cpu().numpy()
        for k in structures:
            atoms = slice(self.first_atom[k], self.first_atom[k + 1])
            try:
                self.lists[k] = self._list_of(k, where[atoms])
            except Collapsed as reason:
                collapsed[k] = str(reason)
            self.reference[atoms] = positions[atoms]
        self.rebuilds += len(structures)
        self._close = None
        return collapsed

    def _empty(self) -> _List:
        pairs = torch.zeros((2, 0), dtype=torch.int64, device=self.device)
        none = torch.zeros((0, 3), dtype=torch.float64, device=self.device)
        return _List(pairs, none.to(self.dtype), none, pairs, none)

    def _list_of(self, k: int, positions: np.ndarray) -> _List:
        cell, pbc, radius = self.cells[k], self.pbc[k], self.radii[k] + self.skin
        bound = f"within {radius:.2f} Å, at most {self.max_neighbours} allowed"
        if np.all(pbc):
            # before the search: a list of this size might not fit into memory
            mean = len(positions) * 4 / 3 * math.pi * radius**3 / abs(np.linalg.det(cell))
            if mean > self.max_neighbours:
                raise Collapsed(f"about {mean:.3g} neighbours {bound}")
        i, j, offsets = neighbour_list(positions, cell, pbc, radius)
        most = int(np.bincount(i).max()) if len(i) else 0
        if most > self.max_neighbours:
            raise Collapsed(f"an atom has {most} neighbours {bound}")
        shift = offsets @ np.asarray(cell, dtype=float)
        half = np.flatnonzero(i < j)
        distance = np.linalg.norm(positions[j[half]] - positions[i[half]] + shift[half], axis=1)
        if len(half):
            half = half[distance <= distance.min() + 2 * self.skin + 1e-6]
        edges = torch.from_numpy(np.stack([i, j]))
        vectors = torch.from_numpy(shift)
        return _List(
            edges.to(self.device),
            torch.from_numpy(offsets).to(self.device, self.dtype),
            vectors.to(self.device),
            edges[:, half].to(self.device),
            vectors[half].to(self.device),
        )

    def _cut(self, boundaries: list[int] | None = None) -> None:
        """Cut the structures into chunks of at most ``max_edges`` edges."""
        n = len(self.numbers)
        if boundaries is None:
            boundaries = [group[0] for group in batch_by_edges([e.edges.shape[1] for e in self.lists], self.max_edges)]
        self.chunks = []
        ends = [*boundaries[1:], n] if n else []
        for first, last in zip(boundaries, ends, strict=True):
            self.chunks.append(self._chunk(first, last))

    def _chunk(self, first: int, last: int) -> _Chunk:
        sizes = [len(z) for z in self.numbers[first:last]]
        static = AtomGraph.from_tensors(
            cell=torch.from_numpy(np.array(self.cells[first:last], dtype=float)).to(self.device, self.dtype),
            pbc=torch.from_numpy(np.array(self.pbc[first:last], dtype=bool)).to(self.device),
            z=torch.from_numpy(np.concatenate(self.numbers[first:last]).astype(np.int64)).to(self.device),
            n_atoms=torch.tensor(sizes, dtype=torch.int64, device=self.device),
            batch=torch.from_numpy(np.repeat(np.arange(last - first), sizes)).to(self.device),
        )
        return _Chunk(first, last, slice(int(self.first_atom[first]), int(self.first_atom[last])), static)

    @property
    def boundaries(self) -> list[int]:
        """First structure of each chunk."""
        return [chunk.first for chunk in self.chunks]

    def _numbered(self, first: int, last: int, what: str) -> Tensor:
        """Pairs of structures first..last−1 with atoms counted from the first atom of ``first``."""
        pairs = [getattr(self.lists[k], what) for k in range(first, last)]
        starts = self.first_atom[first:last] - self.first_atom[first]
        counts = torch.tensor([p.shape[1] for p in pairs], device=self.device)
        return torch.cat(pairs, dim=1) + torch.repeat_interleave(torch.from_numpy(starts).to(self.device), counts)

    def graph(self, chunk: _Chunk, positions: Tensor) -> AtomGraph:
        """The exact graph of a chunk at ``positions`` (all atoms of all structures, float64)."""
        if chunk.pairs is None:
            among = self.lists[chunk.first : chunk.last]
            numbered = self._numbered(chunk.first, chunk.last, "edges")
            chunk.pairs = numbered, torch.cat([k.offsets for k in among]), torch.cat([k.shift for k in among])
        edges, offsets, shift = chunk.pairs
        here = positions[chunk.atoms]
        vectors = here.index_select(0, edges[1]).sub_(here.index_select(0, edges[0])).add_(shift)
        inside = (torch.linalg.vector_norm(vectors, dim=1) < self.cutoff).nonzero().flatten()
        return AtomGraph.from_tensors(
            chunk.static,
            pos=here.to(self.dtype),
            edge_index=edges.index_select(1, inside),
            cell_offsets=offsets.index_select(0, inside),
        )

    def alone(self, structure: int) -> _Chunk:
        """A chunk of one structure."""
        return self._chunk(structure, structure + 1)

    def minimum_distances(self, positions: Tensor) -> Tensor:
        """Smallest distance between different atoms in each structure, images included; infinite without a pair."""
        n = len(self.numbers)
        if self._close is None:
            pairs = self._numbered(0, n, "close") if n else torch.zeros((2, 0), dtype=torch.int64)
            counts = torch.tensor([k.close.shape[1] for k in self.lists], device=self.device)
            of = torch.repeat_interleave(torch.arange(n, device=self.device), counts)
            self._close = pairs, torch.cat([k.close_shift for k in self.lists]), of
        pairs, shift, of = self._close
        vectors = positions.index_select(0, pairs[1]).sub_(positions.index_select(0, pairs[0])).add_(shift)
        least = torch.full((n,), torch.inf, dtype=torch.float64, device=self.device)
        return least.scatter_reduce_(0, of, vectors.square().sum(1), "amin").sqrt()

    def keep(self, structures: list[int], atoms: Tensor) -> None:
        """Go on with the structures of these indices; ``atoms`` holds the indices of their atoms."""
        for name in ("numbers", "cells", "pbc", "radii", "lists"):
            setattr(self, name, [getattr(self, name)[k] for k in structures])
        self.reference = self.reference.index_select(0, atoms)
        self._close = None
        self._number_atoms()
        self._cut()

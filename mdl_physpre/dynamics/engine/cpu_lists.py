"""Neighbour lists with a skin on the CPU, and the exact graphs that are cut from them at every step.

The edges at or beyond the potential's cutoff are left out at each step, so a potential sees exactly the graph that a
new list would give, and one that does not vanish at its cutoff is treated right too. Each structure's list is built
alone, and chunks of structures are evaluated that fit a cache: what is fast on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdl_physpre.dynamics.engine.broken import Broken
from mdl_physpre.dynamics.engine.neighbour_lists import Chunk, Collapsed, MovingLists, Pairs
from mdl_physpre.dynamics.engine.pairs_cpu import pairs_inside
from mdl_physpre.structures.graph import AtomGraph
from mdl_physpre.structures.neighbours import expected_neighbours, neighbour_list


@dataclass
class _List:
    """One structure's pairs: local centre and neighbour (2, E), images (E, 3), and the same for its closest pairs."""

    edges: Tensor
    offsets: Tensor
    close: Tensor
    close_offsets: Tensor


class SkinLists(MovingLists):
    """One list for each structure; parameters as :class:`MovingLists`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        pairs = torch.zeros((2, 0), dtype=torch.int64, device=self.device)
        none = torch.zeros((0, 3), dtype=self.dtype, device=self.device)
        self.lists = [_List(pairs, none, pairs, none)] * len(self.numbers)
        self._close: Pairs | None = None

    def update(self, positions: Tensor, cells: Tensor, broken: Broken | None = None) -> dict[int, str]:
        if self.changing:
            self.cells = cells
        distance, room = self._moved(positions)
        structures = Broken().which(~(distance <= room), self.batch)  # on the CPU reading costs nothing
        if not structures:
            return {}
        collapsed = self._build(structures, positions)
        if self._outgrown(self.edge_counts()):
            self.cut()
        changed = set(structures)
        self.chunks = [
            replace(c, pairs=None) if any(k in changed for k in range(c.first, c.last)) else c for c in self.chunks
        ]
        return collapsed

    def edge_counts(self) -> list[int]:
        return [one.edges.shape[1] for one in self.lists]

    def _build(self, structures: Sequence[int], positions: Tensor) -> dict[int, str]:
        collapsed: dict[int, str] = {}
        where, cells = positions.cpu().numpy(), self.cells.cpu().numpy()
        lists, reference, reference_cells = list(self.lists), self.reference.clone(), self.reference_cells.clone()
        for k in structures:
            atoms = slice(self.first_atom[k], self.first_atom[k + 1])
            try:
                lists[k] = self._list_of(k, where[atoms], cells[k])
            except Collapsed as reason:
                collapsed[k] = str(reason)
            reference[atoms] = positions[atoms]
            reference_cells[k] = self.cells[k]
        self.lists, self.reference, self.reference_cells = lists, reference, reference_cells
        self.rebuilds += len(structures)
        self._close = None
        return collapsed

    def _list_of(self, k: int, positions: np.ndarray, cell: np.ndarray) -> _List:
        pbc, radius = self.pbc[k], self.radii[k] + self.skin
        bound = f"within {radius:.2f} Å, at most {self.max_neighbours} allowed"
        # before the search: a list of this size might not fit into memory
        mean = expected_neighbours(len(positions), cell, pbc, radius)
        if mean > self.max_neighbours:
            raise Collapsed(f"about {mean:.3g} neighbours {bound}")
        i, j, offsets = neighbour_list(positions, cell, pbc, radius)
        most = int(np.bincount(i).max()) if len(i) else 0
        if most > self.max_neighbours:
            raise Collapsed(f"an atom has {most} neighbours {bound}")
        half = np.flatnonzero(i < j)
        vectors = positions[j[half]] - positions[i[half]] + offsets[half] @ cell
        if len(half):
            distance = np.linalg.norm(vectors, axis=1)
            half = half[distance <= distance.min() + 2 * self.skin + 1e-6]
        edges = torch.from_numpy(np.stack([i, j])).to(self.device)
        images = torch.from_numpy(offsets).to(self.device, self.dtype)
        chosen = torch.from_numpy(half).to(self.device)
        return _List(edges, images, edges.index_select(1, chosen), images.index_select(0, chosen))

    def _most_edges(self, sizes: Sequence[int]) -> int:
        """So that the chunks of ``shares`` threads are few, no larger than allowed, and alike."""
        if self.shares == 1:
            return self.max_edges
        rounds = math.ceil(sum(sizes) / self.max_edges)
        # half a structure more than an equal share, because chunks hold whole structures
        return math.ceil(sum(sizes) / max(1, rounds * self.shares) + 0.5 * max(sizes, default=0))

    def _gather(self, first: int, last: int, edges: str, offsets: str) -> Pairs:
        """Pairs of structures first..last−1 with atoms counted from the first atom of ``first``."""
        pairs = [getattr(self.lists[k], edges) for k in range(first, last)]
        starts = torch.from_numpy(self.first_atom[first:last] - self.first_atom[first]).to(self.device)
        counts = [p.shape[1] for p in pairs]
        return Pairs(
            torch.cat(pairs, dim=1) + torch.repeat_interleave(starts, torch.tensor(counts, device=self.device)),
            torch.cat([getattr(self.lists[k], offsets) for k in range(first, last)]),
            first,
            counts,
        )

    def _shift(self, pairs: Pairs) -> Tensor:
        """S·cell of each pair, (E, 3)."""
        shift = pairs.shift
        if shift is None:
            images = pairs.offsets.to(torch.float64).split(pairs.counts)
            shift = torch.cat([s @ cell for s, cell in zip(images, self.cells[pairs.first :], strict=False)])
            pairs.shift = None if self.changing else shift
        return shift

    def _vectors(self, pairs: Pairs, positions: Tensor) -> Tensor:
        """r_j + S·cell − r_i of each pair, (E, 3)."""
        edges = pairs.edges
        vectors = positions.index_select(0, edges[1]).sub_(positions.index_select(0, edges[0]))
        return vectors.add_(self._shift(pairs))

    def graph(self, chunk: Chunk, positions: Tensor) -> AtomGraph:
        if chunk.pairs is None:
            chunk.pairs = self._gather(chunk.first, chunk.last, "edges", "offsets")
        pairs, here = chunk.pairs, positions[chunk.atoms]
        found = pairs_inside(pairs.edges, pairs.offsets, self._shift(pairs), here, self.cutoff)
        if found is None:
            distances = torch.linalg.vector_norm(self._vectors(pairs, here), dim=1)
            inside = (distances < self.cutoff).nonzero().flatten()
            found = pairs.edges.index_select(1, inside), pairs.offsets.index_select(0, inside)
        return self._graph(chunk, here, *found)

    def minimum_distances(self, positions: Tensor) -> Tensor:
        if self._close is None:
            self._close = self._gather(0, len(self.numbers), "close", "close_offsets")
            counts = torch.tensor(self._close.counts, device=self.device)
            self._close_structure = torch.repeat_interleave(counts)
        return self._least(self._vectors(self._close, positions).square().sum(1), self._close_structure).sqrt()

    def keep(self, structures: list[int], atoms: Tensor) -> None:
        super().keep(structures, atoms)
        self.lists = [self.lists[k] for k in structures]
        self._close = None
        self.cut()

"""Neighbour lists with a skin for many structures, and the graphs that are cut from them at every step.

A list holds every pair within R + skin at the time it was built. Since then atom i has moved by d_i beyond what the
change of the cell did to it, x_i = x_i(build) · M + d_i with cell = cell(build) · M, and a pair (images included) has
become r = r(build) · M + d_j − d_i. With e = |M − 1| (Frobenius norm, at least the largest change of any length),

    |r| >= (1 − e) |r(build)| − 2 d_max,

so that no pair outside the list has come within R while 2 d_max <= (1 − e) (R + skin) − R; in a cell that does not
change that is d_max <= skin/2. A structure for which it no longer holds gets a new list, the others keep theirs. At
each step the edges at or beyond the potential's cutoff are left out, so a potential sees exactly the graph that a new
list would give, and one that does not vanish at its cutoff is treated right too.

The smallest distance of a structure comes from a short list of its own: pairs within d_min + 2 skin when the list was
built, where d_min was the smallest distance then. By the same bounds the closest pair is among them as long as
d_min <= R; if it was farther, every pair outside is beyond R still, and so beyond the smallest distance at the start,
because R is at least that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mdl_physpre.dynamics.skin_native import pairs_inside
from mdl_physpre.structures.graph import AtomGraph, batch_by_edges
from mdl_physpre.structures.neighbours import expected_neighbours, neighbour_list


class Collapsed(Exception):
    """An atom has more neighbours than allowed."""


@dataclass
class _List:
    """One structure's pairs: local centre and neighbour (2, E), images (E, 3), and the same for its closest pairs."""

    edges: Tensor
    offsets: Tensor
    close: Tensor
    close_offsets: Tensor


@dataclass
class _Pairs:
    """Pairs of structures ``first``, …, atoms counted from the first atom of these: (2, E), images (E, 3).

    ``counts`` are the pairs of each structure; ``shift`` (E, 3) Å the images' translations, kept where cells do not
    change.
    """

    edges: Tensor
    offsets: Tensor
    first: int
    counts: list[int]
    shift: Tensor | None = None


@dataclass
class Chunk:
    """Structures first..last−1, evaluated together."""

    first: int
    last: int
    atoms: slice
    static: AtomGraph
    pairs: _Pairs | None = None  # None where out of date


class SkinLists:
    """Lists, chunks and graphs of the structures that are being simulated.

    Parameters
    ----------
    numbers, pbc : atomic numbers (n,) and periodicity (3,) of each structure.
    cells : (n_structures, 3, 3), Å, float64.
    radii : R of each structure, Å, at least the cutoff; larger where its closest pair is farther apart than the cutoff.
    cutoff : Å, of the potential.
    skin : Å.
    dtype, device : of the graphs; distances are taken in float64.
    max_edges : edges that are evaluated at the same time; a larger structure is a chunk of its own.
    shares : chunks that are evaluated at the same time; each gets its share of ``max_edges``.
    max_neighbours : :class:`Collapsed` is reported for a structure where an atom has more.
    changing : whether cells change; if so, all structures must be periodic in three directions.
    """

    def __init__(
        self,
        numbers: Sequence[np.ndarray],
        cells: Tensor,
        pbc: Sequence[np.ndarray],
        radii: Sequence[float],
        *,
        cutoff: float,
        skin: float,
        dtype: torch.dtype,
        device: torch.device,
        max_edges: int,
        max_neighbours: int,
        changing: bool = False,
        shares: int = 1,
    ) -> None:
        self.numbers, self.cells, self.pbc, self.radii = list(numbers), cells, list(pbc), list(radii)
        self.cutoff, self.skin, self.dtype, self.device = cutoff, skin, dtype, device
        self.max_edges, self.max_neighbours, self.changing = max_edges, max_neighbours, changing
        self.shares = shares
        self.reference = torch.zeros((sum(len(z) for z in numbers), 3), dtype=torch.float64, device=device)
        self.reference_cells = cells.clone()
        self.lists: list[_List] = []
        self.chunks: list[Chunk] = []
        self.rebuilds = 0
        self._close: _Pairs | None = None
        self._number_atoms()

    def _number_atoms(self) -> None:
        sizes = [len(z) for z in self.numbers]
        self.first_atom = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.batch = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(self.device)
        radii = torch.tensor(self.radii, dtype=torch.float64, device=self.device)
        self._reach = radii, radii + self.skin

    def build_all(self, positions: Tensor, boundaries: list[int] | None = None) -> dict[int, str]:
        """New lists for all structures; returns those that have collapsed, with a sentence.

        ``boundaries`` are the first structures of the chunks, where they are not to be chosen anew.
        """
        self.lists = [self._empty()] * len(self.numbers)
        collapsed = self._build(range(len(self.numbers)), positions)
        self.cut(boundaries)
        return collapsed

    def _must_build(self, positions: Tensor) -> list[int]:
        """Structures whose lists may lack a pair."""
        if not self.changing:
            moved = (positions - self.reference).square().sum(1) > (0.5 * self.skin) ** 2
        else:
            change = torch.linalg.solve(self.reference_cells, self.cells)
            strain = torch.linalg.matrix_norm(change - torch.eye(3, dtype=change.dtype, device=change.device))
            radii, reach = self._reach
            room = 0.5 * ((1 - strain) * reach - radii)
            affine = torch.einsum("nx,nxy->ny", self.reference, change.index_select(0, self.batch))
            distance = torch.linalg.vector_norm(positions - affine, dim=1)
            moved = ~(distance <= room.index_select(0, self.batch))
        return torch.unique(self.batch[moved]).tolist() if bool(moved.any()) else []

    def update(self, positions: Tensor, cells: Tensor) -> dict[int, str]:
        """New lists where they are needed; returns the structures that have collapsed, with a sentence."""
        if self.changing:
            self.cells = cells
        structures = self._must_build(positions)
        if not structures:
            return {}
        collapsed = self._build(structures, positions)
        sizes = [self.lists[k].edges.shape[1] for k in range(len(self.lists))]
        most = 1.25 * self._most_edges(sizes)
        if any(c.last - c.first > 1 and sum(sizes[c.first : c.last]) > most for c in self.chunks):
            self.cut()
        changed = set(structures)
        for chunk in self.chunks:
            if any(k in changed for k in range(chunk.first, chunk.last)):
                chunk.pairs = None
        return collapsed

    def _build(self, structures: Sequence[int], positions: Tensor) -> dict[int, str]:
        collapsed: dict[int, str] = {}
        where, cells = positions.cpu().numpy(), self.cells.cpu().numpy()
        reference_cells = self.reference_cells.clone()
        for k in structures:
            atoms = slice(self.first_atom[k], self.first_atom[k + 1])
            try:
                self.lists[k] = self._list_of(k, where[atoms], cells[k])
            except Collapsed as reason:
                collapsed[k] = str(reason)
            self.reference[atoms] = positions[atoms]
            reference_cells[k] = self.cells[k]
        self.reference_cells = reference_cells
        self.rebuilds += len(structures)
        self._close = None
        return collapsed

    def _empty(self) -> _List:
        pairs = torch.zeros((2, 0), dtype=torch.int64, device=self.device)
        none = torch.zeros((0, 3), dtype=self.dtype, device=self.device)
        return _List(pairs, none, pairs, none)

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

    def _most_edges(self, sizes: list[int]) -> int:
        """Edges of one chunk, so that the chunks of ``shares`` threads are few, no larger than allowed, and alike."""
        if self.shares == 1:
            return self.max_edges
        rounds = math.ceil(sum(sizes) / self.max_edges)
        # half a structure more than an equal share, because chunks hold whole structures
        return math.ceil(sum(sizes) / max(1, rounds * self.shares) + 0.5 * max(sizes, default=0))

    def cut(self, boundaries: list[int] | None = None) -> None:
        """Cut the structures into chunks of whole structures."""
        n = len(self.numbers)
        if boundaries is None:
            sizes = [e.edges.shape[1] for e in self.lists]
            boundaries = [group[0] for group in batch_by_edges(sizes, self._most_edges(sizes))]
        ends = [*boundaries[1:], n] if n else []
        self.chunks = [self._chunk(first, last) for first, last in zip(boundaries, ends, strict=True)]

    def _chunk(self, first: int, last: int) -> Chunk:
        sizes = [len(z) for z in self.numbers[first:last]]
        static = AtomGraph.from_tensors(
            cell=self.cells[first:last].to(self.dtype),
            pbc=torch.from_numpy(np.array(self.pbc[first:last], dtype=bool)).to(self.device),
            z=torch.from_numpy(np.concatenate(self.numbers[first:last]).astype(np.int64)).to(self.device),
            n_atoms=torch.tensor(sizes, dtype=torch.int64, device=self.device),
            batch=torch.from_numpy(np.repeat(np.arange(last - first), sizes)).to(self.device),
        )
        return Chunk(first, last, slice(int(self.first_atom[first]), int(self.first_atom[last])), static)

    @property
    def boundaries(self) -> list[int]:
        """First structure of each chunk."""
        return [chunk.first for chunk in self.chunks]

    def _gather(self, first: int, last: int, edges: str, offsets: str) -> _Pairs:
        """Pairs of structures first..last−1 with atoms counted from the first atom of ``first``."""
        pairs = [getattr(self.lists[k], edges) for k in range(first, last)]
        starts = torch.from_numpy(self.first_atom[first:last] - self.first_atom[first]).to(self.device)
        counts = [p.shape[1] for p in pairs]
        return _Pairs(
            torch.cat(pairs, dim=1) + torch.repeat_interleave(starts, torch.tensor(counts, device=self.device)),
            torch.cat([getattr(self.lists[k], offsets) for k in range(first, last)]),
            first,
            counts,
        )

    def _shift(self, pairs: _Pairs) -> Tensor:
        """S·cell of each pair, (E, 3)."""
        shift = pairs.shift
        if shift is None:
            images = pairs.offsets.to(torch.float64).split(pairs.counts)
            shift = torch.cat([s @ cell for s, cell in zip(images, self.cells[pairs.first :], strict=False)])
            pairs.shift = None if self.changing else shift
        return shift

    def _vectors(self, pairs: _Pairs, positions: Tensor) -> Tensor:
        """r_j + S·cell − r_i of each pair, (E, 3)."""
        edges = pairs.edges
        vectors = positions.index_select(0, edges[1]).sub_(positions.index_select(0, edges[0]))
        return vectors.add_(self._shift(pairs))

    def graph(self, chunk: Chunk, positions: Tensor) -> AtomGraph:
        """The exact graph of a chunk at ``positions`` (all atoms of all structures, float64)."""
        if chunk.pairs is None:
            chunk.pairs = self._gather(chunk.first, chunk.last, "edges", "offsets")
        pairs, here = chunk.pairs, positions[chunk.atoms]
        found = pairs_inside(pairs.edges, pairs.offsets, self._shift(pairs), here, self.cutoff)
        if found is None:
            distances = torch.linalg.vector_norm(self._vectors(pairs, here), dim=1)
            inside = (distances < self.cutoff).nonzero().flatten()
            found = pairs.edges.index_select(1, inside), pairs.offsets.index_select(0, inside)
        fields = {"pos": here.to(self.dtype), "edge_index": found[0], "cell_offsets": found[1]}
        if self.changing:
            fields["cell"] = self.cells[chunk.first : chunk.last].to(self.dtype)
        return AtomGraph.from_tensors(chunk.static, **fields)

    def alone(self, structure: int) -> Chunk:
        """A chunk of one structure."""
        return self._chunk(structure, structure + 1)

    def minimum_distances(self, positions: Tensor) -> Tensor:
        """Smallest distance between different atoms in each structure, images included; infinite without a pair."""
        n = len(self.numbers)
        if self._close is None:
            self._close = self._gather(0, n, "close", "close_offsets")
            counts = torch.tensor(self._close.counts, device=self.device)
            self._close_structure = torch.repeat_interleave(counts)
        squared = self._vectors(self._close, positions).square().sum(1)
        least = torch.full((n,), torch.inf, dtype=torch.float64, device=self.device)
        return least.scatter_reduce_(0, self._close_structure, squared, "amin").sqrt()

    def keep(self, structures: list[int], atoms: Tensor) -> None:
        """Go on with the structures of these indices; ``atoms`` holds the indices of their atoms."""
        for name in ("numbers", "pbc", "radii", "lists"):
            setattr(self, name, [getattr(self, name)[k] for k in structures])
        which = torch.tensor(structures, dtype=torch.int64, device=self.device)
        self.cells, self.reference_cells = (c.index_select(0, which) for c in (self.cells, self.reference_cells))
        self.reference = self.reference.index_select(0, atoms)
        self._close = None
        self._number_atoms()
        self.cut()

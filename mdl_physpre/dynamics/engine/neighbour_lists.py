"""What neighbour lists with a skin have in common, wherever they lie.

A list holds every pair within R + skin at the time it was built. Since then atom i has moved by d_i beyond what the
change of the cell did to it, x_i = x_i(build) · M + d_i with cell = cell(build) · M, and a pair (images included) has
become r = r(build) · M + d_j − d_i. With e = |M − 1| (Frobenius norm, at least the largest change of any length),

    |r| >= (1 − e) |r(build)| − 2 d_max,

so that no pair outside the list has come within R while 2 d_max <= (1 − e) (R + skin) − R; in a cell that does not
change that is d_max <= skin/2. A structure for which it no longer holds gets a new list, the others keep theirs.

The smallest distance of a structure comes from a short list of its own: pairs within d_min + 2 skin when the list was
built, where d_min was the smallest distance then. By the same bounds the closest pair is among them as long as
d_min <= R; if it was farther, every pair outside is beyond R still, and so beyond the smallest distance at the start,
because R is at least that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from mdl_physpre.dynamics.engine.broken import Broken
from mdl_physpre.structures.graph import AtomGraph, batch_by_edges


class Collapsed(Exception):
    """An atom has more neighbours than allowed."""


@dataclass
class Pairs:
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
    pairs: Pairs | None = None  # None where out of date


class MovingLists(ABC):
    """Lists, chunks and graphs of the structures that are being simulated. Nothing is changed in place.

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
    structures : the structures at the start, from which calculators read what is no position.

    ``age`` counts the updates since each list was built, where lists are built ahead of need.
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
        structures: Sequence[Atoms] | None = None,
    ) -> None:
        self.numbers, self.cells, self.pbc, self.radii = list(numbers), cells, list(pbc), list(radii)
        self.cutoff, self.skin, self.dtype, self.device = cutoff, skin, dtype, device
        self.max_edges, self.max_neighbours, self.changing = max_edges, max_neighbours, changing
        self.shares = shares
        self.structures = None if structures is None else list(structures)
        self.reference = torch.zeros((sum(len(z) for z in numbers), 3), dtype=torch.float64, device=device)
        self.reference_cells = cells.clone()
        self.chunks: list[Chunk] = []
        self.rebuilds = 0
        self.age = np.zeros(len(self.numbers), dtype=np.int64)
        self._number_atoms()

    def _number_atoms(self) -> None:
        self.sizes = np.array([len(z) for z in self.numbers], dtype=np.int64)
        self.first_atom = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self.batch = torch.from_numpy(np.repeat(np.arange(len(self.sizes)), self.sizes)).to(self.device)
        radii = torch.tensor(self.radii, dtype=torch.float64, device=self.device)
        self._reach = radii, radii + self.skin

    def build_all(self, positions: Tensor, boundaries: list[int] | None = None) -> dict[int, str]:
        """New lists for all structures; returns those that have collapsed, with a sentence.

        ``boundaries`` are the first structures of the chunks, where they are not to be chosen anew.
        """
        collapsed = self._build(range(len(self.numbers)), positions)
        self.cut(boundaries)
        return collapsed

    @abstractmethod
    def _build(self, structures: Sequence[int], positions: Tensor) -> dict[int, str]:
        """New lists for these structures; returns those that have collapsed, with a sentence."""

    @abstractmethod
    def update(self, positions: Tensor, cells: Tensor, broken: Broken | None = None) -> dict[int, str]:
        """New lists where they are needed; returns the structures that have collapsed, with a sentence.

        ``broken`` reads at once, or later, which structures need one; where ``None`` they are read at once.
        """

    @abstractmethod
    def graph(self, chunk: Chunk, positions: Tensor) -> AtomGraph:
        """The graph of a chunk at ``positions`` (all atoms of all structures, float64)."""

    @abstractmethod
    def minimum_distances(self, positions: Tensor) -> Tensor:
        """Smallest distance between different atoms in each structure, images included; infinite without a pair."""

    @abstractmethod
    def edge_counts(self) -> list[int]:
        """Edges in the list of each structure."""

    def _moved(self, positions: Tensor) -> tuple[Tensor, Tensor | float]:
        """How far each atom has come since its list was built (n,), and how far it may."""
        if not self.changing:
            return torch.linalg.vector_norm(positions - self.reference, dim=1), 0.5 * self.skin
        change = torch.linalg.solve_ex(self.reference_cells, self.cells).result
        strain = torch.linalg.matrix_norm(change - torch.eye(3, dtype=change.dtype, device=change.device))
        radii, reach = self._reach
        room = 0.5 * ((1 - strain) * reach - radii)
        affine = torch.einsum("nx,nxy->ny", self.reference, change.index_select(0, self.batch))
        return torch.linalg.vector_norm(positions - affine, dim=1), room.index_select(0, self.batch)

    def _outgrown(self, sizes: Sequence[int]) -> bool:
        """Whether a chunk of several structures holds many more edges than it should; ``sizes``: edges of each."""
        most = 1.25 * self._most_edges(sizes)
        return any(c.last - c.first > 1 and sum(sizes[c.first : c.last]) > most for c in self.chunks)

    def _graph(self, chunk: Chunk, positions: Tensor, edges: Tensor, offsets: Tensor) -> AtomGraph:
        """The graph of a chunk with these edges, at the positions of its atoms."""
        fields = {"pos": positions.to(self.dtype), "edge_index": edges, "cell_offsets": offsets}
        if self.changing:
            fields["cell"] = self.cells[chunk.first : chunk.last].to(self.dtype)
        return AtomGraph.from_tensors(chunk.static, **fields)

    def _least(self, values: Tensor, structure: Tensor) -> Tensor:
        """The least of the values of each structure, (n_structures,), infinite where there is none."""
        least = torch.full((len(self.numbers),), torch.inf, dtype=torch.float64, device=self.device)
        return least.scatter_reduce_(0, structure, values, "amin")

    def prepare(self, spent: list[float], steps: int, positions: Tensor) -> int:
        """New lists where those there are may not serve ``steps`` more; returns how many steps they should serve.

        ``spent`` is :meth:`spent`, read. 0 says that a structure may have collapsed.
        """
        return steps

    def spent(self) -> Tensor | None:
        """Which part of the way that its atoms may go each structure has used up; None where lists see to it alone."""
        return None

    def _most_edges(self, sizes: Sequence[int]) -> int:
        """Edges of one chunk."""
        return self.max_edges

    def cut(self, boundaries: list[int] | None = None) -> None:
        """Cut the structures into chunks of whole structures."""
        n = len(self.numbers)
        if boundaries is None:
            sizes = self.edge_counts()
            boundaries = [group[0] for group in batch_by_edges(sizes, self._most_edges(sizes))]
        ends = [*boundaries[1:], n] if n else []
        self.chunks = [self._chunk(first, last) for first, last in zip(boundaries, ends, strict=True)]

    def _chunk(self, first: int, last: int) -> Chunk:
        sizes, numbers = self.sizes[first:last], np.concatenate(self.numbers[first:last]).astype(np.int64)
        static = AtomGraph.from_tensors(
            cell=self.cells[first:last].to(self.dtype),
            pbc=torch.from_numpy(np.array(self.pbc[first:last], dtype=bool)).to(self.device),
            z=torch.from_numpy(numbers).to(self.device),
            n_atoms=torch.from_numpy(sizes.copy()).to(self.device),
            batch=torch.from_numpy(np.repeat(np.arange(last - first), sizes)).to(self.device),
        ).with_elements(numbers)
        if self.structures is not None:
            static.with_structures(self.structures[first:last])
        return Chunk(first, last, slice(int(self.first_atom[first]), int(self.first_atom[last])), static)

    @property
    def boundaries(self) -> list[int]:
        """First structure of each chunk."""
        return [chunk.first for chunk in self.chunks]

    def alone(self, structure: int) -> Chunk:
        """A chunk of one structure."""
        return self._chunk(structure, structure + 1)

    def keep(self, structures: list[int], atoms: Tensor) -> None:
        """Go on with the structures of these indices; ``atoms`` holds the indices of their atoms."""
        for name in ("numbers", "pbc", "radii"):
            setattr(self, name, [getattr(self, name)[k] for k in structures])
        if self.structures is not None:
            self.structures = [self.structures[k] for k in structures]
        which = torch.tensor(structures, dtype=torch.int64, device=self.device)
        self.cells, self.reference_cells = (c.index_select(0, which) for c in (self.cells, self.reference_cells))
        self.reference = self.reference.index_select(0, atoms)
        self.age = self.age[structures]
        self._number_atoms()

"""Neighbour lists with a skin on a device: one flat list of all structures, which the host need not look at.

A list is used as it is, sorted by centre: edges that have come to lie at or beyond the cutoff are handed to the
potential too, which gives them no weight, because to cut them off the host would have to wait for their number at each
step. New lists are built for all structures that need them together.

Which structures need one is known to the device alone until :class:`~mdl_physpre.dynamics.running.windows.Unread` is
read. So that few have run out by then, :meth:`DeviceLists.prepare` builds lists ahead of time, from how fast each was
used up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdl_physpre.dynamics.engine.broken import Broken
from mdl_physpre.dynamics.engine.device_search import find_pairs, translations
from mdl_physpre.dynamics.engine.neighbour_lists import Chunk, MovingLists, Pairs
from mdl_physpre.structures.graph import AtomGraph
from mdl_physpre.structures.neighbours import complete_cell, expected_neighbours

HASTE = 1.25
"""How much faster than until now a list may be used up in the next steps before it must be built anew in a hurry."""


@dataclass
class Flat:
    """Pairs of all structures, one structure after another: atoms (2, E), images (E, 3), and the number of each's."""

    edges: Tensor
    offsets: Tensor
    counts: np.ndarray

    @classmethod
    def empty(cls, n: int, dtype: torch.dtype, device: torch.device) -> Flat:
        """No pairs of ``n`` structures."""
        edges = torch.zeros((2, 0), dtype=torch.int64, device=device)
        return cls(edges, torch.zeros((0, 3), dtype=dtype, device=device), np.zeros(n, dtype=np.int64))

    @property
    def first(self) -> np.ndarray:
        """First pair of each structure, and one past the last."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    def picked(self, first: np.ndarray, counts: np.ndarray, shift: np.ndarray | None = None) -> Flat:
        """The pairs from ``first`` on, ``counts`` of them, for each structure; ``shift`` is added to its atoms."""
        total, begin = int(counts.sum()), np.cumsum(counts) - counts
        device, columns = self.edges.device, [counts, first - begin, *([] if shift is None else [shift])]
        table = torch.from_numpy(np.stack(columns).astype(np.int64)).to(device)
        change = torch.repeat_interleave(table[1:], table[0], dim=1, output_size=total)
        rows = torch.arange(total, device=device) + change[0]
        edges = self.edges.index_select(1, rows)
        return Flat(edges if shift is None else edges + change[1], self.offsets.index_select(0, rows), counts)

    def renewed(self, other: Flat, structures: np.ndarray) -> Flat:
        """With the pairs of ``other`` for these structures (bool), and its own for the rest."""
        if structures.all():
            return other
        both = Flat(
            torch.cat([self.edges, other.edges], dim=1), torch.cat([self.offsets, other.offsets]), self.counts
        )  # fmt: skip
        first = np.where(structures, self.edges.shape[1] + other.first[:-1], self.first[:-1])
        return both.picked(first, np.where(structures, other.counts, self.counts))


class DeviceLists(MovingLists):
    """One flat list for all structures; parameters as :class:`MovingLists`.

    ``used`` (n_structures,) is the part of the way that the atoms of each may go, which they had gone at the last
    :meth:`update`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        n = len(self.numbers)
        self.list = self.close = Flat.empty(n, self.dtype, self.device)
        self.used = torch.zeros(n, dtype=torch.float64, device=self.device)
        cells = self.cells.cpu().numpy()
        full = np.array([complete_cell(cell, pbc) for cell, pbc in zip(cells, self.pbc, strict=True)]).reshape(-1, 3, 3)
        self.lattices = torch.from_numpy(full).to(self.device)
        self.periodic = torch.from_numpy(np.array(self.pbc, dtype=bool).reshape(-1, 3)).to(self.device)
        self.expected = np.array(
            [
                expected_neighbours(len(z), cell, pbc, radius + self.skin)
                for z, cell, pbc, radius in zip(self.numbers, cells, self.pbc, self.radii, strict=True)
            ]
        )
        self._close_shift: Tensor | None = None

    def update(self, positions: Tensor, cells: Tensor, broken: Broken | None = None) -> dict[int, str]:
        if self.changing:
            self.cells = cells
        distance, room = self._moved(positions)
        used = distance / room if isinstance(room, float) else torch.where(room > 0, distance / room, torch.inf)
        self.used = torch.zeros_like(self.used).scatter_reduce(0, self.batch, used, "amax")
        self.age = self.age + 1
        structures = (Broken() if broken is None else broken).which(~(self.used <= 1))
        return self._renew(structures, positions) if structures else {}

    def edge_counts(self) -> list[int]:
        return self.list.counts.tolist()

    def spent(self) -> Tensor | None:
        return self.used

    def prepare(self, spent: list[float], steps: int, positions: Tensor) -> int:
        rate = np.array(spent) / np.maximum(self.age, 1) * (2 if self.changing else 1) * HASTE  # of a step
        due = spent + rate * steps > 1
        if due.any() and self._renew(np.flatnonzero(due).tolist(), positions, ahead=True):
            return 0
        left = np.where(due, 1.0, 1.0 - np.array(spent)) / np.maximum(rate, 1e-9)
        return int(np.clip(left.min(initial=steps), 1, steps))

    def _renew(self, structures: Sequence[int], positions: Tensor, ahead: bool = False) -> dict[int, str]:
        collapsed = self._build(structures, positions, ahead)
        if self._outgrown(self.edge_counts()):
            self.cut()
        self.chunks = [replace(c, pairs=None) for c in self.chunks]
        return collapsed

    def _build(self, structures: Sequence[int], positions: Tensor, ahead: bool = False) -> dict[int, str]:
        """New lists; ``ahead`` of need, those of structures that have collapsed are left as they are."""
        radii = np.array(self.radii) + self.skin
        bounds = [f"within {radius:.2f} Å, at most {self.max_neighbours} allowed" for radius in radii]
        wanted = np.zeros(len(self.numbers), dtype=bool)
        wanted[list(structures)] = True
        # before the search: a list of this size might not fit into memory
        mean = self._expected_neighbours(radii)
        collapsed = {int(k): f"about {mean[k]:.3g} neighbours {bounds[k]}"
                     for k in np.flatnonzero(wanted & (mean > self.max_neighbours))}  # fmt: skip
        built = wanted & (mean <= self.max_neighbours)
        found, close, most = self._search(built, positions, radii)
        for k in np.flatnonzero(built & (most > self.max_neighbours)):
            collapsed[int(k)] = f"an atom has {most[k]} neighbours {bounds[k]}"
            built[k] = False
        self.list, self.close = self.list.renewed(found, built), self.close.renewed(close, built)
        fresh = torch.from_numpy(built if ahead else wanted).to(self.device)
        self.reference = torch.where(fresh.index_select(0, self.batch)[:, None], positions, self.reference)
        self.reference_cells = torch.where(fresh[:, None, None], self.cells, self.reference_cells)
        self.age = np.where(built, 0, self.age)
        self.rebuilds += int(wanted.sum())
        self._close_shift = None
        return collapsed

    def _expected_neighbours(self, radii: np.ndarray) -> np.ndarray:
        if not self.changing:
            return self.expected
        volumes = torch.linalg.det(self.cells).abs().cpu().numpy()
        with np.errstate(all="ignore"):
            mean = self.sizes * (4 / 3 * np.pi) * radii**3 / volumes
        return np.where(volumes > 0, mean, np.inf)

    def _search(self, chosen: np.ndarray, positions: Tensor, radii: np.ndarray) -> tuple[Flat, Flat, np.ndarray]:
        """Pairs and closest pairs of the structures ``chosen`` (bool), and the most neighbours of an atom of each."""
        n, device = len(self.numbers), self.device
        lattices = self.cells if self.changing else self.lattices
        if chosen.all():
            edges, offsets = find_pairs(positions, self.sizes, lattices, self.periodic, radii, most=self._most())
        else:
            atoms = torch.from_numpy(np.flatnonzero(np.repeat(chosen, self.sizes))).to(device)
            rows = torch.from_numpy(np.flatnonzero(chosen)).to(device)
            edges, offsets = find_pairs(
                positions.index_select(0, atoms), self.sizes[chosen], lattices.index_select(0, rows),
                self.periodic.index_select(0, rows), radii[chosen], most=self._most(),
            )  # fmt: skip
            edges = atoms[edges]
        of = self.batch.index_select(0, edges[0])
        vectors = positions.index_select(0, edges[1]) - positions.index_select(0, edges[0])
        vectors += translations(offsets, lattices, of)
        distances = torch.linalg.vector_norm(vectors, dim=1).masked_fill(edges[0] >= edges[1], torch.inf)
        least = self._least(distances, of) + (2 * self.skin + 1e-6)
        near = (distances <= least.index_select(0, of)) & distances.isfinite()
        close_counts = torch.zeros(n, dtype=torch.int64, device=device).index_add_(0, of, near.to(torch.int64))
        bounds = torch.searchsorted(edges[0].contiguous(), torch.arange(len(positions) + 1, device=device))
        counts = torch.cat([bounds, close_counts]).cpu().numpy()
        starts, of_atoms = counts[: len(positions) + 1][self.first_atom], np.diff(counts[: len(positions) + 1])
        most = np.maximum.reduceat(of_atoms, self.first_atom[:-1]) if n else np.zeros(0, dtype=np.int64)
        kept = near.nonzero().flatten()
        offsets = offsets.to(self.dtype)
        close = Flat(edges.index_select(1, kept), offsets.index_select(0, kept), counts[len(positions) + 1 :])
        return Flat(edges, offsets, np.diff(starts)), close, most

    def _most(self) -> int:
        """Neighbours of an atom for which a search takes memory at first: those of the densest structure, and more."""
        mean = float((self.list.counts / self.sizes).max(initial=0.0))
        return min(self.max_neighbours + 1, 64 + int(1.5 * max(mean, float(self.expected.max(initial=0.0)))))

    def graph(self, chunk: Chunk, positions: Tensor) -> AtomGraph:
        if chunk.pairs is None:
            first = self.list.first
            pairs = slice(int(first[chunk.first]), int(first[chunk.last]))
            edges = self.list.edges[:, pairs] - chunk.atoms.start if chunk.first else self.list.edges[:, pairs]
            counts = self.list.counts[chunk.first : chunk.last].tolist()
            chunk.pairs = Pairs(edges, self.list.offsets[pairs], chunk.first, counts)
        return self._graph(chunk, positions[chunk.atoms], chunk.pairs.edges, chunk.pairs.offsets)

    def minimum_distances(self, positions: Tensor) -> Tensor:
        centre, neighbour = self.close.edges
        if self._close_shift is None or self.changing:
            self._close_structure = self.batch.index_select(0, centre)
            self._close_shift = translations(self.close.offsets, self.cells, self._close_structure)
        vectors = positions.index_select(0, neighbour) - positions.index_select(0, centre) + self._close_shift
        return self._least(vectors.square().sum(1), self._close_structure).sqrt()

    def keep(self, structures: list[int], atoms: Tensor) -> None:
        before, which = self.first_atom[structures], torch.tensor(structures, dtype=torch.int64, device=self.device)
        super().keep(structures, atoms)
        moved = self.first_atom[:-1] - before
        for name in ("list", "close"):
            flat: Flat = getattr(self, name)
            setattr(self, name, flat.picked(flat.first[structures], flat.counts[structures], moved))
        for name in ("lattices", "periodic", "used"):
            setattr(self, name, getattr(self, name).index_select(0, which))
        self.expected = self.expected[structures]
        self._close_shift = None
        self.cut()

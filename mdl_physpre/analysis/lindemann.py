"""Lindemann index (paper, section 2.4.2), from running sums.

    q_i = 1/(N−1) Σ_{j≠i} sqrt(<r_ij²> − <r_ij>²) / <r_ij>,      q_global = 1/N Σ_i q_i,

with averages <·> over the frames. (The root is missing in the paper's printed formula, though its text says
root-mean-squared.) A trajectory is unphysical where any q_i exceeds 0.25, or q_global exceeds 0.2.

Two conventions of r_ij in a periodic cell:

``continuous`` (default)
    The image of j that was nearest to i at the start is followed for the whole run, from unwrapped positions. r_ij is
    continuous in time, and an atom that diffuses away raises q_i without bound.
``minimum_image``
    The image that is nearest in each frame, as in common analysis tools. r_ij has kinks where the nearest image
    changes, and it never exceeds half the cell, so diffusion across the cell hardly shows.

In a cell that changes, distances are those in the cell of each frame: the image that is followed moves with the cell,
r_ij = r_j + S·cell(t) − r_i with the S of the start.

A pair whose mean distance is zero is left out of the sum. One atom has no index.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from mdl_physpre.analysis.minimum_image import MinimumImage
from mdl_physpre.structures.neighbours import complete_cell


class LindemannAccumulator:
    """Running sums over every pair of atoms, for many structures at once.

    For each pair the sums of (r − r0) and (r − r0)² are kept, with r0 the distance at the start: the difference of
    two large numbers in <r²> − <r>² then costs no digits.

    Parameters
    ----------
    positions : (n, 3), Å, of all structures at the start; this frame is not counted until it is given to :meth:`add`.
    n_atoms : atoms of each structure.
    cells, pbc : (3, 3) and (3,) of each structure.
    distance : ``continuous`` or ``minimum_image``.
    skip : structures (bool each) that get no index, because they have too many pairs.
    """

    def __init__(
        self,
        positions: Tensor,
        n_atoms: Sequence[int],
        cells: Sequence[np.ndarray],
        pbc: Sequence[np.ndarray],
        distance: str = "continuous",
        skip: Sequence[bool] | None = None,
    ) -> None:
        self.n_atoms, self.samples = list(n_atoms), 0
        skipped = [False] * len(self.n_atoms) if skip is None else list(skip)
        self.n_pairs = [0 if no else n * (n - 1) // 2 for n, no in zip(self.n_atoms, skipped, strict=True)]
        first = np.concatenate([[0], np.cumsum(self.n_atoms)])
        pairs = [np.stack(np.triu_indices(n if m else 0, 1)) + f for n, m, f in zip(self.n_atoms, self.n_pairs, first)]
        together = np.concatenate([np.zeros((2, 0), np.int64), *pairs], axis=1)
        device = positions.device
        self.i, self.j = torch.from_numpy(together).to(device)
        of = np.repeat(np.arange(len(self.n_atoms)), self.n_pairs)
        self.structure = torch.from_numpy(of).to(device)
        self.nearest = MinimumImage(cells, pbc, device)
        plain = self._plain(positions)
        shortest = self.nearest(plain, self.structure)
        self.shift = shortest - plain if distance == "continuous" else None
        self.start = shortest.norm(dim=1)
        self.sum, self.square_sum = torch.zeros_like(self.start), torch.zeros_like(self.start)
        self._number()

    def _number(self) -> None:
        """What the averages over pairs and atoms need, on the device."""
        device, counts = self.start.device, np.array(self.n_atoms, dtype=np.int64)
        self.batch = torch.from_numpy(np.repeat(np.arange(len(counts)), counts)).to(device)
        self.counts = torch.from_numpy(counts).to(device)
        others = np.where(np.array(self.n_pairs, dtype=np.int64) > 0, counts - 1.0, np.nan)
        self.others = torch.from_numpy(others).to(device, self.start.dtype)

    def _plain(self, positions: Tensor) -> Tensor:
        return positions.index_select(0, self.j).sub_(positions.index_select(0, self.i))

    def add(self, positions: Tensor, deformation: Tensor | None = None) -> None:
        """Count one frame; ``positions`` (n, 3) must be unwrapped for the convention ``continuous``.

        ``deformation`` (n_structures, 3, 3) takes the cells at the start to those of this frame: cell(0) · deformation
        = cell(t); ``None`` where they are the same.
        """
        vectors = self._plain(positions)
        if self.shift is None:
            nearest = self.nearest if deformation is None else self.nearest.deformed(deformation)
            vectors = nearest(vectors, self.structure)
        elif deformation is not None:
            vectors += torch.einsum("px,pxy->py", self.shift, deformation.index_select(0, self.structure))
        else:
            vectors += self.shift
        deviation = torch.linalg.vector_norm(vectors, dim=1).sub_(self.start)
        # not in place: a copy of the references keeps what was there before
        self.sum = self.sum + deviation
        self.square_sum = torch.addcmul(self.square_sum, deviation, deviation)
        self.samples += 1

    def indices(self) -> tuple[Tensor, Tensor]:
        """q_i (n,) and q_global (n_structures,); NaN without a sample, and for structures without pairs."""
        local = torch.zeros(len(self.batch), dtype=self.start.dtype, device=self.start.device)
        if self.samples:
            mean = self.start + self.sum / self.samples
            variance = self.square_sum / self.samples - (self.sum / self.samples).square()
            relative = torch.where(mean > 0, variance.clamp(min=0).sqrt() / mean, torch.zeros_like(mean))
            local.index_add_(0, self.i, relative).index_add_(0, self.j, relative)
        others = self.others if self.samples else torch.full_like(self.others, torch.nan)
        local = local / others.index_select(0, self.batch)
        total = torch.zeros_like(others).index_add_(0, self.batch, local)
        return local, total / self.counts

    def keep(self, structures: list[int]) -> None:
        """Go on with the structures of these indices."""
        device = self.start.device
        first = np.concatenate([[0], np.cumsum(self.n_pairs)])
        old_atom = np.concatenate([[0], np.cumsum(self.n_atoms)])
        ranges = [np.arange(first[k], first[k + 1]) for k in structures]
        pairs = torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *ranges])).to(device)
        self.n_atoms = [self.n_atoms[k] for k in structures]
        self.n_pairs = [self.n_pairs[k] for k in structures]
        moved = np.cumsum([0, *self.n_atoms])[:-1] - old_atom[structures]
        change = torch.from_numpy(np.repeat(moved, self.n_pairs).astype(np.int64)).to(device)
        self.i, self.j = self.i.index_select(0, pairs) + change, self.j.index_select(0, pairs) + change
        names = ("start", "sum", "square_sum") + (() if self.shift is None else ("shift",))
        for name in names:
            setattr(self, name, getattr(self, name).index_select(0, pairs))
        self.structure = torch.from_numpy(np.repeat(np.arange(len(structures)), self.n_pairs)).to(device)
        self.nearest.keep(torch.tensor(structures, dtype=torch.int64, device=device))
        self._number()


def cell_change(start: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> Tensor | None:
    """The deformation (1, 3, 3) with start · deformation = cell; ``None`` where the two are the same."""
    if np.array_equal(start, cell):
        return None
    return torch.from_numpy(np.linalg.solve(complete_cell(start, pbc), complete_cell(cell, pbc)))[None]


@dataclass(frozen=True)
class LindemannIndex:
    """q_i (n,), q_global and the number of frames they are averages over."""

    local: np.ndarray
    mean: float
    samples: int


def lindemann_index(frames: Iterable[Atoms], distance: str = "continuous") -> LindemannIndex:
    """Lindemann indices of a stored trajectory of one structure, its first frame included.

    Parameters
    ----------
    frames : the trajectory; positions unwrapped for ``continuous``.
    distance : ``continuous`` or ``minimum_image``.

    Returns
    -------
    LindemannIndex; NaN for one atom.
    """
    sums: LindemannAccumulator | None = None
    start = np.eye(3)
    for atoms in frames:
        positions = torch.from_numpy(np.array(atoms.positions, dtype=np.float64))
        if sums is None:
            sums = LindemannAccumulator(positions, [len(atoms)], [atoms.cell[:]], [atoms.pbc], distance)
            start = np.array(atoms.cell[:])
        sums.add(positions, cell_change(start, atoms.cell[:], atoms.pbc))
    if sums is None:
        return LindemannIndex(np.zeros(0), float("nan"), 0)
    local, mean = sums.indices()
    return LindemannIndex(local.numpy(), float(mean[0]), sums.samples)

"""Shortest periodic image of a vector, in any cell, for vectors of many structures at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from ase.geometry import minkowski_reduce
from torch import Tensor

from mdl_physpre.structures.neighbours import complete_cell


class MinimumImage:
    """v -> v + S·cell with the integers S that make it shortest, for structures with cells of their own.

    The cell is Minkowski-reduced first, so that rounding the fractional coordinates leaves at most one more lattice
    vector to add along each axis. A vector shorter than half the shortest lattice vector is its own minimum image.

    Parameters
    ----------
    cells : (3, 3) for each structure, Å, rows are vectors; rows of non-periodic directions are not used.
    pbc : (3,) for each structure.
    """

    def __init__(
        self, cells: Sequence[np.ndarray], pbc: Sequence[np.ndarray], device: str | torch.device = "cpu"
    ) -> None:
        reduced, safe = [], []
        for cell, periodic in zip(cells, pbc, strict=True):
            periodic = np.asarray(periodic, dtype=bool)
            # a non-periodic direction is replaced by the normal: only then does rounding leave the nearest image
            lattice = complete_cell(np.where(periodic[:, None], cell, 0.0), periodic)
            if periodic.any():
                lattice = np.asarray(minkowski_reduce(lattice, periodic)[0])
            lengths = np.linalg.norm(lattice, axis=1)[periodic]
            reduced.append(lattice)
            safe.append(0.5 * lengths.min() if len(lengths) else np.inf)
        lattices = np.array(reduced).reshape(-1, 3, 3)
        self.cells = torch.from_numpy(lattices).to(device)
        self.inverse = torch.from_numpy(np.linalg.inv(lattices)).to(device)
        self.periodic = torch.from_numpy(np.array(pbc, dtype=float).reshape(-1, 3)).to(device)
        self.safe_squared = torch.from_numpy(np.array(safe, dtype=float) ** 2).to(device)
        self.offsets = torch.from_numpy(np.array(list(product((-1.0, 0.0, 1.0), repeat=3)))).to(device)

    def keep(self, structures: Tensor) -> None:
        """Go on with the structures of these indices, renumbered in this order."""
        for name in ("cells", "inverse", "periodic", "safe_squared"):
            setattr(self, name, getattr(self, name).index_select(0, structures))

    def deformed(self, deformation: Tensor) -> MinimumImage:
        """The same for the cells cell · deformation, (n_structures, 3, 3).

        A scaled cell stays reduced. One that is sheared strongly does not, and needs an object of its own.
        """
        other = copy.copy(self)
        other.cells = self.cells @ deformation
        other.inverse = torch.linalg.inv_ex(other.cells).inverse
        lengths = torch.linalg.vector_norm(other.cells, dim=2)
        lengths = torch.where(self.periodic > 0, lengths, torch.inf)
        other.safe_squared = (0.5 * lengths.amin(dim=1)).square()
        return other

    def __call__(self, vectors: Tensor, structure: Tensor) -> Tensor:
        """Minimum images of ``vectors`` (n, 3), Å, that belong to the structures ``structure`` (n,)."""
        if vectors.device.type != "cpu":  # counting the far ones takes longer there than treating all alike
            return self._shortest(vectors, structure)
        far = (vectors.square().sum(1) > self.safe_squared.index_select(0, structure)).nonzero().flatten()
        if not len(far):
            return vectors
        return vectors.index_copy(0, far, self._shortest(vectors.index_select(0, far), structure.index_select(0, far)))

    def _shortest(self, wrapped: Tensor, of: Tensor) -> Tensor:
        cells, periodic = self.cells.index_select(0, of), self.periodic.index_select(0, of)
        fractional = torch.einsum("nx,nxy->ny", wrapped, self.inverse.index_select(0, of))
        wrapped = wrapped - torch.einsum("nx,nxy->ny", torch.round(fractional) * periodic, cells)
        best, shortest = wrapped, wrapped.square().sum(1)
        for offset in self.offsets:
            shift = offset * periodic
            moved = wrapped + torch.einsum("nx,nxy->ny", shift, cells)
            length = moved.square().sum(1)
            closer = length < shortest
            best = torch.where(closer[:, None], moved, best)
            shortest = torch.where(closer, length, shortest)
        return best

"""Positions, velocities, cells and forces of many structures, atoms of all of them one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms, units
from torch import Tensor

from mdl_physpre.potentials.base import Predictions


@dataclass
class MovingAtoms:
    """What an integrator works on; everything is float64.

    Fields (n atoms, B structures): ``positions`` (n, 3) Å, unwrapped; ``velocities`` (n, 3) sqrt(eV/amu); ``cells``
    (B, 3, 3) Å; ``forces`` (n, 3) eV/Å; ``energies`` (B,) eV; ``stress`` (B, 3, 3) eV/Å³, NaN where it is not known;
    ``kinetic`` (B,) eV; ``masses`` (n, 1) amu; ``batch`` (n,), the structure of each atom; ``counts`` (B,) atoms;
    ``force_spread`` (n,) eV/Å and ``energy_spread`` (B,) eV of a potential that gives them, else ``None``.
    """

    positions: Tensor
    velocities: Tensor
    cells: Tensor
    forces: Tensor
    energies: Tensor
    stress: Tensor
    kinetic: Tensor
    masses: Tensor
    batch: Tensor
    counts: Tensor
    force_spread: Tensor | None = None
    energy_spread: Tensor | None = None

    PER_ATOM = ("positions", "velocities", "forces")
    PER_STRUCTURE = ("cells", "energies", "stress", "kinetic")

    @classmethod
    def of(cls, structures: Sequence[Atoms], device: torch.device) -> MovingAtoms:
        """The structures as they are, at rest, without forces."""
        sizes = [len(a) for a in structures]

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        positions = np.concatenate([np.zeros((0, 3)), *(a.positions for a in structures)])
        masses = np.concatenate([np.zeros(0), *(a.get_masses() for a in structures)])
        cells = np.array([a.cell[:] for a in structures], dtype=float).reshape(-1, 3, 3)
        return cls(
            positions=tensor(positions),
            velocities=tensor(np.zeros_like(positions)),
            cells=tensor(cells),
            forces=tensor(np.zeros_like(positions)),
            energies=tensor(np.zeros(len(sizes))),
            stress=tensor(np.full_like(cells, np.nan)),
            kinetic=tensor(np.zeros(len(sizes))),
            masses=tensor(masses[:, None]),
            batch=tensor(np.repeat(np.arange(len(sizes)), sizes)),
            counts=tensor(np.array(sizes, dtype=np.int64)),
        )

    def take(self, found: Predictions) -> None:
        """Take over what a potential found for the present positions; a stress that it did not give is NaN there."""
        assert found.forces is not None and found.stress is not None
        self.forces, self.energies, self.stress = found.forces, found.energies, found.stress
        self.force_spread, self.energy_spread = found.force_spread, found.energy_spread

    def sums(self, values: Tensor) -> Tensor:
        """Sums over the atoms of each structure, (B, …)."""
        out = torch.zeros((len(self.counts), *values.shape[1:]), dtype=values.dtype, device=values.device)
        return out.index_add_(0, self.batch, values)

    def per_atom(self, values: Tensor) -> Tensor:
        """Values of structures (B, …) for each of their atoms, (n, …)."""
        return values.index_select(0, self.batch)

    def kinetic_energies(self) -> Tensor:
        """Σ ½ m v² of each structure, (B,), eV."""
        return 0.5 * self.sums((self.masses * self.velocities.square()).sum(1))

    def pressures(self) -> Tensor:
        """−tr σ / 3 + 2 K / (3 V) of each structure, (B,), eV/Å³; the second part is that of the atoms' motion."""
        volumes = torch.linalg.det(self.cells).abs()
        virial = self.stress.diagonal(dim1=1, dim2=2).sum(1) / 3
        return 2 * self.kinetic / (3 * volumes) - virial

    def temperatures(self) -> Tensor:
        """2 K / (3 N k) of each structure, (B,), K."""
        return self.kinetic / (1.5 * units.kB) / self.counts

    def keep(self, structures: Tensor) -> Tensor:
        """Go on with the structures of these indices (sorted); returns the indices of their atoms."""
        atoms = torch.isin(self.batch, structures).nonzero().flatten()
        for name in (*self.PER_ATOM, "masses"):
            setattr(self, name, getattr(self, name).index_select(0, atoms))
        for name in (*self.PER_STRUCTURE, "counts"):
            setattr(self, name, getattr(self, name).index_select(0, structures))
        if self.force_spread is not None and self.energy_spread is not None:
            self.force_spread = self.force_spread.index_select(0, atoms)
            self.energy_spread = self.energy_spread.index_select(0, structures)
        self.batch = torch.repeat_interleave(self.counts)
        return atoms

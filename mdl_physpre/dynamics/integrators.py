"""Integrators for many structures at once: Langevin (NVT) and velocity Verlet (NVE), and their random numbers.

Langevin, the scheme of ASE's ``Langevin`` (E. Vanden-Eijnden and G. Ciccotti, Chem. Phys. Lett. 429, 310 (2006),
Eq. 23), with time step h, friction γ, σ = sqrt(2 kT γ / m) and independent standard normal ξ, η for each atom and
direction:

    v' = v  + c1 F(x)/m  − c2 v  + c3 ξ − c4 η
    x  = x  + h v' + c5 η
    v  = v' + c1 F(x)/m  − c2 v' + c3 ξ − c4 η

    c1 = h/2 − h²γ/8,  c2 = hγ/2 − h²γ²/8,  c3 = sqrt(h) σ/2 − h^1.5 γσ/8,  c5 = h^1.5 σ/(2 sqrt(3)),  c4 = γ c5/2.

With ``fixcm`` the random displacements and momenta of a structure of n atoms are made to sum to zero and scaled by
sqrt(n/(n−1)), as in ASE. One atom alone would then have no noise at all (ASE divides by zero): it is left as it is.

Inside, lengths are in Å, energies in eV, masses in amu, and time in Å·sqrt(amu/eV) = 10.18 fs, as in ASE.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ase import units
from torch import Tensor

FEMTOSECOND = units.fs
BOLTZMANN = units.kB


def structure_generator(seed: int, index: int) -> np.random.Generator:
    """The random numbers of structure ``index``: they depend on (seed, index) and on nothing else."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))


def maxwell_boltzmann_velocities(masses: np.ndarray, temperature: float, generator: np.random.Generator) -> np.ndarray:
    """Velocities with momenta p = ξ sqrt(m kT), ξ standard normal, as ASE's; no motion is taken out.

    Parameters
    ----------
    masses : (n,), amu.
    temperature : K.

    Returns
    -------
    (n, 3), sqrt(eV/amu).
    """
    xi = generator.standard_normal((len(masses), 3))
    return xi * np.sqrt(masses * (BOLTZMANN * temperature))[:, None] / masses[:, None]


class NoiseStreams:
    """Standard normal numbers for each structure from its own generator, drawn for many steps at a time.

    A structure of n atoms takes ξ (n, 3), then η (n, 3), at every step, in the order of ASE's ``Langevin``.
    """

    LARGEST = 4_000_000  # numbers held at once
    LONGEST = 64  # steps drawn at once

    def __init__(self, generators: list[np.random.Generator], n_atoms: list[int], device: torch.device) -> None:
        self.generators, self.n_atoms, self.device = generators, n_atoms, device
        # fixed by the structures at the start, so that a continued run draws at the same steps
        self.length = int(max(1, min(self.LONGEST, self.LARGEST // max(1, 6 * sum(n_atoms)))))
        self.used = self.length
        self.start_states: list[Mapping[str, Any]] = []
        self.block: Tensor | None = None

    def _draw(self) -> None:
        self.start_states = [g.bit_generator.state for g in self.generators]
        pieces = [
            g.standard_normal((self.length, 2, n, 3)) for g, n in zip(self.generators, self.n_atoms, strict=True)
        ]
        self.block = torch.from_numpy(np.concatenate(pieces, axis=2)).to(self.device)
        self.used = 0

    def next(self) -> tuple[Tensor, Tensor]:
        """ξ and η of the next step, each (n_atoms of all structures, 3)."""
        if self.used >= self.length:
            self._draw()
        assert self.block is not None
        xi, eta = self.block[self.used]
        self.used += 1
        return xi, eta

    def keep(self, structures: list[int], atoms: Tensor) -> None:
        """Go on with some structures only; ``atoms`` holds the indices of their atoms."""
        self.generators = [self.generators[k] for k in structures]
        self.n_atoms = [self.n_atoms[k] for k in structures]
        if self.start_states:
            self.start_states = [self.start_states[k] for k in structures]
        if self.block is not None:
            self.block = self.block.index_select(2, atoms)

    def state(self) -> dict:
        """Everything needed to go on, JSON-able: states before the present block, and the steps taken from it."""
        drawn = bool(self.start_states)
        states = self.start_states if drawn else [g.bit_generator.state for g in self.generators]
        return {"length": self.length, "used": self.used, "drawn": drawn, "states": states}

    def restore(self, state: dict) -> None:
        """Go on from :meth:`state`, with the same structures."""
        for generator, stored in zip(self.generators, state["states"], strict=True):
            generator.bit_generator.state = stored
        self.length = state["length"]
        if state["drawn"]:
            self._draw()
        self.used = state["used"]


class Langevin:
    """NVT. Call :meth:`first_half`, evaluate the forces at the new positions, call :meth:`second_half`.

    Parameters
    ----------
    masses : (n, 1), amu.
    batch : (n,), the structure of each atom.
    n_atoms : (n_structures,).
    timestep : fs.
    temperature : K.
    friction : 1/fs.
    fixcm : see above.
    """

    def __init__(
        self,
        masses: Tensor,
        batch: Tensor,
        n_atoms: Tensor,
        *,
        timestep: float,
        temperature: float,
        friction: float,
        fixcm: bool = True,
    ) -> None:
        h, gamma = timestep * FEMTOSECOND, friction / FEMTOSECOND
        sigma = torch.sqrt(2 * (BOLTZMANN * temperature) * gamma / masses)
        self.h, self.masses, self.batch, self.fixcm = h, masses, batch, fixcm
        self.c1_over_mass = (h / 2 - h * h * gamma / 8) / masses
        self.c2 = h * gamma / 2 - h * h * gamma * gamma / 8
        self.c3 = h**0.5 * sigma / 2 - h**1.5 * gamma * sigma / 8
        self.c5 = h**1.5 * sigma / (2 * 3**0.5)
        self.c4 = gamma / 2 * self.c5
        count = n_atoms.to(masses.dtype)[:, None]
        self.per_atom = torch.where(count > 1, 1 / count, torch.zeros_like(count))
        self.factor = torch.where(count > 1, torch.sqrt(count / (count - 1).clamp(min=1)), torch.ones_like(count))
        self.noise_velocity: Tensor | None = None

    def _fix_centre(self, displacement: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([displacement, velocity * self.masses], dim=1)
        total = torch.zeros((len(self.per_atom), 6), dtype=both.dtype, device=both.device)
        mean = (total.index_add_(0, self.batch, both) * self.per_atom).index_select(0, self.batch)
        factor = self.factor.index_select(0, self.batch)
        return (displacement - mean[:, :3]) * factor, (velocity - mean[:, 3:] / self.masses) * factor

    def first_half(
        self, positions: Tensor, velocities: Tensor, forces: Tensor, noise: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """New positions, and velocities at the half step."""
        xi, eta = noise
        displacement, velocity = self.c5 * eta, self.c3 * xi - self.c4 * eta
        if self.fixcm:
            displacement, velocity = self._fix_centre(displacement, velocity)
        self.noise_velocity = velocity
        velocities = velocities + (self.c1_over_mass * forces - self.c2 * velocities + velocity)
        return positions + self.h * velocities + displacement, velocities

    def second_half(self, velocities: Tensor, forces: Tensor) -> Tensor:
        """Velocities at the new positions."""
        assert self.noise_velocity is not None
        return velocities + (self.c1_over_mass * forces - self.c2 * velocities + self.noise_velocity)


class VelocityVerlet:
    """NVE: v' = v + (h/2) F/m; x = x + h v'; v = v' + (h/2) F/m. Parameters as in :class:`Langevin`."""

    def __init__(self, masses: Tensor, *, timestep: float) -> None:
        self.h = timestep * FEMTOSECOND
        self.half_over_mass = 0.5 * self.h / masses

    def first_half(
        self, positions: Tensor, velocities: Tensor, forces: Tensor, noise: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """New positions, and velocities at the half step."""
        velocities = velocities + self.half_over_mass * forces
        return positions + self.h * velocities, velocities

    def second_half(self, velocities: Tensor, forces: Tensor) -> Tensor:
        """Velocities at the new positions."""
        return velocities + self.half_over_mass * forces

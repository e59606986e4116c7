"""Integrators for many structures at once: velocity Verlet (NVE) and Langevin (NVT).

Velocity Verlet, with time step h:

    v' = v + (h/2) F(x)/m;   x = x + h v';   v = v' + (h/2) F(x)/m.

Langevin, the scheme of ASE's ``Langevin`` (E. Vanden-Eijnden and G. Ciccotti, Chem. Phys. Lett. 429, 310 (2006),
Eq. 23), with friction γ, σ = sqrt(2 kT γ / m) and independent standard normal ξ, η for each atom and direction:

    v' = v  + c1 F(x)/m  − c2 v  + c3 ξ − c4 η
    x  = x  + h v' + c5 η
    v  = v' + c1 F(x)/m  − c2 v' + c3 ξ − c4 η

    c1 = h/2 − h²γ/8,  c2 = hγ/2 − h²γ²/8,  c3 = sqrt(h) σ/2 − h^1.5 γσ/8,  c5 = h^1.5 σ/(2 sqrt(3)),  c4 = γ c5/2.

With ``fixcm`` the random displacements and momenta of a structure of n atoms are made to sum to zero and scaled by
sqrt(n/(n−1)), as in ASE. One atom alone would then have no noise at all (ASE divides by zero): it is left as it is.

Where the temperature changes, c3, c4 and c5 of a step are those of its temperature: they are proportional to sqrt(kT).

Every integrator keeps ``heat``, the energy in eV that thermostat and barostat have given to each structure, so that
kinetic + potential energy − heat is conserved up to the error of the time step (G. Bussi and M. Parrinello, Phys. Rev.
E 75, 056707 (2007)). Where that energy is not known directly it is what the kinetic energy gains beyond the work of the
forces, which velocity Verlet turns into kinetic energy exactly:

    ΔK = ½ (F(x₀) + F(x₁)) · (x₁ − x₀) + h²/(8m) (F(x₁)² − F(x₀)²).

Inside, lengths are in Å, energies in eV, masses in amu, and time in Å·sqrt(amu/eV) = 10.18 fs, as in ASE.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mdl_physpre.dynamics.engine.ensembles import BOLTZMANN, FEMTOSECOND, Ensemble, Noise
from mdl_physpre.dynamics.engine.moving_atoms import MovingAtoms
from mdl_physpre.dynamics.engine.random_numbers import normal_noise
from mdl_physpre.dynamics.settings import DynamicsSettings


class NVE(Ensemble):
    """Velocity Verlet, as every ensemble takes its steps that does not say otherwise."""


class Langevin(Ensemble):
    """NVT, see the module."""

    draw = staticmethod(normal_noise)
    follows_temperature = True

    def __init__(self, atoms: MovingAtoms, each: Sequence[DynamicsSettings]) -> None:
        super().__init__(atoms, each)
        h, gamma = self.h, atoms.per_atom(self.values(lambda s: s.friction / FEMTOSECOND))[:, None]
        # of what the noise is scaled to in each step where the temperature changes
        hottest = self.values(lambda s: max(s.temperature, s.temperature_end or 0.0) or 1.0) * BOLTZMANN
        self.reference = self.kT if self.rise is None else hottest
        sigma = torch.sqrt(2 * atoms.per_atom(self.reference)[:, None] * gamma / atoms.masses)
        self.fixcm = any(s.fixcm for s in self.each)
        self.c1_over_mass = (h / 2 - h * h * gamma / 8) / atoms.masses
        self.c2 = h * gamma / 2 - h * h * gamma * gamma / 8
        self.c3 = h**0.5 * sigma / 2 - h**1.5 * gamma * sigma / 8
        self.c5 = h**1.5 * sigma / (2 * 3**0.5)
        self.c4 = gamma / 2 * self.c5
        self.of_reference = (self.c3, self.c4, self.c5)
        counts = atoms.counts[:, None].to(torch.float64)
        alone = counts == 1
        self.mean = torch.where(alone, 0.0, 1 / counts)
        self.factor = torch.where(alone, 1.0, torch.sqrt(counts / (counts - 1).clamp(min=1)))

    def begin_step(self, atoms: MovingAtoms, step: int) -> None:
        super().begin_step(atoms, step)
        if self.rise is not None:
            scale = atoms.per_atom((self.kT / self.reference).sqrt())[:, None]
            self.c3, self.c4, self.c5 = (scale * c for c in self.of_reference)

    def _fix_centre(self, atoms: MovingAtoms, displacement: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([displacement, velocity * atoms.masses], dim=1)
        mean = atoms.per_atom(atoms.sums(both) * self.mean)
        factor = atoms.per_atom(self.factor)
        return (displacement - mean[:, :3]) * factor, (velocity - mean[:, 3:] / atoms.masses) * factor

    def first_half(self, atoms: MovingAtoms, noise: Noise | None) -> None:
        assert noise is not None
        self.begin_work(atoms)
        xi, eta = noise
        displacement, velocity = self.c5 * eta, self.c3 * xi - self.c4 * eta
        if self.fixcm:
            displacement, velocity = self._fix_centre(atoms, displacement, velocity)
        self.noise_velocity = velocity
        v = atoms.velocities
        atoms.velocities = v + (self.c1_over_mass * atoms.forces - self.c2 * v + velocity)
        atoms.positions = atoms.positions + self.h * atoms.velocities + displacement

    def second_half(self, atoms: MovingAtoms) -> None:
        v = atoms.velocities
        atoms.velocities = v + (self.c1_over_mass * atoms.forces - self.c2 * v + self.noise_velocity)
        atoms.kinetic = atoms.kinetic_energies()
        self.end_work(atoms)

"""Integrators that rescale velocities or cells: Bussi, Nosé–Hoover chain (NVT) and Berendsen (NPT), as ASE's.

All are velocity Verlet between their own parts. Temperatures are 2 K/(3 N k): no degree of freedom is taken off, as in
ASE. A structure without kinetic energy is not rescaled.

Bussi (stochastic velocity rescaling; G. Bussi, D. Donadio and M. Parrinello, J. Chem. Phys. 126, 014101 (2007), Eq.
A7), before each step, with c = exp(−h/τ_T), n = 3N, R standard normal and S a sum of n − 1 squares of such:

    α² = c + (1 − c) kT/(2K) (S + R²) + 2 R sqrt(c (1 − c) kT/(2K)),      v -> α v.

Nosé–Hoover chain of three (G. J. Martyna, M. L. Klein and M. E. Tuckerman, J. Chem. Phys. 97, 2635 (1992)), half a step
of the thermostat before and after each step of velocity Verlet, by the fourth-order splitting of Yoshida and Suzuki,
with Q₀ = 3N kT τ_T², Q_j = kT τ_T². It conserves K + U + 3N kT η₀ + kT (η₁ + η₂) + Σ_j p_j²/(2 Q_j). Where kT changes,
the masses Q follow it, at constant momenta p, and what the last three terms change by that is no heat.

Berendsen (H. J. C. Berendsen et al., J. Chem. Phys. 81, 3684 (1984)), before each step, with the pressure P of
potential and motion and the compressibility β:

    v -> λ v,                  λ = sqrt(1 + (T₀/T − 1) h/τ_T), kept between 0.9 and 1.1,
    x -> μ x, cell -> μ cell,  μ = 1 − β (P₀ − P) h/(3 τ_P).

The forces are taken anew at the rescaled positions. With ``fixcm`` the mean momentum is taken off in the middle of the
step, and one atom alone then does not move.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from ase import units
from torch import Tensor

from mdl_physpre.dynamics.engine.ensembles import FEMTOSECOND, Ensemble, Noise
from mdl_physpre.dynamics.engine.moving_atoms import MovingAtoms
from mdl_physpre.dynamics.engine.random_numbers import rescaling_noise
from mdl_physpre.dynamics.settings import DynamicsProtocol, DynamicsSettings

BAR = units.bar
CHAIN = 3
YOSHIDA_SUZUKI = (1 / (2 - 2 ** (1 / 3)), -(2 ** (1 / 3)) / (2 - 2 ** (1 / 3)), 1 / (2 - 2 ** (1 / 3)))


class Bussi(Ensemble):
    """NVT, see the module."""

    draw = staticmethod(rescaling_noise)
    follows_temperature = True

    def __init__(self, atoms: MovingAtoms, each: Sequence[DynamicsSettings]) -> None:
        super().__init__(atoms, each)
        self.c = torch.exp(-self.timestep / (self.values(lambda s: s.taut) * FEMTOSECOND))

    def first_half(self, atoms: MovingAtoms, noise: Noise | None) -> None:
        assert noise is not None
        normal, squares = (part.flatten() for part in noise)
        moving = atoms.kinetic > 0
        term = (1 - self.c) * 0.5 * self.kT / torch.where(moving, atoms.kinetic, 1.0)
        scale = self.c + term * (squares + normal.square()) + 2 * normal * torch.sqrt(self.c * term)
        scale = torch.where(moving, scale.clamp(min=0), 1.0)
        self.heat = self.heat + (scale - 1) * atoms.kinetic
        atoms.velocities = atoms.velocities * atoms.per_atom(scale.sqrt())[:, None]
        super().first_half(atoms, None)


class NoseHooverChain(Ensemble):
    """NVT, see the module. ``eta`` (B, 3) and ``p_eta`` (B, 3) are the thermostats' positions and momenta."""

    FIELDS: ClassVar[tuple[str, ...]] = ("heat", "eta", "p_eta")
    follows_temperature = True

    @classmethod
    def check(cls, settings: DynamicsProtocol) -> None:
        for key in ("temperature", "temperature_end"):
            if getattr(settings, key) == 0:
                raise ValueError(f"{key} is 0; the Nosé–Hoover thermostat needs a temperature above 0")

    def __init__(self, atoms: MovingAtoms, each: Sequence[DynamicsSettings]) -> None:
        super().__init__(atoms, each)
        self.time_squared = (self.values(lambda s: s.taut) * FEMTOSECOND).square()
        self.energy_given: Tensor | None = None  # heat and energy of the chain, where the temperature changes
        self._set_masses(atoms)
        self.eta = torch.zeros((len(self.each), CHAIN), dtype=torch.float64, device=self.device)
        self.p_eta = torch.zeros_like(self.eta)

    def _set_masses(self, atoms: MovingAtoms) -> None:
        self.n_kT = 3 * atoms.counts * self.kT
        unit = self.kT * self.time_squared
        self.mass = [3 * atoms.counts * unit, *[unit] * (CHAIN - 1)]

    def begin_step(self, atoms: MovingAtoms, step: int) -> None:
        super().begin_step(atoms, step)
        if self.rise is not None:
            self._set_masses(atoms)
            self.energy_given = self.heat + self._chain_energy()

    def _chain_energy(self) -> Tensor:
        energy = self.n_kT * self.eta[:, 0] + self.kT * self.eta[:, 1:].sum(1)
        return energy + sum(0.5 * self.p_eta[:, j].square() / self.mass[j] for j in range(CHAIN))

    def first_half(self, atoms: MovingAtoms, noise: Noise | None) -> None:
        self._thermostat(atoms)
        super().first_half(atoms, None)

    def second_half(self, atoms: MovingAtoms) -> None:
        super().second_half(atoms)
        self._thermostat(atoms)
        self.heat = -self._chain_energy() if self.energy_given is None else self.energy_given - self._chain_energy()

    def _thermostat(self, atoms: MovingAtoms) -> None:
        """Half a time step of the chain; every quantity is one value for each structure."""
        twice_kinetic, scale = 2 * atoms.kinetic, torch.ones_like(atoms.kinetic)
        eta, p = list(self.eta.unbind(1)), list(self.p_eta.unbind(1))

        def push(j: int, half: Tensor, quarter: Tensor) -> None:
            damp = torch.exp(-quarter * p[j + 1] / self.mass[j + 1]) if j < CHAIN - 1 else None
            force = twice_kinetic - self.n_kT if j == 0 else p[j - 1].square() / self.mass[j - 1] - self.kT
            if damp is None:
                p[j] = p[j] + half * force
            else:
                p[j] = (p[j] * damp + half * force) * damp

        for weight in YOSHIDA_SUZUKI:
            delta = 0.5 * weight * self.timestep
            for j in reversed(range(CHAIN)):
                push(j, delta / 2, delta / 4)
            eta = [e + delta * q / m for e, q, m in zip(eta, p, self.mass, strict=True)]
            factor = torch.exp(-delta * p[0] / self.mass[0])
            scale, twice_kinetic = scale * factor, twice_kinetic * factor.square()
            for j in range(CHAIN):
                push(j, delta / 2, delta / 4)
        self.eta, self.p_eta = torch.stack(eta, dim=1), torch.stack(p, dim=1)
        atoms.velocities = atoms.velocities * atoms.per_atom(scale)[:, None]
        atoms.kinetic = 0.5 * twice_kinetic


class Berendsen(Ensemble):
    """NPT, see the module."""

    changes_cells = True
    follows_temperature = True

    def __init__(self, atoms: MovingAtoms, each: Sequence[DynamicsSettings]) -> None:
        super().__init__(atoms, each)
        self.over_taut = self.timestep / (self.values(lambda s: s.taut) * FEMTOSECOND)
        self.pressure = self.values(lambda s: s.pressure * BAR)
        beta = self.values(lambda s: s.compressibility / BAR)
        self.give = beta / 3 * self.timestep / (self.values(lambda s: s.taup) * FEMTOSECOND)
        self.fixcm = any(s.fixcm for s in self.each)

    def rescale(self, atoms: MovingAtoms) -> None:
        moving = atoms.kinetic > 0
        ratio = self.temperature / torch.where(moving, atoms.temperatures(), 1.0)
        scale = torch.sqrt((1 + (ratio - 1) * self.over_taut).clamp(min=0)).clamp(0.9, 1.1)
        scale = torch.where(moving, scale, 1.0)
        before = atoms.kinetic
        atoms.kinetic = before * scale.square()
        self.heat = self.heat + (atoms.kinetic - before)
        atoms.velocities = atoms.velocities * atoms.per_atom(scale)[:, None]
        shrink = 1 - self.give * (self.pressure - atoms.pressures())
        atoms.cells = atoms.cells * shrink[:, None, None]
        atoms.positions = atoms.positions * atoms.per_atom(shrink)[:, None]
        self.energy_before = atoms.energies

    def first_half(self, atoms: MovingAtoms, noise: Noise | None) -> None:
        self.heat = self.heat + (atoms.energies - self.energy_before)  # the work of the barostat
        self.begin_work(atoms)
        velocities = atoms.velocities + self.half_over_mass * atoms.forces
        if self.fixcm:
            mean = atoms.sums(velocities * atoms.masses) / atoms.counts[:, None]
            velocities = velocities - atoms.per_atom(mean) / atoms.masses
        atoms.velocities = velocities
        atoms.positions = atoms.positions + self.h * velocities

    def second_half(self, atoms: MovingAtoms) -> None:
        super().second_half(atoms)
        self.end_work(atoms)

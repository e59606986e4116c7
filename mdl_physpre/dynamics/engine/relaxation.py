"""FIRE: relaxation of many structures at once, as an ensemble.

The fast inertial relaxation engine (E. Bitzek, P. Koskinen, F. Gähler, M. Moseler and P. Gumbsch, Phys. Rev. Lett. 97,
170201 (2006)), with the steps of ASE's ``FIRE``. With velocities v of atoms of unit mass, at rest at the start, each
structure's own step h and mixing α, and norms and products over all atoms of a structure:

    v·F > 0:  v <- (1 − α) v + α |v| F/|F|;  after more than n such steps in a row  h <- min(1.1 h, h_max),  α <- 0.99 α
    v·F ≤ 0:  v <- 0,  h <- h/2,  α <- 0.1
    v <- v + h F;   x <- x + c h v,   c = min(1, s/max_i |h v_i|).

c bounds the step of the atom that moves most by s = ``maxstep``, so that a structure and a repetition of it take the
same steps (ASE bounds the norm of the steps of all atoms instead). A structure whose largest force is below ``fmax``
moves no more and leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mdl_physpre.dynamics.engine.ensembles import Ensemble, Noise
from mdl_physpre.dynamics.engine.moving_atoms import MovingAtoms
from mdl_physpre.dynamics.settings import DynamicsSettings

GROW, SHRINK, MIXING, LESS_MIXING = 1.1, 0.5, 0.1, 0.99


class FIRE(Ensemble):
    """Relaxation at a fixed cell, see the module. The structures are at rest, whatever the temperature.

    Parameters
    ----------
    fmax : eV/Å; a structure whose largest force is smaller is done. 0: none is.
    maxstep : Å; no atom moves farther in a step.
    step, largest_step : h at the start and h_max, Å/√eV at unit mass; the time step of the settings is not used.
    downhill : n, steps before h grows.
    """

    FIELDS: ClassVar[tuple[str, ...]] = ("heat", "step", "mixing", "downhill")
    ATOM_FIELDS: ClassVar[tuple[str, ...]] = ("motion",)
    at_rest = True

    def __init__(
        self,
        atoms: MovingAtoms,
        each: Sequence[DynamicsSettings],
        fmax: float = 0.05,
        maxstep: float = 0.2,
        step: float = 0.1,
        largest_step: float = 1.0,
        downhill: int = 5,
    ) -> None:
        super().__init__(atoms, each)
        self.fmax, self.maxstep, self.largest_step, self.wait = fmax, maxstep, largest_step, downhill
        self.step, self.mixing = torch.full_like(self.heat, step), torch.full_like(self.heat, MIXING)
        self.downhill = torch.zeros_like(self.heat)
        self.motion = torch.zeros_like(atoms.positions)

    def first_half(self, atoms: MovingAtoms, noise: Noise | None) -> None:
        v, f = self.motion, atoms.forces
        products = torch.stack([v * f, f * f, v * v], dim=1).sum(2)
        power, ff, vv = atoms.sums(products).unbind(1)
        began = vv > 0
        uphill = began & (power <= 0)
        grows = began & ~uphill & (self.downhill > self.wait)
        along = torch.where(uphill, 0.0, 1 - self.mixing)
        turned = torch.where(uphill | (ff == 0), 0.0, self.mixing * torch.sqrt(vv / ff))
        self.downhill = torch.where(uphill, 0.0, self.downhill + began)
        longer = torch.where(grows, (self.step * GROW).clamp(max=self.largest_step), self.step)
        self.step = torch.where(uphill, self.step * SHRINK, longer)
        self.mixing = torch.where(uphill, MIXING, torch.where(grows, self.mixing * LESS_MIXING, self.mixing))
        per_atom = atoms.per_atom(torch.stack([along, turned + self.step, self.step], dim=1))
        self.motion = per_atom[:, :1] * v + per_atom[:, 1:2] * f
        move = per_atom[:, 2:] * self.motion
        scale = (self.maxstep / self._largest(atoms, move).clamp(min=1e-300)).clamp(max=1.0)
        scale = torch.where(self.finished(atoms), 0.0, scale)
        atoms.positions = atoms.positions + atoms.per_atom(scale)[:, None] * move

    def second_half(self, atoms: MovingAtoms) -> None:
        """Nothing: the velocities of the method are not those of atoms, which have no kinetic energy."""

    def finished(self, atoms: MovingAtoms) -> Tensor:
        return self._largest(atoms, atoms.forces) < self.fmax

    def _largest(self, atoms: MovingAtoms, vectors: Tensor) -> Tensor:
        """The length of the longest vector of each structure, (B,)."""
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        return torch.zeros_like(self.heat).scatter_reduce_(0, atoms.batch, lengths, "amax")

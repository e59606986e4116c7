"""What a fit assumes where the data end: every pair repels at short distance, about as strongly as its nuclei do."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mdl_physpre.potentials.eam.covalent_radii import covalent_radius
from mdl_physpre.potentials.eam.potential import EAMInteraction
from mdl_physpre.potentials.eam.radial import PairParameters, radial_functions
from mdl_physpre.potentials.zbl import nuclear_repulsion

LEAST_SLOPE = 5.0  # eV/Å
FREE_FACTOR = 4.0  # the wall may differ from the nuclear repulsion by this factor without cost
HISTOGRAM_STEP = 0.05  # Å


class WallPrior:
    r"""A penalty on pair curves below the distances that occur in the training data.

    For each pair, V(r) = φ(r) + Σ_{i,j} [F(ρ̄ + ρ(r)) − F(ρ̄)] is the energy of bringing two atoms together, taken in two
    surroundings: alone (ρ̄ = 0), and at the mean density ρ̄ of each element in the training data. Up to
    r_w = min(0.6 r_c, 0.85 r_min), r_c the covalent distance and r_min the shortest distance of the pair in the data,

    * dV/dr ≤ −5 eV/Å is asked for at eight distances from r_w/4 to r_w: penalty mean max(0, 1 + V'/5)²;
    * V is held within a factor of four of the screened nuclear repulsion at three distances from r_w/4 to r_w/2:
      penalty mean max(0, \|asinh V − asinh V_nuc\| − ln 4)².

    Both are zero for a sensible wall, and then change nothing. A short-range repulsion is part of V.

    Parameters
    ----------
    potential : gives elements, pairs and the cutoff.
    pair, r, counts : pair, distance and number of edges of each distinct distance in the training data.
    atoms : number of atoms of each element there.
    """

    def __init__(self, potential: EAMInteraction, pair: Tensor, r: Tensor, counts: Tensor, atoms: Tensor) -> None:
        self.cutoff = potential.cutoff
        n_pairs, n_elements = len(potential.pairs), len(potential.elements)
        self.first = torch.tensor([int(potential.element_of[zi]) for zi, _ in potential.pairs])
        self.second = torch.tensor([int(potential.element_of[zj]) for _, zj in potential.pairs])
        radii = torch.tensor([covalent_radius(zi) + covalent_radius(zj) for zi, zj in potential.pairs])
        closest = torch.full((n_pairs,), torch.inf, dtype=torch.float64).scatter_reduce(0, pair.long(), r, "amin")
        r_wall = torch.minimum(0.6 * radii.double(), 0.85 * closest)
        self.slope_r = r_wall[:, None] * torch.linspace(0.25, 1.0, 8, dtype=torch.float64)
        self.height_r = r_wall[:, None] * torch.linspace(0.25, 0.5, 3, dtype=torch.float64)
        rows = [nuclear_repulsion(zi, zj, x) for (zi, zj), x in zip(potential.pairs, self.height_r)]
        self.nuclear = torch.stack(rows)
        numbers = torch.arange(n_pairs)[:, None]
        self.slope_repulsion, self.height_repulsion = (
            potential.repulsion_functions(numbers.expand_as(x), x) for x in (self.slope_r, self.height_r)
        )

        bins = int(np.ceil(self.cutoff / HISTOGRAM_STEP))
        key = pair.long() * bins + (r / HISTOGRAM_STEP).long().clamp(max=bins - 1)
        histogram = torch.zeros(n_pairs * bins, dtype=torch.float64).index_add_(0, key, counts)
        self.histogram_r = ((torch.arange(bins, dtype=torch.float64) + 0.5) * HISTOGRAM_STEP).repeat(n_pairs)
        self.histogram_pair = torch.arange(n_pairs).repeat_interleave(bins)
        received = torch.zeros((n_elements, n_pairs * bins), dtype=torch.float64)
        for ends in (self.first, self.second):
            for p in range(n_pairs):
                part = slice(p * bins, (p + 1) * bins)
                received[ends[p], part] += histogram[part]
        self.received = received / atoms.clamp(min=1)[:, None]

    def __call__(self, parameters: dict[str, Tensor]) -> Tensor:
        """The penalty, a scalar, differentiable in the parameters (by name, ``B`` for ``b``)."""
        pairs = PairParameters(*(parameters[name] for name in PairParameters._fields))
        _, _, mean_rho, _ = radial_functions(self.histogram_r, self.histogram_pair, pairs, self.cutoff)
        surroundings = torch.stack((torch.zeros_like(parameters["rho0"]), self.received @ mean_rho))
        slope = self._curves(self.slope_r, pairs, parameters, surroundings)[1] + self.slope_repulsion[1]
        height = self._curves(self.height_r, pairs, parameters, surroundings)[0] + self.height_repulsion[0]
        falling = (1.0 + slope / LEAST_SLOPE).clamp(min=0.0)
        apart = (torch.asinh(height) - torch.asinh(self.nuclear)).abs() - float(np.log(FREE_FACTOR))
        falling = torch.asinh(falling)  # a steep wrong slope must not drown the data
        return (falling**2).mean(dim=(0, 2)).sum() + (apart.clamp(min=0.0) ** 2).mean(dim=(0, 2)).sum()

    def _curves(
        self, r: Tensor, pairs: PairParameters, parameters: dict[str, Tensor], surroundings: Tensor
    ) -> tuple[Tensor, Tensor]:
        """V and dV/dr without the short-range repulsion, (2 surroundings, n_pairs, n_distances)."""
        pair = torch.arange(len(r)).repeat_interleave(r.shape[1])
        phi, dphi, rho, drho = (x.reshape(r.shape) for x in radial_functions(r.reshape(-1), pair, pairs, self.cutoff))
        value, slope = phi[None], dphi[None]
        for k in (self.first, self.second):
            b, excess = parameters["B"][k][:, None], (surroundings - parameters["rho0"])[:, k, None]
            value = value + b * rho * (rho + 2.0 * excess)
            slope = slope + 2.0 * b * drho * (rho + excess)
        return value, slope

"""Radial functions of the equivariant transformer: the exponential-normal basis and the cosine cutoff."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def cosine_cutoff(distances: Tensor, cutoff: float) -> Tensor:
    """C(r) = ½ (cos(π r / cutoff) + 1) below the cutoff and 0 from there on; value and slope vanish there."""
    value = 0.5 * (torch.cos(distances * (math.pi / cutoff)) + 1.0)
    return torch.where(distances < cutoff, value, torch.zeros_like(value))


class ExponentialNormalBasis(nn.Module):
    """``n`` functions of the distance, Gaussian in exp(-αr), with trainable centres and widths:

        e_k(r) = C(r) exp(-β_k (exp(-α r) - μ_k)²),    α = 5 / cutoff

    Distances (E,) in Å give values (E, n). μ_k start evenly spaced between exp(-cutoff/Å) and 1, and all β_k at
    (2 (1 - exp(-cutoff/Å)) / n)⁻².

    Source: Unke and Meuwly, J. Chem. Theory Comput. 15, 3678 (2019), in the form of TorchMD-NET.
    """

    def __init__(self, cutoff: float, n: int) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.alpha = 5.0 / cutoff
        start = math.exp(-cutoff)
        self.means = nn.Parameter(torch.linspace(start, 1.0, n))
        self.betas = nn.Parameter(torch.full((n,), (2.0 * (1.0 - start) / n) ** -2))

    def forward(self, distances: Tensor) -> Tensor:
        return cosine_cutoff(distances, self.cutoff)[:, None] * self.gaussians(distances)

    def gaussians(self, distances: Tensor) -> Tensor:
        """The functions without the factor C(r)."""
        t = torch.exp(-self.alpha * distances)
        return torch.exp(-self.betas * (t[:, None] - self.means) ** 2)

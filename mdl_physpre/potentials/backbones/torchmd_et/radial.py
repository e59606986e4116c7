"""Radial functions of the equivariant transformer: the exponential-normal basis and the cosine cutoff."""

from __future__ import annotations

import math
from functools import lru_cache

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

    def forward(self, distances: Tensor, cutoff_values: Tensor) -> Tensor:
        """The functions, with C(r) (E,) as :func:`cosine_cutoff` gives it."""
        t = torch.exp(-self.alpha * distances)
        exponents = -self.betas * (t[:, None] - self.means) ** 2
        # zero where it cannot matter: numbers near the smallest that a processor knows are slow
        least = -64.0 if exponents.dtype == torch.float64 else -32.0
        values = torch.exp(exponents.clamp_min(least))
        return cutoff_values[:, None] * torch.where(exponents > least, values, torch.zeros_like(values))

    def grid(self) -> RadialGrid:
        """A grid fine enough for the sharpest function."""
        sharpest = float(self.betas.detach().abs().max().clamp(1.0, 1e6))
        finest = math.sqrt(2.0 * sharpest) * NODES_PER_WIDTH
        step = 2.0 ** (math.ceil(4.0 * math.log2(finest)) / 4.0)  # few values, so that grids are met again
        return radial_grid(self.cutoff, self.alpha, 1.0 / step)


SPLINE = torch.tensor(
    [[1, 26, 66, 26, 1, 0], [-5, -50, 0, 50, 5, 0], [10, 20, -60, 20, 10, 0],
     [-10, 20, 0, -20, 10, 0], [5, -20, 30, -20, 5, 0], [-1, 5, -10, 10, -5, 1]], dtype=torch.float64,
) / 120  # fmt: skip
"""Coefficients of f⁰ … f⁵ (rows) in the six quintic B-splines that overlap at the fraction f of an interval."""

NODES_PER_WIDTH = 4.0
"""Nodes in the width of the sharpest radial function. The error, about 1e-7, falls with the sixth power."""

_MARGIN = 32  # nodes beyond both ends: what a spline is not told there dies away by 0.43 from node to node


class RadialGrid:
    """Where the radial functions are tabulated, and the quintic B-splines that interpolate between.

    Nodes are evenly spaced in s(r) = 1 - exp(-α r) + γ r, close together where the exponential-normal functions are
    sharp and no further apart than 0.03 · cutoff elsewhere. Interpolated values are four times continuously
    differentiable. The derivative of an interpolated value is that of the interpolating function itself, so that forces
    are the exact derivative of the energy. Everything is kept in double precision.
    ``spacing`` is the largest distance of two nodes in s; ``cutoff`` in Å, ``alpha`` in 1/Å.
    """

    def __init__(self, cutoff: float, alpha: float, spacing: float) -> None:
        self.cutoff, self.alpha = cutoff, alpha
        self.gamma = spacing / (0.03 * cutoff)
        length = 1.0 - math.exp(-alpha * cutoff) + self.gamma * cutoff
        intervals = math.ceil(length / spacing)
        self.spacing = length / intervals
        self.n_rows = intervals + 5
        s = torch.arange(-_MARGIN, intervals + _MARGIN + 1, dtype=torch.float64) * self.spacing
        r = torch.clamp(s, max=length) / (alpha + self.gamma)
        for _ in range(60):  # Newton's method, from below on a concave function
            r = r - (1.0 - torch.exp(-alpha * r) + self.gamma * r - s) / (alpha * torch.exp(-alpha * r) + self.gamma)
        self.distances = r
        self.cutoff_values = 0.5 * (torch.cos(r * (math.pi / cutoff)) + 1.0)  # beyond it as well
        n = len(s)
        collocation = sum(
            torch.diag(torch.full((n - abs(k),), SPLINE[0, k + 2].item(), dtype=torch.float64), k) for k in range(-2, 3)
        )
        inverse = torch.linalg.inv(collocation)[_MARGIN - 2 : _MARGIN + intervals + 3]
        self.from_values = torch.where(inverse.abs() > 1e-14, inverse, 0.0)

    def table(self, values: Tensor) -> Tensor:
        """Coefficients (rows, n) of the splines through values (nodes, n) at ``distances``."""
        return self.from_values.to(values.dtype) @ values

    def place(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """First row of each edge (E,), and (E, 12) the weights of that row and the next five, and their slopes, 1/Å.

        The row is -1 for an edge at or beyond the cutoff.
        """
        r = distances.double()  # a hundredth of an interval is much for a slope
        t = torch.exp(-self.alpha * r)
        at = (1.0 - t + self.gamma * r) / self.spacing
        row = at.floor().clamp_(0, self.n_rows - 6)
        powers = (at - row)[:, None] ** torch.arange(6, device=at.device)
        matrix = SPLINE.to(powers)
        slopes = (powers[:, :5] * torch.arange(1, 6, device=at.device)) @ matrix[1:]
        slopes *= ((self.alpha * t + self.gamma) / self.spacing)[:, None]
        spline = torch.cat([powers @ matrix, slopes], dim=1).to(distances.dtype)
        return torch.where(distances < self.cutoff, row.long(), -1), spline


@lru_cache(maxsize=16)
def radial_grid(cutoff: float, alpha: float, spacing: float) -> RadialGrid:
    """A :class:`RadialGrid`, made once."""
    return RadialGrid(cutoff, alpha, spacing)

"""Radial functions of the crystal graph convolutional network: Gaussians, their compact basis, the cutoff function."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class GaussianBasis(nn.Module):
    """``n`` Gaussians of the distance, evenly spaced on ``[0, cutoff]``:

        g_k(r) = exp(-(r - r_k)² / (2 (width · cutoff)²)),   r_k = k · cutoff / (n - 1)

    Distances (E,) in Å give values (E, n).
    """

    offset: Tensor

    def __init__(self, cutoff: float, n: int, width: float) -> None:
        super().__init__()
        self.coefficient = -0.5 / (cutoff * width) ** 2
        self.register_buffer("offset", torch.linspace(0.0, cutoff, n))

    def forward(self, distances: Tensor) -> Tensor:
        return torch.exp(self.coefficient * (distances[:, None] - self.offset) ** 2)


def piecewise_polynomials(gaussians: GaussianBasis, cutoff: float, n_pieces: int, terms: int) -> Tensor:
    """Coefficients (n, n_pieces · terms) of polynomials that equal the Gaussians on equal pieces of ``[0, cutoff]``:

        g_k(r) = Σ_m c_{k, p terms + m} t^m,    t = 2 (r n_pieces / cutoff - p) - 1  for r in piece p

    by interpolation at Chebyshev's nodes, in double precision. W g(r) = Σ_m (W c)_m t^m
    then takes few products.
    """
    exact = copy.deepcopy(gaussians).to("cpu", torch.float64)
    nodes = torch.cos(torch.pi * (torch.arange(terms, dtype=torch.float64) + 0.5) / terms)
    distances = (torch.arange(n_pieces)[:, None] + 0.5 * (nodes + 1.0)) * (cutoff / n_pieces)
    values = exact(distances.reshape(-1)).view(n_pieces, terms, -1)
    coefficients = torch.linalg.solve(torch.vander(nodes, increasing=True), values)
    return coefficients.flatten(0, 1).T.contiguous()

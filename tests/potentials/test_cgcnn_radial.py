from __future__ import annotations

import math

import pytest
import torch

from mdl_physpre.potentials.backbones.cgcnn.radial import GaussianBasis, piecewise_polynomials

CUTOFF = 6.0


@pytest.mark.parametrize(("terms", "tolerance", "slope_tolerance"), [(8, 1e-8, 1e-6), (16, 1e-13, 1e-11)])
@pytest.mark.parametrize("width", [0.05, 0.2, 0.7])
def test_polynomials_equal_the_gaussians_and_their_slopes(width, terms, tolerance, slope_tolerance):
    gaussians, n_pieces = GaussianBasis(CUTOFF, 31, width).double(), math.ceil(2.0 / width)
    coefficients = piecewise_polynomials(gaussians, CUTOFF, n_pieces, terms)
    assert coefficients.shape == (31, n_pieces * terms) and coefficients.dtype == torch.float64
    distances = torch.linspace(0.0, CUTOFF, 2001, dtype=torch.float64)[:-1]
    piece = (distances * n_pieces / CUTOFF).long()
    t = 2.0 * (distances * n_pieces / CUTOFF - piece) - 1.0
    powers = t[:, None] ** torch.arange(terms)
    slopes = torch.arange(terms) * torch.nn.functional.pad(powers[:, :-1], (1, 0)) * (2.0 * n_pieces / CUTOFF)
    own = coefficients.T.view(n_pieces, terms, -1)[piece]
    values, exact = torch.einsum("et,etk->ek", powers, own), gaussians(distances)
    assert (values - exact).abs().max() < tolerance
    exact_slopes = -(distances[:, None] - gaussians.offset) * exact / (0.5 / -gaussians.coefficient)
    worst = (torch.einsum("et,etk->ek", slopes, own) - exact_slopes).abs().max()
    assert worst < slope_tolerance * exact_slopes.abs().max()

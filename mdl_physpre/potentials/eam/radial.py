"""Radial functions of the embedded-atom potential, exact and on a table, with their derivatives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mdl_physpre.potentials.envelopes import INNER_FRACTION, cutoff_function

TABLE_INTERVALS = 4000  # a multiple of 50: the cutoff function changes at a grid point


class PairParameters(NamedTuple):
    """Parameters by pair of elements: A, beta (n_pairs, n_basis), 1 and 1/Å; D eV, alpha 1/Å, r_e Å (n_pairs,)."""

    A: Tensor
    beta: Tensor
    D: Tensor
    alpha: Tensor
    r_e: Tensor


def pair_energy(r: Tensor, pair: Tensor, parameters: PairParameters) -> tuple[Tensor, Tensor]:
    """Morse energy D (1 − e^{−α(r−r_e)})² − D of each distance, without the cutoff function, and its derivative.

    Shapes: ``r``, ``pair`` (n,); both results (n,), eV and eV/Å.
    """
    depth, alpha = parameters.D.index_select(0, pair), parameters.alpha.index_select(0, pair)
    fall = torch.exp(alpha * (parameters.r_e.index_select(0, pair) - r))
    return depth * fall * (fall - 2.0), (-2.0 * depth * alpha) * fall * (fall - 1.0)


def density(r: Tensor, pair: Tensor, parameters: PairParameters) -> tuple[Tensor, Tensor]:
    """Density Σ_k A_k e^{−β_k r} that a neighbour gives, without the cutoff function, and its derivative.

    Shapes: ``r``, ``pair`` (n,); both results (n,), 1 and 1/Å.
    """
    value, slope = torch.zeros_like(r), torch.zeros_like(r)
    for k in range(parameters.A.shape[1]):
        beta = parameters.beta[:, k].index_select(0, pair)
        term = parameters.A[:, k].index_select(0, pair) * torch.exp(-beta * r)
        value = value + term
        slope = slope - beta * term
    return value, slope


def radial_functions(
    r: Tensor, pair: Tensor, parameters: PairParameters, cutoff: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """φ, dφ/dr, ρ, dρ/dr of each distance, cutoff function included; each (n,)."""
    f, df = cutoff_function(r, cutoff)
    phi, dphi = pair_energy(r, pair, parameters)
    rho, drho = density(r, pair, parameters)
    return f * phi, f * dphi + df * phi, f * rho, f * drho + df * rho


def curvatures(r: Tensor, pair: Tensor, parameters: PairParameters, cutoff: float) -> tuple[Tensor, Tensor]:
    """d²φ/dr² and d²ρ/dr² of each distance, cutoff function included; each (n,)."""
    width = (1.0 - INNER_FRACTION) * cutoff
    s = ((cutoff - r) / width).clamp(0.0, 1.0)
    f, df = cutoff_function(r, cutoff)
    bend = (60.0 / width**2) * s * (1.0 - s) * (1.0 - 2.0 * s)
    depth, alpha = parameters.D.index_select(0, pair), parameters.alpha.index_select(0, pair)
    fall = torch.exp(alpha * (parameters.r_e.index_select(0, pair) - r))
    phi, dphi = pair_energy(r, pair, parameters)
    rho, drho = density(r, pair, parameters)
    amplitude, beta = parameters.A.index_select(0, pair), parameters.beta.index_select(0, pair)
    of_phi = 2.0 * depth * alpha**2 * fall * (2.0 * fall - 1.0)
    of_rho = (amplitude * beta**2 * torch.exp(-beta * r[:, None])).sum(1)
    return bend * phi + 2.0 * df * dphi + f * of_phi, bend * rho + 2.0 * df * drho + f * of_rho


class RadialTable:
    """φ and ρ of every pair as piecewise polynomials of fifth degree on a uniform grid from 0 to the cutoff.

    Value, slope and curvature are exact at the grid points (Hermite interpolation), the cutoff function starts to fall
    at one of them, and the derivative returned is that of the interpolated value, so that forces are conservative. The
    relative error of the derivative is of the order (h γ)⁵/2000, where the function falls as e^{−γ r} and
    h = r_c/4000: 1e-13 for γ = 7 /Å and r_c = 8 Å.

    Parameters
    ----------
    parameters : the pair parameters.
    cutoff : Å.
    dtype : precision of the coefficients; they are computed in double precision.

    Attributes
    ----------
    coefficients : (n_pairs · (intervals + 1), 2, 6); of φ and ρ in each interval, from the constant upwards, in the
        part of the interval that lies behind. Each pair ends with a row of zeros, for distances beyond the cutoff.
    intervals, scale : their number, and how many there are in 1 Å.
    """

    intervals = TABLE_INTERVALS

    def __init__(self, parameters: PairParameters, cutoff: float, dtype: torch.dtype) -> None:
        n_pairs, step = len(parameters.D), cutoff / self.intervals
        double = PairParameters(*(p.detach().double() for p in parameters))
        grid = torch.arange(self.intervals + 1, dtype=torch.float64, device=double.D.device) * step
        pair = torch.arange(n_pairs, device=grid.device).repeat_interleave(len(grid))
        r = grid.repeat(n_pairs)
        phi, dphi, rho, drho = radial_functions(r, pair, double, cutoff)
        values, slopes, bends = (
            torch.stack(both, dim=1).reshape(n_pairs, -1, 2) * step**power
            for power, both in enumerate(((phi, rho), (dphi, drho), curvatures(r, pair, double, cutoff)))
        )
        self.scale = 1.0 / step
        self.coefficients = _quintics(values, slopes, bends).to(dtype)


def _quintics(values: Tensor, slopes: Tensor, bends: Tensor) -> Tensor:
    """Coefficients of the polynomials with these values and derivatives at the ends of each interval of length 1.

    All are (n_pairs, n_intervals + 1, 2); the result is that of :class:`RadialTable`.
    """
    (v, w), (s, t), (a, b) = ((x[:, :-1], x[:, 1:]) for x in (values, slopes, bends))
    value, slope, bend = w - v - s - 0.5 * a, t - s - a, b - a  # what is left for the upper three at the end
    upper = (
        10.0 * value - 4.0 * slope + 0.5 * bend,
        -15.0 * value + 7.0 * slope - bend,
        6.0 * value - 3.0 * slope + 0.5 * bend,
    )
    rows = torch.stack((v, s, 0.5 * a, *upper), dim=3)
    return torch.nn.functional.pad(rows, (0, 0, 0, 0, 0, 1)).reshape(-1, 2, 6)

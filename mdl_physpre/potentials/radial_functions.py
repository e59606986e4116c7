"""Radial functions of the embedded-atom potential, exact and on a table, with their derivatives."""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

INNER_FRACTION = 0.66  # the cutoff function falls from 1 to 0 between this fraction of the cutoff and the cutoff
TABLE_INTERVALS = 4096


class PairParameters(NamedTuple):
    """Parameters by pair of elements: A, beta (n_pairs, n_basis), 1 and 1/Å; D eV, alpha 1/Å, r_e Å (n_pairs,)."""

    A: Tensor
    beta: Tensor
    D: Tensor
    alpha: Tensor
    r_e: Tensor


def cutoff_function(
    r: Tensor, cutoff: float | Tensor, inner_fraction: float = INNER_FRACTION
) -> tuple[Tensor, Tensor]:
    """f(r) = 6s⁵ − 15s⁴ + 10s³ with s = (r_c − r)/(r_c − x r_c) held within 0 and 1, and df/dr.

    It is 1 up to x r_c, x = ``inner_fraction``, and 0 from r_c on, with continuous second derivatives.
    """
    width = (1.0 - inner_fraction) * cutoff
    s = ((cutoff - r) / width).clamp(0.0, 1.0)
    rest = 1.0 - s
    return s * s * s * (10.0 + s * (6.0 * s - 15.0)), (s * s * rest * rest) * (-30.0 / width)


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


class RadialTable:
    """φ and ρ of every pair as piecewise cubics on a uniform grid from 0 to the cutoff, for single precision.

    Value and slope are exact at the grid points (Hermite interpolation), and the derivative returned is that of the
    interpolated value, so that forces are conservative. With 4096 intervals the interpolation error of the derivative
    is of the order (h/Å)³ (α Å)³ ~ 1e-8, h = r_c/4096, below the rounding of single precision.

    Parameters
    ----------
    parameters : the pair parameters.
    cutoff : Å.
    dtype : precision of the coefficients; they are computed in double precision.
    """

    def __init__(self, parameters: PairParameters, cutoff: float, dtype: torch.dtype) -> None:
        n_pairs, step = len(parameters.D), cutoff / TABLE_INTERVALS
        double = PairParameters(*(p.detach().double() for p in parameters))
        grid = torch.arange(TABLE_INTERVALS + 1, dtype=torch.float64, device=double.D.device) * step
        pair = torch.arange(n_pairs, device=grid.device).repeat_interleave(len(grid))
        phi, dphi, rho, drho = (
            values.reshape(n_pairs, -1) for values in radial_functions(grid.repeat(n_pairs), pair, double, cutoff)
        )
        self.scale = 1.0 / step
        self.phi = _cubics(phi, dphi * step, dtype)
        self.rho = _cubics(rho, drho * step, dtype)

    def locate(self, r: Tensor, pair: Tensor) -> tuple[Tensor, Tensor]:
        """Row of the table, (n,) int32, and place within its interval, (n,), of each distance."""
        place = r * self.scale
        interval = place.to(torch.int32).clamp_(max=TABLE_INTERVALS)
        return interval + pair * (TABLE_INTERVALS + 1), place - interval

    def look_up(self, coefficients: tuple[Tensor, ...], row: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Value and derivative with respect to r, each (n,), of the function with these coefficients."""
        c0, c1, c2, c3 = (c.index_select(0, row) for c in coefficients)
        upper = torch.addcmul(c2, c3, u)
        slope = torch.addcmul(c1, torch.addcmul(upper + c2, c3, u, value=2.0), u)
        return torch.addcmul(c0, torch.addcmul(c1, upper, u), u), slope.mul_(self.scale)


def _cubics(values: Tensor, slopes: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Coefficients of the Hermite cubics of every pair, one pair after another, each pair ended by a row of zeros."""
    difference = values[:, 1:] - values[:, :-1]
    left, right = slopes[:, :-1], slopes[:, 1:]
    rows = (values[:, :-1], left, 3.0 * difference - 2.0 * left - right, left + right - 2.0 * difference)
    return tuple(torch.nn.functional.pad(c, (0, 1)).reshape(-1).to(dtype) for c in rows)

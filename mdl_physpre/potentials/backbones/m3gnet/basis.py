"""What M3GNet sees of a structure: radial functions of each edge, and three-body sums over pairs of edges."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import spherical_jn
from torch import Tensor

from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.envelopes import smoothstep

MAX_DEGREE = 4
"""Spherical harmonics of degree 0 to 3 are known, so ``max_l`` and ``max_n`` go up to four."""


def spherical_bessel_roots(order: int, count: int) -> np.ndarray:
    """The first positive roots of the spherical Bessel function j_order, (count,)."""
    roots = np.pi * np.arange(1, count + order + 1)
    for lower in range(1, order + 1):  # a root of j_l lies between each two neighbouring roots of j_(l−1)
        roots = np.array([brentq(lambda x, n=lower: spherical_jn(n, x), a, b) for a, b in zip(roots, roots[1:])])
    return roots


def smooth_bessel(r: np.ndarray, count: int, cutoff: float) -> np.ndarray:
    """The ``count`` orthogonal radial functions of Kocer et al., AIP Advances 10, 015021 (2020); (…, count), Å^(−3/2).

    With x = π r / r_c:

        f_n = (−1)ⁿ √2 π r_c^(−3/2) (n+1)(n+2) / √((n+1)² + (n+2)²) · [sinc((n+1)x) + sinc((n+2)x)],
        e_n = n²(n+2)² / (4(n+1)⁴ + 1),   d_0 = 1,   d_n = 1 − e_n / d_(n−1),
        g_0 = f_0,   g_n = (f_n + √(e_n / d_(n−1)) g_(n−1)) / √d_n.

    Value, first and second derivative vanish at the cutoff.
    """
    factor, e, d = _recurrence(count, cutoff)
    functions: list[np.ndarray] = []
    for n in range(count):
        f = factor[n] * (np.sinc((n + 1) * r / cutoff) + np.sinc((n + 2) * r / cutoff))
        if n:
            f = (f + math.sqrt(e[n] / d[n - 1]) * functions[-1]) / math.sqrt(d[n])
        functions.append(f)
    return np.stack(functions, axis=-1)


def _recurrence(count: int, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The factor of f_n, e_n and d_n of :func:`smooth_bessel`, each (count,)."""
    n = np.arange(count)
    e, d = n**2 * (n + 2) ** 2 / (4 * (n + 1) ** 4 + 1), np.ones(count)
    for k in range(1, count):
        d[k] = 1.0 - e[k] / d[k - 1]
    return (-1.0) ** n * math.sqrt(2) * math.pi * cutoff**-1.5 * (n + 1) * (n + 2) / np.hypot(n + 1, n + 2), e, d


def smooth_bessel_constants(count: int, cutoff: float) -> dict[str, Tensor]:
    """e_n, d_n, factors and wave numbers of :func:`smooth_bessel`, as MatterSim stores them, in single precision."""
    n, (factor, e, d) = np.arange(count), _recurrence(count, cutoff)
    constants = {
        "dn": d,
        "en": e[None],
        "fnr_weights": factor[None],
        "n_1_pi_cutoff": (n[None] + 1) * math.pi / cutoff,
        "n_2_pi_cutoff": (n[None] + 2) * math.pi / cutoff,
        "r_max": np.array(cutoff),
    }
    return {name: torch.from_numpy(np.asarray(value)).float() for name, value in constants.items()}


def spherical_bessel(r: np.ndarray, max_n: int, max_l: int, cutoff: float) -> np.ndarray:
    """The radial functions of the three-body terms, (…, max_n · max_l), Å^(−3/2).

    R_lk(r) = √(2/r_c³) j_l(z_lk r/r_c) / |j_(l+1)(z_lk)| · √((2l'+1)/4π), z_lk the kth root of j_l.

    Function p has Bessel order l = p div max_l and root k = p mod max_l, and stands with the Legendre polynomial of
    degree l' = p div max_n; this is MatterSim's order, in which l' = l where max_n = max_l.
    """
    columns = []
    for p in range(max_n * max_l):
        order, root, degree = p // max_l, spherical_bessel_roots(p // max_l, max_l)[p % max_l], p // max_n
        size = math.sqrt(2 / cutoff**3 * (2 * degree + 1) / (4 * math.pi)) / abs(spherical_jn(order + 1, root))
        columns.append(size * spherical_jn(order, root * r / cutoff))
    return np.stack(columns, axis=-1)


class RadialSeries:
    """Functions of the distance, on 0 to ``cutoff``, as Chebyshev series.

    f_c(r) = Σ_k a_kc T_k(2r/r_c − 1). The functions here are entire, so the series converges to rounding within some
    thirty terms; unlike quotients of sines and powers it loses no digits at short distances, and all functions together
    are one matrix product.

    Parameters
    ----------
    functions : (n,) distances to (n, columns) values, double precision.
    cutoff : Å.
    tolerance : coefficients below this part of the largest are left out.
    """

    def __init__(self, functions: Callable[[np.ndarray], np.ndarray], cutoff: float, tolerance: float) -> None:
        points = 96
        angles = (np.arange(points) + 0.5) * np.pi / points
        values = functions(0.5 * cutoff * (np.cos(angles) + 1.0))
        modes = np.cos(np.outer(np.arange(points), angles)) * 2.0 / points
        modes[0] *= 0.5
        coefficients = modes @ values
        used = np.abs(coefficients).max(axis=1) > tolerance * np.abs(coefficients).max()
        self.coefficients = torch.from_numpy(coefficients[: max(2, int(np.flatnonzero(used)[-1]) + 1)].copy())
        self.scale = 2.0 / cutoff
        self.prepared = self.coefficients

    def prepare(self, like: Tensor) -> None:
        """Have the coefficients in the precision and on the device of ``like``."""
        self.prepared = self.coefficients.to(like)

    def __call__(self, r: Tensor) -> Tensor:
        """Values (n, columns) at the distances (n,); beyond the cutoff those at the cutoff."""
        if self.prepared.dtype != r.dtype or self.prepared.device != r.device:
            self.prepare(r)
        return chebyshev_polynomials((self.scale * r - 1.0).clamp(max=1.0), len(self.prepared)) @ self.prepared


def chebyshev_polynomials(t: Tensor, count: int) -> Tensor:
    """T_0 … T_(count−1) of each number in (n,); (n, count). By T_(a+b) = 2 T_a T_b − T_(a−b), twice as many a step."""
    t = t[:, None]
    found = torch.cat([torch.ones_like(t), t], dim=1)
    while (known := found.shape[1]) < count:
        more = min(known - 1, count - known)
        top = found[:, known - 1 :]
        lower = found[:, known - 1 - more : known - 1].flip(1)
        found = torch.cat([found, 2.0 * top * found[:, 1 : more + 1] - lower], dim=1)
    return found[:, :count]


def harmonics(max_degree: int) -> Tensor:
    """Real spherical harmonics C_lm, l < max_degree, as polynomials: coefficients (1 + 3 + …, max_degree²).

    Rows are those of the columns that :func:`monomials` gives. Normalised so that Σ_m C_lm(u) C_lm(v) = P_l(u·v), the
    Legendre polynomial, for unit vectors u and v.
    """
    a, b, c, d = math.sqrt(5 / 8), math.sqrt(3 / 8), math.sqrt(15), math.sqrt(3)
    polynomials: list[dict[str, float]] = [{"": 1.0}, {"x": 1.0}, {"y": 1.0}, {"z": 1.0}]
    polynomials += [{"xy": d}, {"yz": d}, {"zz": 1.5, "": -0.5}, {"xz": d}, {"xx": 0.5 * d, "yy": -0.5 * d}]
    polynomials += [{"xxy": 3.0 * a, "yyy": -a}, {"xyz": c}, {"yzz": 5.0 * b, "y": -b}, {"zzz": 2.5, "z": -1.5}]
    polynomials += [{"xzz": 5.0 * b, "x": -b}, {"xxz": 0.5 * c, "yyz": -0.5 * c}, {"xxx": a, "xyy": -3.0 * a}]
    rows = ["".join(axes) for degree in range(max_degree) for axes in itertools.product("xyz", repeat=degree)]
    used = polynomials[: max_degree**2]
    return torch.tensor([[p.get(row, 0.0) for p in used] for row in rows], dtype=torch.float64)


def monomials(vectors: Tensor, max_degree: int) -> Tensor:
    """1, the components of vectors (n, 3), their products of two and so on, below ``max_degree``; (n, 1 + 3 + …)."""
    found = [torch.ones_like(vectors[:, :1]), vectors]
    while len(found) < max_degree:
        found.append((found[-1][:, :, None] * vectors[:, None, :]).flatten(1))
    return torch.cat(found[:max_degree], dim=1)


class Features(NamedTuple):
    """What the network takes from the geometry.

    radial : (n_edges, max_n), the smooth Bessel functions of every edge; zero at and beyond the cutoff.
    three_body : (n, max_n · max_l), the three-body sums of every edge, or of those within the three-body cutoff.
    centre : (n,), the atoms where these edges begin.
    """

    radial: Tensor
    three_body: Tensor
    centre: Tensor


class Basis:
    """The features of M3GNet for given sizes.

    Raises ConfigError for sizes that the basis does not have.
    """

    def __init__(self, max_n: int, max_l: int, cutoff: float, threebody_cutoff: float) -> None:
        if not (1 <= max_n <= MAX_DEGREE and 1 <= max_l <= MAX_DEGREE):
            raise ConfigError(f"M3GNet: max_n is {max_n} and max_l is {max_l}; both can be 1 to {MAX_DEGREE}")
        if not 0.0 < threebody_cutoff <= cutoff:
            raise ConfigError(
                f"M3GNet: threebody_cutoff is {threebody_cutoff} Å, expected above 0 and at most the cutoff, {cutoff} Å"
            )
        self.max_n, self.max_l = max_n, max_l
        self.cutoff, self.threebody_cutoff = cutoff, threebody_cutoff
        self.series = {
            dtype: RadialSeries(
                lambda r: np.concatenate(
                    [smooth_bessel(r, max_n, cutoff), spherical_bessel(r, max_n, max_l, cutoff)], axis=-1
                ),
                cutoff,
                tolerance,
            )
            for dtype, tolerance in ((torch.float32, 1e-8), (torch.float64, 1e-15))
        }
        degrees = [p // max_n for p in range(max_n * max_l)]
        self.function = torch.tensor([p for p, degree in enumerate(degrees) for _ in range(2 * degree + 1)])
        harmonic = torch.tensor([degree**2 + m for degree in degrees for m in range(2 * degree + 1)])
        self.harmonics = self.exact_harmonics = harmonics(max_l)[:, harmonic]
        self.group = torch.nn.functional.one_hot(self.function)

    def prepare(self, like: Tensor) -> None:
        """Have the constants in the precision and on the device of ``like``; nothing is left to do in an evaluation."""
        self.series[like.dtype].prepare(like)
        self.function = self.function.to(like.device)
        self.harmonics, self.group = self.exact_harmonics.to(like), self.group.to(like)

    def features(
        self, vectors: Tensor, distances: Tensor, centre: Tensor, n_atoms: int, near: Tensor | None = None
    ) -> Features:
        """Features of edges with these vectors (n_edges, 3), differentiable.

        The three-body sum of an edge ij runs over the other edges ik of the same centre:

            c_ij,lk = f(r_ij) Σ_k' f(r_ik') R_lk(r_ik') P_l(cos θ_jik'),   f the cutoff polynomial.

        By the addition theorem P_l(cos θ) = Σ_m C_lm(r̂_ij) C_lm(r̂_ik), it is

            c_ij = f(r_ij) [Σ_m C_lm(r̂_ij) A_i,lkm − f(r_ij) R_lk(r_ij)],   A_i,lkm = Σ_k' f R_lk C_lm(r̂_ik'),

        whose cost grows with the number of edges, not of triplets, and which needs no list of triplets. ``near`` may
        name the edges within the three-body cutoff, ascending: the others, whose sums are zero, are then left out.
        """
        radial, long = self.series[distances.dtype](distances).split([self.max_n, self.max_n * self.max_l], dim=1)
        radial = radial * (distances < self.cutoff)[:, None]
        if near is not None:
            long, vectors, distances, centre = (t.index_select(0, near) for t in (long, vectors, distances, centre))
        if self.group.dtype != long.dtype or self.group.device != long.device:
            self.prepare(long)
        directions = monomials(vectors / distances[:, None], self.max_l) @ self.harmonics
        envelope = smoothstep(distances, 0.0, self.threebody_cutoff)[:, None]
        bessel = envelope * long
        moments = bessel.index_select(1, self.function) * directions
        sums = moments.new_zeros(n_atoms, moments.shape[1]).index_add(0, centre, moments)
        others = (directions * sums.index_select(0, centre)) @ self.group - bessel
        return Features(radial, envelope * others, centre)

"""An embedded-atom potential with angular densities, linear in what is fitted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.base import Backbone, edge_vectors
from mdl_physpre.potentials.eam.potential import element_numbers
from mdl_physpre.potentials.zbl import ZBL
from mdl_physpre.structures.graph import AtomGraph

LEVEL = 0.3  # Å below the shortest distances over which radial functions level off
MOST_L = 3


class AngularEAM(Backbone):
    r"""Embedded-atom potential whose densities have angles, and whose energy is linear in the coefficients.

    E_i = E0(z_i) + Σ_c a_c p_ic + Σ_l Σ_{c≤c'} b_{lcc'} Σ_m ρ_iclm ρ_ic'lm + Σ_c g_c ρ_ic00³ + ½ Σ_j f V(r_ij)
    ρ_i(zn)lm = Σ_{j of z} R_n(r_ij) Y_lm(r̂_ij),   p_i(zn) = Σ_{j of z} R_n(r_ij),   l = 0 … l_max

    The coefficients a, b, g belong to the element of atom i. Y_lm are real spherical harmonics with Σ_m Y_lm² = 1, so
    that Σ_m ρ_clm ρ_c'lm = Σ_jk R_n(r_ij) R_n'(r_ik) P_l(cos θ_jik): pairs and angles of three atoms. R_n are Chebyshev
    polynomials T_n(2 r/r_c − 1) of the distance times cos⁴(π r/2 r_c), so that far neighbours weigh little. Closer than
    the radius r₁ of the pair they level off, r → r₁ − w tanh((r₁ − r)/w) with w = 0.3 Å, and the repulsion of the
    nuclei f V rules. Squares of densities are the embedding of :class:`~mdl_physpre.potentials.eam.potential.
    EAMInteraction`; densities with l = 1, 2, 3 those of the modified embedded-atom method.

    :func:`~mdl_physpre.eam_fit.fit_angular_eam` fits it by linear least squares.

    Parameters
    ----------
    elements : symbols or atomic numbers, each once.
    cutoff : Å.
    n_pair, n_radial : radial functions of the pair terms p and of the densities ρ.
    l_max : highest l of the densities, 0 to 3.
    radii : r₁ of each pair of elements, Å, by names such as ``Si-O``; where the repulsion of the nuclei has vanished.
        The sum of the covalent radii for pairs that are not named.

    Raises
    ------
    ConfigError : an unknown or repeated element, counts or a cutoff that make no sense, radii of pairs that are not
        there or beyond the cutoff.

    Sources: M. I. Baskes, Phys. Rev. B 46, 2727 (1992), for angular densities; R. Drautz, Phys. Rev. B 99, 014104
    (2019), for the linear form, of which this is the part with at most two neighbours and the third power of densities.
    """

    arguments = ("cutoff", "n_pair", "n_radial", "l_max")
    element_of: Tensor  # (119,) place of an atomic number in elements
    of_l: Tensor  # ((l_max + 1)²,) l of a spherical harmonic
    first: Tensor  # (n_pairs,) the two densities of each product
    second: Tensor
    elements: tuple[int, ...]

    def __init__(
        self,
        elements: Sequence[str | int],
        cutoff: float = 5.0,
        n_pair: int = 10,
        n_radial: int = 5,
        l_max: int = 3,
        radii: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        if not cutoff > 0 or n_radial < 2 or n_pair < n_radial or not 0 <= l_max <= MOST_L:
            raise ConfigError(
                f"angular_eam: cutoff {cutoff} Å, n_pair {n_pair}, n_radial {n_radial}, l_max {l_max}; expected a "
                f"positive cutoff, 2 ≤ n_radial ≤ n_pair, and l_max from 0 to {MOST_L}"
            )
        self.elements = element_numbers(elements)
        self.cutoff, self.n_pair, self.n_radial, self.l_max = float(cutoff), int(n_pair), int(n_radial), int(l_max)
        self.repulsion = ZBL(self.elements, radii)
        if self.repulsion.cutoff > self.cutoff:
            raise ConfigError(
                f"angular_eam: the repulsion of the nuclei reaches to {self.repulsion.cutoff:g} Å, beyond the cutoff "
                f"of {self.cutoff:g} Å; give a larger cutoff, or smaller radii"
            )
        element_of = torch.full((len(chemical_symbols),), -1, dtype=torch.int64)
        element_of[list(self.elements)] = torch.arange(len(self.elements))
        self.register_buffer("element_of", element_of, persistent=False)
        self.register_buffer("of_l", torch.tensor([k for k in range(l_max + 1) for _ in range(2 * k + 1)]), False)
        first, second = torch.triu_indices(self.n_channels, self.n_channels)
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("second", second, persistent=False)
        self.coefficients = nn.Parameter(torch.zeros(len(self.elements), self.n_features, dtype=torch.float64))

    @property
    def n_channels(self) -> int:
        """Densities of an atom with one l: elements of neighbours times radial functions."""
        return len(self.elements) * self.n_radial

    @property
    def n_features(self) -> int:
        """Features, and coefficients, of an atom."""
        c = self.n_channels
        return len(self.elements) * self.n_pair + (self.l_max + 1) * c * (c + 1) // 2 + c

    def hyperparameters(self) -> dict[str, Any]:
        """Arguments that build the same form again."""
        return super().hyperparameters() | {"radii": self.repulsion.radii}

    def undecayed(self) -> list[nn.Parameter]:
        """All: they are energies."""
        return [self.coefficients]

    def radial(self, r: Tensor, inner: Tensor) -> Tensor:
        """R_n of distances (E,) of pairs that level off at ``inner`` (E,), (E, n_pair)."""
        level = inner - LEVEL * torch.tanh((inner - r) / LEVEL)
        x = 2.0 * torch.where(r < inner, level, r) / self.cutoff - 1.0
        values = [torch.ones_like(x), x]
        for _ in range(self.n_pair - 2):
            values.append(2.0 * x * values[-1] - values[-2])
        return torch.stack(values, -1) * envelope(r, self.cutoff)[..., None]

    def edge_terms(self, vectors: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
        """What a neighbour adds to p and ρ: R_n (E, n_pair), and R_n Y_lm (E, n_radial, (l_max + 1)²)."""
        r = torch.linalg.vector_norm(vectors, dim=-1)
        radial = self.radial(r, inner)
        angular = spherical_harmonics(vectors / r[..., None], self.l_max)
        return radial, radial[..., : self.n_radial, None] * angular[..., None, :]

    def inner_radii(self, graph: AtomGraph) -> Tensor:
        """Where the radial functions of each edge level off, (E,), Å."""
        of_i, of_j = (graph.z.index_select(0, end) for end in graph.edge_index)
        return self.repulsion.radius.to(graph.pos.dtype)[of_i, of_j]

    def densities(self, graph: AtomGraph, pair: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
        """p (N, elements · n_pair) and ρ (N, channels, (l_max + 1)²), of the terms of the edges."""
        i, j = graph.edge_index
        n, kinds = len(graph.z), len(self.elements)
        place = i * kinds + self.element_of.index_select(0, graph.z.index_select(0, j))
        p = pair.new_zeros(n * kinds, self.n_pair).index_add(0, place, pair)
        rho = density.new_zeros(n * kinds, *density.shape[1:]).index_add(0, place, density)
        return p.view(n, -1), rho.view(n, self.n_channels, -1)

    def features(self, p: Tensor, rho: Tensor) -> Tensor:
        """What the coefficients of an atom multiply, (N, features)."""
        products = rho.index_select(1, self.first) * rho.index_select(1, self.second)
        sums = products.new_zeros(*products.shape[:2], self.l_max + 1).index_add(2, self.of_l, products)
        return torch.cat((p, sums.flatten(1), rho[..., 0] ** 3), dim=1)

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        """Energy of each atom, (N,), eV; differentiable to any order."""
        terms = self.edge_terms(edge_vectors(graph), self.inner_radii(graph))
        features = self.features(*self.densities(graph, *terms))
        of_atom = self.coefficients.to(features.dtype).index_select(0, self.element_of.index_select(0, graph.z))
        return self.reference(graph.z) + (features * of_atom).sum(1) + self.repulsion.atomic_energies(graph)


def envelope(r: Tensor, cutoff: float) -> Tensor:
    """((1 + cos(π r/r_c))/2)² up to the cutoff, 0 beyond."""
    return torch.cos(0.5 * math.pi * (r / cutoff).clamp(max=1.0)) ** 4


def spherical_harmonics(u: Tensor, l_max: int) -> Tensor:
    """Real spherical harmonics of unit vectors (…, 3) up to l_max ≤ 3, (…, (l_max + 1)²), with Σ_m Y_lm² = 1."""
    x, y, z = u.unbind(-1)
    found = [[torch.ones_like(x)], [x, y, z]]
    s3 = math.sqrt(3.0)
    found.append([s3 * x * y, s3 * y * z, 0.5 * (3 * z * z - 1), s3 * x * z, 0.5 * s3 * (x * x - y * y)])
    s, t, w = math.sqrt(5 / 8), math.sqrt(3 / 8), math.sqrt(15.0)
    found.append([
        s * y * (3 * x * x - y * y), w * x * y * z, t * y * (5 * z * z - 1), 0.5 * z * (5 * z * z - 3),
        t * x * (5 * z * z - 1), 0.5 * w * z * (x * x - y * y), s * x * (x * x - 3 * y * y),
    ])  # fmt: skip
    return torch.stack([one for of_l in found[: l_max + 1] for one in of_l], dim=-1)

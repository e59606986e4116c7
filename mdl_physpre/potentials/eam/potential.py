"""The embedded-atom potential with Morse pair terms: the teacher that rises where atoms come close."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.backbones.arguments import atomic_number
from mdl_physpre.potentials.base import Backbone, edge_vectors, worth_cutting
from mdl_physpre.potentials.eam import operators
from mdl_physpre.potentials.eam.covalent_radii import covalent_radius
from mdl_physpre.potentials.eam.radial import PairParameters, RadialTable, radial_functions
from mdl_physpre.potentials.energy_reference import N_ELEMENTS
from mdl_physpre.potentials.envelopes import cutoff_function
from mdl_physpre.potentials.kernels.edge_op import predicting
from mdl_physpre.potentials.kernels.parameter_state import ParameterState
from mdl_physpre.potentials.zbl import nuclear_repulsion, short_range_repulsion
from mdl_physpre.structures.graph import AtomGraph

INITS = ("spread", "reference")
SPREAD_BETA = (0.5, 3.0)  # 1/Å, the slowest and the fastest exponential at the start
SPREAD_DENSITY = 0.2  # what a neighbour at the covalent distance gives at the start
SPREAD_ALPHA = (1.0, 3.5)  # 1/Å, limits of the steepness at the start


class EAMInteraction(Backbone):
    r"""Embedded-atom potential.

    E   = Σ_i E0(z_i) + Σ_i F_{z_i}(ρ_i) + ½ Σ_{i,j} φ_{z_i z_j}(r_ij)
    F   = B (ρ − ρ0)²
    ρ_i = Σ_j f(r_ij) Σ_k A_k exp(−β_k r_ij)
    φ   = f(r) [D (1 − e^{−α(r − r_e)})² − D]

    Sums over j run over all neighbours within the cutoff r_c, periodic images included. A, β, D, α, r_e belong to an
    unordered pair of elements, B, ρ0, E0 to an element. f is the quintic smoothstep from 1 at 0.66 r_c to 0 at r_c.

    Parameters, with their shapes: ``A``, ``beta`` (n_pairs, n_basis), 1 and 1/Å; ``D`` eV, ``alpha`` 1/Å, ``r_e`` Å,
    (n_pairs,); ``B`` eV, ``rho0`` 1, ``E0`` eV, (n_elements,). Pairs are ordered as in the reference implementation:
    all pairs of different elements, in the order of ``elements``, then the like pairs (Si, O: Si-O, Si-Si, O-O).

    Parameters
    ----------
    elements : symbols or atomic numbers, each once; their order fixes the order of the parameters.
    cutoff : r_c, Å.
    n_basis : number of exponentials in the density.
    init : ``spread`` starts with β_k spread geometrically from 0.5 to 3 /Å, A_k such that each exponential is
        0.2/n_basis at the covalent distance, D = B = ρ0 = 1, E0 = 0 (:func:`mdl_physpre.fit_eam` then fits E0 to the
        total energies), and α, within 1 and 3.5 /Å, such that the Morse energy at a third of the covalent distance is
        the screened repulsion of the nuclei. ``reference`` is the start of the paper's code: everything 1. There all
        exponentials of a pair have equal gradients, and stay one exponential. In both, r_e starts at the sum of the
        covalent radii.
    signed_embedding : let B have either sign, as in the paper's code; otherwise B = \|b\| of the stored parameter b, so
        that crowding an atom beyond ρ0 always costs energy.
    short_range : ``zbl`` adds the screened repulsion of the nuclei to φ, switched off below the covalent distance
        (:class:`~mdl_physpre.potentials.zbl.ZBL`): the Morse wall is finite, this one is not.
    short_range_radii : where the repulsion of a pair has vanished, Å, by names such as ``Si-O``;
        :func:`mdl_physpre.fit_eam` gives the shortest distances in the training data.

    Raises
    ------
    ConfigError : an unknown or repeated element, cutoff or n_basis not positive, an unknown ``init`` or
        ``short_range``, radii of pairs that are not there, or beyond the cutoff.

    Source: the paper's equations for the EAM teacher; the differences are listed in ``docs/method.md``.
    """

    concurrent = True
    element_of: Tensor  # (119,) place of an atomic number in elements, -1 where it is not among them
    pair_of: Tensor  # (n_elements²,) number of the pair of two elements
    elements: tuple[int, ...]

    def __init__(
        self,
        elements: Sequence[str | int],
        cutoff: float = 8.0,
        n_basis: int = 10,
        init: str = "spread",
        signed_embedding: bool = False,
        short_range: str | None = None,
        short_range_radii: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        del self.reference  # its energies of the elements are E0
        if init not in INITS:
            raise ConfigError(f"init is {init!r}; expected one of {', '.join(INITS)}")
        if not cutoff > 0 or n_basis < 1:
            raise ConfigError(f"cutoff is {cutoff} Å and n_basis {n_basis}; both must be positive")
        self.elements = element_numbers(elements)
        self.cutoff = float(cutoff)
        self.n_basis = int(n_basis)
        self.init = init
        self.signed_embedding = bool(signed_embedding)
        self.repulsion = short_range_repulsion(short_range, short_range_radii, self.elements)
        if self.repulsion is not None and self.repulsion.cutoff > self.cutoff:
            raise ConfigError(
                f"the short-range repulsion reaches to {self.repulsion.cutoff:g} Å, beyond the cutoff of "
                f"{self.cutoff:g} Å; give a larger cutoff, or smaller short_range_radii"
            )
        self.pairs = pair_order(self.elements)
        n_pairs, n_elements = len(self.pairs), len(self.elements)

        element_of = torch.full((len(chemical_symbols),), -1, dtype=torch.int64)
        pair_of = torch.zeros((n_elements, n_elements), dtype=torch.int32)
        position = {z: k for k, z in enumerate(self.elements)}
        for p, (zi, zj) in enumerate(self.pairs):
            pair_of[position[zi], position[zj]] = pair_of[position[zj], position[zi]] = p
        for z, k in position.items():
            element_of[z] = k
        self.register_buffer("element_of", element_of, persistent=False)
        self.register_buffer("pair_of", pair_of.reshape(-1), persistent=False)

        def ones(*shape: int) -> Tensor:
            return torch.ones(shape, dtype=torch.float64)

        spread = init == "spread"
        radii = [covalent_radius(zi) + covalent_radius(zj) for zi, zj in self.pairs]
        self.r_e = nn.Parameter(torch.tensor(radii, dtype=torch.float64))
        beta = ones(n_pairs, n_basis)
        if spread:
            beta = beta * torch.from_numpy(np.geomspace(*SPREAD_BETA, n_basis))
        amplitude = SPREAD_DENSITY / n_basis * torch.exp(beta * self.r_e.detach()[:, None])
        self.A = nn.Parameter(amplitude if spread else ones(n_pairs, n_basis))
        self.beta = nn.Parameter(beta)
        self.D = nn.Parameter(ones(n_pairs))
        alpha = torch.tensor([_steepness(*pair) for pair in self.pairs], dtype=torch.float64)
        self.alpha = nn.Parameter(alpha if spread else ones(n_pairs))
        self.b = nn.Parameter(ones(n_elements))
        self.rho0 = nn.Parameter(ones(n_elements))
        self.E0 = nn.Parameter(ones(n_elements) * (0.0 if spread else 1.0))
        self._table: tuple[torch.dtype, ParameterState, RadialTable] | None = None

    @property
    def B(self) -> Tensor:
        """Curvature of the embedding energy, (n_elements,), eV."""
        return self.b if self.signed_embedding else self.b.abs()

    def reference_energies(self) -> Tensor:
        """E0, (119,), eV by atomic number, float64 on the CPU."""
        energies = torch.zeros(N_ELEMENTS, dtype=torch.float64)
        energies[list(self.elements)] = self.E0.detach().to("cpu", torch.float64)
        return energies

    def shift_reference(self, energies: Tensor) -> None:
        """Add ``energies`` (119,), eV by atomic number, to E0."""
        with torch.no_grad():
            self.E0.add_(energies.to(self.E0)[list(self.elements)])

    def undecayed(self) -> list[nn.Parameter]:
        """All parameters: lengths and energies have no reason to be small."""
        return list(self.parameters())

    def hyperparameters(self) -> dict[str, Any]:
        """Arguments that build the same architecture again."""
        return {
            "elements": [chemical_symbols[z] for z in self.elements],
            "cutoff": self.cutoff,
            "n_basis": self.n_basis,
            "init": self.init,
            "signed_embedding": self.signed_embedding,
            **({"short_range": "zbl", "short_range_radii": self.repulsion.radii} if self.repulsion is not None else {}),
        }

    def pair_names(self) -> list[str]:
        """Names of the pairs in the order of the parameters, as ``Si-O``."""
        return [f"{chemical_symbols[zi]}-{chemical_symbols[zj]}" for zi, zj in self.pairs]

    def pair_parameters(self, dtype: torch.dtype) -> PairParameters:
        """The parameters that belong to pairs, in the precision asked for."""
        return PairParameters(*(p.to(dtype) for p in (self.A, self.beta, self.D, self.alpha, self.r_e)))

    def repulsion_functions(self, pair: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """Energy and slope of the short-range repulsion, eV and eV/Å, of pairs by number and distances; 0 without."""
        if self.repulsion is None:
            return torch.zeros_like(r), torch.zeros_like(r)
        first, second = torch.tensor(self.pairs, device=r.device)[pair.long()].unbind(-1)
        return self.repulsion.pair_energy(first, second, r)

    def pair_functions(self, pair: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """φ, dφ/dr, ρ, dρ/dr of pairs by number and distances (n,), with short-range repulsion, as precise as ``r``."""
        phi, dphi, rho, drho = radial_functions(r, pair, self.pair_parameters(r.dtype), self.cutoff)
        repulsion, its_slope = self.repulsion_functions(pair, r)
        return phi + repulsion, dphi + its_slope, rho, drho

    def element_parameters(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """B and ρ0, (n_elements,)."""
        return self.B.to(dtype), self.rho0.to(dtype)

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        """E0 + F(ρ_i) + ½ Σ_j φ(r_ij) of each atom, (n_atoms,), eV; differentiable to any order.

        For predictions in C the radial functions come from a table, which is made anew when a parameter changes.
        """
        element, dtype = self.element_of.index_select(0, graph.z), graph.pos.dtype
        if predicting() and operators.available_for(graph):
            phi, rho = operators.sums_of(graph, element, self.pair_of, self._radial_table(dtype))
        else:
            phi, rho = self.pair_sums(element, edge_vectors(graph), *graph.edge_index)
        if self.repulsion is not None:  # exact also beside a table, which could not hold a divergence
            phi = phi + 2.0 * self.repulsion.atomic_energies(worth_cutting(graph, self.repulsion.cutoff))
        b, rho0 = (p.index_select(0, element) for p in self.element_parameters(dtype))
        return self.E0.double().index_select(0, element) + b * (rho - rho0) ** 2 + 0.5 * phi

    def pair_sums(self, element: Tensor, vectors: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_j φ(r_ij), without short-range repulsion, and Σ_j ρ(r_ij), (N,).

        Parameters are the places of the atoms' elements (N,), edge vectors (E, 3), and centres and neighbours (E,).
        """
        of_i, of_j = element.index_select(0, i), element.index_select(0, j)
        pair = self.pair_of.index_select(0, of_i * len(self.elements) + of_j)
        A, beta, D, alpha, r_e = (p.index_select(0, pair) for p in self.pair_parameters(vectors.dtype))
        r = torch.linalg.vector_norm(vectors, dim=1)
        f, _ = cutoff_function(r, self.cutoff)
        fall = torch.exp(alpha * (r_e - r))
        terms = torch.stack((D * fall * (fall - 2.0), (A * torch.exp(-beta * r[:, None])).sum(1)), dim=1)
        sums = terms.new_zeros(len(element), 2).index_add(0, i, f[:, None] * terms)
        return sums[:, 0], sums[:, 1]

    def _radial_table(self, dtype: torch.dtype) -> RadialTable:
        parameters = (self.A, self.beta, self.D, self.alpha, self.r_e)
        kept = self._table
        if kept is None or kept[0] != dtype or not kept[1].holds(parameters):
            kept = (dtype, ParameterState(parameters), RadialTable(PairParameters(*parameters), self.cutoff, dtype))
            self._table = kept
        return kept[2]


def pair_curve(potential: EAMInteraction, zi: str | int, zj: str | int, r: Any) -> Tensor:
    """Energy of two atoms alone in space less that of the two apart, φ(r) + Σ_{i,j} [F(ρ(r)) − F(0)], (n,), eV.

    Parameters
    ----------
    zi, zj : symbols or atomic numbers of the two atoms.
    r : distances, (n,), Å.

    Raises
    ------
    ConfigError : an element that the potential does not know.
    """
    numbers = atomic_number(zi), atomic_number(zj)
    for z in numbers:
        if z not in potential.elements:
            known = ", ".join(chemical_symbols[k] for k in potential.elements)
            raise ConfigError(f"the potential does not know {chemical_symbols[z]}; it knows {known}")
    phi, embedding = pair_parts(potential, *numbers, r)
    return phi + embedding


def pair_parts(potential: EAMInteraction, zi: int, zj: int, r: Any) -> tuple[Tensor, Tensor]:
    """The terms of :func:`pair_curve`: φ(r), and Σ_{i,j} [F(ρ(r)) − F(0)], each (n,), eV."""
    first, second = (int(potential.element_of[z]) for z in (zi, zj))
    distances = torch.atleast_1d(torch.as_tensor(r, dtype=torch.float64, device=potential.D.device))
    pair = potential.pair_of[first * len(potential.elements) + second].expand(len(distances))
    phi, _, rho, _ = potential.pair_functions(pair, distances)
    b, rho0 = (own[[first, second], None] for own in potential.element_parameters(torch.float64))
    return phi, (b * rho * (rho - 2.0 * rho0)).sum(0)


def _steepness(zi: int, zj: int) -> float:
    """α with which a Morse term of 1 eV reaches the nuclear repulsion at a third of the covalent distance, 1/Å."""
    r_c = covalent_radius(zi) + covalent_radius(zj)
    height = float(nuclear_repulsion(zi, zj, torch.tensor(r_c / 3)))
    return float(np.clip(np.log1p(np.sqrt(1.0 + height)) / (2 * r_c / 3), *SPREAD_ALPHA))


def pair_order(elements: Sequence[int]) -> list[tuple[int, int]]:
    """All pairs of different elements in the order given, then the like pairs."""
    return [*combinations(elements, 2), *((z, z) for z in elements)]


def element_numbers(elements: Sequence[str | int]) -> tuple[int, ...]:
    """Atomic numbers of elements given as symbols or numbers. Raises ConfigError for unknown or repeated ones."""
    numbers = tuple(atomic_number(e) for e in elements)
    if not numbers or len(set(numbers)) != len(numbers):
        raise ConfigError(f"elements is {list(elements)}; expected at least one element, each once")
    return numbers

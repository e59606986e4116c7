"""M3GNet, the materials graph network with three-body terms, in the form that MatterSim gives it.

Parameter names and shapes are MatterSim's, so that a state dictionary passes from one to the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor, nn
from torch.nn import functional

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials.base import Potential, Predictions, edge_vectors, sum_by_structure, volumes
from mdl_physpre.potentials.m3gnet_basis import Basis, Features, smooth_bessel_constants
from mdl_physpre.potentials.m3gnet_derivatives import EnergiesAndSlopes, Pull, energies_and_slopes
from mdl_physpre.potentials.m3gnet_layers import AtomScaling, Block, Constants, Encoder, GatedMLP
from mdl_physpre.potentials.m3gnet_sweeps import Edges
from mdl_physpre.potentials.reference import EnergyReference
from mdl_physpre.structures.graph import AtomGraph


class M3GNet(Potential):
    """Materials graph network with three-body terms, Chen and Ong, Nat. Comput. Sci. 2, 718 (2022), in the variant of
    MatterSim, Yang et al., arXiv:2405.04967 (2024); the default sizes are those of MatterSim-v1.0.0-1M.

        v_i⁰  = W_z[z_i],    e_ij⁰ = silu(W_e g(r_ij))
        e_ij ← e_ij + G_3(σ(W_m v_i + b_m) ⊙ c_ij)
        e_ij ← e_ij + G_e([v_i, v_j, e_ij]) ⊙ W_d g(r_ij)
        v_i  ← v_i + Σ_j G_v([v_i, v_j, e_ij]) ⊙ silu(W_a g(r_ij))
        ε_i   = G_out(v_i)
        E     = Σ_i (scale_{z_i} ε_i + shift_{z_i})

    with ``num_blocks`` repetitions of the three middle lines; g are ``max_n`` smooth Bessel functions, c_ij the sums of
    spherical Bessel functions and Legendre polynomials over the other neighbours of i within ``threebody_cutoff``
    (:mod:`mdl_physpre.potentials.m3gnet_basis`), G gated perceptrons of ``units`` channels. A three-body term is
    weighted by its central atom, as in MatterSim (by the third atom in the paper of 2022), so that the sums c_ij depend
    on positions alone and are computed once. The energy is twice continuously differentiable at both cutoffs.

    Parameters
    ----------
    elements: atomic numbers or symbols that the potential knows; None accepts 1 to ``max_z``.
    num_blocks, units: number of blocks and of channels.
    max_l, max_n: numbers of angular and radial functions, at most 4 each.
    cutoff, threebody_cutoff: Å.
    max_z: largest atomic number.
    energy_scale: eV for each unit of the network's output, the same for every element at first.
    reference: energies of the elements (eV), the first value of ``shift``; zero if not given.

    Raises ConfigError for a value that is not supported, DataError for an atomic number outside 1 to ``max_z``.
    """

    concurrent = True

    def __init__(
        self,
        elements: Iterable[int | str] | None = None,
        num_blocks: int = 3,
        units: int = 128,
        max_l: int = 4,
        max_n: int = 4,
        cutoff: float = 5.0,
        threebody_cutoff: float = 4.0,
        max_z: int = 94,
        energy_scale: float = 1.0,
        reference: EnergyReference | None = None,
    ) -> None:
        super().__init__()
        sizes = {"num_blocks": num_blocks, "units": units, "cutoff": cutoff, "energy_scale": energy_scale}
        for name, value in sizes.items():
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"M3GNet: {name} is {value}, expected more than 0")
        if not 1 <= max_z < len(chemical_symbols):
            raise ConfigError(f"M3GNet: max_z is {max_z}, expected an atomic number, 1 to {len(chemical_symbols) - 1}")
        self.num_blocks, self.units, self.max_z = int(num_blocks), int(units), int(max_z)
        self.max_l, self.max_n = int(max_l), int(max_n)
        self.cutoff, self.threebody_cutoff = float(cutoff), float(threebody_cutoff)
        self.energy_scale = float(energy_scale)
        self.elements = _element_numbers(elements, self.max_z)
        self.basis = Basis(self.max_n, self.max_l, self.cutoff, self.threebody_cutoff)

        self.rbf = Constants(smooth_bessel_constants(self.max_n, self.cutoff))
        self.sbf = Constants({"factor": torch.tensor(2.0 / self.cutoff**3).sqrt()})
        self.edge_encoder = Encoder(self.max_n, self.units)
        self.graph_conv = nn.ModuleList(Block(self.units, self.max_n, self.max_l) for _ in range(self.num_blocks))
        self.final = GatedMLP([self.units, self.units, self.units, 1], linear_end=True)
        self.atom_embedding = Encoder(self.max_z + 1, self.units)
        nn.init.uniform_(self.atom_embedding.weight, -0.05, 0.05)
        self.normalizer = AtomScaling(self.max_z, self.energy_scale)
        if reference is not None:
            self.shift_reference(reference.energies)

    def hyperparameters(self) -> dict[str, Any]:
        """What ``M3GNet(**…)`` needs to be built again, as plain values; weights and energy reference not included."""
        names = (
            "num_blocks", "units", "max_l", "max_n", "cutoff", "threebody_cutoff", "max_z", "energy_scale",
        )  # fmt: skip
        elements = None if self.elements is None else list(self.elements)
        return {"elements": elements, **{name: getattr(self, name) for name in names}}

    def shift_reference(self, energies: Tensor) -> bool:
        """Add ``energies`` (119,), eV by atomic number, to the reference energies. Returns that it was done."""
        shift = self.normalizer.shift
        with torch.no_grad():
            shift.add_(energies[: len(shift)].to(shift))
        return True

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        """Energy of each atom (N,) in eV, differentiable in positions, cell and parameters."""
        self.check_atomic_numbers(graph.z)
        vectors, distances, index, near = self.within_cutoff(graph)
        features = self.basis.features(vectors, distances, index[0], near, len(graph.z))
        v, e = self.embed(graph.z), functional.silu(functional.linear(features.radial, self.edge_encoder.weight))
        for block in self.graph_conv:
            v, e = block(v, e, features, (index[0], index[1], near))
        return self.scaled(self.final(v)[:, 0], graph.z)

    def predictions(self, graph: AtomGraph, forces: bool, stress: bool) -> Predictions:
        """Energies, forces and stress with derivatives by hand, not differentiable."""
        with torch.no_grad():
            return self._by_hand(graph, forces, stress, training=False)

    def differentiable_predictions(self, graph: AtomGraph, forces: bool, stress: bool) -> Predictions:
        """As :meth:`predictions`, and one backward pass gives the gradient in the parameters (not in positions)."""
        return self._by_hand(graph, forces, stress, training=True)

    def _by_hand(self, graph: AtomGraph, forces: bool, stress: bool, training: bool) -> Predictions:
        """F_i = Σ_j (γ_ij − γ_ji) and σ = (1/V) Σ_ij r_ij γ_ijᵀ with γ = dE/dr_ij."""
        self.check_atomic_numbers(graph.z)
        with torch.no_grad():
            vectors, _, index, near = self.within_cutoff(graph)
        n_atoms, derivatives = len(graph.z), forces or stress
        with torch.set_grad_enabled(derivatives):
            vectors.requires_grad_(derivatives)
            features = self.basis.features(vectors, vectors.norm(dim=1), index[0], near, n_atoms)
        values = Features(*(f.detach().contiguous() for f in features))
        edges = Edges(index[0], index[1], near, n_atoms)
        scale = self.normalizer.scale.index_select(0, graph.z)
        h, parameters = self.embed(graph.z), self._packed_parameters()
        slopes: Sequence[Tensor] | None
        if training:
            energies, *slopes = EnergiesAndSlopes.apply(edges, values, scale, self.num_blocks, h, *parameters)
        else:
            energies, slopes = energies_and_slopes(edges, values, scale, self.num_blocks, h, parameters, derivatives)
        shift = self.normalizer.shift.index_select(0, graph.z)
        found = Predictions(sum_by_structure(energies + shift, graph))
        if slopes is None or not derivatives:
            return found
        pull = Pull.apply(vectors, features, *slopes)
        if forces:
            found.forces = torch.zeros_like(graph.pos).index_add(0, index[0], pull).index_add(0, index[1], -pull)
        if stress:
            outer = vectors.detach()[:, :, None] * pull[:, None, :]
            by_atom = pull.new_zeros(n_atoms, 3, 3).index_add(0, index[0], outer)
            virial = torch.zeros_like(graph.cell).index_add(0, graph.batch, by_atom)
            volume = volumes(graph)[:, None, None]
            # divided where there is a volume: backpropagation through a division by NaN would spoil the gradient
            known = torch.isfinite(volume)
            symmetric = 0.5 * (virial + virial.transpose(1, 2))
            found.stress = torch.where(known, symmetric / torch.where(known, volume, 1.0), torch.nan)
        return found

    def _packed_parameters(self) -> list[Tensor]:
        """Parameters as the sweeps take them (:mod:`mdl_physpre.potentials.m3gnet_sweeps`)."""
        blocks = [tensor for block in self.graph_conv for tensor in cast(Block, block).packed()]
        return [p.contiguous() for p in (self.edge_encoder.weight.T, *blocks, *self.final.packed())]

    def embed(self, z: Tensor) -> Tensor:
        """Vectors of the atoms (N, units) before the first block."""
        return functional.embedding(z, self.atom_embedding.weight.T)

    def scaled(self, outputs: Tensor, z: Tensor) -> Tensor:
        """Energies (N,) in eV from the network's outputs (N,)."""
        normalizer = self.normalizer
        return normalizer.scale.index_select(0, z) * outputs + normalizer.shift.index_select(0, z)

    def within_cutoff(self, graph: AtomGraph) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Vectors, distances and index of the edges that count, and which of them lie within the three-body cutoff.

        A list with a skin holds others.
        """
        vectors, index = edge_vectors(graph), graph.edge_index
        distances = vectors.norm(dim=1)
        inside = distances < self.cutoff
        if not bool(inside.all()):
            vectors, distances, index = vectors[inside], distances[inside], index[:, inside]
        return vectors, distances, index, torch.nonzero(distances < self.threebody_cutoff)[:, 0]

    def check_atomic_numbers(self, z: Tensor) -> None:
        """Raises DataError where the network has no vector for an atomic number."""
        bad = z[(z < 1) | (z > self.max_z)]
        if len(bad):
            number = int(bad[0])
            name = chemical_symbols[number] if 0 <= number < len(chemical_symbols) else "no element"
            raise DataError(f"this M3GNet knows atomic numbers 1 to {self.max_z}; found {number} ({name})")


def _element_numbers(elements: Iterable[int | str] | None, max_z: int) -> tuple[int, ...] | None:
    """Atomic numbers, ascending, of elements given by number or by symbol."""
    if elements is None:
        return None
    numbers = set()
    for element in elements:
        number = atomic_numbers.get(element) if isinstance(element, str) else int(element)
        if number is None or not 1 <= number <= max_z:
            raise ConfigError(
                f"M3GNet: elements contains {element!r}, expected symbols or numbers of H to {chemical_symbols[max_z]}"
            )
        numbers.add(number)
    if not numbers:
        raise ConfigError("M3GNet: elements is empty; name at least one, or give None to accept all")
    return tuple(sorted(numbers))

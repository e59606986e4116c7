"""M3GNet, the materials graph network with three-body terms, in the form that MatterSim gives it.

Parameter names and shapes are MatterSim's, so that a state dictionary passes from one to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn
from torch.nn import functional

from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.backbones.arguments import element_numbers, require_positive
from mdl_physpre.potentials.backbones.m3gnet import operators
from mdl_physpre.potentials.backbones.m3gnet.basis import Basis, smooth_bessel_constants
from mdl_physpre.potentials.backbones.m3gnet.layers import AtomScaling, Block, Constants, Edges, Encoder, GatedMLP
from mdl_physpre.potentials.base import Backbone, edge_vectors
from mdl_physpre.potentials.energy_reference import N_ELEMENTS, EnergyReference
from mdl_physpre.potentials.kernels.c_code import first_edges, is_sorted
from mdl_physpre.structures.graph import AtomGraph


class M3GNet(Backbone):
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
    (:mod:`.basis`), G gated perceptrons of ``units`` channels. A three-body term is
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

    Raises ConfigError for a value that is not supported.
    """

    concurrent = True
    arguments = (
        "num_blocks", "units", "max_l", "max_n", "cutoff", "threebody_cutoff", "max_z", "energy_scale",
    )  # fmt: skip

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
        del self.reference  # MatterSim's format has them in normalizer.shift
        require_positive("M3GNet", num_blocks=num_blocks, units=units, cutoff=cutoff, energy_scale=energy_scale)
        if not 1 <= max_z < len(chemical_symbols):
            raise ConfigError(f"M3GNet: max_z is {max_z}, expected an atomic number, 1 to {len(chemical_symbols) - 1}")
        self.num_blocks, self.units, self.max_z = int(num_blocks), int(units), int(max_z)
        self.max_l, self.max_n = int(max_l), int(max_n)
        self.cutoff, self.threebody_cutoff = float(cutoff), float(threebody_cutoff)
        self.energy_scale = float(energy_scale)
        self.elements = element_numbers(elements, self.max_z, "M3GNet")
        self.basis = Basis(self.max_n, self.max_l, self.cutoff, self.threebody_cutoff)

        self.rbf = Constants(smooth_bessel_constants(self.max_n, self.cutoff))
        self.sbf = Constants({"factor": torch.tensor(2.0 / self.cutoff**3).sqrt()})
        self.edge_encoder = Encoder(self.max_n, self.units)
        self.graph_conv = nn.ModuleList(Block(self.units, self.max_n, self.max_l) for _ in range(self.num_blocks))
        self.final = GatedMLP([self.units, self.units, self.units, 1], linear_end=True)
        self.atom_embedding = Encoder(self.max_z + 1, self.units)
        nn.init.uniform_(self.atom_embedding.weight, -0.05, 0.05)
        self.normalizer = AtomScaling(self.max_z, self.energy_scale)
        self.basis.prepare(self.normalizer.scale)
        if reference is not None:
            self.shift_reference(reference.energies)

    def reference_energies(self) -> Tensor:
        """Energies of the elements, (119,), eV by atomic number, float64 on the CPU."""
        shift = self.normalizer.shift.detach().to("cpu", torch.float64)
        return functional.pad(shift, (0, N_ELEMENTS - len(shift)))

    def shift_reference(self, energies: Tensor) -> None:
        """Add ``energies`` (119,), eV by atomic number, to the reference energy of each element."""
        shift = self.normalizer.shift
        shift.add_(energies[: len(shift)].to(shift))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> M3GNet:
        """Moves and casts: the constants of the basis are made anew from double precision, not cast in turn."""
        super()._apply(fn, recurse)
        self.basis.prepare(self.normalizer.scale)
        return self

    def known_elements(self) -> frozenset[int]:
        """``elements``, or all that have a vector."""
        return frozenset(self.elements or range(1, self.max_z + 1))

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        """Energy of each atom (N,) in eV, differentiable in positions, cell and parameters."""
        outputs, of_atom = self.outputs(graph.z, edge_vectors(graph), *graph.edge_index), self.normalizer
        return of_atom.scale.index_select(0, graph.z) * outputs + of_atom.shift.index_select(0, graph.z)

    def outputs(self, z: Tensor, vectors: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """The network's output (N,) from species (N,), edge vectors (E, 3), and centres and neighbours (E,)."""
        distances, edges = vectors.norm(dim=1), Edges(i, j)
        if operators.available_for(vectors, self.units) and is_sorted(i):
            near = torch.nonzero(distances < self.threebody_cutoff)[:, 0]
            i, j = i.to(torch.int64), j.to(torch.int64)
            edges = Edges(i, j, near, first_edges(i, len(z)))
        with torch.autocast(vectors.device.type, enabled=False):  # positions keep their digits
            features = self.basis.features(vectors, distances, i, len(z), edges.near)
        v, encoder = functional.embedding(z, self.atom_embedding.weight.T), self.edge_encoder.weight
        if edges.near is not None:
            e = None
            for block in self._blocks():
                v, e = block.in_c(v, e, encoder, features, edges)
        else:
            e, factors = self._of_distance(features.radial)
            for block, of_block in zip(self._blocks(), factors):
                v, e = block(v, e, of_block, features, edges)
        return self.final(v)[:, 0]

    def _of_distance(self, radial: Tensor) -> tuple[Tensor, Iterable[tuple[Tensor, Tensor]]]:
        """The first vectors of the edges, and for each block what multiplies the perceptrons of edges and of atoms."""
        plain = [block.edge_layer_edge.weight for block in self._blocks()]
        curved = [*(block.edge_layer_atom.weight for block in self._blocks()), self.edge_encoder.weight]
        products = radial @ torch.cat([*plain, *curved]).T
        linear, others = products.split([self.units * len(plain), self.units * len(curved)], dim=1)
        *of_atoms, e = functional.silu(others).split(self.units, dim=1)
        return e, zip(linear.split(self.units, dim=1), of_atoms)

    def _blocks(self) -> list[Block]:
        return [cast(Block, block) for block in self.graph_conv]

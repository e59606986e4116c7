"""The crystal graph convolutional network (CGCNN) in the form that MatDeepLearn gives it.

Parameter names and shapes are MatDeepLearn's, so that a state dictionary passes from one to the other.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.backbones.arguments import (
    element_numbers,
    refuse_unsupported,
    require_at_least,
    require_positive,
)
from mdl_physpre.potentials.backbones.cgcnn import operators
from mdl_physpre.potentials.backbones.cgcnn.radial import GaussianBasis, piecewise_polynomials
from mdl_physpre.potentials.base import Backbone, edge_vectors
from mdl_physpre.potentials.energy_reference import EnergyReference
from mdl_physpre.potentials.envelopes import smoothstep
from mdl_physpre.potentials.kernels.c_code import is_sorted
from mdl_physpre.structures.graph import AtomGraph

NODE_DIM = 100
"""Length of the one-hot element vector: atomic numbers 1 to 100."""

SUPPORTED = {
    "batch_norm": (False, "batch statistics make the energy of a structure depend on its batch"),
    "dropout_rate": (0.0, "forces would not be the derivative of one energy"),
    "act": ("silu", "a potential needs a smooth activation"),
    "pool": ("global_add_pool", "the energy must be a sum over atoms"),
    "pool_order": ("late", "the energy must be a sum over atoms"),
}
"""Keys of MatDeepLearn that have one value here, and why."""


class GatedConvolution(nn.Module):
    """The two linear maps of one convolution; rows of their weights act on (centre, neighbour, edge) in this order."""

    def __init__(self, dim: int, edge_dim: int) -> None:
        super().__init__()
        self.lin_f = nn.Linear(2 * dim + edge_dim, dim)
        self.lin_s = nn.Linear(2 * dim + edge_dim, dim)


Convolve = Callable[[GatedConvolution, Tensor], Tensor]


class CGCNN(Backbone):
    """Crystal graph convolutional network, Xie and Grossman, Phys. Rev. Lett. 120, 145301 (2018).

        h_i⁰ = silu(W_pre e_{z_i} + b_pre)
        h_i  ← h_i + (1/n_i) Σ_j f(r_ij) sigmoid(a^f_ij) softplus(a^s_ij),    a_ij = W [h_i, h_j, g(r_ij)] + b
        ε_i  = w_out · silu(… silu(W_post h_i + b_post)) + b_out
        E    = Σ_i (E0_{z_i} + energy_scale · ε_i)

    with ``gc_count`` convolutions, ``post_fc_count`` layers after them, and ``edge_dim`` Gaussians g of the distance.

    ``envelope=True``: f is 1 up to ``envelope_start`` · cutoff and falls to 0 at the cutoff by the quintic smoothstep
    (twice continuously differentiable), and n_i = 1 + Σ_j f(r_ij). A mean needs a smooth count as well: dividing by the
    number of neighbours would let every message jump when one more enters, and dividing by Σ_j f alone would keep the
    weight of an atom's only neighbour at 1 up to the cutoff. The 1 counts the atom itself, needs no fitting to a data
    set, and changes the host's mean by less than one per cent at its usual hundred and more neighbours.

    ``envelope=False``: f = 1 and n_i is the number of neighbours, which reproduces MatDeepLearn; energy and forces are
    then discontinuous where an edge enters.

    Parameters
    ----------
    elements: atomic numbers or symbols that the potential knows; None stands for 1 to 100.
    cutoff: Å.
    dim1, dim2: channels of the convolutions and of the layers after them.
    pre_fc_count, gc_count, post_fc_count: numbers of layers.
    edge_dim, edge_width: number of Gaussians, and their width as a fraction of the cutoff.
    envelope, envelope_start: see above.
    energy_scale: eV for each unit of the network's output.
    reference: energies of the elements (eV); zero if not given.
    batch_norm, dropout_rate, act, pool, pool_order: MatDeepLearn's keys; only the default values are supported.

    Raises ConfigError for a value that is not supported.
    """

    concurrent = True
    arguments = (
        "cutoff", "dim1", "dim2", "pre_fc_count", "gc_count", "post_fc_count", "edge_dim", "edge_width",
        "envelope", "envelope_start", "energy_scale",
    )  # fmt: skip

    def __init__(
        self,
        elements: Iterable[int | str] | None = None,
        cutoff: float = 8.0,
        dim1: int = 100,
        dim2: int = 150,
        pre_fc_count: int = 1,
        gc_count: int = 4,
        post_fc_count: int = 3,
        edge_dim: int = 50,
        edge_width: float = 0.2,
        envelope: bool = True,
        envelope_start: float = 0.66,
        energy_scale: float = 1.0,
        reference: EnergyReference | None = None,
        batch_norm: bool = False,
        batch_track_stats: bool = True,
        dropout_rate: float = 0.0,
        act: str = "silu",
        pool: str = "global_add_pool",
        pool_order: str = "late",
    ) -> None:
        super().__init__(reference)
        given = dict(batch_norm=batch_norm, dropout_rate=dropout_rate, act=act, pool=pool, pool_order=pool_order)
        refuse_unsupported("CGCNN", SUPPORTED, given)
        require_positive("CGCNN", cutoff=cutoff, edge_width=edge_width, energy_scale=energy_scale)
        require_at_least("CGCNN", 0, pre_fc_count=pre_fc_count, post_fc_count=post_fc_count)
        require_at_least("CGCNN", 1, dim1=dim1, dim2=dim2, gc_count=gc_count)
        require_at_least("CGCNN", 2, edge_dim=edge_dim)
        if not 0.0 <= envelope_start < 1.0:
            raise ConfigError(f"CGCNN: envelope_start is {envelope_start}, expected a fraction of the cutoff in [0, 1)")
        self.elements = element_numbers(elements, NODE_DIM, "CGCNN")
        self.cutoff = float(cutoff)
        self.dim1, self.dim2 = int(dim1), int(dim2)
        self.pre_fc_count, self.gc_count, self.post_fc_count = int(pre_fc_count), int(gc_count), int(post_fc_count)
        self.edge_dim, self.edge_width = int(edge_dim), float(edge_width)
        self.envelope, self.envelope_start = bool(envelope), float(envelope_start)
        self.energy_scale = float(energy_scale)

        dim = self.dim1 if pre_fc_count else NODE_DIM
        pre = [NODE_DIM, *[dim] * self.pre_fc_count]
        post = [dim, *[self.dim2] * self.post_fc_count]
        self.distance_expansion = GaussianBasis(self.cutoff, self.edge_dim, self.edge_width)
        self.pre_lin_list = nn.ModuleList(nn.Linear(a, b) for a, b in zip(pre, pre[1:]))
        self.conv_list = nn.ModuleList(GatedConvolution(dim, self.edge_dim) for _ in range(self.gc_count))
        self.post_lin_list = nn.ModuleList(nn.Linear(a, b) for a, b in zip(post, post[1:]))
        self.lin_out = nn.Linear(post[-1], 1)
        self._columns: Tensor | None = None

    def known_elements(self) -> frozenset[int]:
        """``elements``, or all that have a place in the one-hot vector."""
        return frozenset(self.elements or range(1, NODE_DIM + 1))

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        """Energy of each atom (N,) in eV, differentiable in positions, cell and parameters."""
        i, j = graph.edge_index
        outputs = self.outputs(graph.z, edge_vectors(graph), i, j)
        return torch.add(self.reference(graph.z), outputs, alpha=self.energy_scale)

    def outputs(self, z: Tensor, vectors: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """The network's output (N,) from species (N,), edge vectors (E, 3), and centres and neighbours (E,)."""
        distances = vectors.norm(dim=1)
        h = functional.embedding(z - 1, self.element_vectors())
        weights = self.edge_weights(distances, i, len(z))
        convolve = self._convolutions(distances, weights, i, j, len(z))
        for convolution in cast(Iterable[GatedConvolution], self.conv_list):
            h = convolve(convolution, h)
        for linear in self.post_lin_list:
            h = functional.silu(linear(h))
        return self.lin_out(h)[:, 0]

    def element_vectors(self) -> Tensor:
        """Node vectors before the first convolution of atomic numbers 1 to 100, (100, dim)."""
        h = torch.eye(NODE_DIM, dtype=self.lin_out.weight.dtype, device=self.lin_out.weight.device)
        for linear in self.pre_lin_list:
            h = functional.silu(linear(h))
        return h

    def edge_weights(self, distances: Tensor, centre: Tensor, n_atoms: int) -> Tensor:
        """f(r_ij) / n_i for every edge (E,); 0 at and beyond the cutoff."""
        if self.envelope:
            f = smoothstep(distances, self.envelope_start * self.cutoff, self.cutoff)
            norm = f.new_ones(n_atoms).index_add(0, centre, f)
        else:
            f = (distances <= self.cutoff).to(distances.dtype)
            norm = f.new_zeros(n_atoms).index_add(0, centre, f).clamp_min(1.0)
        return f / norm.index_select(0, centre)

    def _convolutions(self, distances: Tensor, weights: Tensor, i: Tensor, j: Tensor, n_atoms: int) -> Convolve:
        """h + Σ_j w_ij sigmoid(a^f) softplus(a^s) of a convolution, (N, dim), from h; in C where it can be."""
        if (library := operators.CODE.library_for(distances)) is not None and is_sorted(i):
            return self._convolutions_in_c(library, distances, weights, i, j, n_atoms)
        gaussians = self.distance_expansion(distances)

        def convolve(convolution: GatedConvolution, h: Tensor) -> Tensor:
            f, s, dim = convolution.lin_f, convolution.lin_s, h.shape[1]
            weight, bias = torch.cat([f.weight, s.weight]), torch.cat([f.bias, s.bias])
            of_centre, of_neighbour, of_edge = weight.split([dim, dim, self.edge_dim], dim=1)
            # products with nodes, of which there are fewer than edges
            centre, neighbour = functional.linear(h, of_centre, bias), functional.linear(h, of_neighbour)
            edge = torch.addmm(centre.index_select(0, i), gaussians, of_edge.T)
            gate, core = (edge + neighbour.index_select(0, j)).chunk(2, dim=1)
            messages = weights[:, None] * torch.sigmoid(gate) * functional.softplus(core)
            return h.index_add(0, i, messages.to(h.dtype))

        return convolve

    def _convolutions_in_c(
        self, library: ctypes.CDLL, distances: Tensor, weights: Tensor, i: Tensor, j: Tensor, n_atoms: int
    ) -> Convolve:
        n_pieces = math.ceil(2.0 / self.edge_width)  # half as long as the Gaussians are wide: degree 7 is then exact
        per_length, columns = n_pieces / self.cutoff, self._polynomials(operators.terms(library), n_pieces)
        start, order = operators.arranged(i, distances, n_atoms, per_length, n_pieces)
        neighbour = j.to(torch.int64)

        def convolve(convolution: GatedConvolution, h: Tensor) -> Tensor:
            f, s, dim = convolution.lin_f, convolution.lin_s, h.shape[1]
            padding = -dim % operators.lanes(h)
            # the softplus channel has its sign turned: softplus(a) = -log sigmoid(-a)
            both = functional.pad(torch.stack([f.weight, -s.weight]), (0, 0, 0, padding))
            weight = torch.cat([both[..., :dim], both[..., dim : 2 * dim]])
            bias = functional.pad(torch.stack([f.bias, -s.bias]), (0, padding, 0, 2))
            coefficient = (both[..., 2 * dim :] @ columns).transpose(1, 2)
            nodes = functional.linear(h, weight.flatten(0, 1), bias.flatten()).unflatten(1, (4, -1)).transpose(0, 1)
            given = (nodes, coefficient, distances, weights, start, neighbour, order, per_length, n_pieces)
            return h + operators.messages(*given)[:, :dim]

        return convolve

    def _polynomials(self, terms: int, n_pieces: int) -> Tensor:
        """:func:`piecewise_polynomials` of the Gaussians, made once."""
        weight = self.lin_out.weight
        if self._columns is None or self._columns.dtype != weight.dtype:
            self._columns = piecewise_polynomials(self.distance_expansion, self.cutoff, n_pieces, terms).to(weight)
        return self._columns

"""TorchMD-NET's equivariant transformer in the form that MatDeepLearn gives it.

Parameter names and shapes are those of MatDeepLearn's ``torchmd_etEarly``, so that a state dictionary passes from one
to the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn
from torch.nn import functional

from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.backbones.arguments import (
    element_numbers,
    refuse_unsupported,
    require_at_least,
    require_positive,
)
from mdl_physpre.potentials.backbones.torchmd_et.layers import (
    AttentionLayer,
    LayerWeights,
    NeighbourEmbedding,
    TensorMessages,
    radial_factors,
)
from mdl_physpre.potentials.backbones.torchmd_et.operators import HeadLayout, NativeMessages, Tables
from mdl_physpre.potentials.backbones.torchmd_et.radial import ExponentialNormalBasis, cosine_cutoff
from mdl_physpre.potentials.base import Backbone, edge_vectors
from mdl_physpre.potentials.energy_reference import EnergyReference
from mdl_physpre.potentials.kernels.c_code import is_sorted
from mdl_physpre.potentials.kernels.edge_op import predicting
from mdl_physpre.potentials.kernels.parameter_state import ParameterState
from mdl_physpre.structures.graph import AtomGraph

SUPPORTED = {
    "rbf_type": ("expnorm", "other radial functions are not built in"),
    "trainable_rbf": (True, "the radial functions are always trained"),
    "activation": ("silu", "a potential needs a smooth activation"),
    "attn_activation": ("silu", "a potential needs a smooth activation"),
    "neighbor_embedding": (True, "node vectors start from it"),
    "distance_influence": ("both", "keys and values both depend on the distance"),
    "pool": ("global_add_pool", "the energy must be a sum over atoms"),
    "pool_order": ("late", "the energy must be a sum over atoms"),
    "aggr": ("add", "a mean of messages is not smooth where an edge enters"),
}
"""Keys of MatDeepLearn that have one value here, and why."""


class TorchMDET(Backbone):
    r"""Equivariant transformer, Thölke and De Fabritiis, International Conference on Learning Representations (2022).

    With C the cosine cutoff, e(r) the exponential-normal basis, LN layer normalisation and ⊙ the product by channels:

        x_i  = W_c [emb(z_i), Σ_j C(r_ij) (W_n e(r_ij) + b_n) ⊙ emb'(z_j)] + b_c,    vec_i = 0        (N, 3, F)

    then in each layer, with q, k, (v⁰, v¹, v²) linear in LN(x), R = silu(W_R e(r) + b_R) for k and each part of v, and
    the sum in the attention a over the channels of one head:

        a_ij  = silu(Σ q_i ⊙ k_j ⊙ Rᵏ) C(r_ij)
        m_i   = Σ_j a_ij v⁰_j ⊙ R⁰,    M_i = Σ_j C'(r_ij) (v¹_j ⊙ R¹ ⊙ vec_j + v²_j ⊙ R² ⊙ r̂_ij)
        x_i   ← x_i + o³_i + o²_i ⊙ (U¹vec_i · U²vec_i),    vec_i ← vec_i + M_i + o¹_i ⊙ U³vec_i,    o = W_o m + b_o
        E     = Σ_i (E0_{z_i} + energy_scale · out(LN(x_i)))

    with ``out`` of ``num_post_layers`` layers with silu and a linear one.

    ``envelope=True``: C' = C, and own periodic images count in the sum of x_i's start: energy and forces are continuous
    where an edge enters, and the energy is extensive in cells narrower than the cutoff.

    ``envelope=False``: C' = 1 and own images do not count there, which reproduces MatDeepLearn; energy and forces jump
    at the cutoff as soon as b_R is not zero.

    Parameters
    ----------
    elements: atomic numbers or symbols that the potential knows; None accepts 1 to ``max_z`` − 1.
    cutoff: Å.
    hidden_channels, num_layers, num_heads, num_rbf: F, number of layers, of heads, of radial functions.
    num_post_layers, post_hidden_channels: layers with an activation in ``out``, and their width.
    max_z: rows of the element embeddings.
    envelope: see above.
    energy_scale: eV for each unit of the network's output.
    reference: energies of the elements (eV); zero if not given.
    rbf_type, trainable_rbf, activation, attn_activation, neighbor_embedding, distance_influence, pool, pool_order,
    aggr, max_num_neighbors: MatDeepLearn's keys; only the default values are supported, the last is without effect.

    Raises ConfigError for a value that is not supported.
    """

    concurrent = True
    arguments = (
        "cutoff", "hidden_channels", "num_layers", "num_rbf", "num_heads", "num_post_layers",
        "post_hidden_channels", "max_z", "envelope", "energy_scale",
    )  # fmt: skip

    def __init__(
        self,
        elements: Iterable[int | str] | None = None,
        cutoff: float = 8.0,
        hidden_channels: int = 128,
        num_layers: int = 8,
        num_rbf: int = 50,
        num_heads: int = 8,
        num_post_layers: int = 2,
        post_hidden_channels: int = 128,
        max_z: int = 100,
        envelope: bool = True,
        energy_scale: float = 1.0,
        reference: EnergyReference | None = None,
        rbf_type: str = "expnorm",
        trainable_rbf: bool = True,
        activation: str = "silu",
        attn_activation: str = "silu",
        neighbor_embedding: bool = True,
        distance_influence: str = "both",
        pool: str = "global_add_pool",
        pool_order: str = "late",
        aggr: str = "add",
        max_num_neighbors: int = 32,
    ) -> None:
        super().__init__(reference)
        given = dict(
            rbf_type=rbf_type, trainable_rbf=trainable_rbf, activation=activation, attn_activation=attn_activation,
            neighbor_embedding=neighbor_embedding, distance_influence=distance_influence, pool=pool,
            pool_order=pool_order, aggr=aggr,
        )  # fmt: skip
        refuse_unsupported("torchmd_et", SUPPORTED, given)
        require_positive("torchmd_et", cutoff=cutoff, energy_scale=energy_scale)
        require_at_least("torchmd_et", 0, num_post_layers=num_post_layers)
        require_at_least("torchmd_et", 1, hidden_channels=hidden_channels, num_layers=num_layers, num_heads=num_heads)
        require_at_least("torchmd_et", 1, post_hidden_channels=post_hidden_channels)
        require_at_least("torchmd_et", 2, num_rbf=num_rbf, max_z=max_z)
        if hidden_channels % num_heads:
            raise ConfigError(
                f"torchmd_et: hidden_channels is {hidden_channels}, which {num_heads} heads (num_heads) do not divide"
            )
        self.max_z = int(max_z)
        self.elements = element_numbers(elements, min(self.max_z, len(chemical_symbols)) - 1, "torchmd_et")
        self.cutoff = float(cutoff)
        self.hidden_channels, self.num_layers = int(hidden_channels), int(num_layers)
        self.num_rbf, self.num_heads = int(num_rbf), int(num_heads)
        self.num_post_layers, self.post_hidden_channels = int(num_post_layers), int(post_hidden_channels)
        self.envelope, self.energy_scale = bool(envelope), float(energy_scale)

        width = self.hidden_channels
        post = [width, *[self.post_hidden_channels] * self.num_post_layers, 1]
        self.embedding = nn.Embedding(self.max_z, width)
        self.distance_expansion = ExponentialNormalBasis(self.cutoff, self.num_rbf)
        self.neighbor_embedding = NeighbourEmbedding(width, self.num_rbf, self.max_z)
        self.attention_layers = nn.ModuleList(AttentionLayer(width, self.num_rbf) for _ in range(self.num_layers))
        self.out_norm = nn.LayerNorm(width)
        self.post_lin_list = nn.ModuleList(nn.Linear(a, b) for a, b in zip(post, post[1:]))
        self.kept: tuple[ParameterState, Tables] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": None}  # what can be made again is not copied or stored

    def known_elements(self) -> frozenset[int]:
        """``elements``, or all that have a row in the element embedding."""
        return frozenset(self.elements or range(1, self.max_z))

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        """Energy of each atom (N,) in eV, differentiable in positions, cell and parameters."""
        i, j = graph.edge_index
        return self.reference(graph.z) + self.energy_scale * self.outputs(graph.z, edge_vectors(graph), i, j)

    def outputs(self, z: Tensor, vectors: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """The network's output (N,) from species (N,), edge vectors (E, 3), and centres and neighbours (E,)."""
        messages = self._messages(vectors, i, j, len(z))
        start = self.neighbor_embedding
        x = start.combine(torch.cat([self.embedding(z), messages.around(start.embedding(z))], dim=1))
        vec: Tensor | None = None
        for number, (layer, weights) in enumerate(zip(self._layers(), messages.weights)):
            last = number == self.num_layers - 1
            qkv = functional.linear(layer.layernorm(x), weights.qkv, weights.qkv_bias)
            message, vec_message = messages.sums(number, qkv, vec, last)
            sizes = [message.shape[1], self.hidden_channels, self.hidden_channels]
            o1, o2, o3 = functional.linear(message, weights.out, weights.out_bias).split(sizes, dim=1)
            x = x + o3
            if vec is not None:
                u1, u2, u3 = functional.linear(vec, weights.vectors).split([*sizes[1:], sizes[0]], dim=2)
                x = x + (u1 * u2).sum(1) * o2
                if vec_message is not None:
                    vec_message = vec + u3 * o1[:, None] + vec_message
            vec = vec_message
        x = self.out_norm(x)
        for linear in self.post_lin_list[:-1]:
            x = functional.silu(linear(x))
        return self.post_lin_list[-1](x)[:, 0]

    def _layers(self) -> Iterable[AttentionLayer]:
        return cast(Iterable[AttentionLayer], self.attention_layers)

    def _messages(self, vectors: Tensor, i: Tensor, j: Tensor, n_atoms: int) -> TensorMessages | NativeMessages:
        """What passes along the edges: in C where that can be had."""
        distances = vectors.square().sum(1).sqrt()
        directions = vectors / distances[:, None]
        layout = HeadLayout.of(self.num_heads, self.hidden_channels, vectors)
        if layout is not None and is_sorted(i):
            tables = self._kept_tables(layout) if predicting() else self._tables(layout)
            return NativeMessages(tables, distances, directions, i, j, n_atoms, own_images=self.envelope)
        envelope = cosine_cutoff(distances, self.cutoff)
        basis = self.distance_expansion(distances, envelope)
        start = self.neighbor_embedding.radial_functions(basis, envelope if self.envelope else envelope * (i != j))
        within = envelope if self.envelope else (distances < self.cutoff).to(distances.dtype)
        weights = [LayerWeights.of(layer, self.num_heads) for layer in self._layers()]
        factors = radial_factors(envelope, within)
        return TensorMessages(weights, i, j, directions, start, basis, factors, self.num_heads)

    def _tables(self, layout: HeadLayout) -> Tables:
        grid, dtype = self.distance_expansion.grid(), self.embedding.weight.dtype
        exact, envelope = self.distance_expansion(grid.distances, grid.cutoff_values), grid.cutoff_values
        # in double precision: where neighbours are many, forces hang on the slopes of these more than on others
        start = grid.table(layout.padded(self.neighbor_embedding.radial_functions(exact, envelope))).to(dtype)
        factors = radial_factors(envelope, envelope if self.envelope else torch.ones_like(envelope)).to(dtype)
        weights = [layout.arranged(LayerWeights.of(layer, self.num_heads)) for layer in self._layers()]
        basis = exact.to(dtype)
        layers = [grid.table(w.radial_functions(basis, factors)) for w in weights]
        return Tables(layout, grid, weights, start, layers)

    def _kept_tables(self, layout: HeadLayout) -> Tables:
        """Without gradients, and made anew only when a parameter has changed: molecular dynamics asks many times."""
        parameters, kept = list(self.parameters()), self.kept
        if kept is None or not kept[0].holds(parameters) or kept[1].layout != layout:
            with torch.no_grad():
                kept = self.kept = (ParameterState(parameters), self._tables(layout))
        return kept[1]

"""The layers of the equivariant transformer, and what passes along the edges in them.

Node vectors of a layer, with F channels, those of a head together:

    qkv (N, 5 F): q, k and the parts of v: scalar, factor of the neighbour's vectors, factor of the direction
    vec (N, 3, F), or None where it is still zero

and the radial functions of an edge, (E, 4 F): those of k, then those of the three parts of v.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class AttentionLayer(nn.Module):
    """The linear maps of one layer. Rows of q, k, v and of their radial factors belong to heads, one after another."""

    def __init__(self, channels: int, num_rbf: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(channels)
        self.q_proj = _linear(channels, channels)
        self.k_proj = _linear(channels, channels)
        self.v_proj = _linear(channels, 3 * channels)
        self.o_proj = nn.Linear(channels, 3 * channels)
        self.vec_proj = _linear(channels, 3 * channels, bias=False)
        self.dk_proj = _linear(num_rbf, channels)
        self.dv_proj = _linear(num_rbf, 3 * channels)


class NeighbourEmbedding(nn.Module):
    """The maps that start a node vector from the elements around it."""

    def __init__(self, channels: int, num_rbf: int, max_z: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(max_z, channels)
        self.distance_proj = _linear(num_rbf, channels)
        self.combine = _linear(2 * channels, channels)

    def radial_functions(self, basis: Tensor, cutoff_values: Tensor) -> Tensor:
        """C(r) (W_n e(r) + b_n), (E, F), of basis functions (E, num_rbf) and C(r) (E,)."""
        weight, bias = self.distance_proj.weight.to(basis.dtype), self.distance_proj.bias.to(basis.dtype)
        return functional.linear(basis, weight, bias) * cutoff_values[:, None]


def _linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear map that starts as the published network does: weights by Glorot and Bengio, biases zero."""
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


class LayerWeights(NamedTuple):
    """Weights of a layer; the three parts of v and of what belongs to them stand one after another, not by head."""

    qkv: Tensor  # (5 F, channels)
    qkv_bias: Tensor
    vectors: Tensor  # (2 channels + F, F)
    out: Tensor  # (F + 2 channels, F)
    out_bias: Tensor
    radial: Tensor  # (4 F, num_rbf)
    radial_bias: Tensor

    @classmethod
    def of(cls, layer: AttentionLayer, heads: int) -> LayerWeights:
        """Those of an attention layer."""

        def by_part(v: Tensor) -> Tensor:
            return v.view(heads, 3, -1, *v.shape[1:]).transpose(0, 1).reshape(v.shape)

        q, k, v, dk, dv = layer.q_proj, layer.k_proj, layer.v_proj, layer.dk_proj, layer.dv_proj
        return cls(
            torch.cat([q.weight, k.weight, by_part(v.weight)]),
            torch.cat([q.bias, k.bias, by_part(v.bias)]),
            layer.vec_proj.weight,
            layer.o_proj.weight,
            layer.o_proj.bias,
            torch.cat([dk.weight, by_part(dv.weight)]),
            torch.cat([dk.bias, by_part(dv.bias)]),
        )

    def radial_functions(self, basis: Tensor, factors: Tensor) -> Tensor:
        """(E, 4 F): silu(W e(r) + b) of basis functions (E, num_rbf), times :func:`radial_factors`."""
        values = functional.silu(functional.linear(basis, self.radial, self.radial_bias))
        return (values.unflatten(1, (4, -1)) * factors).flatten(1)


def radial_factors(cutoff_values: Tensor, vector_values: Tensor) -> Tensor:
    """(E, 4, 1): 1 for k, C(r) for the scalar part of v, C'(r) for its other two."""
    return torch.stack([torch.ones_like(cutoff_values), cutoff_values, vector_values, vector_values], dim=1)[:, :, None]


Sums = tuple[Tensor, Tensor | None]
"""Sums of messages over the neighbours: (N, F), and (N, 3, F) where they are wanted."""


class TensorMessages:
    """What passes along the edges of a batch, in tensor operations, differentiable to any order.

    ``i``, ``j`` (E,) are centres and neighbours, ``directions`` (E, 3), ``start`` (E, F) the radial functions for the
    node vectors' start, ``basis`` and ``factors`` what :meth:`LayerWeights.radial_functions` takes.
    """

    def __init__(
        self, weights: list[LayerWeights], i: Tensor, j: Tensor, directions: Tensor, start: Tensor, basis: Tensor,
        factors: Tensor, heads: int,
    ) -> None:  # fmt: skip
        self.weights, self.i, self.j, self.directions = weights, i, j, directions[:, :, None]
        self.start, self.basis, self.factors, self.heads = start, basis, factors, heads

    def around(self, values: Tensor) -> Tensor:
        """Sum over the neighbours of their values (N, F) times radial functions, for the node vectors' start."""
        return torch.zeros_like(values).index_add(0, self.i, self.start * values.index_select(0, self.j))

    def sums(self, layer: int, qkv: Tensor, vec: Tensor | None, last: bool) -> Sums:
        """The sums of a layer, those of vectors not for the last one. With c the channels of a head h:

        a_h = silu(Σ_{c in h} q_i k_j R^k),    m_i = Σ_j a_h v⁰_j R⁰,    M_i = Σ_j v¹_j R¹ vec_j + v²_j R² r̂_ij
        """
        width = qkv.shape[1] // 5
        radial = self.weights[layer].radial_functions(self.basis, self.factors)
        products = qkv[:, width:].index_select(0, self.j) * radial
        key, scalar, along, across = products.split(width, dim=1)
        matches = qkv[:, :width].index_select(0, self.i) * key
        attention = functional.silu(matches.unflatten(1, (self.heads, -1)).sum(2))
        message = (scalar.unflatten(1, (self.heads, -1)) * attention[:, :, None]).flatten(1)
        total = message.new_zeros(len(qkv), width).index_add(0, self.i, message)
        if last:
            return total, None
        vectors = across[:, None] * self.directions
        if vec is not None:
            vectors = vectors + along[:, None] * vec.index_select(0, self.j)
        return total, vectors.new_zeros(len(qkv), 3, width).index_add(0, self.i, vectors)

"""What passes along the edges in one layer of the equivariant transformer, and how its weights are arranged for that.

Channels are kept with the head as the fastest index, so that the sum over the channels of each head is a sum of whole
rows; see :class:`HeadLayout`. Node vectors of a layer, with F channels:

    qkv (N, 5 F): q, k and the parts of v: scalar, factor of the neighbour's vectors, factor of the direction
    vec (N, 3, F), or None where it is still zero

and the radial functions of an edge, (E, 4, F): those of k, then those of the three parts of v.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from mdl_physpre.potentials.torchmd_et import AttentionLayer


@dataclass(frozen=True)
class HeadLayout:
    """Where a channel of a head goes: row d·padded_heads + h for channel d of head h; what padding adds is zero."""

    heads: int
    depth: int
    padded_heads: int
    padded_depth: int

    @classmethod
    def of(cls, heads: int, depth: int) -> HeadLayout:
        """Without padding."""
        return cls(heads, depth, heads, depth)

    @property
    def channels(self) -> int:
        """F, padding included."""
        return self.padded_heads * self.padded_depth

    def rows(self, weight: Tensor, parts: int = 1) -> Tensor:
        """Rows (heads · parts · depth, …), head by head, as (parts · F, …), part by part."""
        rest = weight.shape[1:]
        split = weight.view(self.heads, parts, self.depth, *rest).permute(1, 2, 0, *range(3, 3 + len(rest)))
        more = (self.padded_heads - self.heads, self.padded_depth - self.depth)
        if any(more):
            split = functional.pad(split, (0, 0) * len(rest) + (0, more[0], 0, more[1]))
        return split.reshape(parts * self.channels, *rest)

    def columns(self, weight: Tensor) -> Tensor:
        """As :meth:`rows`, of the last index of a matrix."""
        return self.rows(weight.T).T


class Edges(NamedTuple):
    """The edges within the cutoff, sorted by centre."""

    vectors: Tensor  # (E, 3) Å
    index: Tensor  # (2, E) centre and neighbour
    distances: Tensor  # (E,) Å


class LayerWeights(NamedTuple):
    """Weights of a layer in a :class:`HeadLayout`."""

    qkv: Tensor  # (5 F, channels)
    qkv_bias: Tensor
    vectors: Tensor  # (2 channels + F, F)
    out: Tensor  # (F + 2 channels, F)
    out_bias: Tensor
    radial: Tensor  # (4 F, num_rbf)
    radial_bias: Tensor


Sums = tuple[Tensor, Tensor | None]
"""Sums of messages over the neighbours: (N, F), and (N, 3, F) where they are wanted."""

MessageSums = Callable[[LayerWeights, Tensor, Tensor | None, bool], Sums]
"""From weights, qkv, vectors, and whether it is the last layer, whose sums of vectors nobody reads."""


def edges_within(cutoff: float, vectors: Tensor, index: Tensor) -> Edges:
    """The edges that count: a list with a skin holds others."""
    distances = vectors.norm(dim=1)
    near = distances < cutoff
    if not bool(near.all()):
        vectors, distances, index = vectors[near], distances[near], index[:, near]
    return Edges(vectors, index, distances)


def layer_weights(layer: AttentionLayer, layout: HeadLayout) -> LayerWeights:
    """The weights of an attention layer, arranged."""
    rows, columns = layout.rows, layout.columns
    width = layer.o_proj.bias.shape[0] // 3
    out, vectors = columns(layer.o_proj.weight), columns(layer.vec_proj.weight)
    out_bias = layer.o_proj.bias
    return LayerWeights(
        torch.cat([rows(layer.q_proj.weight), rows(layer.k_proj.weight), rows(layer.v_proj.weight, 3)]),
        torch.cat([rows(layer.q_proj.bias), rows(layer.k_proj.bias), rows(layer.v_proj.bias, 3)]),
        torch.cat([vectors[: 2 * width], rows(vectors[2 * width :])]),
        torch.cat([rows(out[:width]), out[width:]]),
        torch.cat([rows(out_bias[:width]), out_bias[width:]]),
        torch.cat([rows(layer.dk_proj.weight), rows(layer.dv_proj.weight, 3)]),
        torch.cat([rows(layer.dk_proj.bias), rows(layer.dv_proj.bias, 3)]),
    )


def radial_functions(basis: Tensor, cutoff_values: Tensor, weights: LayerWeights, envelope: bool) -> Tensor:
    """(E, 4, F): silu(W e(r) + b), times C(r) for the scalar part of v, and with ``envelope`` for its other two.

    ``basis`` (E, num_rbf) are the basis functions and ``cutoff_values`` (E,) are C(r).
    """
    values = functional.silu(functional.linear(basis, weights.radial, weights.radial_bias)).view(len(basis), 4, -1)
    ones = torch.ones_like(cutoff_values)
    vector = cutoff_values if envelope else ones
    return values * torch.stack([ones, cutoff_values, vector, vector], dim=1)[:, :, None]


def message_sums(
    index: Tensor, radial: Tensor, qkv: Tensor, vec: Tensor | None, directions: Tensor | None, heads: int
) -> Sums:
    """Sums over the neighbours j of each atom i, of vectors only where ``directions`` (E, 3) are given.

        a_h = silu(Σ_{c in h} q_i k_j R^k),    m_i = Σ_j a_h v⁰_j R⁰,    M_i = Σ_j v¹_j R¹ vec_j + v²_j R² r̂_ij
    """
    n, (centre, neighbour) = len(radial), index
    key, scalar, along, across = radial.unbind(1)
    q, *kv = qkv.view(len(qkv), 5, -1).unbind(1)
    k_j, v0, v1, v2 = (part.index_select(0, neighbour) for part in kv)
    attention = functional.silu((q.index_select(0, centre) * k_j * key).view(n, -1, heads).sum(1))
    message = ((v0 * scalar).view(n, -1, heads) * attention[:, None]).view(n, -1)
    total = torch.zeros_like(q).index_add(0, centre, message)
    if directions is None:
        return total, None
    vector_message = (v2 * across)[:, None] * directions[:, :, None]
    if vec is not None:
        vector_message = vector_message + (v1 * along)[:, None] * vec.index_select(0, neighbour)
    zero = qkv.new_zeros(len(qkv), 3, vector_message.shape[2])
    return total, zero.index_add(0, centre, vector_message)

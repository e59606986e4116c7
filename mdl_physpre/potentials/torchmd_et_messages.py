"""What passes along the edges in one layer of the equivariant transformer, and how its weights are arranged for that.

Channels are kept with the head as the fastest index, so that the sum over the channels of each head is a sum of whole
rows; see :class:`HeadLayout`. Node vectors of a layer, with F channels:

    q, k (N, F);  v (N, 3 F): scalar part, then the factors of the neighbour's vectors and of the direction
    vectors (N, 3, F), or None where they are still zero

and the radial functions of an edge, (E, 4, F): those of k, then those of the three parts of v.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class HeadLayout:
    """Where a channel of a head goes: row d·padded_heads + h for channel d of head h; what padding adds is zero."""

    heads: int
    depth: int
    padded_heads: int
    padded_depth: int

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

    centre: Tensor  # (E,)
    neighbour: Tensor  # (E,)
    vectors: Tensor  # (E, 3) Å
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

MessageSums = Callable[[LayerWeights, Tensor, Tensor, Tensor, Tensor | None, bool], Sums]
"""From weights, q, k, v, vectors, and whether it is the last layer, whose sums of vectors nobody reads."""


def edges_within(cutoff: float, vectors: Tensor, index: Tensor) -> Edges:
    """The edges that count: a list with a skin holds others."""
    distances = vectors.norm(dim=1)
    near = distances < cutoff
    if not bool(near.all()):
        vectors, distances, index = vectors[near], distances[near], index[:, near]
    return Edges(index[0], index[1], vectors, distances)


def add_messages(n_atoms: int, centre: Tensor, x: Tensor, vec: Tensor | None) -> Sums:
    """Sums over the edges of each centre."""
    total = x.new_zeros(n_atoms, *x.shape[1:]).index_add(0, centre, x)
    return total, None if vec is None else vec.new_zeros(n_atoms, *vec.shape[1:]).index_add(0, centre, vec)


def layer_weights(layer: torch.nn.Module, layout: HeadLayout) -> LayerWeights:
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


def radial_functions(basis: Tensor, cutoff_values: Tensor, weight: Tensor, bias: Tensor, envelope: bool) -> Tensor:
    """(E, 4, F): silu(W e(r) + b), times C(r) for the scalar part of v, and with ``envelope`` for its other two.

    ``basis`` (E, num_rbf) are the basis functions and ``cutoff_values`` (E,) are C(r).
    """
    values = functional.silu(functional.linear(basis, weight, bias)).view(len(basis), 4, -1)
    ones = torch.ones_like(cutoff_values)
    vector = cutoff_values if envelope else ones
    return values * torch.stack([ones, cutoff_values, vector, vector], dim=1)[:, :, None]


def edge_messages(
    radial: Tensor, q_i: Tensor, k_j: Tensor, v_j: Tensor, vec_j: Tensor | None, directions: Tensor | None, heads: int
) -> tuple[Tensor, Tensor | None]:
    """Message of each edge: (E, F), and (E, 3, F) where ``directions`` (E, 3) are given.

        a_h = silu(Σ_{c in h} q_i k_j R^k),    x = a_h v⁰_j R⁰,    vec = v¹_j R¹ vec_j + v²_j R² r̂_ij
    """
    n = radial.shape[0]
    key, scalar, along, across = radial.unbind(1)
    v0, v1, v2 = v_j.view(n, 3, -1).unbind(1)
    attention = functional.silu((q_i * k_j * key).view(n, -1, heads).sum(1))
    x = ((v0 * scalar).view(n, -1, heads) * attention[:, None]).view(n, -1)
    if directions is None:
        return x, None
    vec = (v2 * across)[:, None] * directions[:, :, None]
    if vec_j is not None:
        vec = vec + (v1 * along)[:, None] * vec_j
    return x, vec


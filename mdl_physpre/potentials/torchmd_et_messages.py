"""What passes along the edges in one layer of the equivariant transformer.

Node vectors of a layer, with F channels arranged as in :class:`mdl_physpre.potentials.torchmd_et_layers.HeadLayout`:

    qkv (N, 5 F): q, k and the parts of v: scalar, factor of the neighbour's vectors, factor of the direction
    vec (N, 3, F), or None where it is still zero

and the radial functions of an edge, (E, 4, F): those of k, then those of the three parts of v.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mdl_physpre.potentials.torchmd_et_layers import LayerWeights


class Edges(NamedTuple):
    """The edges within the cutoff, sorted by centre."""

    vectors: Tensor  # (E, 3) Å
    ends: Tensor  # (2, E) centre and neighbour
    distances: Tensor  # (E,) Å


Sums = tuple[Tensor, Tensor | None]
"""Sums of messages over the neighbours: (N, F), and (N, 3, F) where they are wanted."""

MessageSums = Callable[[int, Tensor, Tensor | None, bool], Sums]
"""From the number of a layer, qkv, vec, and whether it is the last layer, whose sums of vectors nobody reads."""


def edges_within(cutoff: float, vectors: Tensor, index: Tensor) -> Edges:
    """The edges that count: a list with a skin holds others."""
    distances = vectors.norm(dim=1)
    near = distances < cutoff
    if not bool(near.all()):
        vectors, distances, index = vectors[near], distances[near], index[:, near]
    return Edges(vectors, index, distances)


def radial_functions(basis: Tensor, cutoff_values: Tensor, weights: LayerWeights, envelope: bool) -> Tensor:
    """(E, 4, F): silu(W e(r) + b), times C(r) for the scalar part of v, and with ``envelope`` for its other two.

    ``basis`` (E, num_rbf) are the basis functions and ``cutoff_values`` (E,) are C(r).
    """
    values = functional.silu(functional.linear(basis, weights.radial, weights.radial_bias)).unflatten(1, (4, -1))
    ones = torch.ones_like(cutoff_values)
    vector = cutoff_values if envelope else ones
    return values * torch.stack([ones, cutoff_values, vector, vector], dim=1)[:, :, None]


def message_sums(
    index: Tensor, radial: Tensor, qkv: Tensor, vec: Tensor | None, directions: Tensor | None, heads: int
) -> Sums:
    """Sums over the neighbours j of each atom i, of vectors only where ``directions`` (E, 3) are given.

        a_h = silu(Σ_{c in h} q_i k_j R^k),    m_i = Σ_j a_h v⁰_j R⁰,    M_i = Σ_j v¹_j R¹ vec_j + v²_j R² r̂_ij
    """
    centre, neighbour = index
    key, scalar, along, across = radial.unbind(1)
    q, *kv = qkv.unflatten(1, (5, -1)).unbind(1)
    k_j, v0, v1, v2 = (part.index_select(0, neighbour) for part in kv)
    attention = functional.silu((q.index_select(0, centre) * k_j * key).unflatten(1, (-1, heads)).sum(1))
    message = ((v0 * scalar).unflatten(1, (-1, heads)) * attention[:, None]).flatten(1)
    total = torch.zeros_like(q).index_add(0, centre, message)
    if directions is None:
        return total, None
    vector_message = (v2 * across)[:, None] * directions[:, :, None]
    if vec is not None:
        vector_message = vector_message + (v1 * along)[:, None] * vec.index_select(0, neighbour)
    zero = qkv.new_zeros(len(qkv), 3, vector_message.shape[2])
    return total, zero.index_add(0, centre, vector_message)

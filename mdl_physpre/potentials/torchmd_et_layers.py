"""The layers of the equivariant transformer, and how their weights are arranged for the sums over edges.

Channels are kept with the head as the fastest index, so that the sum over the channels of each head is a sum of whole
rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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


class LayerList(nn.ModuleList):
    """A list of attention layers."""

    def __iter__(self) -> Iterator[AttentionLayer]:
        return super().__iter__()  # type: ignore[return-value]


def _linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear map that starts as the published network does: weights by Glorot and Bengio, biases zero."""
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


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


class LayerWeights(NamedTuple):
    """Weights of a layer in a :class:`HeadLayout`."""

    qkv: Tensor  # (5 F, channels)
    qkv_bias: Tensor
    vectors: Tensor  # (2 channels + F, F)
    out: Tensor  # (F + 2 channels, F)
    out_bias: Tensor
    radial: Tensor  # (4 F, num_rbf)
    radial_bias: Tensor


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

"""Energies and forces of a crystal graph convolutional network by hand, and their gradient in the parameters.

One convolution, with the sums a_e = P_i + P_j + C φ(d_e) for the edge e = (i, j), is

    m_i = Σ_e w_e g_e,    g = sigmoid(a^f) softplus(a^s)

P_i and P_j are matrix products of each node, not of each edge; φ spans the Gaussians of the distance. Four
sweeps over the edges make a training step:

    energies      h ← h + m, layer by layer
    derivatives   adjoints λ = ∂E/∂(·) backwards, which give γ_e = dE/dd_e and with it forces and stress
    tangents      d/dt of every quantity for distances that change by ḋ_e, layer by layer
    gradients     d/dt of the adjoints, backwards; Σ (λ̇ y + λ ẏ) is the gradient of Σ_i α_i E_i + Σ_e γ_e ḋ_e

where α and ḋ are the loss's derivatives in E and γ. The last two replace the second backward pass of automatic
differentiation. All sweeps recompute what belongs to an edge, so memory hardly grows with the number of edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mdl_physpre.potentials.cgcnn_edges import (
    Edges,
    Layer,
    convolve,
    convolve_adjoint,
    convolve_gradients,
    convolve_tangent,
)


def _split(p: Tensor) -> tuple[Tensor, Tensor]:
    both = p.view(p.shape[0], 4, -1).transpose(0, 1).contiguous()
    return both[:2], both[2:]


def _join(centre: Tensor, neighbour: Tensor) -> Tensor:
    return torch.cat([centre, neighbour]).transpose(0, 1).reshape(centre.shape[1], -1)


@dataclass
class Sweep:
    """All that the first two sweeps leave behind for the last two."""

    layers: list[Layer]
    inputs: list[Tensor]  # of the read-out layers
    sums: list[Tensor]  # before their activation
    message_adjoints: list[Tensor]
    node_adjoints: list[Tensor]  # of P_i and P_j joined, (N, 4 dim)
    sum_adjoints: list[Tensor]  # of the read-out's sums


def energies_and_slopes(edges: Edges, h: Tensor, parameters: Sequence[Tensor], n_layers: int, slopes: bool) -> Any:
    """Network energies (N,), γ = dE/dd (E,) if wanted, and the :class:`Sweep`."""
    sweep = Sweep([], [], [], [], [], [])
    for k in range(n_layers):
        node_weight, node_bias, edge_weight = parameters[3 * k : 3 * k + 3]
        layer = Layer(node_weight, node_bias, edge_weight, h, *_split(torch.addmm(node_bias, h, node_weight)))
        h = h + convolve(edges, layer)
        sweep.layers.append(layer)
    read_out = parameters[3 * n_layers :]
    for weight, bias in zip(read_out[:-2:2], read_out[1:-2:2], strict=True):
        sweep.inputs.append(h)
        sweep.sums.append(functional.linear(h, weight, bias))
        h = functional.silu(sweep.sums[-1])
    sweep.inputs.append(h)
    energies = functional.linear(h, read_out[-2], read_out[-1])[:, 0]
    if not slopes:
        return energies, None, sweep
    adjoint = read_out[-2].expand(len(h), -1)
    for weight, sums in zip(reversed(read_out[:-2:2]), reversed(sweep.sums), strict=True):
        sweep.sum_adjoints.insert(0, adjoint * _silu_slope(sums))
        adjoint = sweep.sum_adjoints[0] @ weight
    distance, weight = torch.zeros_like(edges.weights), torch.zeros_like(edges.weights)
    for layer in reversed(sweep.layers):
        sweep.message_adjoints.insert(0, adjoint)
        joined = _join(*convolve_adjoint(edges, layer, adjoint, distance, weight))
        sweep.node_adjoints.insert(0, joined)
        adjoint = adjoint + joined @ layer.node_weight.T
    # w = f / n_i with n_i = 1 + Σ f
    mean = torch.zeros_like(energies).index_add_(0, edges.centre, weight * edges.weights)
    return energies, distance + edges.weight_slope * (weight - mean.index_select(0, edges.centre)), sweep


def parameter_gradients(
    edges: Edges, sweep: Sweep, parameters: Sequence[Tensor], energy_seed: Tensor, distance: Tensor
) -> list[Tensor]:
    """Gradient of Σ α_i E_i + Σ γ_e ḋ_e in the first node vectors and in the parameters, in their order."""
    n_layers = len(sweep.layers)
    moved = edges.weight_slope * distance
    norm = torch.zeros_like(energy_seed).index_add_(0, edges.centre, moved)  # d/dt of n_i, over n_i
    weight = moved - edges.weights * norm.index_select(0, edges.centre)
    h, hs, nodes = torch.zeros_like(sweep.layers[0].h), [], []
    for layer in sweep.layers:
        hs.append(h)
        nodes.append(_split(h @ layer.node_weight))
        h = h + convolve_tangent(edges, layer, *nodes[-1], distance, weight)
    read_out = parameters[3 * n_layers :]
    inputs, sums = [h], []
    for matrix, base in zip(read_out[:-2:2], sweep.sums, strict=True):
        sums.append(inputs[-1] @ matrix.T)
        inputs.append(sums[-1] * _silu_slope(base))

    gradients: list[Tensor] = [energy_seed @ sweep.inputs[-1] + inputs[-1].sum(0), energy_seed.sum()[None]]
    gradients[0] = gradients[0][None]
    adjoint, adjoint_dot = read_out[-2].expand(len(h), -1), energy_seed[:, None] * read_out[-2]
    for k in reversed(range(len(sums))):
        matrix, base = read_out[2 * k], sweep.sums[k]
        inner = adjoint_dot * _silu_slope(base) + adjoint * (_silu_curvature(base) * sums[k])
        outer = sweep.sum_adjoints[k]
        gradients = [inner.T @ sweep.inputs[k] + outer.T @ inputs[k], inner.sum(0), *gradients]
        adjoint, adjoint_dot = outer @ matrix, inner @ matrix
    for k in reversed(range(n_layers)):
        layer = sweep.layers[k]
        *by_node, edge_weight = convolve_gradients(
            edges, layer, (sweep.message_adjoints[k], adjoint_dot), (*nodes[k], distance, weight)
        )
        inner = _join(*by_node)
        node_weight = layer.h.T @ inner + hs[k].T @ sweep.node_adjoints[k]
        gradients = [node_weight, inner.sum(0), edge_weight, *gradients]
        adjoint_dot = adjoint_dot + inner @ layer.node_weight.T
    return [adjoint_dot, *gradients]


def _silu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


def _silu_curvature(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1.0 - s) * (2.0 + x * (1.0 - 2.0 * s))


class EnergiesAndSlopes(torch.autograd.Function):
    """(E_i, dE/dd_e) as a function of the first node vectors and the parameters, differentiable once."""

    @staticmethod
    def forward(ctx: Any, edges: Edges, n_layers: int, h: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        energies, slopes, ctx.sweep = energies_and_slopes(edges, h, parameters, n_layers, True)
        ctx.edges = edges
        ctx.save_for_backward(*parameters)
        return energies, slopes

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, energy_seed: Tensor, distance: Tensor) -> tuple[Any, ...]:
        gradients = parameter_gradients(
            ctx.edges, ctx.sweep, ctx.saved_tensors, energy_seed.contiguous(), distance.contiguous()
        )
        return (None, None, *gradients)

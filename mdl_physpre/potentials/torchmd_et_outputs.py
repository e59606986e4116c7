"""Outputs of the equivariant transformer and their derivatives in the edge vectors, by the fastest way there is."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mdl_physpre.potentials.parameter_state import ParameterState
from mdl_physpre.potentials.torchmd_et_layers import HeadLayout, LayerWeights, layer_weights
from mdl_physpre.potentials.torchmd_et_messages import Edges, Sums, message_sums, radial_functions
from mdl_physpre.potentials.torchmd_et_native import NativeEdges, NativeSums, native_layout
from mdl_physpre.potentials.torchmd_et_parts import parts_of, recomputed
from mdl_physpre.potentials.torchmd_et_radial import RadialGrid, cosine_cutoff
from mdl_physpre.structures.graph import AtomGraph

if TYPE_CHECKING:
    from mdl_physpre.potentials.torchmd_et import TorchMDET


class Arrangement(NamedTuple):
    """What depends on parameters alone: weights and tables of radial functions of each layer."""

    grid: RadialGrid
    weights: list[LayerWeights]
    tables: list[Tensor]


def plain_outputs(model: TorchMDET, z: Tensor, edges: Edges) -> Tensor:
    """Outputs (N,) on tensor operations, differentiable to any order."""
    envelope = cosine_cutoff(edges.distances, model.cutoff)
    basis, directions = model.distance_expansion(edges.distances, envelope), edges.vectors / edges.distances[:, None]
    arranged = [layer_weights(layer, model.layout) for layer in model.attention_layers]

    def sums(layer: int, qkv: Tensor, vec: Tensor | None, last: bool) -> Sums:
        radial = radial_functions(basis, envelope, arranged[layer], model.envelope)
        return message_sums(edges.ends, radial, qkv, vec, None if last else directions, model.num_heads)

    return model.network(z, edges, arranged, sums)


def outputs(model: TorchMDET, z: Tensor, edges: Edges) -> Tensor:
    """Outputs (N,), in C where that can be had; a gradient is one in the parameters."""
    layout = native_layout(model.layout, edges.vectors)
    if layout is None:
        return plain_outputs(model, z, edges)
    return _native_outputs(model, layout, z, edges, torch.is_grad_enabled())[0]


def outputs_and_slopes(
    model: TorchMDET, graph: AtomGraph, edges: Edges, differentiable: bool
) -> tuple[Tensor, Tensor]:
    """Outputs (N,) and the derivative of their sum in the edge vectors (E, 3).

    In C the batch is done at once. On tensor operations it is done part by part, which for training are computed again
    when their gradient is wanted.
    """
    layout = native_layout(model.layout, edges.vectors)
    if layout is not None:
        return _slopes(model, layout, graph.z, edges.vectors, edges.ends, differentiable)
    parts = parts_of(graph, edges.ends[0])
    found, slopes = [], []
    for atoms, some in parts:
        compute = partial(
            _slopes, model, None, graph.z[atoms], edges.vectors[some], edges.ends[:, some] - atoms.start
        )
        again = differentiable and len(parts) > 1
        results = recomputed(compute, list(model.parameters())) if again else compute(differentiable)
        found.append(results[0])
        slopes.append(results[1])
    return torch.cat(found), torch.cat(slopes)


def _slopes(
    model: TorchMDET, layout: HeadLayout | None, z: Tensor, vectors: Tensor, ends: Tensor, differentiable: bool
) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        vectors = vectors.detach().requires_grad_(True)
        edges, native = Edges(vectors, ends, vectors.norm(dim=1)), None
        if layout is None:
            found = plain_outputs(model, z, edges)
        else:
            found, native = _native_outputs(model, layout, z, edges, differentiable)
            native.geometry = True
        (slopes,) = torch.autograd.grad(found.sum(), vectors, create_graph=differentiable, materialize_grads=True)
        if native is not None:
            native.geometry = False
    return found if differentiable else found.detach(), slopes


def _native_outputs(
    model: TorchMDET, layout: HeadLayout, z: Tensor, edges: Edges, differentiable: bool
) -> tuple[Tensor, NativeEdges]:
    arrangement = _arrangement(model, layout) if differentiable else _kept_arrangement(model, layout)
    native = NativeEdges(edges, len(z), layout, arrangement.grid)
    directions = edges.vectors / edges.distances[:, None]

    def sums(layer: int, qkv: Tensor, vec: Tensor | None, last: bool) -> Sums:
        return NativeSums.apply(native, last, qkv, vec, arrangement.tables[layer], edges.distances, directions)

    return model.network(z, edges, arrangement.weights, sums), native


def _arrangement(model: TorchMDET, layout: HeadLayout) -> Arrangement:
    grid = model.distance_expansion.grid()
    basis = model.distance_expansion(grid.distances, grid.cutoff_values)
    weights = [layer_weights(layer, layout) for layer in model.attention_layers]
    values = [radial_functions(basis, grid.cutoff_values, w, model.envelope).flatten(1) for w in weights]
    return Arrangement(grid, weights, [grid.table(v) for v in values])


def _kept_arrangement(model: TorchMDET, layout: HeadLayout) -> Arrangement:
    """Without gradients, and made anew only when a parameter has changed: molecular dynamics asks many times."""
    parameters = list(model.parameters())
    kept = model.kept
    if kept is None or not kept[0].holds(parameters) or kept[1] != layout:
        with torch.no_grad():
            kept = (ParameterState(parameters), layout, _arrangement(model, layout))
        model.kept = kept
    return kept[2]

"""Energies and slopes of M3GNet as functions that autograd can take once more: one backward pass in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mdl_physpre.potentials.m3gnet_basis import Features
from mdl_physpre.potentials.m3gnet_sweeps import BLOCK_TENSORS, BlockParameters, Edges, Sweeps


def read_out(v: Tensor, parameters: Sequence[Tensor], scale: Tensor) -> Tensor:
    """Energies (n_atoms,) of the vectors: scale · g(v) σ(v), by weights and biases of g, then of σ."""
    half = len(parameters) // 2
    ends = []
    for layers in (parameters[:half], parameters[half:]):
        x = v
        for k in range(0, half, 2):
            x = functional.linear(functional.silu(x) if k else x, layers[k], layers[k + 1])
        ends.append(x[:, 0])
    return scale * ends[0] * torch.sigmoid(ends[1])


def energies_and_slopes(
    edges: Edges,
    features: Features,
    scale: Tensor,
    n_blocks: int,
    v: Tensor,
    parameters: Sequence[Tensor],
    slopes: bool,
) -> tuple[Tensor, Features | None]:
    """Energies (n_atoms,), and dE/d(features) if wanted.

    ``parameters``: the encoder, those of each block (:class:`BlockParameters`), those of :func:`read_out`.
    """
    sweeps, final = _sweeps(edges, features, n_blocks, parameters)
    last = sweeps.energies(v)
    if slopes:
        energies, v_bar = _read_out_and_slope(last, final, scale)
        found: Features | None = sweeps.adjoints(v_bar)
    else:
        energies, found = read_out(last, final, scale), None
    sweeps.release()
    return energies, found


def _sweeps(
    edges: Edges, features: Features, n_blocks: int, parameters: Sequence[Tensor]
) -> tuple[Sweeps, Sequence[Tensor]]:
    """The sweeps, and the parameters of the read-out."""
    split = 1 + BLOCK_TENSORS * n_blocks
    blocks = [BlockParameters.unpack(parameters[k : k + BLOCK_TENSORS]) for k in range(1, split, BLOCK_TENSORS)]
    return Sweeps(edges, features, parameters[0], blocks), parameters[split:]


def _read_out_and_slope(last: Tensor, final: Sequence[Tensor], scale: Tensor) -> tuple[Tensor, Tensor]:
    """Energies (n_atoms,) of the last vectors, and their derivatives in them."""
    with torch.enable_grad():
        last = last.detach().requires_grad_(True)
        energies = read_out(last, [p.detach() for p in final], scale)
        (slope,) = torch.autograd.grad(energies.sum(), last)
    return energies.detach(), slope


class EnergiesAndSlopes(torch.autograd.Function):
    """(E_i, dE/dg, dE/dc) as a function of the atoms' first vectors and the parameters, differentiable once."""

    @staticmethod
    def forward(
        ctx: Any, edges: Edges, features: Features, scale: Tensor, n_blocks: int, v: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.sweeps, final = _sweeps(edges, features, n_blocks, parameters)
        ctx.last, ctx.scale, ctx.n_final = ctx.sweeps.energies(v), scale, len(final)
        ctx.save_for_backward(*parameters)
        energies, v_bar = _read_out_and_slope(ctx.last, final, scale)
        return energies, *ctx.sweeps.adjoints(v_bar)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, seed: Tensor, radial_dot: Tensor, three_body_dot: Tensor) -> tuple[Any, ...]:
        sweeps, dot = ctx.sweeps, Features(radial_dot.contiguous(), three_body_dot.contiguous())
        if sweeps is None:
            raise RuntimeError("the backward pass through an M3GNet can be taken once only")
        v_dot = sweeps.tangents(dot)
        with torch.enable_grad():
            last = ctx.last.detach().requires_grad_(True)
            final = [p.detach().requires_grad_(True) for p in ctx.saved_tensors[-ctx.n_final :]]
            energies = read_out(last, final, ctx.scale)
            (v_bar,) = torch.autograd.grad(energies.sum(), last, create_graph=True)
            objective = (seed * energies).sum() + (v_bar * v_dot).sum()
            v_bar_dot, *final_gradients = torch.autograd.grad(objective, [last, *final])
        v, encoder, blocks = sweeps.gradients(dot, v_bar_dot)
        sweeps.release()
        ctx.sweeps = None
        return (None, None, None, None, v, encoder, *(t for g in blocks for t in g.pack()), *final_gradients)


class Pull(torch.autograd.Function):
    """dE/dr_ij (n_edges, 3) from dE/d(features), differentiable in the latter.

    ``vectors`` and ``features`` are the two ends of the graph of derivatives between them.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, features: Features, radial_bar: Tensor, three_body_bar: Tensor) -> Tensor:
        with torch.enable_grad():
            ctx.slopes = [s.detach().requires_grad_(True) for s in (radial_bar, three_body_bar)]
            (ctx.pull,) = torch.autograd.grad(features, vectors, ctx.slopes, create_graph=True)
        return ctx.pull.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, seed: Tensor) -> tuple[Any, ...]:
        return (None, None, *torch.autograd.grad(ctx.pull, ctx.slopes, seed))

"""A batch in parts, each computed again when its gradient is wanted: memory is that of one part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mdl_physpre.structures.graph import AtomGraph, batch_by_edges

EDGES_AT_A_TIME = {"cpu": 2_000}
"""Edges of a part by type of device: on a processor, what stays in its cache; elsewhere enough to keep it busy."""

Computation = Callable[[bool], tuple[Tensor, Tensor]]
"""Two results, which depend on parameters, from whether they are to be differentiable."""


def parts_of(graph: AtomGraph, centre: Tensor) -> list[tuple[slice, slice]]:
    """Atoms and edges of consecutive whole structures; ``centre`` (E,) is sorted. A large structure is a part alone."""
    limit = EDGES_AT_A_TIME.get(centre.device.type, 50_000)
    last_atom = graph.n_atoms.cumsum(0)
    last_edge = torch.searchsorted(centre, last_atom).tolist()
    first_edge, first_atom = [0, *last_edge[:-1]], [0, *last_atom.tolist()[:-1]]
    counts = [stop - start for start, stop in zip(first_edge, last_edge)]
    return [
        (slice(first_atom[run[0]], int(last_atom[run[-1]])), slice(first_edge[run[0]], last_edge[run[-1]]))
        for run in batch_by_edges(counts, limit)
    ]


def recomputed(compute: Computation, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """``compute(True)``, with nothing kept for its gradient in the parameters: that computes everything again."""
    return _Recomputed.apply(compute, *parameters)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Computation, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        ctx.compute = compute
        ctx.save_for_backward(*parameters)
        return compute(False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *adjoints: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [k for k, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        with torch.enable_grad():
            # slopes of no edges depend on nothing
            pairs = [(r, a) for r, a in zip(ctx.compute(True), adjoints) if r.requires_grad]
        results, seeds = zip(*pairs)
        gradients = torch.autograd.grad(results, [ctx.saved_tensors[k] for k in wanted], seeds, allow_unused=True)
        found: list[Tensor | None] = [None] * len(ctx.saved_tensors)
        for k, gradient in zip(wanted, gradients):
            found[k] = gradient
        return (None, *found)

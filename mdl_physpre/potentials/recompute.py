"""A batch in parts, each computed again when its gradient is wanted: memory is that of one part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mdl_physpre.structures.graph import AtomGraph, batch_by_edges

Computation = Callable[[bool], tuple[Tensor, ...]]
"""Results, which depend on parameters, from whether they are to be differentiable."""


def parts_of(graph: AtomGraph, max_edges: int) -> Iterator[AtomGraph]:
    """Graphs of consecutive whole structures with at most ``max_edges`` edges; a larger structure is a part alone.

    The edges of the graph are sorted by their centre.
    """
    last_atom = graph.n_atoms.cumsum(0)
    last_edge = torch.searchsorted(graph.edge_index[0].contiguous(), last_atom).tolist()
    first_edge, first_atom = [0, *last_edge[:-1]], [0, *last_atom.tolist()[:-1]]
    last_atom = last_atom.tolist()
    counts = [stop - start for start, stop in zip(first_edge, last_edge)]
    for run in batch_by_edges(counts, max_edges):
        structures = slice(run[0], run[-1] + 1)
        atoms, edges = slice(first_atom[run[0]], last_atom[run[-1]]), slice(first_edge[run[0]], last_edge[run[-1]])
        yield AtomGraph.from_tensors(
            pos=graph.pos[atoms],
            z=graph.z[atoms],
            cell=graph.cell[structures],
            pbc=graph.pbc[structures],
            n_atoms=graph.n_atoms[structures],
            batch=graph.batch[atoms] - run[0],
            edge_index=graph.edge_index[:, edges] - atoms.start,
            cell_offsets=graph.cell_offsets[edges],
        )


def recomputed(compute: Computation, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """``compute(True)``, with nothing kept for its gradient in the parameters: that computes everything again."""
    return _Recomputed.apply(compute, *parameters)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Computation, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.compute = compute
        ctx.save_for_backward(*parameters)
        return compute(False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *adjoints: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            # slopes of no edges depend on nothing
            pairs = [(r, a) for r, a in zip(ctx.compute(True), adjoints) if r.requires_grad]
        results, seeds = zip(*pairs)
        return None, *torch.autograd.grad(results, ctx.saved_tensors, seeds, allow_unused=True)

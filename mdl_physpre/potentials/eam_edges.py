"""The sums over edges of the embedded-atom potential as an operator in C, compiled on first use.

    pair_sums    Σ_j φ(r_ij) and Σ_j ρ(r_ij) of each atom, with the radial functions on a table
    by_geometry  from their adjoints those of positions and cells

It has no gradient in the parameters: where that is wanted, and without a compiler, with ``MDL_PHYSPRE_NATIVE=0`` and on
other devices than the processor, tensor operations do the same (:mod:`mdl_physpre.potentials.eam`).
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdl_physpre.potentials.native import can_use_c, compiled, is_sorted, limits, ranges_of_atoms, run_ranges
from mdl_physpre.potentials.radial_functions import RadialTable
from mdl_physpre.structures.graph import AtomGraph

SOURCE = Path(__file__).with_name("eam_native.c")
DTYPES = {torch.float32: "float", torch.float64: "double"}


@lru_cache(maxsize=4)
def library(real: str) -> ctypes.CDLL | None:
    """The compiled functions in precision ``real`` (``float`` or ``double``), or None where they cannot be had."""
    return compiled(SOURCE, real, ("terms", "by_geometry"), "the embedded-atom potential")


def available_for(graph: AtomGraph) -> bool:
    """Whether the operator can be had for a batch: in its precision, on its device, for the order of its edges."""
    if not can_use_c(graph.pos, DTYPES) or library(DTYPES[graph.pos.dtype]) is None:
        return False
    return is_sorted(graph.edge_index[0])


class _Edges(ctypes.Structure):
    """edges_t of eam_native.c."""

    _fields_ = [
        ("n_elements", ctypes.c_int64), ("intervals", ctypes.c_int64), ("scale", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in (
            "start", "neighbour", "batch", "element", "pair_of", "position", "cell", "offset", "table",
            "vector", "distance", "phi_slope", "rho_slope", "phi", "rho")),
    ]  # fmt: skip


def _run(name: str, tensors: dict[str, Tensor], scale: float, intervals: int, more: Any) -> None:
    """Call the C function for each range of atoms with the tensors ``more(thread, threads)`` besides."""
    held = {key: tensor.contiguous() for key, tensor in tensors.items()}
    n_elements = round(len(held["pair_of"]) ** 0.5)
    pointers = {key: tensor.data_ptr() for key, tensor in held.items()}
    edges = _Edges(n_elements=n_elements, intervals=intervals, scale=scale, **pointers)
    ranges, found = ranges_of_atoms(held["start"]), library(DTYPES[held["table"].dtype])
    given = more(len(ranges))
    run_ranges(getattr(found, name), ranges, lambda k: [ctypes.byref(edges), *limits(ranges[k]), *given(k)])


@torch.library.custom_op("mdl_physpre::eam_pair_sums", mutates_args=(), device_types="cpu")
def pair_sums(
    position: Tensor, cell: Tensor, offset: Tensor, start: Tensor, neighbour: Tensor, batch: Tensor, element: Tensor,
    pair_of: Tensor, table: Tensor, scale: float, intervals: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Σ_j φ and Σ_j ρ of each atom (N,), and what the derivative needs of the edges, (6, E).

    Parameters
    ----------
    position, cell, offset : as in a graph. start : first edge of each atom, (N + 1,). neighbour : (E,). batch : (N,).
    element, pair_of : place of each atom's element (N,), and the pair of two such, (n_elements²,).
    table, scale, intervals : of :class:`~mdl_physpre.potentials.radial_functions.RadialTable`.
    """
    scratch = position.new_empty(6, len(neighbour))  # vectors take three rows
    phi, rho = position.new_empty(2, len(element)).unbind()
    tensors = dict(
        start=start, neighbour=neighbour, batch=batch, element=element, pair_of=pair_of, position=position, cell=cell,
        offset=offset, table=table, phi=phi, rho=rho, **_of_edges(scratch),
    )  # fmt: skip
    _run("terms", tensors, scale, intervals, lambda threads: lambda _: [])
    return phi.clone(), rho.clone(), scratch


def _of_edges(scratch: Tensor) -> dict[str, Tensor]:
    distance, phi_slope, rho_slope = scratch[3:]
    return {"vector": scratch, "distance": distance, "phi_slope": phi_slope, "rho_slope": rho_slope}


@torch.library.custom_op("mdl_physpre::eam_pair_sums_by_geometry", mutates_args=(), device_types="cpu")
def by_geometry(
    of_phi: Tensor, of_rho: Tensor, scratch: Tensor, position: Tensor, cell: Tensor, offset: Tensor, start: Tensor,
    neighbour: Tensor, batch: Tensor, element: Tensor, pair_of: Tensor, table: Tensor, scale: float, intervals: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients in positions (N, 3) and cells (B, 3, 3)."""
    by_position, totals = torch.empty_like(position), []
    tensors = dict(
        start=start, neighbour=neighbour, batch=batch, pair_of=pair_of, offset=offset, table=table,
        **_of_edges(scratch),
    )  # fmt: skip
    adjoints = [of_phi.contiguous(), of_rho.contiguous()]

    def arguments(threads: int) -> Any:
        by_cell = cell.new_zeros(threads, *cell.shape, dtype=torch.float64)
        totals.append(by_cell)
        return lambda k: [*adjoints, by_position, by_cell[k]]

    _run("by_geometry", tensors, scale, intervals, arguments)
    return by_position, totals[0].sum(0).to(cell.dtype)


def _keep(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.scale, ctx.intervals = inputs
    ctx.save_for_backward(output[2], *tensors)
    ctx.mark_non_differentiable(output[2])


def _backward(ctx: Any, of_phi: Tensor, of_rho: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    return *by_geometry(of_phi, of_rho, *ctx.saved_tensors, ctx.scale, ctx.intervals), *[None] * 9


pair_sums.register_autograd(_backward, setup_context=_keep)


@pair_sums.register_fake
def _(position: Tensor, cell: Tensor, offset: Tensor, start: Tensor, neighbour: Tensor, *rest: Any) -> Any:
    atoms = position.new_empty(len(position))
    return atoms, torch.empty_like(atoms), position.new_empty(6, len(neighbour))


@by_geometry.register_fake
def _(of_phi: Tensor, of_rho: Tensor, scratch: Tensor, position: Tensor, cell: Tensor, *rest: Any) -> Any:
    return torch.empty_like(position), torch.empty_like(cell)


def sums_of(graph: AtomGraph, element: Tensor, pair_of: Tensor, table: RadialTable) -> tuple[Tensor, Tensor]:
    """Σ_j φ and Σ_j ρ of each atom of a batch, (N,), differentiable once in positions and cells."""
    centre, neighbour = graph.edge_index.to(torch.int64)
    start = torch.searchsorted(centre.contiguous(), torch.arange(len(graph.z) + 1))
    phi, rho, _ = pair_sums(
        graph.pos, graph.cell.to(graph.pos.dtype), graph.cell_offsets.to(graph.pos.dtype), start, neighbour,
        graph.batch.to(torch.int64), element, pair_of, table.coefficients, table.scale, table.intervals,
    )  # fmt: skip
    return phi, rho

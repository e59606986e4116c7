"""The sums over edges of the embedded-atom potential as an operator in C, compiled on first use.

    pair_sums    Σ_j φ(r_ij) and Σ_j ρ(r_ij) of each atom, with the radial functions on a table
    by_geometry  from their adjoints those of positions and cells

It has no gradient in the parameters: where that is wanted, and without a compiler, with ``MDL_PHYSPRE_NATIVE=0`` and on
other devices than the processor, tensor operations do the same (:mod:`mdl_physpre.potentials.eam.potential`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdl_physpre.potentials.eam.radial import RadialTable
from mdl_physpre.potentials.kernels.c_code import Call, CCode, is_sorted, structure
from mdl_physpre.potentials.kernels.edge_op import arguments_of, operator, register_gradients
from mdl_physpre.structures.graph import AtomGraph

CODE = CCode(
    Path(__file__).with_name("operators.c"),
    {torch.float32: "float", torch.float64: "double"},
    "the embedded-atom potential",
)
EDGES = structure(
    "n_elements intervals",
    "start neighbour batch element pair_of position cell offset table vector distance phi_slope rho_slope phi rho",
    doubles="scale",
)


def available_for(graph: AtomGraph) -> bool:
    """Whether the operator can be had for a batch: in its precision, on its device, for the order of its edges."""
    return CODE.library_for(graph.pos) is not None and is_sorted(graph.edge_index[0])


class Edges(NamedTuple):
    """What the operators take of a batch."""

    position: Tensor  # as in a graph, like cell and offset
    cell: Tensor
    offset: Tensor
    start: Tensor  # (N + 1,), first edge of each atom
    neighbour: Tensor  # (E,)
    batch: Tensor  # (N,)
    element: Tensor  # (N,), place of each atom's element
    pair_of: Tensor  # (n_elements²,), the pair of two such
    table: Tensor  # as scale and intervals: of RadialTable
    scale: float
    intervals: int

    def call(self, scratch: Tensor) -> Call:
        """These as the C functions take them; ``scratch`` (6, E) is what the derivative needs of the edges."""
        distance, phi_slope, rho_slope = scratch[3:]  # vectors take three rows
        return Call(CODE, EDGES, self, n_elements=round(len(self.pair_of) ** 0.5), vector=scratch, distance=distance,
                    phi_slope=phi_slope, rho_slope=rho_slope)  # fmt: skip


ARGUMENTS = arguments_of(Edges)


@operator("eam_pair_sums", ARGUMENTS, results=3)
def pair_sums(*edges: Any) -> tuple[Tensor, ...]:
    """Σ_j φ and Σ_j ρ of each atom (N,), and what the derivative needs of the edges, (6, E), of :class:`Edges`."""
    given = Edges(*edges)
    phi, rho, scratch = _results(*edges)
    given.call(scratch).run("terms", phi=phi, rho=rho)
    return phi, rho, scratch


FROM = "Tensor of_phi, Tensor of_rho, Tensor scratch"


@operator("eam_pair_sums_by_geometry", f"{FROM}, {ARGUMENTS}", like=("position", "cell"))
def by_geometry(of_phi: Tensor, of_rho: Tensor, scratch: Tensor, *edges: Any) -> tuple[Tensor, ...]:
    """Gradients in positions (N, 3) and cells (B, 3, 3)."""
    given = Edges(*edges)
    call = given.call(scratch)
    position, cell = scratch.new_empty(given.position.shape), call.sums(given.cell, torch.float64)
    call.run("by_geometry", of_phi, of_rho, position, cell)
    return position, cell.total().to(position.dtype)


def _results(position: Tensor, cell: Tensor, offset: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return position.new_empty(len(position)), position.new_empty(len(position)), position.new_empty(6, len(offset))


register_gradients(pair_sums, by_geometry, kept=(2,))
pair_sums.register_fake(_results)


def sums_of(graph: AtomGraph, element: Tensor, pair_of: Tensor, table: RadialTable) -> tuple[Tensor, Tensor]:
    """Σ_j φ and Σ_j ρ of each atom of a batch, (N,), differentiable once in positions and cells."""
    centre, neighbour = graph.edge_index.to(torch.int64)
    start = torch.searchsorted(centre.contiguous(), torch.arange(len(graph.z) + 1))
    phi, rho, _ = pair_sums(
        graph.pos, graph.cell.to(graph.pos.dtype), graph.cell_offsets.to(graph.pos.dtype), start, neighbour,
        graph.batch.to(torch.int64), element, pair_of, table.coefficients, table.scale, table.intervals,
    )  # fmt: skip
    return phi, rho

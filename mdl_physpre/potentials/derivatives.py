"""The one place where forces and stress come from: derivatives of the energy in positions and strain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mdl_physpre.potentials.kernels.edge_op import derivatives_in_geometry, energies_for_derivatives
from mdl_physpre.structures.graph import AtomGraph


def sum_by_structure(values: Tensor, graph: AtomGraph) -> Tensor:
    """Sum of atomic values over each structure, (n_structures, …), in float64: total energies are large."""
    out = torch.zeros((graph.n_atoms.shape[0], *values.shape[1:]), dtype=torch.float64, device=values.device)
    return out.index_add(0, graph.batch, values.to(torch.float64))


def volumes(cell: Tensor) -> Tensor:
    """|a · (b × c)| of cells (n_structures, 3, 3), (n_structures,) Å³; 0 where there is no cell."""
    a, b, c = cell.unbind(1)
    return (a * torch.linalg.cross(b, c)).sum(1).abs()


def stress_of(virial: Tensor, volume: Tensor) -> Tensor:
    """σ = (W + Wᵀ) / 2V, eV/Å³, of virials W = dE/dε (n_structures, 3, 3), eV, and volumes V (n_structures,), Å³.

    NaN where the volume is 0, put in so that it does not spread to the gradients of other structures. The map of W is
    linear and its own adjoint: of dL/dσ it makes dL/dW.
    """
    volume = volume[:, None, None]
    known = volume > 0
    return torch.where(known, 0.5 * (virial + virial.transpose(1, 2)) / torch.where(known, volume, 1.0), torch.nan)


def derivatives(
    atomic_energies: Callable[[AtomGraph], Tensor], graph: AtomGraph, forces: bool, stress: bool, create_graph: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Energies, and forces and stress where they are wanted, of energies of atoms; see ``evaluate`` for units.

    With ``create_graph`` they are differentiable in the parameters.
    """

    def energies_at(positions: Tensor, strain: Tensor | None) -> Tensor:
        moved = graph.from_tensors(graph, pos=positions)
        if strain is not None:  # zero, so that what it multiplies may be taken for constant
            of_atoms = strain.index_select(0, graph.batch)
            moved.pos = positions + (graph.pos[:, :, None] * of_atoms).sum(1)
            moved.cell = graph.cell + graph.cell @ strain
        return sum_by_structure(atomic_energies(moved), graph)

    if not (forces or stress):
        with torch.set_grad_enabled(create_graph), energies_for_derivatives(create_graph):
            return energies_at(graph.pos, None), None, None
    arguments = (graph.pos.detach(), torch.zeros_like(graph.cell) if stress else None)
    energies, slopes = _energies_and_slopes(energies_at, arguments, create_graph)
    return energies, -slopes[0] if forces else None, stress_of(slopes[1], volumes(graph.cell)) if stress else None


def _energies_and_slopes(energies_at: Any, arguments: tuple[Any, ...], create_graph: bool) -> tuple[Tensor, Any]:
    """E(x) (n_structures,) and d ΣE/dx for each argument that is not ``None``."""
    wanted = [a for a in arguments if a is not None]
    if torch.compiler.is_compiling():  # where autograd.grad cannot be traced
        energies, pull_back = torch.func.vjp(  # type: ignore[misc]
            lambda *some: energies_at(*some, *arguments[len(some) :]), *wanted
        )
        return energies, pull_back(torch.ones_like(energies))
    with torch.enable_grad():
        for a in wanted:
            a.requires_grad_(True)
        with energies_for_derivatives(create_graph):
            energies = energies_at(*arguments)
        if not energies.requires_grad:  # no edges and no parameters: the energy depends on nothing
            return energies, [torch.zeros_like(a) for a in wanted]
        with derivatives_in_geometry():
            slopes = torch.autograd.grad(energies.sum(), wanted, create_graph=create_graph, materialize_grads=True)
    return energies if create_graph else energies.detach(), slopes

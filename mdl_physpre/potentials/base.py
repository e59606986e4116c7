"""The contract of a potential, and the one place where forces and stress come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from mdl_physpre.errors import CheckpointError, DataError
from mdl_physpre.structures.graph import AtomGraph


@dataclass
class Predictions:
    """Energies (n_structures,) eV, summed in float64; forces (n_atoms, 3) eV/Å; stress (n_structures, 3, 3) eV/Å³."""

    energies: Tensor
    forces: Tensor | None = None
    stress: Tensor | None = None


class Potential(nn.Module, ABC):
    """Anything that gives atomic energies on an :class:`AtomGraph`, differentiable in positions and cell.

    Attributes
    ----------
    cutoff : Å; the graph must hold every edge within it.
    elements : atomic numbers that the potential knows, or ``None`` for any.
    gives_stress : False for a potential that has no stress; asking it for one is then a DataError.
    concurrent : whether several threads are to evaluate it at the same time in dynamics on the CPU: where that is
        safe, and where most of its work is done outside Python, which only one thread at a time can be in.

    A subclass may also define ``predictions(graph, forces, stress) -> Predictions`` (derivatives by hand, no graph for
    training) and ``differentiable_predictions(graph, forces, stress) -> Predictions`` (derivatives by hand that
    backpropagate to the parameters). :func:`evaluate` uses them where they exist.
    """

    cutoff: float
    elements: tuple[int, ...] | None = None
    gives_stress: bool = True
    concurrent: bool = False

    @abstractmethod
    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        """Energy of each atom, (n_atoms,), eV; their sum is the total energy, reference energies included."""

    def shift_reference(self, energies: Tensor) -> bool:
        """Add ``energies`` (119,), eV by atomic number, to the reference energy of each element.

        Returns whether that was done: not by a potential without reference energies.
        """
        reference = getattr(self, "reference", None)
        if reference is None:
            return False
        reference.energies.add_(energies.to(reference.energies))
        return True

    def hyperparameters(self) -> dict[str, Any]:
        """Plain values from which the class builds the same architecture again."""
        raise CheckpointError(f"{type(self).__name__} cannot be saved: it does not define hyperparameters()")


def edge_vectors(graph: AtomGraph) -> Tensor:
    """r_ij = r_j + S·cell − r_i for each edge, (n_edges, 3), Å."""
    i, j = graph.edge_index[0], graph.edge_index[1]
    if graph.cell.shape[0] == 1:
        shift = graph.cell_offsets @ graph.cell[0]
    else:
        cells = graph.cell.index_select(0, graph.batch.index_select(0, i))
        shift = torch.einsum("ek,ekx->ex", graph.cell_offsets, cells)
    return graph.pos.index_select(0, j) - graph.pos.index_select(0, i) + shift


def sum_by_structure(values: Tensor, graph: AtomGraph) -> Tensor:
    """Sum of atomic values over each structure, (n_structures, …), in float64: total energies are large."""
    out = torch.zeros((graph.n_atoms.shape[0], *values.shape[1:]), dtype=torch.float64, device=values.device)
    return out.index_add(0, graph.batch, values.to(torch.float64))


def volumes(graph: AtomGraph) -> Tensor:
    """|det cell| of each structure, (n_structures,), Å³; NaN where there is no cell."""
    volume = torch.linalg.det(graph.cell).abs()
    return torch.where(volume > 0, volume, torch.full_like(volume, torch.nan))


def check_elements(potential: Potential, graph: AtomGraph) -> None:
    """Raise DataError, naming them, where the graph holds elements that the potential does not know."""
    if potential.elements is None:
        return
    known = torch.zeros(len(chemical_symbols), dtype=torch.bool, device=graph.z.device)
    known[list(potential.elements)] = True
    if not bool(known[graph.z].all()):
        strange = sorted({chemical_symbols[int(z)] for z in graph.z[~known[graph.z]]})
        have = ", ".join(chemical_symbols[z] for z in potential.elements)
        raise DataError(
            f"the structure holds {', '.join(strange)}, which this potential does not know (it knows {have}); "
            "leave such structures out, or train a potential on data that contain the element"
        )


def evaluate(
    potential: Potential, graph: AtomGraph, *, forces: bool = True, stress: bool = True, create_graph: bool = False
) -> Predictions:
    """Energy, forces and stress of a batch of structures.

    F_i = −dE/dr_i;  σ = (1/V) dE/dε for the symmetric strain ε that maps r to r(1+ε) and the cell to cell(1+ε).

    Parameters
    ----------
    potential : a :class:`Potential`.
    graph : the batch, with all edges within ``potential.cutoff``.
    forces, stress : whether to compute them.
    create_graph : keep the derivatives differentiable, for training on forces and stress.

    Returns
    -------
    Predictions : energies (n_structures,) eV, float64; forces (n_atoms, 3) eV/Å; stress (n_structures, 3, 3) eV/Å³,
        tension positive, NaN for a structure without a cell.

    Raises
    ------
    DataError : an element that the potential does not know.
    """
    check_elements(potential, graph)
    by_hand = getattr(potential, "differentiable_predictions" if create_graph else "predictions", None)
    if by_hand is not None:
        return by_hand(graph, forces, stress)
    if not (forces or stress):
        with torch.set_grad_enabled(create_graph):
            return Predictions(sum_by_structure(potential.atomic_energies(graph), graph))
    with torch.enable_grad():
        positions = graph.pos.detach().requires_grad_(True)
        wanted = [positions] if forces else []
        strained = AtomGraph.from_tensors(graph, pos=positions)
        if stress:
            strain = torch.zeros_like(graph.cell).requires_grad_(True)
            deformation = 0.5 * (strain + strain.transpose(1, 2))
            moved = torch.einsum("nx,nxy->ny", positions, deformation.index_select(0, graph.batch))
            strained.pos = positions + moved
            strained.cell = graph.cell + graph.cell @ deformation
            wanted.append(strain)
        energies = sum_by_structure(potential.atomic_energies(strained), graph)
        if energies.requires_grad:
            gradients = torch.autograd.grad(energies.sum(), wanted, create_graph=create_graph, materialize_grads=True)
        else:  # no edges and no parameters: the energy depends on nothing
            gradients = tuple(torch.zeros_like(w) for w in wanted)
        result = Predictions(energies if create_graph else energies.detach())
        if forces:
            result.forces = -gradients[0]
        if stress:
            volume = volumes(graph)[:, None, None]
            # NaN where there is no cell, put in so that it does not spread to the gradients of the others
            result.stress = torch.where(volume.isnan(), torch.nan, gradients[-1] / volume.nan_to_num(1.0))
    return result

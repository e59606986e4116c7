"""Energies, forces and stress of a batch of structures, from any potential."""

from __future__ import annotations

import torch
from torch import Tensor

from mdl_physpre.errors import DataError
from mdl_physpre.potentials.base import AtomicPotential, Potential, Predictions, check_elements
from mdl_physpre.potentials.recompute import parts_of, recomputed
from mdl_physpre.structures.graph import AtomGraph


def evaluate(
    potential: Potential,
    graph: AtomGraph,
    *,
    forces: bool = True,
    stress: bool = True,
    create_graph: bool = False,
    recompute_edges: int | None = None,
) -> Predictions:
    """Energy, forces and stress of a batch of structures.

    F_i = −dE/dr_i;  σ = (1/V) dE/dε for the symmetric strain ε that maps r to r(1+ε) and the cell to cell(1+ε).

    Parameters
    ----------
    potential : a :class:`Potential`.
    graph : the batch, with all edges within ``potential.cutoff``.
    forces, stress : whether to compute them.
    create_graph : keep the results differentiable in the parameters, for training.
    recompute_edges : with ``create_graph``, work on whole structures of at most so many edges at a time, and compute
        them again when their gradient is wanted: more work, and memory for one part alone.

    Returns
    -------
    Predictions : energies (n_structures,) eV, float64; forces (n_atoms, 3) eV/Å; stress (n_structures, 3, 3) eV/Å³,
        tension positive, NaN for a structure without a cell.

    Raises
    ------
    DataError : an element that the potential does not know; ``create_graph`` of a potential that only predicts.
    """
    check_elements(potential, graph)
    if not create_graph:
        return potential.predictions(graph, forces, stress)
    if not isinstance(potential, AtomicPotential):
        raise DataError(
            f"{type(potential).__name__} only predicts: it has no energies of atoms that can be differentiated, so it "
            "cannot be trained, and evaluate(…, create_graph=True) does not work with it"
        )
    if recompute_edges is None:
        return potential.derivatives(graph, forces, stress, create_graph=True)
    parameters = [p for p in potential.parameters() if p.requires_grad]
    kind, found = graph.pos.device.type, []
    rounded, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    for part in parts_of(graph, recompute_edges):

        def compute(differentiable: bool, part: AtomGraph = part) -> tuple[Tensor, ...]:
            with torch.autocast(kind, dtype, rounded):  # also where it is done again, outside of the caller's context
                one = potential.derivatives(part, forces, stress, create_graph=differentiable)
            return tuple(t for t in (one.energies, one.forces, one.stress) if t is not None)

        found.append(iter(recomputed(compute, parameters)))
    energies, *rest = (torch.cat(parts) for parts in zip(*found))
    return Predictions(energies, rest.pop(0) if forces else None, rest.pop(0) if stress else None)

"""Structures as graphs with MatterTune's labels, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from torch import Tensor

from mdl_physpre.errors import DataError
from mdl_physpre.potentials.base import Potential, check_elements
from mdl_physpre.structures.graph import AtomGraph, build_graph
from mdl_physpre.structures.labels import as_stress_matrix

NUMBER_OF_ELEMENTS = 119
"""As many as the host's compositions have columns, hydrogen first."""


def checked_data(atoms: Atoms, potential: Potential) -> AtomGraph:
    """The graph of a structure, in double precision. Raises DataError for an element that the potential has not."""
    graph = build_graph(atoms, potential.cutoff, dtype=torch.float64)
    try:
        check_elements(potential, graph)
    except DataError as error:
        raise DataError(f"{_told(atoms)}: {error}") from None
    return graph


def host_labels(atoms: Atoms, properties: Sequence[Any]) -> list[Tensor]:
    """The label of each property: energy (1,) eV, forces (n_atoms, 3) eV/Å, stress (1, 3, 3) eV/Å³, in float64.

    Raises DataError for one that is missing, not finite, or has another number of atoms: the host has no place for
    missing labels.
    """
    return [_label(atoms, prop) for prop in properties]


def _label(atoms: Atoms, prop: Any) -> Tensor:
    try:
        value = np.asarray(prop.from_ase_atoms(atoms), dtype=float)
    except (PropertyNotImplementedError, RuntimeError, KeyError) as error:
        raise DataError(
            f"{_told(atoms)}: has no label for {prop.name!r} ({prop.type}): {' '.join(str(error).split())}. MatterTune "
            "has no place for missing labels: leave the structure or the property out. Labels have to be results of an "
            "ASE calculator (energy, forces, stress in extended XYZ)"
        ) from None
    if prop.type == "stresses":
        if not atoms.cell.rank == 3:
            raise DataError(f"{_told(atoms)}: has no full cell and so no stress; leave it out, or the property")
        value = as_stress_matrix(value)[None]
    elif prop.type == "energy":
        value = value.reshape(1)
    if not np.isfinite(value).all():
        raise DataError(f"{_told(atoms)}: its label for {prop.name!r} is not finite; leave the structure out")
    return torch.from_numpy(np.array(value))


def _told(atoms: Atoms) -> str:
    name = atoms.info.get("structure_id") or atoms.info.get("material_id")
    return f"structure {atoms.get_chemical_formula()}" + (f" ({name})" if name is not None else "")


def collate(graphs: Sequence[AtomGraph]) -> AtomGraph:
    """One graph of several: indices of edges count on, everything else is put one after another."""
    counts = [len(graph.z) for graph in graphs]
    starts = np.cumsum([0, *counts[:-1]])
    fields = {}
    for key in graphs[0].keys():  # noqa: SIM118 - a graph is no dictionary
        if key not in ("edge_index", "batch"):
            fields[key] = torch.cat([graph[key] for graph in graphs])
    fields["edge_index"] = torch.cat([graph.edge_index + int(s) for graph, s in zip(graphs, starts)], dim=1)
    fields["batch"] = torch.repeat_interleave(torch.arange(len(graphs)), torch.tensor(counts))
    return AtomGraph.from_tensors(None, **fields).with_elements(fields["z"].numpy())


def normalization_counts(graph: AtomGraph) -> Tensor:
    """Atoms of each element in each structure, (B, 119), hydrogen first."""
    counts = graph.z.new_zeros(len(graph.n_atoms), NUMBER_OF_ELEMENTS + 1)
    counts.index_put_((graph.batch, graph.z), torch.ones_like(graph.z), accumulate=True)
    return counts[:, 1:]

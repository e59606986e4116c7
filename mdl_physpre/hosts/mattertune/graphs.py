"""Structures as graphs with MatterTune's labels, and batches of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
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

logger = logging.getLogger(__name__)

NUMBER_OF_ELEMENTS = 119
"""As many as the host's compositions have columns, hydrogen first."""


def say_what_lacks(structures: Sequence[Atoms], properties: Sequence[Any]) -> None:
    """Warn of training structures without a label."""
    for prop in properties:
        lacking = sum(bool(_label(atoms, prop).isnan().all()) for atoms in structures)
        if lacking:
            logger.warning(
                "%d of %d training structures have no label for %r, whose loss is that of the others",
                lacking, len(structures), prop.name,
            )  # fmt: skip


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

    One that is missing is NaN. Raises DataError where all are, and for one that is not finite.
    """
    found = [_label(atoms, prop) for prop in properties]
    if all(label.isnan().all() for label in found):
        raise DataError(
            f"{_told(atoms)}: has no label for {', '.join(repr(p.name) for p in properties)}; leave it out. Labels "
            "have to be results of an ASE calculator (energy, forces, stress in extended XYZ)"
        )
    return found


def labelled(
    predictions: Mapping[str, Tensor], labels: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Predictions and labels by the properties' names, of those structures or atoms that have the label."""
    kept = {name: label.isfinite().reshape(len(label), -1).all(1) for name, label in labels.items()}
    return (
        {name: value[kept[name]] if name in kept else value for name, value in predictions.items()},
        {name: label[kept[name]] for name, label in labels.items()},
    )


def _label(atoms: Atoms, prop: Any) -> Tensor:
    try:
        value = np.asarray(prop.from_ase_atoms(atoms), dtype=float)
    except (PropertyNotImplementedError, RuntimeError, KeyError):
        shapes = {"energy": (1,), "forces": (len(atoms), 3), "stresses": (1, 3, 3)}
        return torch.full(shapes[prop.type], np.nan, dtype=torch.float64)
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

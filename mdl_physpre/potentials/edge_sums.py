"""Edge vectors and virials of a batch, structure by structure: on a CPU faster than edge by edge."""
from __future__ import annotations

import torch
from torch import Tensor

from mdl_physpre.potentials.base import edge_vectors
from mdl_physpre.structures.graph import AtomGraph


def last_edges(graph: AtomGraph) -> list[int] | None:
    """Last edge + 1 of each structure, whose edges stand together; None on a GPU, where such a loop is slow."""
    if graph.pos.device.type != "cpu":
        return None
    return torch.searchsorted(graph.edge_index[0], graph.n_atoms.cumsum(0)).tolist()


def fixed_edge_vectors(graph: AtomGraph, ends: list[int] | None) -> Tensor:
    """As :func:`edge_vectors`, without derivatives: a product for each structure in place of one for each edge."""
    if ends is None:
        return edge_vectors(graph).detach()
    (i, j), pos = graph.edge_index, graph.pos.detach()
    vectors = pos.index_select(0, j).sub_(pos.index_select(0, i))
    start = 0
    for cell, end in zip(graph.cell.detach(), ends):
        vectors[start:end].addmm_(graph.cell_offsets[start:end], cell)
        start = end
    return vectors


def virial_sums(vectors: Tensor, along: Tensor, graph: AtomGraph, ends: list[int] | None) -> Tensor:
    """Σ r_ij ⊗ g_ij over the edges of each structure, (n_structures, 3, 3), eV."""
    n_structures = graph.n_atoms.shape[0]
    if ends is not None:
        starts = [0, *ends[:-1]]
        products = [vectors[s:e].T @ along[s:e] for s, e in zip(starts, ends)]
        return torch.stack(products) if products else vectors.new_zeros((0, 3, 3))
    outer = vectors[:, :, None] * along[:, None, :]
    by_atom = vectors.new_zeros((graph.z.shape[0], 3, 3)).index_add(0, graph.edge_index[0], outer)
    return vectors.new_zeros((n_structures, 3, 3)).index_add(0, graph.batch, by_atom)

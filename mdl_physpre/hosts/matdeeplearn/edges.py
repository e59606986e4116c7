"""Complete edges for MatDeepLearn: every image within the cutoff, found once for each structure, and kept."""

from __future__ import annotations

from collections import OrderedDict
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.base import edge_vectors
from mdl_physpre.structures.graph import AtomGraph
from mdl_physpre.structures.neighbours import neighbour_list

CARRIED = ("complete_index", "complete_shifts", "complete_within")
"""What :class:`CompleteEdges` adds to a structure: (2, E), (E, 3), and a text with cutoff and atomic numbers."""
KEPT = 10_000_000  # edges that are kept, about 20 bytes each; those of the structures least recently used go first

Found = tuple[np.ndarray, np.ndarray]  # centre and neighbour (2, E), shifts (E, 3)


class EdgeFinder:
    """Edges of structures, periodic wherever there is a cell, those found already at once."""

    def __init__(self, cutoff: float) -> None:
        self.cutoff = float(cutoff)
        self._kept: OrderedDict[bytes, Found] = OrderedDict()
        self._count = 0

    def __call__(self, positions: np.ndarray, cell: np.ndarray) -> Found:
        """Edges of positions (N, 3) and a cell (3, 3), Å."""
        key = positions.tobytes() + cell.tobytes()
        found = self._kept.pop(key, None)
        if found is None:
            exact = positions.astype(float), cell.astype(float)
            i, j, shifts = neighbour_list(*exact, np.full(3, bool(cell.any())), self.cutoff)
            found = np.stack([i, j]).astype(np.int64), shifts.astype(np.int16)
            self._count += len(shifts)
        self._kept[key] = found
        while self._count > KEPT and len(self._kept) > 1:
            self._count -= len(self._kept.popitem(last=False)[1][1])
        return found


class CompleteEdges:
    """Let structures bring their complete edges to the network, found on the CPU and kept from epoch to epoch.

    In MatDeepLearn's section ``dataset``, after a transform that moves atoms::

        transforms:
          - {name: mdl_physpre.hosts.matdeeplearn.CompleteEdges, otf_transform: True, args: {cutoff: 6.0}}

    ``TwoStageTrainer`` adds it by itself. Without it, networks of this package find edges in every batch, and have to
    fetch the positions from the GPU for that.

    cutoff : Å, that of the network.
    """

    def __init__(self, cutoff: float) -> None:
        self.find = EdgeFinder(cutoff)

    def __call__(self, data: Any) -> Any:
        """The structure with its edges."""
        index, shifts = self.find(data.pos.detach().cpu().numpy(), data.cell.detach().cpu().numpy().reshape(3, 3))
        elements = " ".join(map(str, sorted(set(data.z.tolist()))))
        fields = torch.from_numpy(index), torch.from_numpy(shifts), f"{self.find.cutoff:.6g} {elements}"
        for name, value in zip(CARRIED, fields):
            data[name] = value
        return data

    def __repr__(self) -> str:
        return f"{type(self).__name__}(cutoff={self.find.cutoff:g})"


def complete_graph(data: Any, find: EdgeFinder) -> AtomGraph:
    """A batch of MatDeepLearn with complete edges: those that it carries, or else found from its positions.

    Raises ConfigError where it carries edges within another cutoff.
    """
    if getattr(data, CARRIED[0], None) is None:
        return graph_of(data, *_found_in(data, find))
    index, shifts, within = (data[name] for name in CARRIED)
    cutoffs, elements = zip(*(text.split(" ", 1) for text in within))
    if set(cutoffs) != {wanted := f"{find.cutoff:.6g}"}:
        raise ConfigError(
            f"dataset.transforms: CompleteEdges has a cutoff of {', '.join(sorted(set(cutoffs)))} Å, and the network "
            f"one of {wanted} Å (dataset.preprocess_params.cutoff_radius); give both the same"
        )
    numbers = {int(number) for text in set(elements) for number in text.split()}
    return graph_of(data, index, shifts).with_elements(np.array(sorted(numbers)))


def graph_of(data: Any, edge_index: Tensor, shifts: Tensor) -> AtomGraph:
    """A batch of MatDeepLearn as a graph of this package, with these edges, sorted by centre."""
    pos = data.pos.detach()
    return AtomGraph.from_tensors(
        None,
        pos=pos,
        cell=data.cell.detach(),
        z=data.z,
        n_atoms=data.n_atoms,
        batch=data.batch,
        edge_index=edge_index.to(pos.device),
        cell_offsets=shifts.to(pos),
    )


def _found_in(data: Any, find: EdgeFinder) -> tuple[Tensor, Tensor]:
    cells, positions = data.cell.detach().cpu().numpy(), data.pos.detach().cpu().numpy()
    start, indices, shifts = 0, [], []
    for cell, count in zip(cells, data.n_atoms.tolist()):
        index, shift = find(positions[start : start + count], cell)
        indices.append(index + start)
        shifts.append(shift)
        start += count
    return torch.from_numpy(np.concatenate(indices, axis=1)), torch.from_numpy(np.concatenate(shifts))


def give_complete_edges(model: Any, cutoff: float) -> None:
    """Let one of MatDeepLearn's own networks have complete, kept edges in place of those of its ``generate_graph``."""
    find = EdgeFinder(cutoff)

    def generate_graph(self: Any, data: Any, *_: Any) -> tuple[Tensor | None, ...]:
        graph = complete_graph(data, find)
        if self.gradient:  # stress is the derivative in the strain, which is zero
            data.displacement = torch.zeros_like(graph.cell).requires_grad_(True)
            strain = 0.5 * (data.displacement + data.displacement.transpose(1, 2))
            data.pos = graph.pos + torch.einsum("nk,nkx->nx", graph.pos.requires_grad_(True), strain[data.batch])
            data.cell = graph.cell + graph.cell @ strain
            graph = AtomGraph.from_tensors(graph, pos=data.pos, cell=data.cell)
        vectors = edge_vectors(graph)
        i = graph.edge_index[0]
        offsets = torch.einsum("ek,ekx->ex", graph.cell_offsets, graph.cell[graph.batch[i]])
        counts = torch.zeros_like(data.n_atoms).index_add_(0, data.batch[i], torch.ones_like(i))
        # MatDeepLearn's first row is the neighbour, its second the centre
        return graph.edge_index.flip(0), vectors.norm(dim=1), vectors, graph.cell_offsets, offsets, counts

    model.generate_graph = MethodType(generate_graph, model)

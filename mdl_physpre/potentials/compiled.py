"""A potential compiled by ``torch.compile``: on a GPU few large kernels in place of many small ones."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mdl_physpre.potentials.base import AtomicPotential, Potential, Predictions
from mdl_physpre.potentials.committee import Committee
from mdl_physpre.potentials.derivatives import derivatives
from mdl_physpre.structures.graph import AtomGraph

logger = logging.getLogger(__name__)

STEPS = 8
"""Sizes between a number and its double: batches are padded to few sizes, because each is compiled anew."""

LEAST_PADDING = 32
"""Atoms that are added at least, among which added edges are spread: sums into one row would wait for each other."""


MOST_SIZES = 10_000
"""Compilations before one is refused; torch gives up after a few, which here would be an error."""


@dataclass
class PlainGraph:
    """The fields of a graph that a potential reads, without what PyG adds: what can be traced."""

    pos: Tensor
    cell: Tensor
    z: Tensor
    n_atoms: Tensor
    batch: Tensor
    edge_index: Tensor
    cell_offsets: Tensor

    @classmethod
    def from_tensors(cls, base: PlainGraph, **changed: Tensor) -> PlainGraph:
        """A graph with the fields of ``base`` and ``changed`` in place of its own."""
        return cls(**{**base.__dict__, **changed})


class CompiledPotential(AtomicPotential):
    """The same potential, with energies, forces, stress and their gradient compiled.

    A batch is padded: a further structure holds the added atoms, whose edges are as long as twice the cutoff and count
    nothing. Energies, forces and stress are those of the potential to rounding. On a GPU, predictions also run as one
    CUDA graph for each size.

    Parameters
    ----------
    potential : shared, not copied. It may hold no code in Python that looks at values of tensors.
    backend : of ``torch.compile``.
    """

    def __init__(self, potential: AtomicPotential, backend: str = "inductor") -> None:
        super().__init__()
        self.potential = potential
        self.cutoff, self.elements = potential.cutoff, potential.elements
        self.gives_stress, self.concurrent = potential.gives_stress, False
        self.training_energies = potential.training_energies
        from torch._dynamo import config, exc  # a second, for those alone who compile
        from torch._inductor import exc as inductor

        self._config, self._failed = config, False
        self._limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # torch < 2.6
        self.compile_errors = (exc.TorchDynamoException, getattr(inductor, "InductorError", exc.TorchDynamoException))
        mode = "reduce-overhead" if backend == "inductor" else None
        self._training = torch.compile(_plain, backend=backend, fullgraph=True, dynamic=False)
        self._prediction = torch.compile(_plain, backend=backend, fullgraph=True, dynamic=False, mode=mode)

    def known_elements(self) -> frozenset[int] | None:
        """Those of the potential."""
        return self.potential.known_elements()

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        """As the potential gives them, not compiled."""
        return self.potential.atomic_energies(graph)

    def derivatives(self, graph: AtomGraph, forces: bool, stress: bool, create_graph: bool) -> Predictions:
        """Energies, forces and stress, compiled; as the potential itself gives them where it cannot be compiled."""
        if not self._failed:
            try:
                return self._compiled(graph, forces, stress, create_graph)
            except self.compile_errors as error:
                self.give_up(error)
        if not create_graph:
            return self.potential.predictions(graph, forces, stress)
        return self.potential.derivatives(graph, forces, stress, create_graph)

    def give_up(self, error: Exception) -> None:
        """Go on without compilation. The gradient is compiled when it is first asked for: its errors arise there."""
        self._failed = True
        reason, name = next(iter(str(error).strip().splitlines()), type(error).__name__), type(self.potential).__name__
        logger.warning("%s cannot be compiled and runs operation by operation: %s", name, reason)

    def _compiled(self, graph: AtomGraph, forces: bool, stress: bool, create_graph: bool) -> Predictions:
        n_structures, n_atoms = len(graph.n_atoms), len(graph.z)
        with torch.set_grad_enabled(create_graph), self._config.patch({self._limit: MOST_SIZES}):
            run = self._training if create_graph else self._prediction
            energies, *rest = run(self.potential, padded(graph, self.cutoff), forces, stress)
        if not create_graph and graph.pos.device.type != "cpu":
            energies, rest = energies.clone(), [t.clone() for t in rest]  # the next run of a CUDA graph overwrites them
        return Predictions(
            energies[:n_structures],
            rest.pop(0)[:n_atoms] if forces else None,
            rest.pop(0)[:n_structures] if stress else None,
        )


def compiled(potential: Potential) -> Potential:
    """The potential compiled; a committee of compiled members; as it is where it has no atomic energies to compile."""
    if isinstance(potential, Committee):
        return Committee([compiled(member) for member in potential.potentials])
    return CompiledPotential(potential) if isinstance(potential, AtomicPotential) else potential


def _plain(potential: AtomicPotential, graph: PlainGraph, forces: bool, stress: bool) -> tuple[Tensor, ...]:
    found = derivatives(potential.atomic_energies, graph, forces, stress, create_graph=True)  # type: ignore[arg-type]
    return tuple(t for t in found if t is not None)


def padded_size(n: int) -> int:
    """The smallest of few sizes that is at least ``n``: m · 2^k with 8 ≤ m < 16."""
    step = 1 << max(0, n.bit_length() - 1 - (STEPS.bit_length() - 1))
    return -(-n // step) * step


def padded(graph: AtomGraph, cutoff: float) -> PlainGraph:
    """The graph with one more structure, of atoms and edges that bring all numbers to :func:`padded_size`."""
    n_structures, n_atoms, n_edges = len(graph.n_atoms), len(graph.z), graph.edge_index.shape[1]
    structures = padded_size(n_structures + 1) - n_structures
    atoms = padded_size(n_atoms + LEAST_PADDING) - n_atoms
    edges = padded_size(n_edges + 1) - n_edges
    device = graph.pos.device
    # the first of the added structures holds all added atoms; the others are empty
    added = torch.arange(edges, device=device) * atoms // edges + n_atoms  # sorted, as edges are
    cells = (2.0 * cutoff * torch.eye(3, dtype=graph.cell.dtype, device=device)).expand(structures, 3, 3)
    counts = functional.pad(graph.n_atoms.new_full((1,), atoms), (0, structures - 1))
    offsets = functional.pad(graph.cell_offsets.new_ones(edges, 1), (0, 2))
    return PlainGraph(
        pos=functional.pad(graph.pos, (0, 0, 0, atoms)),
        cell=torch.cat([graph.cell, cells]),
        z=torch.cat([graph.z, graph.z[:1].expand(atoms)]),
        n_atoms=torch.cat([graph.n_atoms, counts]),
        batch=functional.pad(graph.batch, (0, atoms), value=n_structures),
        edge_index=torch.cat([graph.edge_index, added.expand(2, edges).to(graph.edge_index.dtype)], dim=1),
        cell_offsets=torch.cat([graph.cell_offsets, offsets]),
    )

"""The contract of a potential, and the one place where forces and stress come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from mdl_physpre.errors import CheckpointError, DataError
from mdl_physpre.potentials.energy_reference import N_ELEMENTS, EnergyReference
from mdl_physpre.potentials.kernels.edge_op import derivatives_in_geometry, energies_for_derivatives
from mdl_physpre.potentials.recompute import parts_of, recomputed
from mdl_physpre.potentials.training_energies import TrainingEnergies
from mdl_physpre.structures.graph import AtomGraph


@dataclass
class Predictions:
    """Energies (n_structures,) eV, summed in float64; forces (n_atoms, 3) eV/Å; stress (n_structures, 3, 3) eV/Å³.

    Of a potential that gives a spread, such as a :class:`~mdl_physpre.potentials.Committee`: ``energy_spread``
    (n_structures,) eV and ``force_spread`` (n_atoms,) eV/Å; ``None`` for any other.
    """

    energies: Tensor
    forces: Tensor | None = None
    stress: Tensor | None = None
    energy_spread: Tensor | None = None
    force_spread: Tensor | None = None


class Potential(nn.Module, ABC):
    """Anything that predicts energies, forces and stress: a network, an ASE calculator, a TorchSim model, a sum.

    Attributes
    ----------
    cutoff : Å; the graph must hold every edge within it. Edges at or beyond it count nothing.
    elements : atomic numbers that the potential knows, or ``None`` for any.
    gives_stress : False for a potential that has no stress; asking it for one is then a DataError.
    gives_spread : whether it says how uncertain energies and forces are.
    concurrent : whether several threads are to evaluate it at the same time in dynamics on the CPU: where that is
        safe, and where most of its work is done outside Python, which only one thread at a time can be in.
    training_energies : energies per atom of the structures that it was trained on; ``None`` where that is not known.
    """

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        if "atomic_energies" in vars(cls) and cls.predictions is Potential.predictions:
            raise TypeError(f"{cls.__name__} defines atomic_energies: derive it from mdl_physpre.potentials.Backbone")

    cutoff: float
    elements: tuple[int, ...] | None = None
    gives_stress: bool = True
    gives_spread: bool = False
    concurrent: bool = False
    training_energies: TrainingEnergies | None = None

    @abstractmethod
    def predictions(self, graph: AtomGraph, forces: bool = True, stress: bool = True) -> Predictions:
        """Energies, and forces and stress where they are wanted; not differentiable."""

    def known_elements(self) -> frozenset[int] | None:
        """Atomic numbers that the potential knows, or ``None`` for any."""
        return None if self.elements is None else frozenset(self.elements)

    def hyperparameters(self) -> dict[str, Any]:
        """Plain values from which the class builds the same architecture again."""
        raise CheckpointError(f"{type(self).__name__} cannot be saved: it does not define hyperparameters()")


class AtomicPotential(Potential):
    """A potential that is a differentiable sum over atoms. A subclass writes :meth:`atomic_energies`, nothing else."""

    @abstractmethod
    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        """Energy of each atom, (n_atoms,), eV, differentiable in ``graph.pos``, ``graph.cell`` and the parameters.

        Their sum is the total energy, energies of the elements included.
        """

    def predictions(self, graph: AtomGraph, forces: bool = True, stress: bool = True) -> Predictions:
        """Energies, and their derivatives where they are wanted; not differentiable."""
        return self.derivatives(graph, forces, stress, create_graph=False)

    def derivatives(self, graph: AtomGraph, forces: bool, stress: bool, create_graph: bool) -> Predictions:
        """Energies, and their derivatives in positions and strain; with ``create_graph`` differentiable."""
        with torch.inference_mode(False):  # in which nothing can be differentiated
            if graph.pos.is_inference():
                graph = AtomGraph.from_tensors(graph, **{k: v.clone() for k, v in graph._store.items()})
            return derivatives(self, graph, forces, stress, create_graph)


class Backbone(AtomicPotential):
    """A potential that is trained: atomic energies, and a reference energy for each element.

    ``reference`` is set to the energies of the elements before training, and :meth:`atomic_energies` adds
    ``self.reference(graph.z)``.

    Parameters
    ----------
    reference : energies of the elements; zero where ``None``.

    Attributes
    ----------
    arguments : names of attributes that are arguments of the class and plain values, ``elements`` aside.
    """

    reference: EnergyReference
    arguments: ClassVar[tuple[str, ...]] = ()

    def __init__(self, reference: EnergyReference | None = None) -> None:
        super().__init__()
        self.reference = EnergyReference() if reference is None else reference

    def hyperparameters(self) -> dict[str, Any]:
        """``elements`` and the ``arguments``; weights and energy reference are not included."""
        if not self.arguments:
            return super().hyperparameters()
        elements = None if self.elements is None else list(self.elements)
        return {"elements": elements, **{name: getattr(self, name) for name in self.arguments}}

    def reference_energies(self) -> Tensor:
        """A copy of the energies of the elements, (119,), eV by atomic number, float64 on the CPU."""
        return self.reference.energies.detach().to("cpu", torch.float64, copy=True)

    def shift_reference(self, energies: Tensor) -> None:
        """Add ``energies`` (119,), eV by atomic number, to the reference energy of each element."""
        self.reference.energies.add_(energies.to(self.reference.energies))

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that are lengths, energies and the like, on which no weight decay acts."""
        return []


def edge_vectors(graph: AtomGraph) -> Tensor:
    """r_ij = r_j + S·cell − r_i for each edge, (n_edges, 3), Å."""
    i, j = graph.edge_index[0], graph.edge_index[1]
    offsets = graph.cell_offsets.to(graph.pos.dtype)
    if graph.cell.shape[0] == 1:
        shift = offsets @ graph.cell[0]
    else:
        cells = graph.cell.index_select(0, graph.batch.index_select(0, i))
        shift = torch.einsum("ek,ekx->ex", offsets, cells)
    return graph.pos.index_select(0, j) - graph.pos.index_select(0, i) + shift


def worth_cutting(graph: AtomGraph, cutoff: float) -> AtomGraph:
    """The graph without the edges at or beyond ``cutoff`` Å, on a CPU.

    On a GPU, where to count edges costs more than they do, the graph as it is.
    """
    if torch.compiler.is_compiling() or graph.pos.device.type != "cpu":
        return graph
    with torch.no_grad():
        near = torch.linalg.vector_norm(edge_vectors(graph), dim=1) < cutoff
        if bool(near.all()):
            return graph
        edge_index, offsets = graph.edge_index[:, near], graph.cell_offsets[near]
    return AtomGraph.from_tensors(graph, edge_index=edge_index, cell_offsets=offsets)


def sum_by_structure(values: Tensor, graph: AtomGraph) -> Tensor:
    """Sum of atomic values over each structure, (n_structures, …), in float64: total energies are large."""
    out = torch.zeros((graph.n_atoms.shape[0], *values.shape[1:]), dtype=torch.float64, device=values.device)
    return out.index_add(0, graph.batch, values.to(torch.float64))


def check_elements(potential: Potential, graph: AtomGraph) -> None:
    """Raise DataError, naming them, where the graph holds elements that the potential does not know."""
    known = potential.known_elements()
    if known is None or graph.elements <= known:
        return
    strange = ", ".join(_symbol(z) for z in sorted(graph.elements - known))
    raise DataError(
        f"the structure holds {strange}, which this potential does not know (it knows {element_names(potential)}); "
        "leave such structures out, or train a potential on data that contain the element"
    )


def element_names(potential: Potential) -> str:
    """The elements that a potential knows, in words."""
    known = potential.known_elements()
    if not known:
        return "any element" if known is None else "no element"
    if potential.elements is None:
        return f"{_symbol(min(known))} to {_symbol(max(known))}"
    return ", ".join(_symbol(z) for z in sorted(known))


def _symbol(z: int) -> str:
    return chemical_symbols[z] if 0 <= z < N_ELEMENTS else f"atomic number {z}"


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


def derivatives(
    potential: AtomicPotential, graph: AtomGraph, forces: bool, stress: bool, create_graph: bool
) -> Predictions:
    """Energies and their derivatives in positions and strain."""

    def energies_at(positions: Tensor, strain: Tensor | None) -> Tensor:
        moved = graph.from_tensors(graph, pos=positions)
        if strain is not None:  # zero, so that what it multiplies may be taken for constant
            of_atoms = strain.index_select(0, graph.batch)
            moved.pos = positions + (graph.pos[:, :, None] * of_atoms).sum(1)
            moved.cell = graph.cell + graph.cell @ strain
        return sum_by_structure(potential.atomic_energies(moved), graph)

    if not (forces or stress):
        with torch.set_grad_enabled(create_graph), energies_for_derivatives(create_graph):
            return Predictions(energies_at(graph.pos, None))
    arguments = (graph.pos.detach(), torch.zeros_like(graph.cell) if stress else None)
    energies, slopes = _energies_and_slopes(energies_at, arguments, create_graph)
    found = Predictions(energies, forces=-slopes[0] if forces else None)
    if stress:
        a, b, c = graph.cell.unbind(1)
        volume = (a * torch.linalg.cross(b, c)).sum(1).abs()[:, None, None]
        virial = 0.5 * (slopes[1] + slopes[1].transpose(1, 2))
        # NaN where there is no cell, put in so that it does not spread to the gradients of the others
        found.stress = torch.where(volume > 0, virial / torch.where(volume > 0, volume, 1.0), torch.nan)
    return found


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

"""The contract of a potential."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from ase import Atoms
from ase.data import chemical_symbols
from torch import Tensor, nn

from mdl_physpre.errors import CheckpointError, DataError
from mdl_physpre.potentials.derivatives import derivatives
from mdl_physpre.potentials.energy_reference import N_ELEMENTS, EnergyReference
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

    def plus(self, other: Predictions) -> Predictions:
        """The sum of what both have, with the spread of this one."""
        forces = None if self.forces is None or other.forces is None else self.forces + other.forces
        stress = None if self.stress is None or other.stress is None else self.stress + other.stress
        return Predictions(self.energies + other.energies, forces, stress, self.energy_spread, self.force_spread)


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
            return Predictions(*derivatives(self.atomic_energies, graph, forces, stress, create_graph))


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

    def prepare_for(self, structures: Sequence[Atoms]) -> None:
        """Take from the labelled training structures what is not learnt, such as a mean number of neighbours.

        Called once, before the first training, on a network with random weights. Nothing here.
        """

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
    """:func:`within`, on a CPU.

    On a GPU, where to count edges costs more than they do, the graph as it is.
    """
    if torch.compiler.is_compiling() or graph.pos.device.type != "cpu":
        return graph
    return within(graph, cutoff)


def within(graph: AtomGraph, cutoff: float) -> AtomGraph:
    """The graph without the edges at or beyond ``cutoff`` Å."""
    with torch.no_grad():
        near = torch.linalg.vector_norm(edge_vectors(graph), dim=1) < cutoff
        if bool(near.all()):
            return graph
        edge_index, offsets = graph.edge_index[:, near], graph.cell_offsets[near]
    return AtomGraph.from_tensors(graph, edge_index=edge_index, cell_offsets=offsets)


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

"""A network and an embedded-atom potential on one graph: their energies added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.base import Potential, Predictions, edge_vectors, evaluate, sum_by_structure
from mdl_physpre.potentials.checkpoints import backbone_name, build_backbone
from mdl_physpre.potentials.eam import EAMInteraction
from mdl_physpre.potentials.reference import N_ELEMENTS, EnergyReference
from mdl_physpre.structures.graph import AtomGraph


class HybridPotential(Potential):
    """E = Σ_i E0(z_i) + E_network + E_EAM, the paper's direct combination (its appendix B).

    The graph reaches to the larger cutoff of the two, and each part sees the edges within its own, so that the energy
    is as smooth as its parts are. Energy, forces and stress are sums of those of the parts, ``network`` and ``eam``.

    There is one reference energy for each element: E0 starts as that of the embedded-atom potential (plus that of the
    network, if it has one), and the parts' own become zero. Composition is so counted once, and E0 is not trained:
    hundreds of eV that weight decay would pull at.

    Parameters
    ----------
    network : a potential; or ``{"backbone": name, "hyperparameters": {…}}``, from which one is built.
    eam : a fitted :class:`EAMInteraction`; or its hyperparameters. Both parts are taken over, not copied.
    train_eam : whether training changes the parameters of the embedded-atom potential, too, as in the paper. They do
        not decay (``undecayed``): lengths and energies have no reason to be small.

    Raises
    ------
    ConfigError : ``eam`` is another potential; the parts know no element in common.
    """

    def __init__(
        self,
        network: Potential | Mapping[str, Any],
        eam: EAMInteraction | Mapping[str, Any],
        train_eam: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(network, Mapping):
            network = build_backbone(network["backbone"], **network["hyperparameters"])
        if isinstance(eam, Mapping):
            eam = EAMInteraction(**eam)
        if not isinstance(eam, EAMInteraction):
            raise ConfigError(
                f"hybrid: found {type(eam).__name__}, expected an embedded-atom potential beside the network"
            )
        known = set(eam.elements) & set(eam.elements if network.elements is None else network.elements)
        if not known:
            raise ConfigError("hybrid: network and embedded-atom potential know no element in common")
        self.network, self.eam = network, eam
        self.concurrent = network.concurrent
        self.elements = tuple(sorted(known))
        self.cutoff = max(network.cutoff, eam.cutoff)
        self.gives_stress = network.gives_stress
        self.reference = EnergyReference()
        for part, energies in ((network, _reference_of(network)), (eam, _reference_of(eam))):
            if part.shift_reference(-energies):
                self.reference.energies.add_(energies)
        self.train_eam = bool(train_eam)
        self.learn_eam(self.train_eam)

    def learn_eam(self, learn: bool) -> None:
        """Let training change the parameters of the embedded-atom potential from now on, or leave them as they are."""
        for name, parameter in self.eam.named_parameters():
            parameter.requires_grad_(learn and name != "E0")

    @property
    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that are lengths, energies and the like, on which no weight decay acts."""
        return list(self.eam.parameters())

    def hyperparameters(self) -> dict[str, Any]:
        """Plain values from which the class builds the same architecture again."""
        network = {"backbone": backbone_name(self.network), "hyperparameters": self.network.hyperparameters()}
        return {"network": network, "eam": self.eam.hyperparameters(), "train_eam": self.train_eam}

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        """E0 + energies of both parts for each atom, (n_atoms,), eV."""
        parts = [part.atomic_energies(graph_within(graph, part.cutoff, self.cutoff)) for part in self._parts()]
        return self.reference(graph.z) + parts[0] + parts[1]

    def predictions(self, graph: AtomGraph, forces: bool, stress: bool) -> Predictions:
        """Energies, forces and stress, not differentiable."""
        return self._sum(graph, forces, stress, create_graph=False)

    def differentiable_predictions(self, graph: AtomGraph, forces: bool, stress: bool) -> Predictions:
        """As :meth:`predictions`, and differentiable in the parameters."""
        return self._sum(graph, forces, stress, create_graph=True)

    def _parts(self) -> tuple[Potential, Potential]:
        return self.network, self.eam

    def _sum(self, graph: AtomGraph, forces: bool, stress: bool, create_graph: bool) -> Predictions:
        first, second = (
            evaluate(
                part,
                graph_within(graph, part.cutoff, self.cutoff),
                forces=forces,
                stress=stress,
                create_graph=create_graph,
            )
            for part in self._parts()
        )
        found = Predictions(first.energies + second.energies + sum_by_structure(self.reference(graph.z), graph))
        if first.forces is not None and second.forces is not None:
            found.forces = first.forces + second.forces
        if first.stress is not None and second.stress is not None:
            found.stress = first.stress + second.stress
        return found


def graph_within(graph: AtomGraph, cutoff: float, reach: float) -> AtomGraph:
    """The graph with the edges of at most ``cutoff`` Å alone; as it is where it reaches no further than that."""
    if cutoff >= reach:
        return graph
    with torch.no_grad():
        near = edge_vectors(graph).norm(dim=1) <= cutoff
    return AtomGraph.from_tensors(graph, edge_index=graph.edge_index[:, near], cell_offsets=graph.cell_offsets[near])


def _reference_of(potential: Potential) -> Tensor:
    """Reference energies, (119,), eV by atomic number; zero where a potential keeps none."""
    energies = torch.zeros(N_ELEMENTS, dtype=torch.float64)
    if isinstance(potential, EAMInteraction):
        energies[list(potential.elements)] = potential.E0.detach().double().cpu()
        return energies
    reference = getattr(potential, "reference", None)
    return energies + reference.energies.cpu() if isinstance(reference, EnergyReference) else energies

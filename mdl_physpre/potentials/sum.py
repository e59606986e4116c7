"""Sums of potentials on one graph: a network or a teacher, an embedded-atom potential, a short-range repulsion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mdl_physpre.errors import CheckpointError, ConfigError, DataError
from mdl_physpre.potentials.backbones.registry import backbone_name, build_backbone
from mdl_physpre.potentials.base import AtomicPotential, Backbone, Potential, Predictions, worth_cutting
from mdl_physpre.potentials.derivatives import sum_by_structure
from mdl_physpre.potentials.eam.angular import AngularEAM
from mdl_physpre.potentials.eam.potential import EAMInteraction
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.zbl import ZBL
from mdl_physpre.structures.graph import AtomGraph


class SumPotential(Backbone):
    """E = Σ_i E0(z_i) + Σ_p E_p.

    The graph reaches to the largest cutoff of the parts, and each counts the edges within its own, so that the energy
    is as smooth as the parts are. The energies E0 are zero until :meth:`shift_reference` is called. Without
    parts, it is E0 alone.

    Parameters
    ----------
    parts : potentials by name; each is an attribute of this name. They are not copied. ``None`` is left out. Where one
        of them knows the energies it was trained on, these are the sum's: the others correct it elsewhere.
    """

    def __init__(self, **parts: Potential | None) -> None:
        super().__init__()
        self.names = tuple(name for name, part in parts.items() if part is not None)
        for name in self.names:
            self.add_module(name, parts[name])
        known = [set(part.elements) for part in self.parts.values() if part.elements is not None]
        self.elements = tuple(sorted(set.intersection(*known))) if known else None
        self.cutoff = max((part.cutoff for part in self.parts.values()), default=0.0)
        self.gives_stress = all(part.gives_stress for part in self.parts.values())
        self.gives_spread = sum(part.gives_spread for part in self.parts.values()) == 1  # which is that of the sum
        self.concurrent = all(part.concurrent for part in self.parts.values())
        trained = [part.training_energies for part in self.parts.values() if part.training_energies is not None]
        self.training_energies = trained[0] if len(trained) == 1 else None

    @property
    def parts(self) -> dict[str, Potential]:
        """The parts by name."""
        return {name: getattr(self, name) for name in self.names}

    def known_elements(self) -> frozenset[int] | None:
        """Those that all parts know."""
        known = [of_part for part in self.parts.values() if (of_part := part.known_elements()) is not None]
        return frozenset.intersection(*known) if known else None

    def without(self, *names: str) -> SumPotential:
        """The sum of E0 and of all parts but some."""
        rest = SumPotential(**{key: part for key, part in self.parts.items() if key not in names})
        rest.reference, rest.training_energies = self.reference, None
        return rest

    def take_over_references(self) -> None:
        """Add the parts' energies of the elements to E0, and make the parts' own zero: composition counts once."""
        for part in self.parts.values():
            if isinstance(part, Backbone):
                energies = part.reference_energies()
                part.shift_reference(-energies)
                self.shift_reference(energies)

    def undecayed(self) -> list[nn.Parameter]:
        """Those of the parts."""
        return [p for part in self.parts.values() if isinstance(part, Backbone) for p in part.undecayed()]

    def hyperparameters(self) -> dict[str, Any]:
        """Raises CheckpointError: the parts may be anything, and are stored by whoever made them."""
        raise CheckpointError("a sum of potentials is not saved; keep its parts and the energies of the elements apart")

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        """E0 + energies of all parts for each atom, (n_atoms,), eV.

        Raises DataError where a part only predicts.
        """
        total = self.reference(graph.z)
        for name, part in self.parts.items():
            if not isinstance(part, AtomicPotential):
                raise DataError(
                    f"{name} ({type(part).__name__}) only predicts: it has no energies of atoms that can be "
                    "differentiated, so the sum cannot be trained"
                )
            total = total + part.atomic_energies(self._seen_by(part, graph))
        return total

    def predictions(self, graph: AtomGraph, forces: bool = True, stress: bool = True) -> Predictions:
        """Energies, forces and stress; summed over the parts where one of them only predicts."""
        if all(isinstance(part, AtomicPotential) for part in self.parts.values()):
            return super().predictions(graph, forces, stress)
        total = Predictions(
            sum_by_structure(self.reference(graph.z), graph),
            torch.zeros_like(graph.pos) if forces else None,
            torch.zeros_like(graph.cell) if stress else None,
        )
        for part in self.parts.values():
            one = evaluate(part, self._seen_by(part, graph), forces=forces, stress=stress)
            total = total.plus(one)
            if part.gives_spread and self.gives_spread:
                total.energy_spread, total.force_spread = one.energy_spread, one.force_spread
        return total

    def _seen_by(self, part: Potential, graph: AtomGraph) -> AtomGraph:
        return worth_cutting(graph, part.cutoff) if part.cutoff < self.cutoff else graph


class HybridPotential(SumPotential):
    """E = Σ_i E0(z_i) + E_network + E_EAM, the paper's direct combination (its appendix B).

    There is one reference energy for each element: E0 starts as that of the embedded-atom potential (plus that of the
    network, if it has one), and the parts' own become zero. E0 is not trained: hundreds of eV that weight decay would
    pull at.

    Parameters
    ----------
    network : a potential; or ``{"backbone": name, "hyperparameters": {…}}``, from which one is built.
    eam : a fitted :class:`EAMInteraction` or :class:`AngularEAM`; or its hyperparameters, as :meth:`hyperparameters`
        gives them. Both parts are taken over, not copied.
    train_eam : whether training changes the parameters of an :class:`EAMInteraction`, too, as in the paper. They do
        not decay (:meth:`undecayed`). Those of an :class:`AngularEAM` stay: they solve linear equations already.

    Raises
    ------
    ConfigError : ``eam`` is another potential; the parts know no element in common, or both have a short-range
        repulsion.
    """

    def __init__(
        self,
        network: Potential | Mapping[str, Any],
        eam: EAMInteraction | AngularEAM | Mapping[str, Any],
        train_eam: bool = True,
    ) -> None:
        network = _network(network)
        if isinstance(eam, Mapping):
            eam = _network(eam) if "backbone" in eam else EAMInteraction(**eam)  # type: ignore[assignment]
        if not isinstance(eam, (EAMInteraction, AngularEAM)):
            raise ConfigError(
                f"hybrid: found {type(eam).__name__}, expected an embedded-atom potential beside the network"
            )
        if eam.repulsion is not None and any(isinstance(part, ZBL) for part in network.modules()):
            raise ConfigError("hybrid: network and embedded-atom potential have a short-range repulsion each: one only")
        super().__init__(network=network, eam=eam)
        if not self.elements:
            raise ConfigError("hybrid: network and embedded-atom potential know no element in common")
        self.take_over_references()
        self.train_eam = bool(train_eam)
        self.learn_eam(self.train_eam)

    def learn_eam(self, learn: bool) -> None:
        """Let training change the parameters of the embedded-atom potential from now on, or leave them as they are."""
        eam = self.parts["eam"]
        for name, parameter in eam.named_parameters():
            parameter.requires_grad_(learn and isinstance(eam, EAMInteraction) and name != "E0")

    def hyperparameters(self) -> dict[str, Any]:
        """Plain values from which the class builds the same architecture again."""
        eam = self.parts["eam"]
        of_eam = eam.hyperparameters() if isinstance(eam, EAMInteraction) else _described(eam)
        return {"network": _described(self.parts["network"]), "eam": of_eam, "train_eam": self.train_eam}


class RepulsivePotential(SumPotential):
    """E = Σ_i E0(z_i) + E_network + E_ZBL: a network with the screened repulsion of the nuclei at short range.

    Energies of the elements are those of the network, which become the sum's.

    Parameters
    ----------
    network : a potential; or ``{"backbone": name, "hyperparameters": {…}}``, from which one is built. It is taken over,
        not copied.
    repulsion : a :class:`.ZBL`; or its hyperparameters.

    Raises
    ------
    ConfigError : the network has such a repulsion already.
    """

    def __init__(self, network: Potential | Mapping[str, Any], repulsion: ZBL | Mapping[str, Any]) -> None:
        network = _network(network)
        if any(isinstance(part, ZBL) for part in network.modules()):
            raise ConfigError("zbl: the potential has a short-range repulsion already, and two would add up")
        super().__init__(network=network, repulsion=ZBL(**repulsion) if isinstance(repulsion, Mapping) else repulsion)
        self.take_over_references()

    def hyperparameters(self) -> dict[str, Any]:
        """Plain values from which the class builds the same architecture again."""
        repulsion = self.parts["repulsion"]
        assert isinstance(repulsion, ZBL)
        return {"network": _described(self.parts["network"]), "repulsion": repulsion.hyperparameters()}


def _network(given: Potential | Mapping[str, Any]) -> Potential:
    return build_backbone(given["backbone"], **given["hyperparameters"]) if isinstance(given, Mapping) else given


def _described(network: Potential) -> dict[str, Any]:
    return {"backbone": backbone_name(network), "hyperparameters": network.hyperparameters()}

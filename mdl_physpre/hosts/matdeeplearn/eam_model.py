"""The embedded-atom potential as a model of MatDeepLearn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.hosts.matdeeplearn.edges import EdgeFinder, complete_graph, graph_of
from mdl_physpre.hosts.matdeeplearn.names import host
from mdl_physpre.hosts.matdeeplearn.networks import as_outputs
from mdl_physpre.hosts.matdeeplearn.perturb import reference_table
from mdl_physpre.hosts.matdeeplearn.settings import folder_of_configuration
from mdl_physpre.potentials.base import Predictions
from mdl_physpre.potentials.checkpoints.matdeeplearn_models import EAM_NAMES, eam_state
from mdl_physpre.potentials.eam.potential import EAMInteraction
from mdl_physpre.potentials.energy_reference import composition_shift
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import AtomGraph, GraphDataset
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.structures.read import read_structures
from mdl_physpre.training.energy_zero import energy_errors
from mdl_physpre.workflow.config.file import resolve_path

BaseModel: Any = host().BaseModel
EDGES = ("complete", "host")


class _Rule(nn.Module):
    """The potential's formula as a module, so that parameters can be passed to it."""

    def __init__(self, eam: EAMInteraction) -> None:
        super().__init__()
        self.eam = eam

    def forward(self, graph: AtomGraph, derivatives: bool) -> Predictions:
        learning = torch.is_grad_enabled()  # the host turns it off for validation and predictions
        return evaluate(self.eam, graph, forces=derivatives, stress=derivatives, create_graph=learning)


def set_energies(eam: EAMInteraction, energy_reference: Mapping[str, float] | str | None) -> None:
    """Let E0 of an untrained potential be given energies, or those that the structures of a file ask for.

    Raises DataError for a file that cannot be read, ConfigError for an unknown element.
    """
    if isinstance(energy_reference, str):
        structures = read_structures(resolve_path(energy_reference, folder_of_configuration()))
        labelled = [a for a in structures if get_labels(a).energy is not None]
        if not labelled:
            raise DataError(f"model.energy_reference: {energy_reference} holds no structure with an energy")
        left = energy_errors(eam, GraphDataset(labelled, eam.cutoff))
        eam.shift_reference(composition_shift(labelled, left))
    elif energy_reference:
        eam.shift_reference(torch.as_tensor(reference_table(energy_reference)) - eam.reference_energies())


class EAMInteractionModel(BaseModel):
    """:class:`mdl_physpre.potentials.EAMInteraction` for MatDeepLearn's trainers, losses, datasets and calculator.

    Parameters have the names of the paper's code, one for each pair or element: ``eam_params.param_dict.A.0``, …; B has
    either sign, as there. Registered as ``eam_interaction`` and ``EAM_Interaction``.

    Parameters (keys of MatDeepLearn's section ``model``)
    ----------
    atom_types : symbols of the elements; their order is that of the parameters.
    n_basis : exponentials in the density.
    init : ``reference``, as in the paper's code, or ``spread``.
    edges : ``complete``, every image within the cutoff, found here and kept; ``host``, MatDeepLearn's graph with its
        limits ``num_offsets`` and ``n_neighbors``.
    energy_reference : eV by element (E0), or a file of labelled structures: E0 then starts as the least-squares fit, to
        their compositions, of what the rest of the potential leaves of their energies. Null: as ``init`` says.
    freeze_params : names of parameters that are not trained, such as ``[rm]``.
    cutoff_radius and the other keys come from MatDeepLearn.

    Raises ConfigError for a key that is missing or has no meaning.
    """

    complete_edges = True
    gradient: Any

    def __init__(
        self,
        atom_types: Sequence[str] | None = None,
        n_basis: int = 10,
        init: str = "reference",
        edges: str = "complete",
        freeze_params: Sequence[str] = (),
        energy_reference: Mapping[str, float] | str | None = None,
        **given: Any,
    ) -> None:
        super().__init__(**given)
        if not atom_types:
            raise ConfigError("model.atom_types is missing: the elements of the data, such as [Si, O]")
        if edges not in EDGES:
            raise ConfigError(f"model.edges is {edges!r}; expected one of {', '.join(EDGES)}")
        if edges == "host" and self.graph_method != "ocp":
            raise ConfigError(
                f"model.edges is host, and dataset.preprocess_params.edge_calc_method {self.graph_method!r}: only ocp "
                "has more than one image of a pair; set it to ocp, or model.edges to complete"
            )
        if self.prediction_level != "graph":
            raise ConfigError(f"eam_interaction predicts energies of structures, no labels of {self.prediction_level}s")
        eam = EAMInteraction(atom_types, self.cutoff_radius, int(n_basis), init=init, signed_embedding=True)
        set_energies(eam, energy_reference)
        names = [*EAM_NAMES]
        unknown = [name for name in freeze_params if name not in names]
        if unknown:
            raise ConfigError(f"model.freeze_params: {', '.join(unknown)} unknown; known: {', '.join(names)}")
        values = eam_state(eam)
        lists = {}
        for name in names:
            of_name = [v for key, v in values.items() if key.split(".")[-2] == name]
            lists[name] = nn.ParameterList(nn.Parameter(v, requires_grad=name not in freeze_params) for v in of_name)
        self.eam_params = nn.ModuleDict({"param_dict": nn.ModuleDict(lists)})
        self.edges = edges
        # not a submodule: its parameters are stand-ins for those above
        self.__dict__["_rule"] = _Rule(eam.float()).requires_grad_(False)
        self.__dict__["_edges"] = EdgeFinder(self.cutoff_radius)

    @property
    def target_attr(self) -> str:
        return "y"

    def forward(self, data: Any) -> dict[str, Tensor | None]:
        """``output`` (n_structures, 1) eV; with ``gradient``, ``pos_grad`` (n_atoms, 3), the forces in eV/Å, and
        ``cell_grad`` (n_structures, 3, 3), the stress in eV/Å³, 0 where there is no cell."""
        graph = self._host_graph(data) if self.edges == "host" else complete_graph(data, self._edges)
        lists: Any = self.eam_params["param_dict"]
        values = {f"eam.{ours}": torch.stack([*lists[theirs]]) for theirs, ours in EAM_NAMES.items()}
        for name, value in values.items():
            if name not in ("eam.A", "eam.beta"):
                values[name] = value[:, 0]
        found = functional_call(self._rule.to(graph.pos.device), values, (graph, bool(self.gradient)))
        return as_outputs(found, graph.pos.dtype)

    def _host_graph(self, data: Any) -> AtomGraph:
        gradient = bool(self.gradient)
        self.gradient = False  # with it, the host would strain the structure on the way
        try:
            edge_index, _, _, offsets, _, _ = self.generate_graph(data, self.cutoff_radius, self.n_neighbors)
        finally:
            self.gradient = gradient
        # the host's first row is the neighbour, at r_j + S·cell, its second the centre
        order = torch.argsort(edge_index[1], stable=True)
        return graph_of(data, edge_index.flip(0)[:, order], offsets[order])

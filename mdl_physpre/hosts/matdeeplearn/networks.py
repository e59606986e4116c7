"""The networks of this package under the names of MatDeepLearn's: the same parameters, the speed of the engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mdl_physpre.errors import ConfigError
from mdl_physpre.hosts.matdeeplearn.edges import EdgeFinder, complete_graph
from mdl_physpre.hosts.matdeeplearn.names import host
from mdl_physpre.potentials.backbones.cgcnn import network as cgcnn
from mdl_physpre.potentials.backbones.torchmd_et import network as torchmd_et
from mdl_physpre.potentials.base import Backbone, Predictions
from mdl_physpre.potentials.checkpoints.matdeeplearn_models import CGCNN_DEFAULTS, ET_DEFAULTS
from mdl_physpre.potentials.evaluation import evaluate

BaseModel: Any = host().BaseModel


def as_outputs(found: Predictions, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """Predictions as MatDeepLearn's trainers and losses take them; stress is 0 where there is no cell."""
    stress = None if found.stress is None else found.stress.nan_to_num(0.0)
    return {"output": found.energies.to(dtype)[:, None], "pos_grad": found.forces, "cell_grad": stress}


class Network(BaseModel):
    """A network of this package as a model of MatDeepLearn, without envelope, as MatDeepLearn's are.

    Parameters (MatDeepLearn's section ``model``): the keys of MatDeepLearn's network of this name, with the defaults of
    this package. A state dictionary fits both.

    Raises ConfigError for a value that is not supported, with the reason.
    """

    network: Any
    keys: tuple[str, ...]
    complete_edges = True
    gradient: Any

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        if self.prediction_level != "graph":
            raise ConfigError(
                f"model.name: physpre.{self.network.__name__} predicts energies of structures, no labels of "
                f"{self.prediction_level}s"
            )
        chosen = {key: given[key] for key in self.keys if key in given}
        own: Backbone = self.network(cutoff=self.cutoff_radius, envelope=False, **chosen)
        for name, part in own.named_children():
            if name != "reference":  # energies of the elements are off the labels, or on their way into the last bias
                self.add_module(name, part)
        # not a submodule: its parts are those above
        self.__dict__["_network"] = own
        self.__dict__["_edges"] = EdgeFinder(self.cutoff_radius)

    @property
    def target_attr(self) -> str:
        return "y"

    def _apply(self, fn: Any, *arguments: Any, **given: Any) -> nn.Module:
        self._network.reference._apply(fn)
        return super()._apply(fn, *arguments, **given)

    def forward(self, data: Any) -> dict[str, Tensor | None]:
        """``output`` (n_structures, 1) eV; with ``gradient``, ``pos_grad`` (n_atoms, 3), the forces in eV/Å, and
        ``cell_grad`` (n_structures, 3, 3), the stress in eV/Å³, 0 where there is no cell."""
        graph, derivatives = complete_graph(data, self._edges), bool(self.gradient)
        learning = torch.is_grad_enabled()  # MatDeepLearn turns it off for validation and predictions
        found = evaluate(self._network, graph, forces=derivatives, stress=derivatives, create_graph=learning)
        return as_outputs(found, graph.pos.dtype)


class CGCNN(Network):
    """:class:`mdl_physpre.potentials.CGCNN`, with the parameters of MatDeepLearn's ``CGCNN``: ``physpre.CGCNN``."""

    network = cgcnn.CGCNN
    keys = (*CGCNN_DEFAULTS, "edge_dim")


class TorchMDET(Network):
    """:class:`mdl_physpre.potentials.TorchMDET`, with the parameters of MatDeepLearn's ``torchmd_etEarly``, as
    ``physpre.torchmd_etEarly``. Atomic energies are added up, as :class:`TorchMDETLate` does."""

    network = torchmd_et.TorchMDET
    keys = tuple(ET_DEFAULTS)

"""Registration in MatDeepLearn: by its entry point in a patched host, and on first use of a name of this package."""

from __future__ import annotations

import logging
from functools import wraps
from importlib import import_module
from typing import Any

from mdl_physpre.errors import ConfigError
from mdl_physpre.hosts.matdeeplearn.names import host

logger = logging.getLogger(__name__)

REGISTERED = {
    "model": {
        "eam_interaction": "EAMInteractionModel",
        "EAM_Interaction": "EAMInteractionModel",
        "physpre.CGCNN": "CGCNN",
        "physpre.torchmd_etEarly": "TorchMDET",
    },
    "transform": {"physpre_perturb": "Perturb", "physpre_edges": "CompleteEdges"},
    "trainer": {"physpre_two_stage": "TwoStageTrainer"},
    "loss": {"PhyspreLoss": "PhyspreLoss"},
}
"""Classes of this package by kind and name."""

_MAPPINGS = {"model": "model_name_mapping", "transform": "transforms", "trainer": "trainer_name_mapping",
             "loss": "loss_name_mapping"}  # fmt: skip


class _Later(str):
    """The name of a class of this package, which is imported when MatDeepLearn asks for it."""


class _Names(dict[str, Any]):
    """Classes by name, as MatDeepLearn keeps them, some of which are imported when they are asked for."""

    def get(self, name: str, default: Any = None) -> Any:
        found = super().get(name, default)
        if isinstance(found, _Later):
            found = self[name] = getattr(import_module("mdl_physpre.hosts.matdeeplearn"), found)
        return found


def register() -> None:
    """Register models, transform, trainer and loss; again is no harm. A name that another class has is left to it.

    Nothing of what they need is imported before one of them is asked for: most runs of MatDeepLearn ask for none.
    """
    mapping = host().registry.mapping
    _act_on_edges(host().BaseModel)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # MatDeepLearn logs what every package says
    for kind, names in REGISTERED.items():
        known = mapping[_MAPPINGS[kind]]
        if not isinstance(known, _Names):
            known = mapping[_MAPPINGS[kind]] = _Names(known)
        for name, own in names.items():
            taken = known.setdefault(name, _Later(own))
            if not isinstance(taken, _Later) and not taken.__module__.startswith("mdl_physpre."):
                logger.warning("the %s %s stays %s.%s", kind, name, taken.__module__, taken.__qualname__)


def wants_complete_edges(edges: str | None) -> bool:
    """Whether ``model.edges`` of one of MatDeepLearn's own networks asks for complete, kept edges.

    Raises ConfigError for another value than ``host`` or ``physpre``.
    """
    if edges not in (None, "host", "physpre"):
        raise ConfigError(f"model.edges is {edges!r}; expected host, MatDeepLearn's, or physpre, complete and kept")
    return edges == "physpre"


def _act_on_edges(base: Any) -> None:
    """Let ``model.edges`` act in MatDeepLearn's own networks, which pass over keys unknown to them."""
    plain = base.__init__
    if hasattr(plain, "__wrapped__"):
        return

    @wraps(plain)
    def init(self: Any, *given: Any, edges: str | None = None, **more: Any) -> None:
        plain(self, *given, **more)
        if hasattr(self, "complete_edges") or not wants_complete_edges(edges):
            return  # networks of this package find their own
        if not self.otf_edge_index:
            raise ConfigError(
                "model.edges: physpre finds edges while training, and otf_edge_index: False takes those of "
                "preprocessing; set model.otf_edge_index and otf_edge_attr to True, and "
                "dataset.preprocess_params.preprocess_edges and preprocess_edge_features to False"
            )
        import_module("mdl_physpre.hosts.matdeeplearn.edges").give_complete_edges(self, self.cutoff_radius)

    base.__init__ = init

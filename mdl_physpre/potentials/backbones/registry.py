"""Backbones by name: those of this package, and those that others register."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from mdl_physpre.errors import ConfigError, nearest
from mdl_physpre.potentials.base import Backbone, Potential
from mdl_physpre.utils.registry import Registry

GRAPH_PES = (
    "EDDP", "LennardJones", "LennardJonesMixture", "MACE", "Morse", "NequIP", "Orb", "PaiNN", "SchNet",
    "StillingerWeber", "TensorNet", "ZBLCoreRepulsion", "ZEmbeddingMACE", "ZEmbeddingNequIP",
)  # fmt: skip
"""The models of graph-pes, an optional package."""

BUILT_IN = {
    "CGCNN": "mdl_physpre.potentials.backbones.cgcnn.network:CGCNN",
    "eam_interaction": "mdl_physpre.potentials.eam.potential:EAMInteraction",
    "angular_eam": "mdl_physpre.potentials.eam.angular:AngularEAM",
    "torchmd_etEarly": "mdl_physpre.potentials.backbones.torchmd_et.network:TorchMDET",
    "torchmd_et": "mdl_physpre.potentials.backbones.torchmd_et.network:TorchMDET",
    "M3GNet": "mdl_physpre.potentials.backbones.m3gnet.network:M3GNet",
    "MACE": "mdl_physpre.potentials.backbones.mace:MACE",
    "hybrid": "mdl_physpre.potentials.sum:HybridPotential",
    "zbl": "mdl_physpre.potentials.sum:RepulsivePotential",
    **{f"graph_pes:{model}": f"mdl_physpre.potentials.backbones.graph_pes:{model}" for model in GRAPH_PES},
}
"""Names of the backbones that come with the package."""

BACKBONES: Registry[Backbone] = Registry(
    "backbone",
    "mdl_physpre.backbones",
    Backbone,  # type: ignore[type-abstract]
    BUILT_IN,
)


def build_backbone(name: str, **hyperparameters: Any) -> Backbone:
    """A new potential by the name of its backbone.

    ``name`` is a built-in name (``CGCNN``), one that an installed package registers in the entry-point group
    ``mdl_physpre.backbones``, or an import path (``package.module:Class``) of a class derived from
    :class:`~mdl_physpre.potentials.Backbone`; ``docs/extending/backbone.md`` says what such a class has.

    Raises ConfigError for an unknown name or hyperparameter, naming the nearest known one.
    """
    return build_from(backbone_class(name), name, hyperparameters)


def backbone_class(name: str) -> type[Backbone]:
    """The class that a backbone name stands for. Raises ConfigError as :func:`build_backbone` does."""
    return BACKBONES.find(name)


def unknown_hyperparameters(name: str, keys: Iterable[str]) -> dict[str, str]:
    """Those of the keys that a backbone does not take, with a sentence that names the nearest that it does.

    Raises ConfigError as :func:`backbone_class`.
    """
    return _unknown(backbone_class(name), name, keys)


def _unknown(cls: type[Backbone], name: str, keys: Iterable[str]) -> dict[str, str]:
    parameters = inspect.signature(cls).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return {}
    strange = [key for key in keys if key not in parameters]
    return {key: f"backbone {name!r} has no hyperparameter {key!r}: {nearest(key, parameters)}" for key in strange}


def backbone_name(potential: Potential) -> str:
    """The registered name of a potential's class, or its import path where it has none."""
    return BACKBONES.name_of(type(potential))


def build_from(cls: type[Backbone], name: str, hyperparameters: Mapping[str, Any]) -> Backbone:
    """A new potential of a class; ``name`` is what errors call it. Raises as :func:`build_backbone` does."""
    for said in _unknown(cls, name, hyperparameters).values():
        raise ConfigError(said)
    try:
        return cls(**hyperparameters)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"backbone {name!r} cannot be built from {dict(hyperparameters)}: {error}") from error

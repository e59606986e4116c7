"""Physics-informed pretraining of machine-learned interatomic potentials.

Public names resolve on first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "AtomGraph": "structures.graph",
    "CGCNN": "potentials.cgcnn",
    "DynamicsSettings": "dynamics.settings",
    "EAMFit": "pretraining.eam_fit",
    "EAMInteraction": "potentials.eam",
    "EnergyReference": "potentials.reference",
    "GraphDataset": "structures.graph",
    "OnlinePretrainingSet": "pretraining.pretraining_set",
    "PerturbationSettings": "pretraining.perturbation",
    "PhyspreError": "errors",
    "Potential": "potentials.base",
    "PotentialCalculator": "potentials.calculator",
    "Predictions": "potentials.base",
    "TrainingSettings": "training.settings",
    "build_graph": "structures.graph",
    "check_structures": "structures.check",
    "convert": "structures.convert",
    "evaluate": "potentials.base",
    "fit_eam": "pretraining.eam_fit",
    "fit_energy_reference": "potentials.reference",
    "get_labels": "structures.labels",
    "inspect_structures": "structures.inspect",
    "label": "pretraining.teacher",
    "load_potential": "potentials.checkpoints",
    "make_pretraining_set": "pretraining.pretraining_set",
    "perturb": "pretraining.perturbation",
    "prediction_errors": "analysis.errors",
    "read_structures": "structures.read",
    "run": "workflow.run",
    "save_potential": "potentials.checkpoints",
    "set_labels": "structures.labels",
    "simulate": "dynamics.simulation",
    "split_structures": "structures.splits",
    "summarise": "dynamics.verdicts",
    "train_potential": "training.two_stage",
    "write_structures": "structures.write",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""MatDeepLearn: embedded-atom potential and networks as models, perturbation as a transform, two stages as a trainer.

Names resolve on first use, and all are registered then: importing this package alone imports no host.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "CGCNN": "networks",
    "CompleteEdges": "edges",
    "EAMInteractionModel": "eam_model",
    "MatDeepLearnCalculator": "calculator",
    "Perturb": "perturb",
    "PhyspreLoss": "loss",
    "TorchMDET": "networks",
    "TorchMDETLate": "et_model",
    "TwoStageTrainer": "trainer",
}

__all__ = [
    "CGCNN",
    "CompleteEdges",
    "EAMInteractionModel",
    "MatDeepLearnCalculator",
    "Perturb",
    "PhyspreLoss",
    "TorchMDET",
    "TorchMDETLate",
    "TwoStageTrainer",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module(f"{__name__}.plugin").register()
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

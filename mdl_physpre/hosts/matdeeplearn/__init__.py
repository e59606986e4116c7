"""MatDeepLearn: the embedded-atom potential as a model, perturbation as a transform, two-stage training as a trainer.

Names resolve on first use, and all are registered then: importing this package alone imports no host.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "EAMInteractionModel": "eam_model",
    "MatDeepLearnCalculator": "calculator",
    "Perturb": "perturb",
    "PhyspreLoss": "loss",
    "TorchMDETLate": "et_model",
    "TwoStageTrainer": "trainer",
}

__all__ = [
    "EAMInteractionModel",
    "MatDeepLearnCalculator",
    "Perturb",
    "PhyspreLoss",
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

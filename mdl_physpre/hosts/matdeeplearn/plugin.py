"""Registration in MatDeepLearn: by its entry point in a patched host, and on first use of a name of this package."""

from __future__ import annotations

import logging
from typing import Any

from mdl_physpre.hosts.matdeeplearn.names import host

logger = logging.getLogger(__name__)

REGISTERED = {
    "model": ("eam_interaction", "EAM_Interaction"),
    "transform": ("physpre_perturb",),
    "trainer": ("physpre_two_stage",),
    "loss": ("PhyspreLoss",),
}
"""Names by kind."""

_MAPPINGS = {"model": "model_name_mapping", "transform": "transforms", "trainer": "trainer_name_mapping",
             "loss": "loss_name_mapping"}  # fmt: skip


def register() -> None:
    """Register models, transform, trainer and loss; again is no harm. A name that another class has is left to it."""
    registry = host().registry
    from mdl_physpre.hosts.matdeeplearn.eam_model import EAMInteractionModel
    from mdl_physpre.hosts.matdeeplearn.loss import PhyspreLoss
    from mdl_physpre.hosts.matdeeplearn.perturb import Perturb
    from mdl_physpre.hosts.matdeeplearn.trainer import TwoStageTrainer

    classes: dict[str, Any] = {
        "model": EAMInteractionModel,
        "transform": Perturb,
        "trainer": TwoStageTrainer,
        "loss": PhyspreLoss,
    }
    for kind, names in REGISTERED.items():
        for name in names:
            taken = registry.mapping[_MAPPINGS[kind]].get(name)
            if taken is None:
                getattr(registry, f"register_{kind}")(name)(classes[kind])
            elif taken is not classes[kind]:
                logger.warning("the %s %s stays %s.%s", kind, name, taken.__module__, taken.__qualname__)

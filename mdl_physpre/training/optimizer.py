"""AdamW and the schedule of its learning rate."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mdl_physpre.potentials.base import Backbone, Potential
from mdl_physpre.training.settings import TrainingSettings


def make_optimizer(potential: Potential, settings: TrainingSettings) -> tuple[torch.optim.AdamW, ReduceLROnPlateau]:
    """AdamW for the parameters that are trained, and its schedule."""
    optimizer = torch.optim.AdamW(
        parameter_groups(potential), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
    )
    scheduler = ReduceLROnPlateau(
        optimizer,
        factor=settings.scheduler_factor,
        patience=settings.scheduler_patience,
        threshold=settings.scheduler_threshold,
        min_lr=min(settings.min_lr, settings.lr),
    )
    return optimizer, scheduler


def parameter_groups(potential: Potential) -> list[dict[str, Any]]:
    """Parameters for the optimiser. Those that mean something physically do not decay (``undecayed()``)."""
    undecayed = {id(p) for p in potential.undecayed()} if isinstance(potential, Backbone) else set()
    trained = [p for p in potential.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if id(p) not in undecayed]},
        {"params": [p for p in trained if id(p) in undecayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]

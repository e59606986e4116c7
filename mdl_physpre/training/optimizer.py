"""AdamW and the schedule of its learning rate.

lr in step n = s(t) · min(1, (n + 1)/warmup_steps),    t = part of the training that is done, from 0 to 1

plateau   s falls by a factor where the loss of an epoch has not fallen for some epochs
cosine    s = lr_min + (lr − lr_min)·(1 + cos πt)/2      (Loshchilov and Hutter, arXiv:1608.03983, without restarts)
linear    s = lr_min + (lr − lr_min)·(1 − t)
constant  s = lr
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mdl_physpre.potentials.base import Backbone, Potential
from mdl_physpre.training.settings import TrainingSettings

SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda t: 0.5 * (1.0 + math.cos(math.pi * t)),
    "linear": lambda t: 1.0 - t,
}


def make_optimizer(potential: Potential, settings: TrainingSettings) -> tuple[torch.optim.AdamW, ReduceLROnPlateau]:
    """AdamW for the parameters that are trained, and what lowers its rate on a plateau."""
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


def take_step(optimizer: torch.optim.Optimizer, settings: TrainingSettings, step: int, done: float) -> float:
    """A step of the optimiser at the learning rate of the schedule, which is returned.

    The rate that the optimiser holds, which falls on a plateau alone, stays as it is.

    step : how many came before it. done : part of the training that was done before it.
    """
    held: float = optimizer.param_groups[0]["lr"]
    rate = held
    if settings.schedule in SHAPES:
        floor = min(settings.min_lr, held)
        rate = floor + (held - floor) * SHAPES[settings.schedule](min(done, 1.0))
    if step < settings.warmup_steps:
        rate *= (step + 1) / settings.warmup_steps
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] = held
    return rate

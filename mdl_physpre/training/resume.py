"""What a training leaves in ``last.ckpt`` beside Lightning's own, and whether another one may go on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mdl_physpre.errors import CheckpointError
from mdl_physpre.training.optimizer import SHAPES
from mdl_physpre.training.settings import TrainingSettings

STATE = "physpre"  # key of our part of a Lightning checkpoint
VERSION = 2
MAY_CHANGE = (
    "max_epochs", "max_steps", "max_seconds", "early_stopping_patience", "loggers", "device", "devices", "compile",
    "recompute_edges",
)  # fmt: skip
"""Settings that may differ between a checkpoint and the training that goes on from it."""


def stored_state(path: Path, identity: str, settings: TrainingSettings) -> dict[str, Any]:
    """Our part of a checkpoint.

    Raises
    ------
    CheckpointError : damaged, of another version, or of a training with other data or settings.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)[STATE]
        version = state["version"]
    except Exception as error:  # torch raises many kinds for damaged files
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}); remove it, or start anew with resume=False"
        ) from error
    if version != VERSION:
        raise CheckpointError(
            f"{path} has version {version}, this program writes {VERSION}; start anew with resume=False"
        )
    stored = {**settings.LATER, **state["settings"]}
    keys = [key for key in settings.model_dump() if key not in MAY_CHANGE]
    if settings.schedule in SHAPES:  # the rate of each step depends on the length
        keys += ["max_epochs" if settings.max_steps is None else "max_steps"]
    changes = [
        f"{key}: {stored[key]!r} → {getattr(settings, key)!r}"
        for key in keys
        if key in stored and stored[key] != getattr(settings, key)
    ]
    if state["identity"] != identity:
        changes.append("the training or validation set")
    if changes:
        raise CheckpointError(
            f"{path} belongs to another training; changed since: {'; '.join(changes)}; "
            "choose another folder, or start anew with resume=False"
        )
    return state

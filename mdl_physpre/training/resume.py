"""What a training leaves in ``last.ckpt`` beside Lightning's own, and whether another one may go on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mdl_physpre.errors import CheckpointError
from mdl_physpre.training.settings import TrainingSettings

STATE = "physpre"  # key of our part of a Lightning checkpoint
VERSION = 2
MAY_CHANGE = (
    "max_epochs", "max_seconds", "early_stopping_patience", "loggers", "device", "devices", "compile",
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
    changes = [
        f"{key}: {stored[key]!r} → {now!r}"
        for key, now in settings.model_dump().items()
        if key not in MAY_CHANGE and key in stored and stored[key] != now
    ]
    if state["identity"] != identity:
        changes.append("the training or validation set")
    if changes:
        raise CheckpointError(
            f"{path} belongs to another training; changed since: {'; '.join(changes)}; "
            "choose another folder, or start anew with resume=False"
        )
    return state


def is_finished(state: dict[str, Any], epochs: int, settings: TrainingSettings) -> bool:
    """Whether nothing is left to do after so many epochs, under the settings of now."""
    then = state["settings"]
    if state["stopped_by"] == "max_seconds":
        return settings.max_seconds is not None and bool(settings.max_seconds <= then["max_seconds"])
    if state["stopped_by"] == "early stopping":
        return bool(settings.early_stopping_patience == then["early_stopping_patience"])
    return epochs >= settings.max_epochs

"""When a training is over, and how much of it is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mdl_physpre.training.settings import TrainingSettings


def steps_of(history: Sequence[dict[str, Any]]) -> int:
    """Steps of the optimiser in the epochs so far, skipped ones included."""
    return sum(row["steps"] for row in history)


def reached(history: Sequence[dict[str, Any]], settings: TrainingSettings) -> str | None:
    """Which bound on the length the epochs so far have reached: ``max_steps`` or ``max_epochs``."""
    if settings.max_steps is not None:
        return "max_steps" if steps_of(history) >= settings.max_steps else None
    return "max_epochs" if len(history) >= settings.max_epochs else None


def reason_to_stop(history: Sequence[dict[str, Any]], best_epoch: int, settings: TrainingSettings) -> str | None:
    """Why training stops after the epochs so far; ``None`` where it goes on.

    history : a row for each epoch. best_epoch : that of the lowest validation loss, from 0.
    """
    done = len(history)
    if settings.early_stopping_patience is not None and done - 1 - best_epoch >= settings.early_stopping_patience:
        return "early stopping"
    if (bound := reached(history, settings)) is not None:
        return bound
    if settings.max_seconds is not None:
        spent = sum(row["seconds"] for row in history)
        if spent + spent / done > settings.max_seconds:
            return "max_seconds"
    return None


def is_finished(state: dict[str, Any], history: Sequence[dict[str, Any]], settings: TrainingSettings) -> bool:
    """Whether nothing is left to do after the epochs of a stored state, under the settings of now."""
    then = state["settings"]
    if state["stopped_by"] == "max_seconds":
        return settings.max_seconds is not None and bool(settings.max_seconds <= then["max_seconds"])
    if state["stopped_by"] == "early stopping":
        return bool(settings.early_stopping_patience == then["early_stopping_patience"])
    return reached(history, settings) is not None


def epochs_expected(history: Sequence[dict[str, Any]], per_epoch: int, settings: TrainingSettings) -> int:
    """Epochs of the whole training, where each of those to come has ``per_epoch`` steps."""
    if settings.max_steps is None:
        return settings.max_epochs
    return len(history) - (steps_of(history) - settings.max_steps) // per_epoch

"""What a job in MatDeepLearn notes of itself, and what of a job or checkpoint another one goes on from."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdl_physpre.errors import CheckpointError, ConfigError
from mdl_physpre.potentials.checkpoints.matdeeplearn import read_config
from mdl_physpre.runs.stage import hash_of

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
MAY_CHANGE = {"task": ("run_mode", "continue_job", "checkpoint_path", "load_training_state", "log_id", "save_dir"),
              "optim": ("max_epochs", "max_checkpoint_epochs", "verbosity", "batch_tqdm")}  # fmt: skip
"""What a job may be continued with."""


def decisive(config: Mapping[str, Any]) -> dict[str, str]:
    """A hash of each section on which the numbers of a run depend."""
    sections = ("task", "model", "optim", "dataset", "physpre")
    return {
        name: hash_of({k: v for k, v in (config.get(name) or {}).items() if k not in MAY_CHANGE.get(name, ())})
        for name in sections
    }


def run_folder(path: str | None) -> Path:
    """The folder ``results/ID`` of a job, from itself or from a file in it.

    Raises ConfigError where there is none.
    """
    if not path:
        raise ConfigError("task.continue_job is set: give task.checkpoint_path, the folder results/ID of the job")
    first = Path(str(path).split(",")[0]).absolute()
    for folder in (first, *first.parents):
        if (folder / RUN_FILE).is_file():
            return folder
    raise ConfigError(f"task.checkpoint_path: {first} is in no folder of a job that can be continued ({RUN_FILE})")


def read_run(folder: Path) -> dict[str, Any]:
    """What a job noted of itself when it began."""
    try:
        return json.loads((folder / RUN_FILE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / RUN_FILE}: cannot be read: {error}") from error


def reference_of(path: str | None) -> dict[str, float]:
    """Energies of the elements that the network of a checkpoint was trained without."""
    if not path:
        raise ConfigError("task.checkpoint_path is missing: the checkpoint to begin from")
    first = Path(str(path).split(",")[0])
    try:
        where, keys = read_config(first, None)
    except CheckpointError:
        logger.warning("%s has no config.yml: its energies are taken as total energies", first)
        return {}
    reference = (keys.get("physpre") or {}).get("energy_reference") or {}
    logger.info("energies of the elements from %s: %s", where, reference or "none")
    return dict(reference)

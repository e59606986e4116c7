"""Training of a potential: checks, the training itself, and what came of it."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mdl_physpre.errors import TrainingError
from mdl_physpre.potentials.base import AtomicPotential
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.training.arms import Online
from mdl_physpre.training.checks import check_precision, check_training, training_device
from mdl_physpre.training.data import fingerprint
from mdl_physpre.training.energy_zero import refit_reference
from mdl_physpre.training.history import training_record
from mdl_physpre.training.lightning_fit import fit, make_loggers
from mdl_physpre.training.module import PotentialTraining
from mdl_physpre.training.ranks import Ranks, training_ranks
from mdl_physpre.training.replay import Replay
from mdl_physpre.training.resume import stored_state
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.training.stopping import is_finished
from mdl_physpre.utils.devices import device_of_parameters

logger = logging.getLogger(__name__)


SUMMED = ("steps", "structures", "gradients", "skipped_steps")


@dataclass(frozen=True)
class TrainingResult:
    """What a training stage made.

    best_checkpoint : the potential with the lowest validation loss.
    history : one row for each epoch, as in ``log.csv``.
    best_loss, best_epoch : the lowest validation loss of an epoch (before the energy reference is refitted, where that
        is asked for), and its epoch counted from 0.
    stopped_by : ``max_epochs``, ``max_steps``, ``early stopping`` or ``max_seconds``.
    epochs, steps, structures, seconds : the budget spent: passes, optimiser steps (skipped ones included), structures
        seen (repetitions counted), and time in training and validation, over all interruptions.
    gradients : gradients taken; two for each step of sharpness-aware minimisation, one otherwise.
    skipped_steps : steps not taken because the gradient was not finite.
    """

    best_checkpoint: Path
    history: list[dict[str, Any]]
    best_loss: float
    best_epoch: int
    stopped_by: str
    epochs: int
    steps: int
    structures: int
    seconds: float
    gradients: int
    skipped_steps: int


def train_potential(
    potential: AtomicPotential,
    train: GraphDataset,
    val: GraphDataset,
    settings: TrainingSettings | None = None,
    out: Path | str = "training",
    resume: bool = True,
    online: Online | None = None,
    replay: Replay | None = None,
) -> TrainingResult:
    """Train ``potential`` and leave it with the weights of the lowest validation loss.

    An interrupted training, killed without warning included, goes on from the end of its last complete epoch and gives
    the same result as one that was never interrupted. With ``settings.devices`` above 1 this process starts others,
    which import the script that it runs: the script must then train under ``if __name__ == "__main__":``.

    Parameters
    ----------
    potential : trained in place; its energy reference is part of the energies and stays as it is.
    train, val : labelled data sets, in the precision of the potential, which keeps the energies of ``train``.
    settings : see :class:`TrainingSettings`.
    out : folder for ``best.pt`` (see :func:`save_potential`), ``last.ckpt`` (Lightning) and ``log.csv``.
    resume : go on from ``last.ckpt`` where it exists; otherwise start anew and remove what is there.
    online : gives the training set of each epoch, from 0, in place of ``train``; the same set for the same epoch. Of
        several processes the first one calls it.
    replay : structures of another stage that take part in every step, see :class:`Replay`.

    Raises
    ------
    ConfigError : a label has a weight and no structure carries it; a device that is not there, or on which
        ``precision`` does nothing; a package for a logger is missing.
    DataError : an empty data set, or one in another precision or with another cutoff than the potential.
    CheckpointError : ``last.ckpt`` is damaged or belongs to another training.
    TrainingError : the loss is not a number in three epochs in a row, or the potential has nothing to train.
    PhyspreError : another process that trains the same network (``settings.devices``) failed.
    """
    settings = settings or TrainingSettings()
    out = Path(out)
    check_training(potential, train, val, settings, replay)
    device = training_device(settings)
    check_precision(settings.precision, device)
    loggers = make_loggers(settings, out)
    identity = f"{fingerprint(train)}-{fingerprint(val)}" + (f"-{replay.identity()}" if replay is not None else "")
    make = partial(PotentialTraining, potential, train, val, settings, out, online, identity, replay)
    last = out / "last.ckpt" if resume and (out / "last.ckpt").exists() else None
    if last is not None:
        state = stored_state(last, identity, settings)
        earlier = make()
        earlier.restore(state)
        if is_finished(state, earlier.history, settings):
            earlier.log_file.write(out / "log.csv")
            return _finished(earlier, device)
        logger.info("%s: going on after epoch %d", last, earlier.epoch)
    # the first rank draws the sets of the epochs, and the others get them from it
    others = (
        potential if settings.devices == 1 else copy.deepcopy(potential).cpu(),
        train, val, settings, out, resume, online and _drawn_by_the_first, replay,
    )  # fmt: skip
    with training_ranks(settings.devices, train_potential, others) as ranks:
        return _trained(make, ranks, device, loggers, last)


def _trained(
    make: Callable[[Ranks], PotentialTraining],
    ranks: Ranks,
    device: torch.device,
    loggers: list[Any],
    last: Path | None,
) -> TrainingResult:
    """The result of a training in which this process is one of the ranks, from a checkpoint on where there is one."""
    ranks.wait()  # all have seen what is there
    if ranks.size > 1 and device.type == "cuda":
        device = torch.device("cuda", ranks.local)
    module = make(ranks)
    if ranks.first:
        module.out.mkdir(parents=True, exist_ok=True)
        for name in () if last else ("last.ckpt", "last.ckpt.part", "best.pt", "log.csv"):
            (module.out / name).unlink(missing_ok=True)
    fit(module, device, loggers if ranks.first else [], last)
    result = _finished(module, device)
    ranks.wait()
    return result


def _drawn_by_the_first(epoch: int) -> GraphDataset:
    raise TrainingError(f"the training set of epoch {epoch} is drawn by the first of the processes alone")


def _finished(module: PotentialTraining, device: torch.device) -> TrainingResult:
    """The result of a training that is over; its potential gets the best weights."""
    potential, history, best = module.potential, module.history, module.best
    checkpoint = module.out / "best.pt"
    if best["weights"] is None:
        raise TrainingError(f"{module.out}: the validation loss was not a number in any of {len(history)} epochs")
    potential.load_state_dict(best["weights"])
    potential.eval()
    home = device_of_parameters(potential)
    refitted = module.settings.refit_reference and refit_reference(
        potential.to(device), module.train_set, module.validation_set
    )
    potential.to(home)
    if module.ranks.first and (refitted or not checkpoint.exists()):
        record = training_record(best, module.settings) | {"reference_refitted": bool(refitted)}
        save_potential(checkpoint, potential, training=record)
    sums = {key: sum(row.get(key, row["steps"]) for row in history) for key in SUMMED}
    return TrainingResult(
        best_checkpoint=checkpoint,
        history=history,
        best_loss=best["loss"],
        best_epoch=best["epoch"],
        stopped_by=module.stopped_by or "max_epochs",
        epochs=len(history),
        seconds=math.fsum(row["seconds"] for row in history),
        **sums,
    )

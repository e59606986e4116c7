"""Training of a potential: checks, Lightning's Trainer without its extras, and taking up where it stopped."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from mdl_physpre.errors import CheckpointError, ConfigError, TrainingError
from mdl_physpre.potentials.base import AtomicPotential, Potential
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.training.arms import Online
from mdl_physpre.training.checks import check_precision, check_training, training_device
from mdl_physpre.training.data import fingerprint
from mdl_physpre.training.energy_zero import refit_reference
from mdl_physpre.training.history import EpochLog, training_record
from mdl_physpre.training.module import STATE, STATE_VERSION, PotentialTraining
from mdl_physpre.training.ranks import training_ranks
from mdl_physpre.training.replay import Replay
from mdl_physpre.training.settings import TrainingSettings, changed_settings
from mdl_physpre.utils.devices import device_of_parameters

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """What a training stage made.

    best_checkpoint : the potential with the lowest validation loss.
    history : one row for each epoch, as in ``log.csv``.
    best_loss, best_epoch : the lowest validation loss of an epoch (before the energy reference is refitted, where that
        is asked for), and its epoch counted from 0.
    stopped_by : ``max_epochs``, ``early stopping`` or ``max_seconds``.
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

    def budget(self) -> dict[str, float]:
        """What was spent, as plain numbers for a report."""
        return {key: getattr(self, key) for key in ("epochs", "steps", "gradients", "structures", "seconds")}


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

    Several devices train it together where ``settings.devices`` asks for them: this process then starts others, which
    import the script that it runs, so that the script must do this under ``if __name__ == "__main__":``.

    AdamW, gradient clipping, a learning rate that falls when the loss stops falling, and the loss of
    :mod:`mdl_physpre.training.loss`. An interrupted training, killed without warning included, goes on from the end
    of its last complete epoch and gives the same result as one that was never interrupted.

    Parameters
    ----------
    potential : trained in place; its energy reference is part of the energies and stays as it is.
    train, val : labelled data sets, in the precision of the potential.
    settings : see :class:`TrainingSettings`.
    out : folder for ``best.pt`` (see :func:`save_potential`), ``last.ckpt`` (Lightning) and ``log.csv``.
    resume : go on from ``last.ckpt`` where it exists; otherwise start anew and remove what is there.
    online : called with the number of each epoch, from 0; gives the training set of that epoch in place of ``train``.
        It must give the same set for the same epoch, or a training that is taken up again will differ. Of several
        processes the first one calls it.
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
    loggers = _loggers(settings, out)

    identity = f"{fingerprint(train)}-{fingerprint(val)}" + (f"-{replay.identity()}" if replay is not None else "")
    last = out / "last.ckpt"
    state = _stored_state(last, identity, settings) if resume and last.exists() else None
    if state is not None:
        history = EpochLog(None, state["history"]).rows
        if _is_finished(state, history, settings):
            EpochLog(out / "log.csv", state["history"])
            stopped_by = state["stopped_by"]
            return _finish(potential, device, out, history, state["best"], stopped_by, settings, train, val)
    # the first rank draws the sets of the epochs, and the others get them from it
    others = (
        potential if settings.devices == 1 else copy.deepcopy(potential).cpu(),
        train, val, settings, out, resume, online and _drawn_by_the_first, replay,
    )  # fmt: skip
    with training_ranks(settings.devices, train_potential, others) as ranks:
        ranks.wait()  # all have seen what is there
        if ranks.first:
            out.mkdir(parents=True, exist_ok=True)
            if state is None:
                for name in ("last.ckpt", "last.ckpt.part", "best.pt", "log.csv"):
                    (out / name).unlink(missing_ok=True)
            else:
                logger.info("%s: going on after epoch %d", last, len(history))
        if ranks.size > 1 and device.type == "cuda":
            device = torch.device("cuda", ranks.local)
        module = _trained(
            PotentialTraining(potential, train, val, settings, out, online, _saver(out), identity, replay, ranks),
            device,
            loggers if ranks.first else [],
            last if state is not None else None,
        )
        stopped_by = module.stopped_by or "max_epochs"
        result = _finish(
            potential, device, out, module.history, module.best, stopped_by, settings, train, val, ranks.first
        )
        ranks.wait()
    return result


def _drawn_by_the_first(epoch: int) -> GraphDataset:
    raise TrainingError(f"the training set of epoch {epoch} is drawn by the first of the processes alone")


def _saver(out: Path) -> Callable[[Potential, dict[str, Any]], Any]:
    return lambda trained, record: save_potential(out / "best.pt", trained, training=record)


def _trained(
    module: PotentialTraining, device: torch.device, loggers: list[Any], checkpoint: Path | None
) -> PotentialTraining:
    """The module after training on a device, from a checkpoint on where there is one; the potential is moved back."""
    potential = module.potential
    home = device_of_parameters(potential)
    potential.train()
    with _quiet(), torch.random.fork_rng(devices=[device.index] if device.type == "cuda" else []):
        trainer = pl.Trainer(
            max_epochs=module.settings.max_epochs,
            logger=loggers or False,
            default_root_dir=module.out,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            inference_mode=False,  # forces are derivatives
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            **module.ranks.trainer_options(device),
        )
        _fit(trainer, module, checkpoint)
    potential.to(home)
    return module


def _loggers(settings: TrainingSettings, out: Path) -> list[Any]:
    made: list[Any] = []
    for name in settings.loggers:
        packages = ("tensorboard", "tensorboardX") if name == "tensorboard" else ("wandb",)
        if not any(importlib.util.find_spec(package) for package in packages):
            raise ConfigError(f"loggers names {name!r}, which is not installed: pip install {packages[0]}")
        if name == "tensorboard":
            from lightning.pytorch.loggers import TensorBoardLogger

            made.append(TensorBoardLogger(out, name="tensorboard", version=""))
        else:
            from lightning.pytorch.loggers import WandbLogger

            made.append(WandbLogger(project="mdl-physpre", name=out.name, save_dir=out))
    return made


def _stored_state(path: Path, identity: str, settings: TrainingSettings) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)[STATE]
        version = state["version"]
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises many kinds for damaged files
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}); remove it, or start anew with resume=False"
        ) from error
    if version != STATE_VERSION:
        raise CheckpointError(
            f"{path} has version {version}, this program writes {STATE_VERSION}; start anew with resume=False"
        )
    changes = changed_settings(state["settings"], settings)
    if state["identity"] != identity:
        changes.append("the training or validation set")
    if changes:
        raise CheckpointError(
            f"{path} belongs to another training; changed since: {'; '.join(changes)}; "
            "choose another folder, or start anew with resume=False"
        )
    return state


def _is_finished(state: dict[str, Any], history: list[dict[str, Any]], settings: TrainingSettings) -> bool:
    if state["stopped_by"] == "max_seconds":
        return settings.max_seconds is not None and settings.max_seconds <= state["settings"]["max_seconds"]
    if state["stopped_by"] == "early stopping":
        return settings.early_stopping_patience == state["settings"]["early_stopping_patience"]
    return len(history) >= settings.max_epochs


def _fit(trainer: pl.Trainer, module: PotentialTraining, checkpoint: Path | None) -> None:
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if in_main else None
    try:
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:
        if type(error) is not SystemExit:  # a termination signal, which Lightning raises as a class of its own
            raise
        # Lightning turns Ctrl-C into an exit and switches the signal off; the caller shall see it as it was
        raise KeyboardInterrupt from None
    finally:
        module.close_bar()
        if in_main and handler is not None:
            signal.signal(signal.SIGINT, handler)


def _finish(
    potential: Potential,
    device: torch.device,
    out: Path,
    history: list[dict[str, Any]],
    best: dict[str, Any],
    stopped_by: str,
    settings: TrainingSettings,
    train: GraphDataset,
    val: GraphDataset,
    write: bool = True,
) -> TrainingResult:
    if best["weights"] is None:
        raise TrainingError(f"{out}: the validation loss was not a number in any of {len(history)} epochs")
    potential.load_state_dict(best["weights"])
    potential.eval()
    home = device_of_parameters(potential)
    refitted = settings.refit_reference and refit_reference(potential.to(device), train, val)
    potential.to(home)
    if write and (refitted or not (out / "best.pt").exists()):
        record = training_record(best, settings) | {"reference_refitted": bool(refitted)}
        save_potential(out / "best.pt", potential, training=record)
    return TrainingResult(
        best_checkpoint=out / "best.pt",
        history=history,
        best_loss=best["loss"],
        best_epoch=best["epoch"],
        stopped_by=stopped_by,
        epochs=len(history),
        steps=sum(row["steps"] for row in history),
        structures=sum(row["structures"] for row in history),
        seconds=math.fsum(row["seconds"] for row in history),
        gradients=sum(row.get("gradients", row["steps"]) for row in history),
        skipped_steps=sum(row["skipped_steps"] for row in history),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's tips and hints, on which a user cannot act, off the screen."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning", "pytorch_lightning")
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", module="torch.optim.lr_scheduler")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)

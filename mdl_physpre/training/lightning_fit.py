"""Lightning's Trainer without its extras, loggers on demand, and an interruption that the caller sees as it was."""

from __future__ import annotations

import importlib.util
import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from mdl_physpre.errors import ConfigError
from mdl_physpre.training.module import PotentialTraining
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.utils.devices import device_of_parameters


def fit(module: PotentialTraining, device: torch.device, loggers: list[Any], checkpoint: Path | None) -> None:
    """Train on a device, from a checkpoint on where there is one, and move the potential back."""
    potential = module.potential
    home = device_of_parameters(potential)
    potential.train()
    with _quiet(), torch.random.fork_rng(devices=[device.index] if device.type == "cuda" else []):
        trainer = pl.Trainer(
            max_epochs=-1,  # the module says when it is over
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
        with _interruptions():
            try:
                trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
            finally:
                if module.progress is not None:
                    module.progress.close()
    potential.to(home)


def make_loggers(settings: TrainingSettings, out: Path) -> list[Any]:
    """Lightning's loggers that the settings name. Raises ConfigError where the package of one is missing."""
    made: list[Any] = []
    for name in settings.loggers:
        packages = ("tensorboard", "tensorboardX") if name == "tensorboard" else ("wandb",)
        if not any(importlib.util.find_spec(package) for package in packages):
            raise ConfigError(f"loggers names {name!r}, which is not installed: pip install {packages[0]}")
        from lightning.pytorch import loggers

        if name == "tensorboard":
            made.append(loggers.TensorBoardLogger(out, name="tensorboard", version=""))
        else:
            made.append(loggers.WandbLogger(project="mdl-physpre", name=out.name, save_dir=out))
    return made


@contextmanager
def _interruptions() -> Iterator[None]:
    """Lightning turns Ctrl-C into an exit and switches the signal off; the caller shall see it as it was."""
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if in_main else None
    try:
        yield
    except SystemExit as error:
        if type(error) is not SystemExit:  # a termination signal, which Lightning raises as a class of its own
            raise
        raise KeyboardInterrupt from None
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)


@contextmanager
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

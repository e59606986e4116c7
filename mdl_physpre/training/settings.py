"""Settings of one training stage."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from mdl_physpre.errors import ConfigError, nearest

LOSSES = ("mae", "huber", "conditional_huber")
PRECISIONS = ("float32", "tf32", "bf16")
SCHEDULER_LOSSES = ("train", "validation")
LOGGERS = ("tensorboard", "wandb")


@dataclass(frozen=True)
class TrainingSettings:
    """How a potential is trained. The defaults are the paper's settings for CGCNN.

    Parameters
    ----------
    max_epochs : passes through the training set.
    lr : learning rate of AdamW at the start.
    weight_decay : of AdamW; 0.01 is its usual default.
    batch_size : structures in a batch.
    max_edges : a batch with more edges than this is split; a limit on memory. ``None``: no limit.
    recompute_edges : work on a batch in parts of at most so many edges, and compute each again for its gradient:
        more work, the memory of one part, and the same step. ``None``: the whole batch at once.
    weight_energy, weight_force, weight_stress : weights of the three terms of the loss (0.01, 50, 50 in the paper, for
        eV, eV/Å and eV/Å³). A term of weight 0 is not computed.
    energy_per_atom : compare energies per atom (eV/atom) rather than totals; 0.01 is then far too small a weight.
    loss : ``mae``, ``huber``, or ``conditional_huber``; see :mod:`mdl_physpre.training.loss`.
    huber_energy, huber_force, huber_stress : errors below these count quadratically, in eV (eV/atom), eV/Å, eV/Å³.
    force_tail, stress_tail : error of a force is divided by 1 + |F|/force_tail, of a stress by 1 + ‖σ‖/stress_tail,
        so that labels far above these values (eV/Å, eV/Å³) do not drown the rest. ``None``: all count alike.
    clip_grad_norm : the gradient is scaled down to this norm where it is longer. ``None``: never.
    scheduler_loss : which loss the learning rate follows. ``train``, as in the paper's reference: a validation set of
        20 to 30 structures fluctuates by more than the threshold, and would time the steps at random.
    scheduler_factor, scheduler_patience, scheduler_threshold, min_lr : the learning rate is multiplied by the factor
        (down to ``min_lr``) after ``patience`` epochs in which the loss did not fall by the relative threshold.
    early_stopping_patience : stop after so many epochs without a lower validation loss. ``None``: never.
    refit_reference : at the end, shift the reference energy of each element by the least-squares fit of what is left of
        the training energies to composition, if that lowers the validation error of energy. Forces and stress do not
        change. With weights of 0.01 and 50, the mean energy drifts by an eV per atom while forces are learnt.
    sam_rho : length of the step to the worst weights nearby in sharpness-aware minimisation, see
        :mod:`mdl_physpre.training.sam`; each step then takes two gradients. ``None``: plain AdamW.
    sam_adaptive : measure that length relative to the size of each weight.
    seed : of the order of structures, together with the epoch, and of a backbone's own random numbers.
    precision : of matrix products in training steps on CUDA: ``float32``; ``tf32``, that of the tensor cores (10 bits
        of the mantissa) with results in float32; or ``bf16``, mixed precision (7 bits). Positions, sums, the loss and
        validation stay in full precision. Both are refused on other devices, where they do nothing.
    max_seconds : no epoch starts that would be expected to end later than this. ``None``: no limit.
    loggers : any of ``tensorboard`` and ``wandb``, beside the CSV file that is always written.
    device : ``auto`` (CUDA where there is a device), ``cpu``, ``cuda`` or ``cuda:1``.
    devices : how many devices train the network together, a process each, see :mod:`mdl_physpre.training.ranks`. A
        batch is divided among them: loss, steps and results are those of one device, to rounding.
    compile : whether training steps are compiled (``torch.compile``).

    Raises
    ------
    ConfigError : a value outside its range, with the key and what is allowed.
    """

    max_epochs: int = 200
    lr: float = 5e-4
    weight_decay: float = 0.01
    batch_size: int = 16
    max_edges: int | None = None
    recompute_edges: int | None = None
    weight_energy: float = 0.01
    weight_force: float = 50.0
    weight_stress: float = 50.0
    energy_per_atom: bool = False
    loss: str = "mae"
    huber_energy: float = 0.01
    huber_force: float = 0.01
    huber_stress: float = 0.001
    force_tail: float | None = None
    stress_tail: float | None = None
    clip_grad_norm: float | None = 10.0
    scheduler_loss: str = "train"
    scheduler_factor: float = 0.8
    scheduler_patience: int = 10
    scheduler_threshold: float = 2e-4
    min_lr: float = 1e-5
    early_stopping_patience: int | None = None
    refit_reference: bool = False
    sam_rho: float | None = None
    sam_adaptive: bool = True
    seed: int = 0
    precision: str = "float32"
    max_seconds: float | None = None
    loggers: tuple[str, ...] = ()
    device: str = "auto"
    devices: int = 1
    compile: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "loggers", tuple(self.loggers))
        for key, allowed in (("loss", LOSSES), ("precision", PRECISIONS), ("scheduler_loss", SCHEDULER_LOSSES)):
            _one_of(key, getattr(self, key), allowed)
        for name in self.loggers:
            _one_of("loggers", name, LOGGERS)
        for key in ("max_epochs", "batch_size", "devices"):
            _at_least_one(key, getattr(self, key))
        for key in ("max_edges", "recompute_edges", "early_stopping_patience"):
            if getattr(self, key) is not None:
                _at_least_one(key, getattr(self, key))
        for key in ("lr", "huber_energy", "huber_force", "huber_stress", "scheduler_factor"):
            _number(key, getattr(self, key), zero=False)
        for key in (
            "weight_decay",
            "weight_energy",
            "weight_force",
            "weight_stress",
            "min_lr",
            "scheduler_threshold",
            "scheduler_patience",
        ):
            _number(key, getattr(self, key), zero=True)
        for key in ("force_tail", "stress_tail", "clip_grad_norm", "sam_rho", "max_seconds"):
            if getattr(self, key) is not None:
                _number(key, getattr(self, key), zero=False)
        if self.scheduler_factor >= 1:
            raise ConfigError(f"scheduler_factor is {self.scheduler_factor}; expected a number below 1")
        if self.weight_energy == self.weight_force == self.weight_stress == 0:
            raise ConfigError(
                "weight_energy, weight_force and weight_stress are all 0, so there is nothing to train on; "
                "give at least one of them a positive value"
            )


#: settings that may differ between a checkpoint and the training that goes on from it
MAY_CHANGE = (
    "max_epochs", "max_seconds", "early_stopping_patience", "loggers", "device", "devices", "compile",
    "recompute_edges",
)  # fmt: skip


def changed_settings(stored: dict[str, Any], settings: TrainingSettings) -> list[str]:
    """``key: was → is`` for each setting that decides the result and is not what a checkpoint was made with."""
    lines = []
    for field in fields(settings):
        if field.name in MAY_CHANGE or field.name not in stored:
            continue
        now = getattr(settings, field.name)
        if stored[field.name] != now:
            lines.append(f"{field.name}: {stored[field.name]!r} → {now!r}")
    return lines


def _one_of(key: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key} is {value!r}; {nearest(str(value), allowed)}")


def _at_least_one(key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{key} is {value!r}; expected a whole number of at least 1")


def _number(key: str, value: Any, zero: bool) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < 0 or (value == 0 and not zero):
        raise ConfigError(f"{key} is {value!r}; expected a {'number of at least 0' if zero else 'positive number'}")

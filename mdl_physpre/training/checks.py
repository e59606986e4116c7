"""What is looked at before a training begins: potential, data, devices, precision."""

from __future__ import annotations

import torch
from torch import nn

from mdl_physpre.errors import ConfigError, DataError, TrainingError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.training.loss import check_labels
from mdl_physpre.training.ranks import devices_per_machine
from mdl_physpre.training.replay import Replay
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.utils.devices import OPEN, available_device

WITHOUT_DOUBLE = ("mps", "meta")  # kinds of devices on which sums cannot be trusted, or not be had
FIRST_WITH_TF32 = 8  # compute capability of the first GPUs (Ampere) with TF32 and bfloat16


def check_training(
    potential: Potential, train: GraphDataset, val: GraphDataset, settings: TrainingSettings, replay: Replay | None
) -> None:
    """Raise an error where potential, data and settings do not fit together.

    Raises
    ------
    TrainingError : nothing to train.
    DataError : an empty set, one in another precision, or one whose edges do not reach far enough.
    ConfigError : a label has a weight and no structure carries it; batch normalisation on several devices.
    """
    parameters = [p for p in potential.parameters() if p.requires_grad]
    if not parameters:
        raise TrainingError(f"{type(potential).__name__} has no parameter to train")
    by_batch = [type(m).__name__ for m in potential.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if settings.devices > 1 and by_batch:
        raise ConfigError(
            f"devices is {settings.devices}, and {type(potential).__name__} has a {by_batch[0]}, whose statistics "
            "would be those of each device's share of a batch; set devices to 1"
        )
    sets = [("training", train, settings), ("validation", val, settings)]
    if replay is not None:
        sets.append(("replayed", replay.dataset, replay.settings))
    for split, dataset, weights in sets:
        if len(dataset) == 0:
            raise DataError(f"the {split} set is empty")
        if dataset.dtype != parameters[0].dtype:
            raise DataError(
                f"the {split} set is in {dataset.dtype} and the potential in {parameters[0].dtype}; "
                f"build it with GraphDataset(..., dtype={parameters[0].dtype})"
            )
        if dataset.cutoff < potential.cutoff:
            raise DataError(
                f"the edges of the {split} set reach to {dataset.cutoff} Å and the potential needs {potential.cutoff} Å"
            )
        check_labels(dataset, split, weights)


def training_device(settings: TrainingSettings) -> torch.device:
    """The device of a training, or the first of those of several processes.

    Raises ConfigError where it is not there, or is of a kind that training does not run on.
    """
    device, number = available_device(settings.device), devices_per_machine(settings.devices)
    if device.type in WITHOUT_DOUBLE:
        raise ConfigError(f"device is {settings.device!r}, which has no double precision; training needs cpu or cuda")
    if settings.devices == 1:
        return device
    if settings.device not in ("cpu", *OPEN):
        raise ConfigError(
            f"device is {settings.device!r} and devices is {settings.devices}: one device is named, and several are "
            "wanted; set device to auto, or devices to 1"
        )
    there = torch.cuda.device_count()
    if settings.device != "cpu" and there < number:
        raise ConfigError(
            f"devices is {settings.devices}, and this machine has {there} of the {number} GPUs that it is to bring; "
            "lower it, or set device to cpu to train in processes on the CPU"
        )
    return torch.device("cpu" if device.type == "cpu" else "cuda:0")


def check_precision(precision: str, device: torch.device) -> None:
    """Raise ConfigError for a precision that does nothing on a device."""
    if precision == "float32":
        return
    if device.type != "cuda":
        raise ConfigError(
            f"precision is {precision!r}, which is for matrix products on CUDA, and this training runs on {device}; "
            "set precision to float32, or train on a GPU"
        )
    major, minor = torch.cuda.get_device_capability(device)
    if major < FIRST_WITH_TF32:
        raise ConfigError(
            f"precision is {precision!r}, which needs compute capability {FIRST_WITH_TF32}.0, and {device} has "
            f"{major}.{minor}; set precision to float32"
        )

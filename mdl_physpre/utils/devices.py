"""Devices that potentials compute on, by name: ``auto``, ``cpu``, ``cuda``, ``cuda:1``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from mdl_physpre.errors import ConfigError

OPEN = ("auto", "cuda")  # names that leave open which GPU
M = TypeVar("M", bound=nn.Module)


def available_device(device: str | torch.device = "auto") -> torch.device:
    """The device of this name; ``auto`` is the first GPU where there is one, else the CPU.

    Raises ConfigError, with those that are there, for one that is not.
    """
    if str(device) == "auto":
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except Exception as error:  # each kind of device raises its own
        raise ConfigError(
            f"device {str(device)!r} is not available here; available: {', '.join(devices_here())}, or auto"
        ) from error
    return torch.device("cuda", torch.cuda.current_device()) if str(found) == "cuda" else found


def devices_here() -> list[str]:
    """Names of all devices of this machine."""
    here = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    return here + (["mps"] if torch.backends.mps.is_available() else [])


def device_in_turn(device: str, number: int) -> torch.device:
    """The device of one of several networks or processes: where the name leaves it open, they take the GPUs in turn.

    Raises ConfigError as :func:`available_device`.
    """
    found = available_device(device)
    if found.type == "cuda" and device in OPEN:
        return torch.device("cuda", number % torch.cuda.device_count())
    return found


def device_of_parameters(potential: nn.Module) -> torch.device:
    """Where a potential is: the device of its parameters, or of its buffers; the CPU where it has none."""
    tensor = next(iter([*potential.parameters(), *potential.buffers()]), None)
    return torch.device("cpu") if tensor is None else tensor.device


def precision_and_device(potential: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Those of its parameters, or of its buffers, that are floating-point numbers; float64 on the CPU if none."""
    for tensor in [*potential.parameters(), *potential.buffers()]:
        if tensor.is_floating_point():
            return tensor.dtype, tensor.device
    return torch.float64, torch.device("cpu")


def put_on(potential: M, device: str | torch.device) -> M:
    """The potential, moved to a device.

    One without parameters, such as a calculator or a TorchSim model, computes where it was built, and stays there.
    Raises ConfigError as :func:`available_device`.
    """
    return potential if next(potential.parameters(), None) is None else potential.to(available_device(device))


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Compute with so many threads; as PyTorch decides where ``None``."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""The stand-in for a GPU as the GPU of a whole run."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy

from mdl_physpre.utils import devices
from tests.helpers.gpu_stand_in import DEVICE


def make_it_the_gpu(monkeypatch: Any) -> None:
    """For one test, ``auto`` and ``cuda`` name this device, and Lightning trains on it.

    Lightning knows devices of its own; a device that it does not know takes a strategy and an accelerator by instance.
    """
    instead = SimpleNamespace(active=False)  # modules imported meanwhile keep the function

    class Accelerator(CPUAccelerator):
        def setup_device(self, device: torch.device) -> None:
            assert device == DEVICE

    def trainer(*args: Any, __new: Any = pl.Trainer, **options: Any) -> Any:
        if options.get("accelerator") != "cpu":
            options |= {"accelerator": Accelerator(), "strategy": SingleDeviceStrategy(DEVICE), "devices": 1}
        return __new(*args, **options)

    def available(device: Any = "auto", *, __true: Any = devices.available_device) -> torch.device:
        return DEVICE if instead.active and str(device) != "cpu" else __true(device)

    monkeypatch.setattr(pl, "Trainer", trainer)
    monkeypatch.setattr(instead, "active", True)
    for name, module in list(sys.modules.items()):
        if name.startswith("mdl_physpre") and hasattr(module, "available_device"):
            monkeypatch.setattr(module, "available_device", available)

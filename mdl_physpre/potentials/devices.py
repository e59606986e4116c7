"""Devices that potentials can compute on."""

from __future__ import annotations

import torch

from mdl_physpre.errors import ConfigError


def available_device(device: str | torch.device) -> torch.device:
    """The device of this name. Raises ConfigError, with those that are there, for one that is not."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except Exception as error:  # each kind of device raises its own
        there = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        raise ConfigError(f"device {str(device)!r} is not available here; available: {', '.join(there)}") from error
    return found

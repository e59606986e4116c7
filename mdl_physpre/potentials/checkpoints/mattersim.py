"""Checkpoints of MatterSim: ``.pth`` files of its M3GNet, read and written.

A file is a dictionary with ``model_name``, ``model`` (the parameters), ``model_args`` (the sizes), the state of the
training, and a description. Nothing in it is executed: where it holds objects beside tensors and plain values, as an
optimiser may be, they are not built.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdl_physpre.errors import CheckpointError, ConfigError
from mdl_physpre.potentials.backbones.m3gnet.network import M3GNet
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.checkpoints.archive import read_archive, write_archive
from mdl_physpre.potentials.checkpoints.single_precision import lost_in_single_precision
from mdl_physpre.utils.devices import available_device

logger = logging.getLogger(__name__)

MODEL_ARGS = ("num_blocks", "units", "max_l", "max_n", "cutoff", "max_z", "threebody_cutoff")
CONSTANTS = ("rbf.", "sbf.")
"""Beginnings of the names of numbers that follow from the sizes."""


def is_mattersim_checkpoint(content: Any) -> bool:
    """Whether this is the content of a checkpoint of MatterSim."""
    return isinstance(content, dict) and {"model_name", "model", "model_args"} <= content.keys()


def read_mattersim_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> M3GNet:
    """The M3GNet in a checkpoint of MatterSim, in evaluation mode.

    Raises CheckpointError for a file that is missing, damaged or of another kind, and for one whose parameters do not
    fit its sizes, and ConfigError for a device that is not there.
    """
    path, device = Path(path), available_device(map_location)
    content = read_archive(path, skip_objects=True)
    state, arguments = content.get("model"), content.get("model_args")
    if not isinstance(state, Mapping) or not isinstance(arguments, Mapping):
        found = ", ".join(sorted(map(str, content))[:8]) or "nothing"
        raise CheckpointError(f"{path}: no checkpoint of MatterSim: it holds {found}, expected model and model_args")
    name = content.get("model_name", "m3gnet")
    if name != "m3gnet":
        raise CheckpointError(f"{path}: its model_name is {name!r}; only m3gnet can be read")
    missing = [key for key in MODEL_ARGS if key not in arguments]
    if missing:
        raise CheckpointError(f"{path}: its model_args lack {', '.join(missing)}")
    return m3gnet_from_state(path, state, {key: arguments[key] for key in MODEL_ARGS}).to(device)


def write_mattersim_checkpoint(path: str | Path, potential: Potential, description: str = "") -> list[str]:
    """Write an M3GNet as a checkpoint that MatterSim loads (``Potential.from_checkpoint``).

    Returns
    -------
    What the format cannot carry, a sentence each; they are also logged as warnings. With an empty list MatterSim gives
    the same energies, forces and stress, to the rounding of single precision.

    Raises
    ------
    CheckpointError : another potential than an M3GNet, or a file that cannot be written.
    """
    path = Path(path)
    if not isinstance(potential, M3GNet):
        raise CheckpointError(f"{path}: {type(potential).__name__} has no counterpart in MatterSim; M3GNet has")
    lost = []
    if potential.elements is not None:
        lost.append("the list of elements that the potential knows is not kept: MatterSim takes any element")
    state = {name: value.detach().cpu().float().clone() for name, value in potential.state_dict().items()}
    lost += lost_in_single_precision(potential)
    arguments = {key: getattr(potential, key) for key in MODEL_ARGS}
    # MatterSim starts a new optimiser, schedule and average of parameters where it finds none
    content = {
        "model_name": "m3gnet", "model": OrderedDict(state), "model_args": arguments, "optimizer": None, "ema": None,
        "scheduler": None, "last_epoch": -1, "validation_metrics": {"loss": 1e7}, "description": description,
    }  # fmt: skip
    return write_archive(path, content, lost)


def m3gnet_from_state(path: Path, state: Mapping[str, Any], arguments: Mapping[str, Any]) -> M3GNet:
    """An M3GNet of these sizes with MatterSim's parameters, in evaluation mode.

    Raises CheckpointError, naming ``path``, where they do not fit.
    """
    try:
        potential = M3GNet(**arguments)
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its M3GNet cannot be built: {error}") from error
    own = potential.state_dict()
    given = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    missing = [name for name in own if name not in given and not name.startswith(CONSTANTS)]
    if missing:
        raise CheckpointError(f"{path}: lacks {len(missing)} parameters of the M3GNet, the first {missing[0]}")
    for name, value in own.items():
        found = given.get(name, value)
        if found.shape != value.shape:
            raise CheckpointError(f"{path}: {name} has the shape {tuple(found.shape)}, expected {tuple(value.shape)}")
        if name.startswith(CONSTANTS) and not torch.allclose(found.cpu().float(), value, rtol=1e-4, atol=1e-6):
            told = ", ".join(f"{key} {v}" for key, v in arguments.items())
            raise CheckpointError(
                f"{path}: {name} does not belong to the sizes that the file states ({told}): found "
                f"{found.flatten()[:4].tolist()}, expected {value.flatten()[:4].tolist()}"
            )
    strange = sorted(set(state) - set(own))
    if strange:
        logger.warning("%s: %d entries that an M3GNet does not have are left out: %s", path, len(strange), strange[:4])
    potential.load_state_dict({name: given.get(name, value) for name, value in own.items()})
    return potential.eval()

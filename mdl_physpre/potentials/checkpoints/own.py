"""Checkpoints of this package, written and read.

A checkpoint of this package is one file, written by
``torch.save``, that holds a dictionary of tensors and plain values:

    format             "mdl_physpre potential"
    format_version     1
    package_version    version of this package that wrote it
    backbone           registered name, or "module:Class"
    hyperparameters    arguments that build the potential again
    elements, cutoff   as the potential has them; Å
    energy_reference   energies of the elements, eV by atomic number
    training           record of the training (plain values), or None
    training_energies  energies per atom of the training structures (plain values), or None; missing in older files
    state_dict         parameters and buffers

Nothing in it is executed: it is read with ``weights_only=True``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdl_physpre import __version__
from mdl_physpre.errors import CheckpointError, ConfigError
from mdl_physpre.potentials.backbones.registry import BACKBONES, backbone_class, backbone_name, build_from
from mdl_physpre.potentials.base import Backbone, Potential
from mdl_physpre.potentials.checkpoints.archive import read_archive, write_archive
from mdl_physpre.potentials.training_energies import TrainingEnergies

FORMAT = "mdl_physpre potential"
FORMAT_VERSION = 1


def save_potential(path: str | Path, potential: Potential, training: Mapping[str, Any] | None = None) -> Path:
    """Write a potential to ``path``, by way of a temporary file: the file is either whole or not there.

    ``training`` is a record of plain values (numbers, text, lists, dictionaries, tensors) that is kept beside it.
    Returns the path. Raises CheckpointError where potential or record cannot be stored, or the file not be written.
    """
    path = Path(path)
    energies_known = potential.training_energies
    energies = potential.reference_energies().tolist() if isinstance(potential, Backbone) else []
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "backbone": backbone_name(potential),
        "hyperparameters": _plain(potential.hyperparameters(), "hyperparameters"),
        "elements": None if potential.elements is None else [int(z) for z in potential.elements],
        "cutoff": float(potential.cutoff),
        "energy_reference": {z: energy for z, energy in enumerate(energies) if energy},
        "training": None if training is None else _plain(training, "training"),
        "training_energies": None if energies_known is None else energies_known.plain(),
        "state_dict": {name: value.detach().cpu().clone() for name, value in potential.state_dict().items()},
    }
    write_archive(path, content)
    return path


def load_own(path: Path, map_location: str | torch.device) -> Potential:
    content = read_checkpoint(path)
    name = content["backbone"]
    for used in _backbones_in(content):
        module = used.partition(":")[0]
        if used not in BACKBONES.paths() and (":" not in used or module not in sys.modules):
            raise CheckpointError(
                f"{path}: holds the backbone {used!r}, which is not registered here; install the package that "
                f"registers it in the entry-point group {BACKBONES.group}, or import its module first "
                "(--import MODULE on the command line, open_potential(…, modules=[MODULE]) in Python)"
            )
    try:
        potential = build_from(backbone_class(name), name, content["hyperparameters"])
    except ConfigError as error:
        raise CheckpointError(f"{path}: the backbone {name!r} cannot be built again: {error}") from error
    try:
        potential.load_state_dict(content["state_dict"], assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: its parameters do not fit the backbone {name!r}: {reason}") from error
    if content.get("training_energies") is not None:
        potential.training_energies = TrainingEnergies.read(content["training_energies"], path)
    return potential.to(map_location).eval()


def _backbones_in(content: Mapping[str, Any]) -> list[str]:
    """Names of the backbone and of those that its hyperparameters name in turn (a network inside a hybrid)."""
    inside = content.get("hyperparameters")
    values = inside.values() if isinstance(inside, Mapping) else ()
    inner = [v for v in values if isinstance(v, Mapping) and "backbone" in v]
    return [str(content["backbone"]), *(name for part in inner for name in _backbones_in(part))]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The dictionary stored in a checkpoint of this package, on the CPU, checked for format and version.

    Raises as :func:`load_potential` does.
    """
    content = read_archive(path)
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of this package{_foreign(content)}")
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: checkpoint format version {content.get('format_version')} (written by mdl_physpre "
            f"{content.get('package_version')}), but this is mdl_physpre {__version__}, which reads version "
            f"{FORMAT_VERSION}; use the version that wrote it"
        )
    missing = {"backbone", "hyperparameters", "state_dict"} - content.keys()
    if missing:
        raise CheckpointError(f"{path}: the checkpoint lacks {', '.join(sorted(missing))}")
    return content


def _foreign(content: Mapping[str, Any]) -> str:
    if "pytorch-lightning_version" in content:
        return ": it is a Lightning training state; the potential itself is saved beside it as best.pt"
    return f": it holds {', '.join(sorted(map(str, content))[:6]) or 'nothing'}, expected format {FORMAT!r}"


def _plain(value: Any, where: str) -> Any:
    """``value`` in types that load without executing code: arrays become lists, paths text, tuples lists."""
    if isinstance(value, np.generic):
        value = value.item()
    elif isinstance(value, np.ndarray):
        value = value.tolist()
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value is None or type(value) in (bool, int, float, str, complex):
        return value
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, (str, int)):
                raise CheckpointError(f"{where}: a key is {key!r} ({type(key).__name__}), expected text or an integer")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise CheckpointError(f"{where}: a {type(value).__name__} cannot be stored; use numbers, text, lists, dictionaries")

"""Saving and loading potentials, and building backbones by name.

Files in the formats of others are loaded, too: READERS. A checkpoint of this package is one file, written by
``torch.save``, that holds a dictionary of tensors and plain values:

    format             "mdl_physpre potential"
    format_version     1
    package_version    version of this package that wrote it
    backbone           registered name, or "module:Class"
    hyperparameters    arguments that build the potential again
    elements, cutoff   as the potential has them; Å
    energy_reference   energies of the elements, eV by atomic number
    training           record of the training (plain values), or None
    state_dict         parameters and buffers

Nothing in it is executed: it is read with ``weights_only=True``.
"""

from __future__ import annotations

import inspect
import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mdl_physpre import __version__
from mdl_physpre.errors import CheckpointError, ConfigError, DataError, nearest
from mdl_physpre.potentials.base import Backbone, Potential
from mdl_physpre.potentials.matdeeplearn_checkpoints import is_matdeeplearn_checkpoint, read_matdeeplearn_checkpoint
from mdl_physpre.potentials.mattersim_checkpoints import is_mattersim_checkpoint, read_mattersim_checkpoint
from mdl_physpre.potentials.mattertune_checkpoints import is_mattertune_checkpoint, read_mattertune_checkpoint
from mdl_physpre.structures.files import replacing
from mdl_physpre.utils.devices import available_device
from mdl_physpre.utils.import_paths import import_object

FORMAT = "mdl_physpre potential"
FORMAT_VERSION = 1
ENTRY_POINT_GROUP = "mdl_physpre.backbones"

BUILT_IN = {
    "CGCNN": "mdl_physpre.potentials.cgcnn:CGCNN",
    "eam_interaction": "mdl_physpre.potentials.eam:EAMInteraction",
    "torchmd_etEarly": "mdl_physpre.potentials.torchmd_et:TorchMDET",
    "torchmd_et": "mdl_physpre.potentials.torchmd_et:TorchMDET",
    "M3GNet": "mdl_physpre.potentials.m3gnet:M3GNet",
    "hybrid": "mdl_physpre.potentials.sum:HybridPotential",
}
"""Names of the backbones that come with the package."""


def build_backbone(name: str, **hyperparameters: Any) -> Backbone:
    """A new potential by the name of its backbone.

    ``name`` is a built-in name (``CGCNN``, ``eam_interaction``), a name registered by an installed package in the
    entry-point group ``mdl_physpre.backbones``, or an import path (``package.module:Class``).

    A backbone is a class derived from :class:`~mdl_physpre.Backbone`. It is called with keyword arguments alone:
    ``elements`` (symbols or atomic numbers, those of the training set), ``cutoff`` (Å), and the keys of the
    configuration's ``model`` section. It keeps ``elements`` (atomic numbers) and ``cutoff`` as attributes, defines
    ``atomic_energies(graph)``, (n_atoms,) eV, differentiable in ``graph.pos`` and ``graph.cell``, and
    ``hyperparameters()``, plain values from which the same call builds it again, so that it can be saved. Its
    ``reference`` (:class:`~mdl_physpre.EnergyReference`) is set to the energies of the elements before training; the
    atomic energies include ``self.reference(graph.z)``.

    Raises ConfigError for an unknown name or hyperparameter, naming the nearest known one.
    """
    return _build(backbone_class(name), name, hyperparameters)


def backbone_class(name: str) -> type[Backbone]:
    """The class that a backbone name stands for. Raises ConfigError as :func:`build_backbone` does."""
    registered = _registered()
    if name in registered:
        return _import_class(registered[name], name)
    if "." in name or ":" in name:
        return _import_class(name, name)
    raise ConfigError(f"unknown backbone {name!r}: {nearest(name, registered)} (or give an import path, module:Class)")


def backbone_name(potential: Potential) -> str:
    """The registered name of a potential's class, or its import path where it has none."""
    path = _import_path(type(potential))
    for name, registered in _registered().items():
        if registered == path:
            return name
    return path


def save_potential(path: str | Path, potential: Potential, training: Mapping[str, Any] | None = None) -> Path:
    """Write a potential to ``path``, by way of a temporary file: the file is either whole or not there.

    ``training`` is a record of plain values (numbers, text, lists, dictionaries, tensors) that is kept beside it.
    Returns the path. Raises CheckpointError where potential or record cannot be stored, or the file not be written.
    """
    path = Path(path)
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
        "state_dict": {name: value.detach().cpu().clone() for name, value in potential.state_dict().items()},
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())
    except DataError as error:
        raise CheckpointError(str(error)) from error
    return path


def load_potential(path: str | Path, map_location: str | torch.device = "cpu") -> Potential:
    """The potential in a checkpoint file, in evaluation mode, with the precision it was saved in.

    The file is one that :func:`save_potential` wrote, or one of another format in ``READERS``; its content tells which.

    A backbone of a third party must be registered as an entry point, or its module be imported beforehand (which
    ``open_potential(path, modules=["package.module"])`` does): a file alone may not name a module to import.

    Raises CheckpointError for a missing, truncated or foreign file, one of another version, one that would execute
    code, and one whose backbone is unknown or does not fit its parameters; ConfigError for a device that is not there.
    """
    path, device = Path(path), available_device(map_location)
    reader = next(reader for reader in READERS.values() if reader.recognises(path))
    return reader.read(path, device)


def _load_own(path: Path, map_location: str | torch.device) -> Potential:
    content = read_checkpoint(path)
    name = content["backbone"]
    for used in _backbones_in(content):
        module = used.partition(":")[0]
        if used not in _registered() and (":" not in used or module not in sys.modules):
            raise CheckpointError(
                f"{path}: holds the backbone {used!r}, which is not registered here; install the package that "
                f"registers it in the entry-point group {ENTRY_POINT_GROUP}, or import its module first "
                "(--import MODULE on the command line, open_potential(…, modules=[MODULE]) in Python)"
            )
    try:
        potential = _build(backbone_class(name), name, content["hyperparameters"])
    except ConfigError as error:
        raise CheckpointError(f"{path}: the backbone {name!r} cannot be built again: {error}") from error
    try:
        potential.load_state_dict(content["state_dict"], assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: its parameters do not fit the backbone {name!r}: {reason}") from error
    return potential.to(map_location).eval()


class Reader(NamedTuple):
    """A format of checkpoint files: whether a file has it, and the potential in it, on a device."""

    recognises: Callable[[Path], bool]
    read: Callable[[Path, torch.device], Potential]


READERS: dict[str, Reader] = {
    "MatDeepLearn": Reader(
        is_matdeeplearn_checkpoint, lambda path, device: read_matdeeplearn_checkpoint(path, map_location=device)
    ),
    "MatterSim": Reader(is_mattersim_checkpoint, read_mattersim_checkpoint),
    "MatterTune": Reader(is_mattertune_checkpoint, read_mattertune_checkpoint),
    "mdl_physpre": Reader(lambda path: True, _load_own),
}
"""Formats by name. The first that recognises a file reads it; that of this package comes last and takes every file,
because its errors say best what is wrong with one."""


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
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(4)
            is_archive = zipfile.is_zipfile(file)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be read: {error.strerror or error}") from error
    if not is_archive:
        if head[:2] == b"PK" or not head:
            raise CheckpointError(f"{path}: the checkpoint is truncated or damaged; copy or write it again")
        raise CheckpointError(f"{path}: not a checkpoint of this package (no PyTorch archive); nothing in it was run")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        lines = (line.strip() for line in str(error).splitlines())
        reason = next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), "")
        raise CheckpointError(
            f"{path}: refused, because it holds more than tensors and plain values, and loading it could execute code"
            + (f" ({reason})" if reason else "")
        ) from None
    except Exception as error:
        raise CheckpointError(f"{path}: the checkpoint is truncated or damaged ({type(error).__name__})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
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


def _foreign(content: Any) -> str:
    if not isinstance(content, dict):
        return f": it holds a {type(content).__name__}, expected a dictionary"
    if "pytorch-lightning_version" in content:
        return ": it is a Lightning training state; the potential itself is saved beside it as best.pt"
    return f": it holds {', '.join(sorted(map(str, content))[:6]) or 'nothing'}, expected format {FORMAT!r}"


def _registered() -> dict[str, str]:
    """Import path of each known backbone by name; what the package brings cannot be replaced from outside."""
    found: dict[str, str] = {}
    point: EntryPoint
    for point in entry_points(group=ENTRY_POINT_GROUP):
        found[point.name] = point.value
    return {**found, **BUILT_IN}


def _import_path(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _import_class(path: str, name: str) -> type[Backbone]:
    found = import_object(path, f"backbone {name!r}")
    if not (inspect.isclass(found) and issubclass(found, Backbone)):
        raise ConfigError(f"backbone {name!r}: {path!r} is not a class derived from mdl_physpre.Backbone")
    return found


def _build(cls: type[Backbone], name: str, hyperparameters: Mapping[str, Any]) -> Backbone:
    parameters = inspect.signature(cls).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for key in hyperparameters:
            if key not in parameters:
                raise ConfigError(f"backbone {name!r} has no hyperparameter {key!r}: {nearest(key, parameters)}")
    try:
        return cls(**hyperparameters)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"backbone {name!r} cannot be built from {dict(hyperparameters)}: {error}") from error


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

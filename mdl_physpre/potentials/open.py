"""One function that opens a potential from anywhere: a checkpoint, an ASE calculator, or a TorchSim model, by name.

    path/to/best.pt                                     a checkpoint, in any format of checkpoints.READERS
    calculator:package.module.Class                     an ASE calculator: a class, or a function that returns one
    calculator:package.module:function?key=value&key=value
    torchsim:package.module:Class?key=value             a TorchSim ModelInterface
    runs/demo/pretrain                                  all networks of an arm of a run, as a committee
    committee:a.pt,b.pt                                 a committee of checkpoints

Values after ``?`` are read as Python writes them (``rc=4.0``, ``1e-3``, ``[1, 2]``, ``None``), with ``true``, ``false``
and ``null`` as in YAML, and ``torch.float32`` or ``torch.float64``; anything else is text. ``%26`` and ``%3D`` stand
for ``&`` and ``=`` in a value.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mdl_physpre.errors import CheckpointError, ConfigError, nearest
from mdl_physpre.potentials.adapters.from_ase import CalculatorPotential
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.checkpoints.load import is_arm, load_potential
from mdl_physpre.potentials.committee import Committee
from mdl_physpre.utils.import_paths import import_named_module, import_object, path_and_arguments

ACCEPTED = (
    "a checkpoint file, RUN/ARM (all networks of an arm of a run), committee:a.pt,b.pt, "
    "calculator:package.module.Class, calculator:package.module:function?key=value, or "
    "torchsim:package.module:Class?key=value"
)
COMMITTEE = "committee"
_SCHEMES = ("calculator", "torchsim")
DTYPES = {"torch.float32": torch.float32, "torch.float64": torch.float64}


def open_potential(
    name: str | Path,
    kwargs: Mapping[str, Any] | None = None,
    *,
    modules: Sequence[str] = (),
    map_location: str | torch.device = "cpu",
) -> Potential:
    """A potential by its name, in evaluation mode.

    Parameters
    ----------
    name : a checkpoint file, ``RUN/ARM``, ``committee:…``, ``calculator:…`` or ``torchsim:…``; see the head of this
        file.
    kwargs : more arguments for a calculator or TorchSim model; they win over those in the name.
    modules : modules to import first. A checkpoint whose backbone is somebody else's class can only be loaded where
        its module has been imported or registered: a file alone may not name code to run.
    map_location : device of a checkpoint (:func:`~mdl_physpre.utils.devices.available_device`); a calculator or
        TorchSim model takes its own as an argument.

    Returns
    -------
    A :class:`Potential`. For calculators and TorchSim models, its ``name`` is the name given here with all arguments
    and a hash of each file that they name. Stored results are told apart by it and by a hash of the source file that
    defines the class or function, so that those of another potential are not taken for its own.

    Raises
    ------
    ConfigError : a module, class or function that cannot be imported; a class that is not what the name says it is;
        arguments that it does not take; arguments for a checkpoint; a device that is not there, and any but ``cpu`` and
        ``auto`` for what is not a checkpoint.
    CheckpointError : no such file, or one that no format recognises or that is damaged.
    """
    for module in modules:
        import_named_module(module)
    text = str(name)
    if text.startswith(f"{COMMITTEE}:"):
        if kwargs:
            raise ConfigError(f"{text}: a committee takes no arguments, found {', '.join(sorted(kwargs))}")
        names = [one.strip() for one in text.partition(":")[2].split(",") if one.strip()]
        return Committee([open_potential(one, map_location=map_location) for one in names]).eval()
    if is_scheme(text):
        if str(map_location).partition(":")[0] not in ("auto", "cpu"):
            raise ConfigError(
                f"{text}: the device {map_location} is asked for, but it is no checkpoint and computes where it was "
                "built; leave that at cpu, and give the device to the calculator itself, if it takes one: "
                f"{text}{'&' if '?' in text else '?'}device={map_location}"
            )
        return _built(text, kwargs or {})
    if kwargs:
        raise ConfigError(f"{text}: a checkpoint takes no arguments, found {', '.join(sorted(kwargs))}")
    file = Path(text)
    if not file.is_file() and not is_arm(file):
        raise CheckpointError(_not_found(text, file))
    return load_potential(file, map_location)


def is_scheme(name: str) -> bool:
    """Whether a name begins with ``calculator:``, ``torchsim:`` or ``committee:``."""
    return name.partition(":")[0] in (*_SCHEMES, COMMITTEE) and ":" in name


def names_a_potential(name: str | Path) -> bool:
    """Whether :func:`open_potential` takes a name: an existing file, the arm of a run, or a scheme."""
    return Path(name).is_file() or is_arm(Path(name)) or is_scheme(str(name))


def _built(text: str, kwargs: Mapping[str, Any]) -> Potential:
    scheme, _, rest = text.partition(":")
    path, named = path_and_arguments(rest)
    arguments = {key: DTYPES.get(value, value) if isinstance(value, str) else value for key, value in named.items()}
    arguments |= kwargs
    target = import_object(path, text)
    if not callable(target):
        raise ConfigError(f"{text}: found {type(target).__name__}, expected a class or a function")
    factory = partial(target, **arguments) if arguments else target
    identity, source = _identity(path, arguments), source_of(target, path)
    if scheme == "calculator":
        return CalculatorPotential(factory, name=identity, source=source)
    from mdl_physpre.potentials.adapters.torchsim import TorchSimPotential  # TorchSim need not be installed

    return TorchSimPotential(factory, name=identity, source=source)


def _identity(path: str, arguments: Mapping[str, Any]) -> str:
    """The import path with its arguments in order, and the content of files among them in place of their names."""
    told = []
    for key, value in sorted(arguments.items()):
        file = Path(value) if isinstance(value, (str, Path)) and len(str(value)) < 4096 else None
        if file is not None and file.is_file():
            told.append(f"{key}={file.name} {_hash(file)}")
        else:
            told.append(f"{key}={value!r}")
    return f"{path}({', '.join(told)})"


def source_of(target: Any, path: str) -> str:
    """A hash of the source file that defines ``target``; empty where there is none (compiled or built in)."""
    thing = inspect.unwrap(target)
    if not inspect.isclass(thing) and not inspect.isroutine(thing):  # an object: the module that it was taken from
        thing = sys.modules.get((path.partition(":") if ":" in path else path.rpartition("."))[0])
    try:
        file = inspect.getsourcefile(thing)
    except (TypeError, OSError):
        return ""
    return f"source {_hash(Path(file))}" if file and Path(file).is_file() else ""


def _hash(file: Path) -> str:
    return f"sha256 {hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"


def _not_found(text: str, path: Path) -> str:
    if path.is_dir():
        return f"{text}: a folder; expected {ACCEPTED}"
    scheme, colon, _ = text.partition(":")
    if colon and "/" not in scheme:
        return f"{text}: unknown kind {scheme!r} ({nearest(scheme, (*_SCHEMES, COMMITTEE))}); expected {ACCEPTED}"
    if path.name and path.suffix == "" and "/" in text and not path.parent.is_dir():
        return f"{text}: no such file, and no run in {path.parent}; expected {ACCEPTED}"
    hint = "" if path.suffix in (".pt", ".pth", ".ckpt") or "/" in text else f"; did you mean calculator:{text}?"
    return f"{text}: no such file; expected {ACCEPTED}{hint if '.' in text else ''}"

"""Files that ``torch.save`` writes, read without running anything in them."""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from mdl_physpre.errors import CheckpointError

logger = logging.getLogger(__name__)

_SCALAR = np.float64(0).__reduce__()[0]
NUMBERS: list[Any] = [
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType,
]  # fmt: skip
"""What numbers of NumPy are built with; it runs nothing."""


def read_archive(
    path: str | Path, map_location: str | torch.device = "cpu", *, skip_objects: bool = False
) -> dict[str, Any]:
    """The dictionary in a PyTorch archive. Nothing in the file is run.

    With ``skip_objects``, objects beside tensors and plain values, such as an optimiser, are replaced by
    :class:`Inert` ones; without, a file that holds one is refused.

    Raises CheckpointError for a file that is missing, damaged, of another kind, refused, or holds no dictionary.
    """
    content = read_anything(path, map_location, skip_objects=skip_objects)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a checkpoint: it holds a {type(content).__name__}, expected a dictionary")
    return content


def read_anything(path: str | Path, map_location: str | torch.device = "cpu", *, skip_objects: bool = False) -> Any:
    """What is in a PyTorch archive, a dictionary or not. Raises as :func:`read_archive` does."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head, is_archive = file.read(4), zipfile.is_zipfile(file)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be read: {error.strerror or error}") from error
    if not is_archive:
        if head[:2] == b"PK" or not head:
            raise CheckpointError(f"{path}: the checkpoint is truncated or damaged; copy or write it again")
        raise CheckpointError(f"{path}: not a checkpoint (no PyTorch archive); nothing in it was run")
    try:
        try:
            with torch.serialization.safe_globals(NUMBERS):
                content = torch.load(path, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            if not skip_objects:
                raise CheckpointError(_refusal(path, error)) from None
            inert = SimpleNamespace(Unpickler=InertUnpickler, load=pickle.load, __name__="inert")
            content = torch.load(path, map_location=map_location, weights_only=False, pickle_module=inert)
            logger.debug("%s: holds objects beside tensors and plain values; they were not built", path)
    except CheckpointError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"{path}: the checkpoint is truncated or damaged: {reason}") from error
    return content


def holds(path: Path, recognised: Callable[[dict[str, Any]], bool]) -> bool:
    """Whether a file is an archive whose content is ``recognised``; False for what cannot be read."""
    try:
        return recognised(read_archive(path, skip_objects=True))
    except CheckpointError:  # of another kind, or damaged: the reader that takes it says what is wrong
        return False


def _refusal(path: Path, error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    reason = next((f" ({line})" for line in lines if "GLOBAL" in line or "Unsupported" in line), "")
    return (
        f"{path}: refused, because it holds more than tensors and plain values, and loading it could execute code"
        + reason
    )


class Inert:
    """Stands for an object that is not built: its type has the name and module of the object's, and nothing else of it.

    Attributes
    ----------
    arguments : what it was to be built from.
    state : its attributes, as a rule a dictionary.
    """

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any, **_: Any) -> Inert:
        made = super().__new__(cls)
        made.arguments, made.state = arguments, {}
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *arguments: Any) -> Inert:
        return Inert(self, *arguments)  # of a function that was found on an object

    def __setstate__(self, state: Any) -> None:
        self.state = state

    append = extend = add = __setitem__ = __init__


class InertUnpickler(pickle.Unpickler):
    """Knows how to rebuild tensors; everything else becomes an :class:`Inert`."""

    KNOWN: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
        ("torch", "Size"): torch.Size,
    }

    def find_class(self, module: str, name: str) -> Any:
        return self.KNOWN.get((module, name)) or type(name, (Inert,), {"__module__": module})

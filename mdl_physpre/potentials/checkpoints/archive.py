"""Files that ``torch.save`` writes: read without running anything in them, written whole or not at all."""

from __future__ import annotations

import io
import logging
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdl_physpre.errors import CheckpointError
from mdl_physpre.utils.files import replacing

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


def content_of(path: Path) -> Any:
    """What formats recognise a file by: :func:`read_anything` with inert objects; ``None`` for what cannot be read."""
    try:
        return read_anything(path, skip_objects=True)
    except CheckpointError:  # of another kind, or damaged: the reader that takes it says what is wrong
        return None


def write_archive(path: Path, content: Any, lost: Sequence[str] = ()) -> list[str]:
    """Write ``content`` by ``torch.save``, and say in the log what the format cannot carry, which is returned.

    Raises CheckpointError where the file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with replacing(path, CheckpointError) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    for sentence in lost:
        logger.warning("%s: %s", path, sentence)
    return list(lost)


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

    @property
    def members(self) -> Mapping[str, Any]:
        """Its attributes; of what a function was to build, its first argument."""
        found = self.state or next(iter(self.arguments), None)
        return found if isinstance(found, dict) else {}

    @property
    def children(self) -> dict[str, Inert]:
        """Modules of a module."""
        return {name: one for name, one in (self.members.get("_modules") or {}).items() if isinstance(one, Inert)}

    def modules(self) -> Iterator[Inert]:
        """A module and all in it."""
        yield self
        for child in self.children.values():
            yield from child.modules()

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Parameters and buffers of a module by name, as in its ``state_dict``; those of other classes are inert."""
        for kind in ("_parameters", "_buffers"):
            own = self.members.get(kind) or {}
            yield from ((prefix + name, value) for name, value in own.items() if isinstance(value, (Tensor, Inert)))
        for name, child in self.children.items():
            yield from child.tensors(f"{prefix}{name}.")


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

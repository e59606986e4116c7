"""C code of the package: from the wheel, or compiled on first use and kept in the user's cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from mdl_physpre.potentials.kernels.c_build import (
    FLAGS,
    HEADERS,
    built_library,
    built_name,
    compile_library,
    cpuinfo,
    find_compiler,
)
from mdl_physpre.potentials.kernels.edge_op import in_evaluate

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).parents[2]
VECTOR_BYTES = 64


@lru_cache(maxsize=16)
def compiled(source: Path, real: str, what: str) -> ctypes.CDLL | None:
    """``source`` in precision ``real`` (``float`` or ``double``), or None where it cannot be had.

    It comes with an installed wheel; elsewhere a compiler makes it, which is ``CC``, ``cc``, ``gcc`` or ``clang``. None
    where there is none, where it fails, or where the environment says ``MDL_PHYSPRE_NATIVE=0``; ``what`` then says in
    the log what runs on tensor operations.
    """
    if os.environ.get("MDL_PHYSPRE_NATIVE", "1") == "0":
        return None
    path, compiler = built_library(PACKAGE, source, real), find_compiler()
    if path is None and not (compiler and source.exists()):
        logger.info("no C compiler was found: %s runs on tensor operations, which are slower", what)
        return None
    try:
        return ctypes.CDLL(str(path or _compile(str(compiler), source, real)))
    except (OSError, subprocess.SubprocessError) as error:
        logger.info("C code is not available (%s): %s runs on tensor operations", error, what)
        return None


@dataclass
class CCode:
    """The C code of one source file.

    It takes the place of tensor operations in the precisions ``dtypes``, by their names in C. Where it cannot be had,
    the log says that ``what`` runs on tensor operations.
    """

    source: Path
    dtypes: Mapping[torch.dtype, str]
    what: str

    def library(self, real: str) -> ctypes.CDLL | None:
        """The compiled functions in precision ``real``, or None where they cannot be had."""
        return compiled(self.source, real, self.what)

    def library_for(self, like: Tensor) -> ctypes.CDLL | None:
        """The functions for tensors as ``like``, or None where tensor operations do the work.

        C runs inside ``evaluate`` alone (:mod:`mdl_physpre.potentials.kernels.edge_op`), and on the CPU.
        """
        if torch.compiler.is_compiling() or getattr(_of_thread, "off", False) or not in_evaluate():
            return None
        if like.device.type != "cpu" or like.dtype not in self.dtypes or torch.is_autocast_enabled("cpu"):
            return None
        return self.library(self.dtypes[like.dtype])


_of_thread = threading.local()


@contextmanager
def tensor_operations() -> Iterator[None]:
    """A context in which this thread uses no C code: to compare with, and for what has to be traced."""
    before = getattr(_of_thread, "off", False)
    _of_thread.off = True
    try:
        yield
    finally:
        _of_thread.off = before


def _compile(compiler: str, source: Path, real: str) -> Path:
    """Path of the shared library, made if the cache does not have it for this source, compiler and processor."""
    text = b"".join(
        file.read_bytes() for file in (source, *sorted(source.parent.glob("*.h")), *sorted(HEADERS.glob("*.h")))
    )
    version = subprocess.run([*compiler.split(), "--version"], capture_output=True, timeout=60, check=True).stdout
    key = hashlib.sha256(text + version + f"{_processor()} {real} {FLAGS}".encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mdl_physpre"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(folder)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="mdl_physpre-"))
    path = folder / built_name(source, real, key.hexdigest()[:20])
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        output = Path(scratch) / "library.so"
        for tuning in (["-march=native"], ["-mcpu=native"], []):
            try:
                compile_library(compiler, source, real, tuning, output)
            except OSError:
                if not tuning:
                    raise
            else:
                os.replace(output, path)  # another process may do the same at the same time
                break
    return path


def _processor() -> str:
    """What tells one kind of processor from another: a cache folder may be shared between machines."""
    told = sorted({line for line in cpuinfo() if line.startswith(("flags", "Features", "model name"))})
    return "|".join(told) or f"{platform.machine()} {platform.processor()} {platform.node()}"


def is_sorted(centre: Tensor) -> bool:
    """Whether edges stand together by their centre, as C code takes them; on the CPU, where looking costs nothing."""
    return not bool((centre[1:] < centre[:-1]).any())


def first_edges(centre: Tensor, n_atoms: int) -> Tensor:
    """First edge of each atom, and the number of edges at the end (N + 1,), of edges sorted by their centre."""
    return functional.pad(torch.bincount(centre, minlength=n_atoms).cumsum(0), (1, 0))


def ranges_of_atoms(start: Tensor) -> list[tuple[int, int]]:
    """A range of atoms for each thread (``torch.get_num_threads()``), with about the same number of edges.

    ``start`` (N + 1,) is that of :func:`first_edges`.
    """
    n_atoms, n_edges = len(start) - 1, int(start[-1])
    threads = min(torch.get_num_threads(), max(1, n_edges // 1000))
    if threads == 1:
        return [(0, n_atoms)]
    goals = torch.arange(1, threads) * n_edges / threads
    cuts = torch.searchsorted(start.double(), goals.double()).tolist()
    bounds = [0, *sorted(min(c, n_atoms) for c in cuts), n_atoms]
    return list(zip(bounds, bounds[1:]))


def structure(integers: str, pointers: str, doubles: str = "") -> type[ctypes.Structure]:
    """A structure of C from the names of its integers of 64 bits, its doubles and its pointers, in this order."""
    kinds = ((integers, ctypes.c_int64), (doubles, ctypes.c_double), (pointers, ctypes.c_void_p))
    fields = [(name, kind) for names, kind in kinds for name in names.split()]
    return type("Structure", (ctypes.Structure,), {"_fields_": fields})


@dataclass
class PerThread:
    """An array for each thread, (threads, …), where all of them would add to the same values."""

    values: Tensor

    def total(self) -> Tensor:
        """The sum over the threads."""
        return self.values[0] if len(self.values) == 1 else self.values.sum(0)


Argument = Tensor | PerThread | float | None


class Call:
    """Calls of C functions that share a structure; a call is done by several threads, each for a range of atoms.

    The functions take the structure, a first and a last atom, and further arrays. A tensor is a pointer to its values,
    which are made contiguous; None is a null pointer.

    Parameters
    ----------
    code : the functions; the first of the arguments has their precision.
    fields : of the structure (:func:`structure`).
    given : arguments of an operator, ``start`` (:func:`first_edges`) among them; those that are no fields are left out,
        and pointers that are not given are null.
    more : further fields.
    """

    def __init__(self, code: CCode, fields: type[ctypes.Structure], given: Any, **more: Argument) -> None:
        self.like, self.structure = given[0], fields
        self.library = cast(ctypes.CDLL, code.library(code.dtypes[self.like.dtype]))
        self.given: dict[str, Any] = given._asdict() | more
        self.ranges = ranges_of_atoms(given.start)

    def run(self, name: str, *arrays: Tensor | PerThread, **more: Argument) -> None:
        """Call the function of this name with ``arrays``, and with further fields ``more``."""
        function, held, values = getattr(self.library, name), [_contiguous(a) for a in arrays], self.given | more
        fields = {field: _contiguous(values.get(field)) for field, *_ in self.structure._fields_}

        def work(thread: int) -> None:
            filled = self.structure(**{field: _in_c(value, thread) for field, value in fields.items()})
            limits = (ctypes.c_int64(atom) for atom in self.ranges[thread])
            function(ctypes.byref(filled), *limits, *(ctypes.c_void_p(_in_c(a, thread)) for a in held))

        if len(self.ranges) == 1:
            work(0)
        else:
            list(thread_pool(os.getpid(), len(self.ranges)).map(work, range(len(self.ranges))))

    def sums(self, like: Tensor | None, dtype: torch.dtype | None = None) -> PerThread:
        """Zeros like a tensor for each thread; of no length like None."""
        shape = (0,) if like is None else like.shape
        return PerThread(self.like.new_zeros(len(self.ranges), *shape, dtype=dtype))


def _contiguous(value: Any) -> Any:
    return value.contiguous() if isinstance(value, Tensor) else value


def _in_c(value: Any, thread: int) -> Any:
    """An argument as ctypes takes it, for one thread."""
    if isinstance(value, PerThread):
        value = value.values[thread]
    return value.data_ptr() if isinstance(value, Tensor) else value


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """A tensor as an argument of a C function; a null pointer for ``None``."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@lru_cache(maxsize=2)
def thread_pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads for the calls of C functions, which give Python's lock free; one pool for each process."""
    return ThreadPoolExecutor(threads, thread_name_prefix="mdl_physpre")

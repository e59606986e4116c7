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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdl_physpre.potentials.c_build import FLAGS, built_library, built_name, compile_library, find_compiler
from mdl_physpre.potentials.edge_op import in_evaluate

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).parents[1]
VECTOR_BYTES = 64


def compiled(source: Path, real: str, functions: Sequence[str], what: str) -> ctypes.CDLL | None:
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
        loaded = ctypes.CDLL(str(path or _compile(str(compiler), source, real)))
    except (OSError, subprocess.SubprocessError) as error:
        logger.info("C code is not available (%s): %s runs on tensor operations", error, what)
        return None
    for name in functions:
        getattr(loaded, name).restype = None
    return loaded


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


def can_use_c(like: Tensor, dtypes: Mapping[torch.dtype, str]) -> bool:
    """Whether C code that there is for ``dtypes`` may take the place of operations on tensors as ``like``."""
    if torch.compiler.is_compiling() or getattr(_of_thread, "off", False) or not in_evaluate():
        return False
    return like.device.type == "cpu" and like.dtype in dtypes


def _compile(compiler: str, source: Path, real: str) -> Path:
    """Path of the shared library, made if the cache does not have it for this source, compiler and processor."""
    text = b"".join(file.read_bytes() for file in (source, *sorted(source.parent.glob("*.h"))))
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
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "|".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"


def is_sorted(centre: Tensor) -> bool:
    """Whether edges stand together by their centre, as C code takes them; on the CPU, where looking costs nothing."""
    return not bool((centre[1:] < centre[:-1]).any())


def ranges_of_atoms(start: Tensor) -> list[tuple[int, int]]:
    """A range of atoms for each thread (``torch.get_num_threads()``), with about the same number of edges.

    ``start`` (N + 1,) holds the first edge of each atom, and the number of edges at its end.
    """
    n_atoms, n_edges = len(start) - 1, int(start[-1])
    threads = min(torch.get_num_threads(), max(1, n_edges // 1000))
    goals = torch.arange(1, threads) * n_edges / threads
    cuts = torch.searchsorted(start.double(), goals.double()).tolist()
    bounds = [0, *sorted(min(c, n_atoms) for c in cuts), n_atoms]
    return list(zip(bounds, bounds[1:]))


def run_ranges(function: Any, ranges: Sequence[Any], arguments: Callable[[int], Sequence[Any]]) -> None:
    """Call ``function(*arguments(k))`` for each of the ranges at the same time, a thread for each."""

    def work(thread: int) -> None:
        held = arguments(thread)  # tensors must live as long as their addresses are used
        function(*(address(a) if isinstance(a, Tensor) else a for a in held))

    if len(ranges) == 1:
        work(0)
    else:
        list(thread_pool(os.getpid(), len(ranges)).map(work, range(len(ranges))))


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """A tensor as an argument of a C function; a null pointer for ``None``."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def limits(of_range: tuple[int, int]) -> tuple[ctypes.c_int64, ctypes.c_int64]:
    """A range of atoms as arguments of a C function."""
    return ctypes.c_int64(of_range[0]), ctypes.c_int64(of_range[1])


@lru_cache(maxsize=2)
def thread_pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads for the calls of C functions, which give Python's lock free; one pool for each process."""
    return ThreadPoolExecutor(threads, thread_name_prefix="mdl_physpre")

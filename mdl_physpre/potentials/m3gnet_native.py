"""The operations of :mod:`mdl_physpre.potentials.m3gnet_edges` in C, compiled on first use where there is a compiler.

In double precision, on other devices than the processor, for channels that do not fill whole vectors, without a
compiler, and with ``MDL_PHYSPRE_NATIVE=0``, the tensor operations are used; both give the same to rounding.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from mdl_physpre.potentials.m3gnet_edges import Arrays
from mdl_physpre.potentials.native import VECTOR_BYTES, compiled, thread_pool

SOURCE = Path(__file__).with_name("m3gnet_native.c")
DTYPES = {torch.float32: "float"}
"""Precisions that run in C; double precision gains little, because its exponentials are not vectorised."""

FUNCTIONS = [f"{name}{which}" for name in ("encoder", "block") for which in ("", "_adjoint", "_tangent", "_second")]
BLOCK, BLOCKS = 64, 6
"""Edges that C works on together, and the most arrays of so many rows that it keeps."""
THREAD_ROWS = 128
"""Rows below which a second thread does not pay."""

NUMBERS = ("edges", "near", "units", "size", "kind", "n", "stride", "wide", "narrow")
SUMS = ("weight_sum", "first_sum", "second_sum", "bias_sum", "gate_sum")
TENSORS = (
    "i", "j", "at", "radial", "radial_dot", "weight", "first", "first_t", "second", "second_t", "bias", "gate",
    "gate_t", "e", "e_dot", "q", "q_dot", "source", "target_bar", "target_bar_dot", "above", "a", "a_dot", "y", "y_dot",
    "h_bar", "node", "target", "radial_bar", "below", "q_bar", *SUMS,
)  # fmt: skip


class _Arrays(ctypes.Structure):
    """Arrays of m3gnet_native.c."""

    _fields_ = [*((name, ctypes.c_int64) for name in NUMBERS), *((name, ctypes.c_void_p) for name in TENSORS)]


@lru_cache(maxsize=4)
def library(real: str) -> ctypes.CDLL | None:
    """The compiled operations in precision ``real``, or None where they cannot be had."""
    return compiled(SOURCE, real, FUNCTIONS, "M3GNet")


def native_operations(like: Tensor, units: int) -> NativeOperations | None:
    """The operations in C for tensors as ``like``, or None where tensor operations have to do."""
    if like.device.type != "cpu" or like.dtype not in DTYPES or units % (VECTOR_BYTES // like.element_size()):
        return None
    found = library(DTYPES[like.dtype])
    return None if found is None else NativeOperations(found, like, units)


class NativeOperations:
    """As the functions of :mod:`mdl_physpre.potentials.m3gnet_edges`, the same names and arguments.

    Rows are shared among the threads of torch; what several of them add to has a copy for each. The weights must not
    change meanwhile.
    """

    def __init__(self, compiled_library: ctypes.CDLL, like: Tensor, units: int) -> None:
        self.library, self.units, self.vector = compiled_library, units, VECTOR_BYTES // like.element_size()
        self.scratch = like.new_empty(torch.get_num_threads(), BLOCKS * BLOCK * self._stride(2 * units))
        self.copies: dict[tuple[int, bool], Tensor] = {}

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name not in FUNCTIONS:
            raise AttributeError(name)
        return lambda piece, *arrays: self._run(name, piece.edges, arrays)

    def _stride(self, columns: int) -> int:
        """An odd number of vectors: rows a power of two apart would crowd into few places of the cache."""
        vectors = -(-columns // self.vector)
        return (vectors + 1 - vectors % 2) * self.vector

    def _spread(self, matrix: Tensor | None, transposed: bool) -> Tensor | None:
        """A copy of the matrix, or of its transpose, with that stride."""
        if matrix is None:
            return None
        key = matrix.data_ptr(), transposed
        if key not in self.copies:
            values = matrix.mT if transposed else matrix
            rows, columns = values.shape[-2:]
            copy = matrix.new_empty(*values.shape[:-1], self._stride(columns))
            copy[..., :columns] = values
            self.copies[key] = copy
        return self.copies[key]

    def _arrays(self, x: Arrays) -> _Arrays:
        found = _Arrays(units=self.units, wide=self._stride(2 * self.units), narrow=self._stride(self.units))
        spread = {
            "first": self._spread(x.first, False), "first_t": self._spread(x.first, True),
            "second": self._spread(x.second, False), "second_t": self._spread(x.second, True),
            "gate_t": self._spread(x.gate, True),
        }  # fmt: skip
        for name, value in (vars(x) | spread).items():
            if isinstance(value, Tensor):
                setattr(found, name, value.data_ptr())
        if x.radial is not None:
            found.edges, found.n = x.radial.shape
            found.kind = 2 if x.silu else 1
        if x.q is not None:
            found.near, found.size = x.q.shape
        if x.node is not None:
            found.stride = x.node.stride(0)
        return found

    def _run(self, name: str, edges: slice, arrays: Sequence[Arrays]) -> None:
        function, n = getattr(self.library, name), edges.stop - edges.start
        threads = max(1, min(len(self.scratch), n // THREAD_ROWS))
        fields = [self._arrays(x) for x in arrays]
        shared = ("node", *SUMS) if name.endswith(("_adjoint", "_second")) else ()
        copies = []  # of each thread but the first, (place among the arrays, name, zeros)
        for _ in range(threads - 1):
            given = [(k, t, getattr(x, t)) for k, x in enumerate(arrays) for t in shared]
            copies.append([(k, t, torch.empty_strided(v.shape, v.stride(), dtype=v.dtype).zero_())
                           for k, t, v in given if v is not None])  # fmt: skip

        def work(thread: int) -> None:
            own = [_Arrays.from_buffer_copy(f) for f in fields]
            for k, t, copy in copies[thread - 1] if thread else ():
                setattr(own[k], t, copy.data_ptr())
            first, last = (ctypes.c_int64(edges.start + n * (thread + k) // threads) for k in (0, 1))
            scratch = ctypes.c_void_p(self.scratch[thread].data_ptr())
            function(first, last, *map(ctypes.byref, own), scratch)

        if threads == 1:
            work(0)
            return
        list(thread_pool(os.getpid(), threads).map(work, range(threads)))
        for k, t, copy in (one for own in copies for one in own):
            getattr(arrays[k], t).add_(copy)

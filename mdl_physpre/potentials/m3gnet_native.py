"""The operations of :mod:`mdl_physpre.potentials.m3gnet_edges` in C, compiled on first use where there is a compiler.

In double precision, on other devices than the processor, for channels that do not fill whole vectors, without a
compiler, and with ``MDL_PHYSPRE_NATIVE=0``, the tensor operations are used; both give the same to rounding.
"""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdl_physpre.potentials.m3gnet_edges import Factor
from mdl_physpre.potentials.native import VECTOR_BYTES, compiled, thread_pool

SOURCE = Path(__file__).with_name("m3gnet_native.c")
DTYPES = {torch.float32: "float"}
"""Precisions that run in C; double precision gains little, because its exponentials are not vectorised."""

KINDS = ("hidden", "gate")
FUNCTIONS = [f"{kind}{which}" for kind in KINDS for which in ("", "_adjoint", "_tangent", "_second")]
THREAD_ROWS = 128
"""Rows below which a second thread does not pay."""


@lru_cache(maxsize=4)
def library(real: str) -> ctypes.CDLL | None:
    """The compiled operations in precision ``real``, or None where they cannot be had."""
    return compiled(SOURCE, real, FUNCTIONS, "M3GNet")


def native_operations(like: Tensor, units: int, max_n: int) -> NativeOperations | None:
    """The operations in C for tensors as ``like``, or None where tensor operations have to do."""
    if like.device.type != "cpu" or like.dtype not in DTYPES or units % (VECTOR_BYTES // like.element_size()):
        return None
    found = library(DTYPES[like.dtype])
    return None if found is None else NativeOperations(found, units, max_n)


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


class NativeOperations:
    """As the functions of :mod:`mdl_physpre.potentials.m3gnet_edges`, the same names and arguments.

    Rows are shared among the threads of torch; what several of them add to has a copy for each.
    """

    def __init__(self, compiled_library: ctypes.CDLL, units: int, max_n: int) -> None:
        self.library, self.units, self.max_n = compiled_library, units, max_n

    def _run(self, name: str, rows: int, numbers: list[int], tensors: list[Tensor | None], shared: int | None) -> None:
        """Calls the C function; ``shared`` is the place among ``tensors`` of the one that all rows add to."""
        function = getattr(self.library, name)
        threads = max(1, min(torch.get_num_threads(), rows // THREAD_ROWS))
        fixed, pointers = [ctypes.c_int64(n) for n in numbers], [_pointer(t) for t in tensors]
        if threads == 1:
            function(ctypes.c_int64(0), ctypes.c_int64(rows), *fixed, *pointers)
            return
        target = None if shared is None else tensors[shared]
        copies: list[Tensor] = []
        if target is not None:
            for _ in range(threads - 1):
                copies.append(torch.empty_strided(target.shape, target.stride(), dtype=target.dtype).zero_())

        def work(k: int) -> None:
            own = list(pointers)
            if shared is not None and k:
                own[shared] = _pointer(copies[k - 1])
            first, last = (ctypes.c_int64(rows * (k + n) // threads) for n in (0, 1))
            function(first, last, *fixed, *own)

        list(thread_pool(os.getpid(), threads).map(work, range(threads)))
        if target is not None:
            for copy in copies:
                target.add_(copy)

    def _hidden(self, name: str, node: Tensor, *tensors: Tensor, shared: int | None = None) -> None:
        self._run(name, len(tensors[0]), [self.units, node.stride(0)], list(tensors), shared)

    def hidden(self, i: Tensor, j: Tensor, node: Tensor, a: Tensor) -> Tensor:
        h = torch.empty_like(a)
        self._hidden("hidden", node, i, j, node, a, h)
        return h

    def hidden_tangent(self, i: Tensor, j: Tensor, node_dot: Tensor, a: Tensor, a_dot: Tensor) -> Tensor:
        h_dot = torch.empty_like(a)
        self._hidden("hidden_tangent", node_dot, i, j, node_dot, a, a_dot, h_dot)
        return h_dot

    def hidden_adjoint(self, i: Tensor, j: Tensor, a: Tensor, h_bar: Tensor, node_bar: Tensor) -> Tensor:
        a_bar = torch.empty_like(a)
        self._hidden("hidden_adjoint", node_bar, i, j, a, h_bar, node_bar, a_bar, shared=4)
        return a_bar

    def hidden_second(
        self, i: Tensor, j: Tensor, a: Tensor, a_dot: Tensor, h_bar: Tensor, h_bar_dot: Tensor, node_bar_dot: Tensor
    ) -> Any:
        found = [torch.empty_like(a) for _ in range(4)]
        self._hidden("hidden_second", node_bar_dot, i, j, a, a_dot, h_bar, h_bar_dot, node_bar_dot, *found, shared=6)
        return found

    def _gate(
        self, name: str, factor: Factor | None, at: Tensor, tangent: bool, *tensors: Any, shared: Any = None
    ) -> None:
        radial: list[Tensor | None] = [None] * (3 if tangent else 2)
        kind, n = 0, 0
        if factor is not None:
            radial = [factor.radial, *([factor.tangent] if tangent else []), factor.weight]
            kind, n = 2 if factor.silu else 1, self.max_n
        place = None if shared is None else shared + len(radial) + 1
        self._run(name, len(at), [len(at), self.units, kind, n], [*radial, at, *tensors], place)

    def gate(
        self,
        y: Tensor | None,
        bias: Tensor | None,
        factor: Factor | None,
        at: Tensor,
        target: Tensor,
        source: Tensor | None = None,
    ) -> None:
        self._gate("gate", factor, at, False, bias, y, source, target)

    def gate_adjoint(
        self, y: Tensor | None, factor: Factor | None, at: Tensor, target_bar: Tensor, radial_bar: Tensor | None
    ) -> Tensor | None:
        y_bar = None if y is None else torch.empty_like(y)
        self._gate("gate_adjoint", factor, at, False, y, target_bar, radial_bar, y_bar)
        return y_bar

    def gate_tangent(
        self,
        y: Tensor | None,
        y_dot: Tensor | None,
        factor: Factor | None,
        at: Tensor,
        target_dot: Tensor,
        source: Tensor | None = None,
    ) -> None:
        self._gate("gate_tangent", factor, at, True, y, y_dot, source, target_dot)

    def gate_second(
        self,
        y: Tensor | None,
        y_dot: Tensor | None,
        factor: Factor | None,
        at: Tensor,
        target_bar: Tensor,
        target_bar_dot: Tensor,
        weight_bar_dot: Tensor | None,
    ) -> tuple[Tensor, Tensor] | None:
        found = None if y is None else (torch.empty_like(y), torch.empty_like(y))
        tensors = (y, y_dot, target_bar, target_bar_dot, weight_bar_dot, *(found or (None, None)))
        self._gate("gate_second", factor, at, True, *tensors, shared=None if factor is None else 4)
        return found

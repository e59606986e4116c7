"""The edge sweeps of :mod:`mdl_physpre.potentials.cgcnn_edges` in C, compiled on first use where there is a compiler.

One pass over the edges then does what takes a dozen tensor operations otherwise. The source, ``cgcnn_native.c``, is
compiled for the processor at hand with the system's C compiler (``CC``, ``cc``, ``gcc`` or ``clang``) and kept in the
user's cache folder. Without a compiler, with ``MDL_PHYSPRE_NATIVE=0``, in double precision and on other devices than
the processor, the tensor operations are used; both give the same to rounding.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mdl_physpre.potentials.native import VECTOR_BYTES, compiled, ranges_of_atoms, thread_pool

SOURCE = Path(__file__).with_name("cgcnn_native.c")
DTYPES = {torch.float32: "float"}
"""Precisions that run in C; double precision gains little, because its exponentials are not vectorised."""

FUNCTIONS = ("arrange", "energies", "adjoints", "tangents", "gradients")


class _Layer(ctypes.Structure):
    _fields_ = (
        [(n, ctypes.c_int64) for n in ("n_atoms", "n_pieces", "stride")]
        + [("pieces_per_length", ctypes.c_double)]
        + [(n, ctypes.c_void_p) for n in ("start", "order", "neighbour", "distance", "weight")]
        + [(n, ctypes.c_void_p) for n in ("centre_sum", "neighbour_sum", "coefficient")]
    )


@lru_cache(maxsize=4)
def library(real: str) -> ctypes.CDLL | None:
    """The compiled sweeps in precision ``real`` (``float`` or ``double``), or None where they cannot be had."""
    return compiled(SOURCE, real, FUNCTIONS, "the CGCNN")


def library_for(like: Tensor) -> ctypes.CDLL | None:
    """The compiled sweeps for the precision and device of ``like``, or None where tensor operations do them."""
    real = DTYPES.get(like.dtype) if like.device.type == "cpu" else None
    return None if real is None else library(real)


def terms(found: ctypes.CDLL) -> int:
    """Number of coefficients of the polynomials in the distance."""
    return ctypes.c_int64.in_dll(found, "terms").value


class NativeSweeps:
    """The sweeps for one set of edges; tensors as in :mod:`mdl_physpre.potentials.cgcnn_edges`.

    The edge weight of a layer is (2, n_pieces · terms, dim): coefficients of polynomials in the distance
    (:func:`mdl_physpre.potentials.cgcnn_radial.piecewise_polynomials`).

    Each thread (``torch.get_num_threads()``) takes a range of atoms with about the same number of edges.
    """

    def __init__(
        self, found: ctypes.CDLL, index: Tensor, distances: Tensor, weights: Tensor, n_atoms: int, cutoff: float,
        n_pieces: int,
    ) -> None:  # fmt: skip
        self.library, self.n_atoms, self.n_pieces = found, n_atoms, n_pieces
        self.pieces_per_length = n_pieces / cutoff
        self.start = functional.pad(torch.bincount(index[0], minlength=n_atoms).cumsum(0), (1, 0))
        order, count = torch.empty_like(index[0]), index.new_empty(n_pieces + 1)
        self.tensors = [t.contiguous() for t in (order, index[1], distances, weights)]
        self.lanes = VECTOR_BYTES // distances.element_size()
        self.ranges = ranges_of_atoms(self.start)
        found.arrange(
            ctypes.c_int64(n_atoms), ctypes.c_int64(n_pieces), ctypes.c_double(self.pieces_per_length),
            *(ctypes.c_void_p(t.data_ptr()) for t in (self.start, self.tensors[2], order, count)),
        )  # fmt: skip

    def _padded(self, tensor: Tensor) -> Tensor:
        return functional.pad(tensor, (0, -tensor.shape[-1] % self.lanes)).contiguous()

    def _layer(self, layer: Any) -> tuple[_Layer, list[Tensor]]:
        held = [self._padded(t) for t in (layer.centre, layer.neighbour, layer.edge_weight)]
        stride = held[0].shape[-1]
        pointers = [t.data_ptr() for t in (self.start, *self.tensors, *held)]
        return _Layer(self.n_atoms, self.n_pieces, stride, self.pieces_per_length, *pointers), held

    def _run(self, name: str, layer: _Layer, arguments: Callable[[int], list[Tensor]]) -> None:
        """Call the C function for each range of atoms with the tensors ``arguments(thread)``."""
        function = getattr(self.library, name)

        def work(thread: int) -> None:
            held = arguments(thread)
            first, last = (ctypes.c_int64(n) for n in self.ranges[thread])
            function(ctypes.byref(layer), first, last, *(ctypes.c_void_p(t.data_ptr()) for t in held))

        if len(self.ranges) == 1:
            work(0)
        else:
            list(thread_pool(os.getpid(), len(self.ranges)).map(work, range(len(self.ranges))))

    def energies(self, layer: Any) -> Tensor:
        native, _held = self._layer(layer)
        message = layer.h.new_zeros(self.n_atoms, native.stride)
        self._run("energies", native, lambda _: [message])
        return message[:, : layer.h.shape[1]]

    def adjoints(self, layer: Any, adjoint: Tensor, distance: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        native, _held = self._layer(layer)
        adjoint = self._padded(adjoint)
        threads, dim = len(self.ranges), layer.h.shape[1]
        centre = adjoint.new_zeros(2, self.n_atoms, native.stride)
        neighbour = adjoint.new_zeros(threads, 2, self.n_atoms, native.stride)
        self._run("adjoints", native, lambda k: [adjoint, centre, neighbour[k], distance, weight])
        return centre[..., :dim], neighbour.sum(0)[..., :dim]

    def tangents(self, layer: Any, centre: Tensor, neighbour: Tensor, distance: Tensor, weight: Tensor) -> Tensor:
        native, _held = self._layer(layer)
        message = layer.h.new_zeros(self.n_atoms, native.stride)
        held = [self._padded(centre), self._padded(neighbour), distance, weight, message]
        self._run("tangents", native, lambda _: held)
        return message[:, : layer.h.shape[1]]

    def gradients(
        self, layer: Any, adjoints: tuple[Tensor, Tensor], tangents: tuple[Tensor, Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        native, _held = self._layer(layer)
        centre_dot, neighbour_dot, distance, weight = tangents
        node_values = [self._padded(t) for t in (*adjoints, centre_dot, neighbour_dot)]
        threads, dim = len(self.ranges), layer.h.shape[1]
        centre = distance.new_zeros(2, self.n_atoms, native.stride)
        neighbour = distance.new_zeros(threads, 2, self.n_atoms, native.stride)
        gradient = distance.new_zeros(threads, 2, layer.edge_weight.shape[1], native.stride)
        self._run(
            "gradients", native, lambda k: [*node_values, distance, weight, centre, neighbour[k], gradient[k]]
        )
        return centre[..., :dim], neighbour.sum(0)[..., :dim], gradient.sum(0)[..., :dim]

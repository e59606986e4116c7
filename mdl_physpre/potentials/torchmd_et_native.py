"""The sums over the edges of the equivariant transformer in C, with gradients that can be differentiated once more.

With L = Σ_i (g_i · m_i + G_i · M_i) for adjoints g, G of the sums m, M of a layer, three functions in C do the work:

    sums       m and M
    gradient   ∂L/∂(q, k, v, vec), and either ∂L/∂(distance, direction) of each edge, or ∂L/∂table
    second     for rates of change of q, k, v, vec, distances and directions: the rates of m and M, and the gradient of
               the rate of L in q, k, v, vec and the table

``second`` is what backpropagation through ``gradient`` asks for when a loss depends on forces. Nothing that belongs to
an edge is stored but its place in the table and its direction. Radial functions come from a table of splines that is
made once for each layer and step (:class:`mdl_physpre.potentials.torchmd_et_radial.RadialGrid`).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mdl_physpre.potentials.native import VECTOR_BYTES, compiled, ranges_of_atoms, thread_pool
from mdl_physpre.potentials.torchmd_et_layers import HeadLayout
from mdl_physpre.potentials.torchmd_et_messages import Edges
from mdl_physpre.potentials.torchmd_et_radial import RadialGrid

SOURCE = Path(__file__).with_name("torchmd_et_native.c")
DTYPES = {torch.float32: "float", torch.float64: "double"}
FUNCTIONS = ("sums", "by_geometry", "by_table", "second")
MOST_VECTORS = 64  # of channels, as in the source


class _Layer(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int64) for n in ("channels", "heads", "has_vectors", "gives_vectors")] + [
        (n, ctypes.c_void_p)
        for n in ("start", "neighbour", "row", "weight", "slope", "direction", "qkv", "vec", "table")
    ]


@lru_cache(maxsize=4)
def library(real: str) -> ctypes.CDLL | None:
    """The compiled functions in precision ``real`` (``float`` or ``double``), or None where they cannot be had."""
    return compiled(SOURCE, real, FUNCTIONS, "the equivariant transformer")


def native_layout(layout: HeadLayout, like: Tensor) -> HeadLayout | None:
    """The layout padded for the C code, or None where that cannot be had for this precision, device and size."""
    real = DTYPES.get(like.dtype) if like.device.type == "cpu" else None
    if real is None or library(real) is None:
        return None
    lanes = VECTOR_BYTES // like.element_size()
    heads = 1 << (layout.heads - 1).bit_length()
    whole = max(1, lanes // heads)
    padded = replace(layout, padded_heads=heads, padded_depth=-(-layout.depth // whole) * whole)
    return padded if heads <= lanes and padded.channels <= MOST_VECTORS * lanes else None


class NativeEdges:
    """Edges as the C code takes them.

    ``geometry`` says what a gradient is wanted in besides node vectors: in distances and directions, or in the table.
    """

    def __init__(self, edges: Edges, n_atoms: int, layout: HeadLayout, grid: RadialGrid) -> None:
        real = DTYPES[edges.distances.dtype]
        self.library = library(real)
        self.layout, self.n_atoms = layout, n_atoms
        self.start = functional.pad(torch.bincount(edges.ends[0], minlength=n_atoms).cumsum(0), (1, 0))
        self.ranges = ranges_of_atoms(self.start)
        self.neighbour = edges.ends[1].contiguous()
        with torch.no_grad():
            self.row, *placed = grid.place(edges.distances)
            self.weight, self.slope = (t.contiguous() for t in placed)
        self.geometry = False

    def run(
        self, name: str, values: Values, last: bool, arguments: Callable[[int], Sequence[Tensor | None]]
    ) -> None:
        """Call the C function for each range of atoms with the tensors ``arguments(thread)``."""
        function = getattr(self.library, name)
        edge_tensors = (self.start, self.neighbour, self.row, self.weight, self.slope, values.directions)
        layer = _Layer(
            self.layout.channels, self.layout.padded_heads, values.vec is not None, not last,
            *(_address(t) for t in (*edge_tensors, values.qkv, values.vec, values.table)),
        )  # fmt: skip

        def work(thread: int) -> None:
            held = arguments(thread)
            first, stop = (ctypes.c_int64(n) for n in self.ranges[thread])
            function(ctypes.byref(layer), first, stop, *(ctypes.c_void_p(_address(t)) for t in held))

        if len(self.ranges) == 1:
            work(0)
        else:
            list(thread_pool(os.getpid(), len(self.ranges)).map(work, range(len(self.ranges))))

    def zeros(self, like: Tensor) -> Tensor:
        """Zeros like a tensor, once for each thread."""
        return like.new_zeros(len(self.ranges), *like.shape)


class Values:
    """What the sums of a layer depend on: qkv (N, 5 F), vec (N, 3, F) or None, table (rows, 4 F), directions (E, 3)."""

    def __init__(self, qkv: Tensor, vec: Tensor | None, table: Tensor, directions: Tensor) -> None:
        self.qkv, self.table, self.directions = qkv.contiguous(), table.contiguous(), directions.contiguous()
        self.vec = None if vec is None else vec.contiguous()


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _total(by_thread: Tensor) -> Tensor:
    return by_thread[0] if len(by_thread) == 1 else by_thread.sum(0)


class NativeSums(torch.autograd.Function):
    """m (N, F) and M (N, 3, F) of a layer."""

    @staticmethod
    def forward(
        ctx: Any, edges: NativeEdges, last: bool, qkv: Tensor, vec: Tensor | None, table: Tensor, distances: Tensor,
        directions: Tensor,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        ctx.edges, ctx.last = edges, last
        ctx.save_for_backward(qkv, vec, table, distances, directions)
        x = qkv.new_empty(edges.n_atoms, edges.layout.channels)
        out = None if last else qkv.new_empty(edges.n_atoms, 3, edges.layout.channels)
        edges.run("sums", Values(qkv, vec, table, directions), last, lambda _: [x, out])
        return x, out

    @staticmethod
    def backward(ctx: Any, gx: Tensor, gout: Tensor | None) -> tuple[Any, ...]:
        return (None, None, *_Gradient.apply(ctx.edges, ctx.last, *ctx.saved_tensors, gx, gout))


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, edges: NativeEdges, last: bool, qkv: Tensor, vec: Tensor | None, table: Tensor, distances: Tensor,
        directions: Tensor, gx: Tensor, gout: Tensor | None,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        ctx.edges, ctx.last = edges, last
        ctx.save_for_backward(qkv, vec, table, distances, directions, gx, gout)
        values = Values(qkv, vec, table, directions)
        gx, gout = gx.contiguous(), None if last or gout is None else gout.contiguous()
        gqkv, gvec = edges.zeros(values.qkv), None if last or vec is None else edges.zeros(vec)
        def nodes(k: int) -> list[Tensor | None]:
            return [gx, gout, gqkv[k], None if gvec is None else gvec[k]]
        gtable = gdistances = gdirections = None
        if edges.geometry:
            geometry = [torch.empty_like(distances), torch.empty_like(values.directions)]
            edges.run("by_geometry", values, last, lambda k: [*nodes(k), *geometry])
            gdistances, gdirections = geometry
        else:
            tables = edges.zeros(values.table)
            edges.run("by_table", values, last, lambda k: [*nodes(k), tables[k]])
            gtable = _total(tables)
        by_vectors = None if vec is None else torch.zeros_like(vec) if gvec is None else _total(gvec)
        return _total(gqkv), by_vectors, gtable, gdistances, gdirections

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, tqkv: Tensor, tvec: Tensor | None, _: None, tdistances: Tensor, tdirections: Tensor
    ) -> tuple[Any, ...]:
        """The rates of change are what backpropagation calls the adjoints of the gradient."""
        if tdistances is None:
            raise RuntimeError("the equivariant transformer's C code has no third derivatives; use atomic_energies")
        edges, last = ctx.edges, ctx.last
        qkv, vec, table, _, directions, gx, gout = ctx.saved_tensors
        values = Values(qkv, vec, table, directions)
        gx, gout = gx.contiguous(), None if last or gout is None else gout.contiguous()
        rates = [None if t is None else t.contiguous() for t in (tqkv, tvec, tdistances, tdirections)]
        tx, tout = torch.empty_like(gx), None if last else gx.new_empty(len(gx), 3, gx.shape[1])
        gqkv, gtable = edges.zeros(values.qkv), edges.zeros(table)
        gvec = None if last or vec is None else edges.zeros(vec)
        edges.run(
            "second", values, last,
            lambda k: [gx, gout, *rates, tx, tout, gqkv[k], None if gvec is None else gvec[k], gtable[k]],
        )  # fmt: skip
        by_vectors = None if vec is None else torch.zeros_like(vec) if gvec is None else _total(gvec)
        return None, None, _total(gqkv), by_vectors, _total(gtable), None, None, tx, tout

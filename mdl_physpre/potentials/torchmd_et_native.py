"""The sums over the edges of the equivariant transformer as an operator in C, compiled on first use.

With L = Σ_i (g_i · m_i + G_i · M_i) for adjoints g, G of the sums m, M of a layer, the operator, its gradient and the
gradient of that are

    sums          m and M
    by_geometry   ∂L/∂(nodes, vec, distance, direction), for forces
    by_table      ∂L/∂(nodes, vec, table), for the loss
    second        for rates of change of nodes, vec, distances and directions the rates of m and M, and the gradient of
                  the rate of L in nodes, vec and table

``second`` is what backpropagation through ``by_geometry`` asks for when a loss depends on forces. Nothing that belongs
to an edge is stored but its place in the table and its direction. Radial functions come from a table of splines that is
made once for each layer and step (:class:`mdl_physpre.potentials.torchmd_et_radial.RadialGrid`). Without a compiler,
with ``MDL_PHYSPRE_NATIVE=0``, on other devices than the processor and outside ``evaluate``, tensor operations are used.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mdl_physpre.potentials.edge_op import in_geometry
from mdl_physpre.potentials.native import (
    VECTOR_BYTES,
    address,
    can_use_c,
    compiled,
    limits,
    ranges_of_atoms,
    run_ranges,
)
from mdl_physpre.potentials.torchmd_et_layers import LayerWeights, Sums
from mdl_physpre.potentials.torchmd_et_radial import RadialGrid

SOURCE = Path(__file__).with_name("torchmd_et_native.c")
DTYPES = {torch.float32: "float", torch.float64: "double"}
FUNCTIONS = ("sums", "by_geometry", "by_table", "second")
MOST_VECTORS = 64  # of channels, as in the source


@lru_cache(maxsize=4)
def library(real: str) -> ctypes.CDLL | None:
    """The compiled functions in precision ``real`` (``float`` or ``double``), or None where they cannot be had."""
    return compiled(SOURCE, real, FUNCTIONS, "the equivariant transformer")


@dataclass(frozen=True)
class HeadLayout:
    """Where C has a channel of a head: row d·padded_heads + h for channel d of head h; what padding adds is zero."""

    heads: int
    depth: int
    padded_heads: int
    padded_depth: int
    lanes: int  # values of a vector

    @classmethod
    def of(cls, heads: int, channels: int, like: Tensor) -> HeadLayout | None:
        """None where C cannot be had for the precision and device of ``like`` or for this size, or must not be used."""
        if not can_use_c(like, DTYPES) or library(DTYPES[like.dtype]) is None:
            return None
        lanes, depth, padded = VECTOR_BYTES // like.element_size(), channels // heads, 1 << (heads - 1).bit_length()
        whole = max(1, lanes // padded)
        layout = cls(heads, depth, padded, -(-depth // whole) * whole, lanes)
        return layout if padded <= lanes and layout.channels <= MOST_VECTORS * lanes else None

    @property
    def channels(self) -> int:
        """F, padding included."""
        return self.padded_heads * self.padded_depth

    def rows(self, weight: Tensor) -> Tensor:
        """Rows (parts · heads · depth, …) as (parts · F, …)."""
        rest = weight.shape[1:]
        split = weight.view(-1, self.heads, self.depth, *rest).transpose(1, 2)
        more = (self.padded_heads - self.heads, self.padded_depth - self.depth)
        if any(more):
            split = functional.pad(split, (0, 0) * len(rest) + (0, more[0], 0, more[1]))
        return split.reshape(-1, *rest)

    def arranged(self, weights: LayerWeights) -> LayerWeights:
        """The weights of a layer for sums in this layout."""
        qkv, qkv_bias, vectors, out, out_bias, *radial = weights
        width, rows = len(qkv) // 5, self.rows
        vectors, out = rows(vectors.T).T, rows(out.T).T
        return LayerWeights(
            rows(qkv), rows(qkv_bias), torch.cat([vectors[: 2 * width], rows(vectors[2 * width :])]),
            torch.cat([rows(out[:width]), out[width:]]), torch.cat([rows(out_bias[:width]), out_bias[width:]]),
            *(rows(r) for r in radial),
        )  # fmt: skip

    def padded(self, values: Tensor) -> Tensor:
        """Values (…, channels) of the node vectors' start, which knows no heads, (…, whole vectors)."""
        return functional.pad(values, (0, -values.shape[1] % self.lanes))


class Tables(NamedTuple):
    """What depends on parameters alone: weights of each layer, and the radial functions of the start and of each."""

    layout: HeadLayout
    grid: RadialGrid
    weights: list[LayerWeights]
    start: Tensor  # (rows, F)
    layers: list[Tensor]  # (rows, 4 F)


class NativeMessages:
    """:class:`mdl_physpre.potentials.torchmd_et_layers.Messages` in C.

    ``distances`` (E,), ``directions`` (E, 3), and centres and neighbours ``i``, ``j`` (E,) are sorted by centre;
    ``own_images`` says whether these count in the node vectors' start.
    """

    def __init__(
        self, tables: Tables, distances: Tensor, directions: Tensor, i: Tensor, j: Tensor, n_atoms: int,
        own_images: bool,
    ) -> None:  # fmt: skip
        self.weights, self.tables = tables.weights, tables
        start = functional.pad(torch.bincount(i, minlength=n_atoms).cumsum(0), (1, 0))
        bounds = [0, *(stop for _, stop in ranges_of_atoms(start))]
        with torch.no_grad():
            row, spline = tables.grid.place(distances)
        self.edges = (distances, directions, spline, start, j.to(torch.int64).contiguous(), row, bounds)
        others = row if own_images else torch.where(i == j, -1, row)
        self.edges_of_start = (*self.edges[:5], others, bounds)

    def around(self, values: Tensor) -> Tensor:
        given = self.tables.layout.padded(values), None, self.tables.start
        return sums(*given, *self.edges_of_start, 0, False)[0][:, : values.shape[1]]

    def sums(self, layer: int, qkv: Tensor, vec: Tensor | None, last: bool) -> Sums:
        given = qkv, None if last else vec, self.tables.layers[layer]
        message, vectors = sums(*given, *self.edges, self.tables.layout.padded_heads, not last)
        return message, None if last else vectors


class _Layer(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int64) for n in ("channels", "heads", "has_vectors", "gives_vectors")] + [
        (n, ctypes.c_void_p) for n in ("start", "neighbour", "row", "spline", "direction", "nodes", "vec", "table")
    ]


class _Call:
    """The arguments of an operator as its C functions take them."""

    def __init__(
        self, nodes: Tensor, vec: Tensor | None, table: Tensor, distance: Tensor, direction: Tensor, spline: Tensor,
        start: Tensor, neighbour: Tensor, row: Tensor, bounds: list[int], heads: int, gives_vectors: bool,
    ) -> None:  # fmt: skip
        self.nodes, self.table = nodes.contiguous(), table.contiguous()
        self.vec = None if vec is None else vec.contiguous()
        self.held = [t.contiguous() for t in (start, neighbour, row, spline, direction)]
        self.channels, self.gives_vectors = nodes.shape[1] // (5 if heads else 1), gives_vectors
        self.library, self.ranges = library(DTYPES[nodes.dtype]), list(zip(bounds, bounds[1:]))
        pointers = (address(t) for t in (*self.held, self.nodes, self.vec, self.table))
        self.layer = _Layer(self.channels, heads, vec is not None, gives_vectors, *pointers)

    def run(self, name: str, arguments: Callable[[int], list[Tensor | None]]) -> None:
        layer = ctypes.byref(self.layer)
        run_ranges(getattr(self.library, name), self.ranges, lambda k: [layer, *limits(self.ranges[k]), *arguments(k)])

    def results(self) -> tuple[Tensor, Tensor]:
        """Room for m and M; for no M where it is not wanted."""
        m, n_atoms = self.nodes.new_empty(len(self.nodes), self.channels), len(self.nodes) * self.gives_vectors
        return m, m.new_empty(n_atoms, 3, self.channels)

    def zeros(self, like: Tensor | None) -> Tensor:
        """Zeros like a tensor, once for each thread."""
        return self.nodes.new_zeros(len(self.ranges), *((0,) if like is None else like.shape))


def _total(by_thread: Tensor) -> Tensor:
    return by_thread[0] if len(by_thread) == 1 else by_thread.sum(0)


LAYER = (
    "Tensor nodes, Tensor? vec, Tensor table, Tensor distance, Tensor direction, Tensor spline, Tensor start, "
    "Tensor neighbour, Tensor row, int[] bounds, int heads, bool gives_vectors"
)


def _operator(name: str, before: str, results: int) -> Callable[[Callable[..., Any]], Any]:
    """Registers an operator of the arguments ``before`` and those of a layer, which gives so many tensors."""
    schema = f"({before}{LAYER}) -> ({', '.join(['Tensor'] * results)})"
    return torch.library.custom_op(f"mdl_physpre::{name}", mutates_args=(), device_types="cpu", schema=schema)


@_operator("et_sums", "", 2)
def sums(*layer: Any) -> tuple[Tensor, ...]:
    """m (N, F) and M (N, 3, F), empty without ``gives_vectors``; F channels are whole vectors.

    Parameters
    ----------
    nodes, vec : (N, 5 F) as :class:`HeadLayout` has them; (N, 3, F) or None.
    table : (rows, 4 F), coefficients of the radial functions.
    distance, direction : (E,) Å, (E, 3), sorted by centre.
    spline : (E, 12) and, below, row: what :meth:`RadialGrid.place` gives for the distances.
    start : (N + 1,) first edge of each atom.
    neighbour, row : (E,).
    bounds : atoms at which the share of each thread begins and ends.
    heads : 0 for a sum without attention, Σ_j v_j R: nodes are then (N, F) and the table (rows, F).
    gives_vectors : whether M is wanted.
    """
    call = _Call(*layer)
    found = call.results()
    call.run("sums", lambda _: [*found])
    return found


@_operator("et_sums_by_geometry", "Tensor gx, Tensor gout, ", 4)
def by_geometry(gx: Tensor, gout: Tensor, *layer: Any) -> tuple[Tensor, ...]:
    """Gradients in nodes, vec (empty without it), distance and direction."""
    call, (nodes, vec, _, distance, direction, *_) = _Call(*layer), layer
    gx, gout, by_nodes, by_vec = gx.contiguous(), gout.contiguous(), call.zeros(nodes), call.zeros(vec)
    geometry = nodes.new_zeros(distance.shape), nodes.new_zeros(direction.shape)
    call.run("by_geometry", lambda k: [gx, gout, by_nodes[k], by_vec[k], *geometry])
    return _total(by_nodes), _total(by_vec), *geometry


@_operator("et_sums_by_table", "Tensor gx, Tensor gout, ", 3)
def by_table(gx: Tensor, gout: Tensor, *layer: Any) -> tuple[Tensor, ...]:
    """Gradients in nodes, vec (empty without it) and table."""
    call, gx, gout = _Call(*layer), gx.contiguous(), gout.contiguous()
    sums = [call.zeros(t) for t in layer[:3]]
    call.run("by_table", lambda k: [gx, gout, *(t[k] for t in sums)])
    return tuple(_total(t) for t in sums)


@_operator("et_sums_second", ", ".join(f"Tensor {x}" for x in ("tn", "tv", "td", "tu", "gx", "gout")) + ", ", 5)
def second(*given: Any) -> tuple[Tensor, ...]:
    """The rates of m and M, and the gradients of the rate of L in nodes, vec (empty without it) and table.

    From the rates of nodes, vec (empty without it), distance and direction, and the adjoints of m and M.
    """
    (*rates, gx, gout), layer = (t.contiguous() for t in given[:6]), given[6:]
    call = _Call(*layer)
    found, sums = call.results(), [call.zeros(t) for t in layer[:3]]
    call.run("second", lambda k: [gx, gout, *rates, *found, *(t[k] for t in sums)])
    return *found, *(_total(t) for t in sums)


def _keep(ctx: Any, inputs: tuple, output: Any) -> None:
    *tensors, ctx.bounds, ctx.heads, ctx.gives_vectors = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gx: Tensor, gout: Tensor) -> tuple[Tensor | None, ...]:
    given = (gx, gout, *ctx.saved_tensors, ctx.bounds, ctx.heads, ctx.gives_vectors)
    table = distance = direction = None
    if in_geometry():
        nodes, vec, distance, direction = by_geometry(*given)
    else:
        nodes, vec, table = by_table(*given)
    return nodes, vec if ctx.needs_input_grad[1] else None, table, distance, direction, *[None] * 7


def _second(ctx: Any, *rates: Tensor) -> tuple[Tensor | None, ...]:
    found = second(*rates, *ctx.saved_tensors, ctx.bounds, ctx.heads, ctx.gives_vectors)
    gx, gout, nodes, vec, table = found
    return gx, gout, nodes, vec if ctx.needs_input_grad[3] else None, table, *[None] * 9


sums.register_autograd(_backward, setup_context=_keep)
by_geometry.register_autograd(_second, setup_context=_keep)


def _like(*tensors: Tensor | None) -> tuple[Tensor, ...]:
    nodes = next(t for t in tensors if t is not None)
    return tuple(nodes.new_empty((0,) if t is None else t.shape) for t in tensors)


@sums.register_fake
def _(nodes: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    heads, gives_vectors = rest[-2:]
    m = nodes.new_empty(len(nodes), nodes.shape[1] // (5 if heads else 1))
    return m, m.new_empty(len(nodes) if gives_vectors else 0, 3, m.shape[1])


@by_geometry.register_fake
def _(gx: Tensor, gout: Tensor, nodes: Tensor, vec: Any, table: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    return _like(nodes, vec, *rest[:2])


@by_table.register_fake
def _(gx: Tensor, gout: Tensor, *layer: Tensor) -> tuple[Tensor, ...]:
    return _like(*layer[:3])


@second.register_fake
def _(*given: Tensor) -> tuple[Tensor, ...]:
    return _like(*given[4:9])

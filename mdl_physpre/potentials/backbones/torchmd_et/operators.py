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
made once for each layer and step (:class:`.radial.RadialGrid`). Without a compiler,
with ``MDL_PHYSPRE_NATIVE=0``, on other devices than the processor and outside ``evaluate``, tensor operations are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mdl_physpre.potentials.backbones.torchmd_et.layers import LayerWeights, Sums
from mdl_physpre.potentials.backbones.torchmd_et.radial import RadialGrid
from mdl_physpre.potentials.kernels.c_code import VECTOR_BYTES, Call, CCode, first_edges, structure
from mdl_physpre.potentials.kernels.edge_op import arguments_of, operator, register_gradients

CODE = CCode(
    Path(__file__).with_name("operators.c"),
    {torch.float32: "float", torch.float64: "double"},
    "the equivariant transformer",
)
LAYER = structure("channels heads has_vectors gives_vectors", "start neighbour row spline direction nodes vec table")
MOST_VECTORS = 64  # of channels, as in the source


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
        if CODE.library_for(like) is None:
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
    """:class:`~mdl_physpre.potentials.backbones.torchmd_et.layers.TensorMessages` in C.

    ``distances`` (E,), ``directions`` (E, 3), and centres and neighbours ``i``, ``j`` (E,) are sorted by centre;
    ``own_images`` says whether these count in the node vectors' start.
    """

    def __init__(
        self, tables: Tables, distances: Tensor, directions: Tensor, i: Tensor, j: Tensor, n_atoms: int,
        own_images: bool,
    ) -> None:  # fmt: skip
        self.weights, self.tables = tables.weights, tables
        start = first_edges(i, n_atoms)
        with torch.no_grad():
            row, spline = tables.grid.place(distances)
        self.edges = (distances, directions, spline, start, j.to(torch.int64).contiguous(), row)
        self.edges_of_start = (*self.edges[:5], row if own_images else torch.where(i == j, -1, row))

    def around(self, values: Tensor) -> Tensor:
        given = self.tables.layout.padded(values), None, self.tables.start
        return sums(*given, *self.edges_of_start, 0, False)[0][:, : values.shape[1]]

    def sums(self, layer: int, qkv: Tensor, vec: Tensor | None, last: bool) -> Sums:
        given = qkv, None if last else vec, self.tables.layers[layer]
        message, vectors = sums(*given, *self.edges, self.tables.layout.padded_heads, not last)
        return message, None if last else vectors


class Layer(NamedTuple):
    """What the operators take of a layer; F channels are whole vectors."""

    nodes: Tensor  # (N, 5 F), as HeadLayout has them; (N, F) without heads
    vec: Tensor | None  # (N, 3, F)
    table: Tensor  # (rows, 4 F), coefficients of the radial functions; (rows, F) without heads
    distance: Tensor  # (E,), Å, sorted by centre
    direction: Tensor  # (E, 3)
    spline: Tensor  # (E, 12); it and row: what RadialGrid.place gives for the distances
    start: Tensor  # (N + 1,), first edge of each atom
    neighbour: Tensor  # (E,)
    row: Tensor  # (E,)
    heads: int  # 0 for a sum without attention, Σ_j v_j R
    gives_vectors: bool  # whether M is wanted

    def sums(self) -> tuple[Tensor, Tensor]:
        """Room for m (N, F) and M (N, 3, F); for no M where it is not wanted."""
        n_atoms, channels = len(self.nodes), self.nodes.shape[1] // (5 if self.heads else 1)
        m = self.nodes.new_empty(n_atoms, channels)
        return m, m.new_empty(n_atoms * self.gives_vectors, 3, channels)

    def call(self) -> Call:
        """These as the C functions take them."""
        channels = self.nodes.shape[1] // (5 if self.heads else 1)
        return Call(CODE, LAYER, self, channels=channels, has_vectors=self.vec is not None)


ARGUMENTS = arguments_of(Layer)
ADJOINTS = "Tensor gx, Tensor gout"
RATES = "Tensor tn, Tensor tv, Tensor td, Tensor tu"


@operator("et_sums", ARGUMENTS, results=2)
def sums(*layer: Any) -> tuple[Tensor, ...]:
    """m (N, F) and M (N, 3, F) of a :class:`Layer`; M is empty without ``gives_vectors``."""
    given = Layer(*layer)
    found = given.sums()
    given.call().run("sums", *found)
    return found


@operator("et_sums_by_geometry", f"{ADJOINTS}, {ARGUMENTS}", like=("nodes", "vec", "distance", "direction"))
def by_geometry(gx: Tensor, gout: Tensor, *layer: Any) -> tuple[Tensor, ...]:
    """Gradients in nodes, vec (empty without it), distance and direction."""
    given = Layer(*layer)
    call = given.call()
    nodes, vec = call.sums(given.nodes), call.sums(given.vec)
    geometry = gx.new_zeros(given.distance.shape), gx.new_zeros(given.direction.shape)
    call.run("by_geometry", gx, gout, nodes, vec, *geometry)
    return nodes.total(), vec.total(), *geometry


@operator("et_sums_by_table", f"{ADJOINTS}, {ARGUMENTS}", like=("nodes", "vec", "table"))
def by_table(gx: Tensor, gout: Tensor, *layer: Any) -> tuple[Tensor, ...]:
    """Gradients in nodes, vec (empty without it) and table."""
    call = Layer(*layer).call()
    found = [call.sums(t) for t in layer[:3]]
    call.run("by_table", gx, gout, *found)
    return tuple(t.total() for t in found)


@operator("et_sums_second", f"{RATES}, {ADJOINTS}, {ARGUMENTS}", like=("gx", "gout", "nodes", "vec", "table"))
def second(tn: Tensor, tv: Tensor, td: Tensor, tu: Tensor, gx: Tensor, gout: Tensor, *layer: Any) -> tuple[Tensor, ...]:
    """The rates of m and M, and the gradients of the rate of L in nodes, vec (empty without it) and table.

    From the rates of nodes, vec (empty without it), distance and direction, and the adjoints of m and M.
    """
    given = Layer(*layer)
    call, rates = given.call(), given.sums()
    found = [call.sums(t) for t in layer[:3]]
    call.run("second", gx, gout, tn, tv, td, tu, *rates, *found)
    return *rates, *(t.total() for t in found)


register_gradients(sums, by_geometry, by_table)
register_gradients(by_geometry, second)


@sums.register_fake
def _(*layer: Any) -> tuple[Tensor, ...]:
    return Layer(*layer).sums()

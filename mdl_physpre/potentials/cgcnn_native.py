"""The sums over edges of the crystal graph network as an operator in C, compiled on first use.

One pass over the edges does what takes a dozen tensor operations otherwise. With a_e = P_i + P'_j + C φ(d_e) of both
channels for the edge e = (i, j), the operator, its gradient and the gradient of that are

    messages    m_i = Σ_e w_e g_e,    g = sigmoid(a^f) softplus(a^s)
    backward    from λ = ∂L/∂m, ∂L/∂(P, P') and either ∂L/∂(d, w), for forces, or ∂L/∂C, for the loss
    second      for rates of change of P, P', d and w the rate of m, and the gradient of λ · rate in P, P' and C

``second`` is what backpropagation through ``backward`` asks for when a loss depends on forces. All recompute what
belongs to an edge. Without a compiler, with ``MDL_PHYSPRE_NATIVE=0``, in double precision and on other devices, tensor
operations are used (:mod:`mdl_physpre.potentials.cgcnn`); both give the same to rounding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

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

SOURCE = Path(__file__).with_name("cgcnn_native.c")
DTYPES = {torch.float32: "float"}
"""Precisions that run in C; double precision gains little, because its exponentials are not vectorised."""

FUNCTIONS = ("arrange", "messages", "by_geometry", "by_parameters", "second")


class _Layer(ctypes.Structure):
    _fields_ = (
        [(n, ctypes.c_int64) for n in ("n_atoms", "n_pieces", "stride")]
        + [("pieces_per_length", ctypes.c_double)]
        + [(n, ctypes.c_void_p) for n in ("start", "order", "neighbour", "distance", "weight")]
        + [(n, ctypes.c_void_p) for n in ("centre_sum", "neighbour_sum", "coefficient")]
    )


@lru_cache(maxsize=4)
def library(real: str) -> ctypes.CDLL | None:
    """The compiled functions in precision ``real`` (``float`` or ``double``), or None where they cannot be had."""
    return compiled(SOURCE, real, FUNCTIONS, "the CGCNN")


def library_for(like: Tensor) -> ctypes.CDLL | None:
    """The compiled functions for the precision and device of ``like``, or None where tensor operations do the work."""
    return library(DTYPES[like.dtype]) if can_use_c(like, DTYPES) else None


def terms(found: ctypes.CDLL) -> int:
    """Number of coefficients of the polynomials in the distance."""
    return ctypes.c_int64.in_dll(found, "terms").value


def lanes(like: Tensor) -> int:
    """Channels are padded to a multiple of this."""
    return VECTOR_BYTES // like.element_size()


def arranged(centre: Tensor, distance: Tensor, n_atoms: int, per_length: float, n_pieces: int) -> tuple[Tensor, Tensor]:
    """First edge of each atom (N + 1,), and the edges of each atom piece by piece (E,)."""
    start = functional.pad(torch.bincount(centre, minlength=n_atoms).cumsum(0), (1, 0))
    order, count = start.new_empty(len(centre)), start.new_empty(n_pieces + 1)
    found, distance = library_for(distance), distance.detach().contiguous()
    found.arrange(  # type: ignore[union-attr]
        ctypes.c_int64(n_atoms), ctypes.c_int64(n_pieces), ctypes.c_double(per_length),
        *(address(t) for t in (start, distance, order, count)),
    )  # fmt: skip
    return start, order


class _Call:
    """The arguments of an operator as its C functions take them."""

    def __init__(
        self, nodes: Tensor, coefficient: Tensor, distance: Tensor, weight: Tensor, start: Tensor, neighbour: Tensor,
        order: Tensor, per_length: float, n_pieces: int,
    ) -> None:  # fmt: skip
        self.nodes, self.coefficient = nodes.contiguous(), coefficient.contiguous()
        self.held = [t.contiguous() for t in (start, order, neighbour, distance, weight)]
        _, n_atoms, stride = nodes.shape
        pointers = [t.data_ptr() for t in (*self.held, self.nodes[0], self.nodes[2], self.coefficient)]
        self.layer = _Layer(n_atoms, n_pieces, stride, per_length, *pointers)
        self.library, self.ranges = library(DTYPES[nodes.dtype]), ranges_of_atoms(start)

    def run(self, name: str, arguments: Callable[[int], list[Tensor]]) -> None:
        layer = ctypes.byref(self.layer)
        run_ranges(
            getattr(self.library, name), self.ranges, lambda k: [layer, *limits(self.ranges[k]), *arguments(k)]
        )

    def node_sums(self) -> tuple[Tensor, Tensor]:
        """Zeros for sums over centres (2, N, S), and for those over neighbours, once for each thread."""
        like = self.nodes[:2]
        return torch.zeros_like(like), like.new_zeros(len(self.ranges), *like.shape)

    def coefficient_sums(self) -> Tensor:
        """Zeros for the gradient of the coefficients, once for each thread."""
        return self.nodes.new_zeros(len(self.ranges), *self.coefficient.shape)


def _joined(centre: Tensor, neighbour: Tensor) -> Tensor:
    return torch.cat([centre, _total(neighbour)])


def _total(by_thread: Tensor) -> Tensor:
    return by_thread[0] if len(by_thread) == 1 else by_thread.sum(0)


@torch.library.custom_op("mdl_physpre::cgcnn_messages", mutates_args=(), device_types="cpu")
def messages(
    nodes: Tensor, coefficient: Tensor, distance: Tensor, weight: Tensor, start: Tensor, neighbour: Tensor,
    order: Tensor, per_length: float, n_pieces: int,
) -> Tensor:  # fmt: skip
    """m (N, S), S channels of whole vectors.

    Parameters
    ----------
    nodes : (4, N, S), both channels of P, then of P'; the softplus channel has its sign turned.
    coefficient : (2, n_pieces · terms, S), C as polynomials in the distance
        (:func:`mdl_physpre.potentials.cgcnn_radial.piecewise_polynomials`).
    distance, weight : (E,), Å and 1; sorted by centre.
    start, order : as :func:`arranged` has them. neighbour : (E,).
    per_length, n_pieces : pieces in 1 Å, and their number.
    """
    call = _Call(nodes, coefficient, distance, weight, start, neighbour, order, per_length, n_pieces)
    found = nodes.new_zeros(nodes.shape[1:])
    call.run("messages", lambda _: [found])
    return found


@torch.library.custom_op("mdl_physpre::cgcnn_messages_by_geometry", mutates_args=(), device_types="cpu")
def by_geometry(
    adjoint: Tensor, nodes: Tensor, coefficient: Tensor, distance: Tensor, weight: Tensor, start: Tensor,
    neighbour: Tensor, order: Tensor, per_length: float, n_pieces: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients in nodes, distance and weight."""
    call = _Call(nodes, coefficient, distance, weight, start, neighbour, order, per_length, n_pieces)
    adjoint, (centre, others) = adjoint.contiguous(), call.node_sums()
    by_distance, by_weight = torch.zeros_like(distance), torch.zeros_like(weight)
    call.run("by_geometry", lambda k: [adjoint, centre, others[k], by_distance, by_weight])
    return _joined(centre, others), by_distance, by_weight


@torch.library.custom_op("mdl_physpre::cgcnn_messages_by_parameters", mutates_args=(), device_types="cpu")
def by_parameters(
    adjoint: Tensor, nodes: Tensor, coefficient: Tensor, distance: Tensor, weight: Tensor, start: Tensor,
    neighbour: Tensor, order: Tensor, per_length: float, n_pieces: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients in nodes and coefficient."""
    call = _Call(nodes, coefficient, distance, weight, start, neighbour, order, per_length, n_pieces)
    adjoint, (centre, others), by_coefficient = adjoint.contiguous(), call.node_sums(), call.coefficient_sums()
    call.run("by_parameters", lambda k: [adjoint, centre, others[k], by_coefficient[k]])
    return _joined(centre, others), _total(by_coefficient)


@torch.library.custom_op("mdl_physpre::cgcnn_messages_second", mutates_args=(), device_types="cpu")
def second(
    node_rates: Tensor, distance_rates: Tensor, weight_rates: Tensor, adjoint: Tensor, nodes: Tensor,
    coefficient: Tensor, distance: Tensor, weight: Tensor, start: Tensor, neighbour: Tensor, order: Tensor,
    per_length: float, n_pieces: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The rate of m, and the gradients of adjoint · rate in nodes and coefficient."""
    call = _Call(nodes, coefficient, distance, weight, start, neighbour, order, per_length, n_pieces)
    rate, (centre, others), by_coefficient = torch.zeros_like(nodes[0]), call.node_sums(), call.coefficient_sums()
    node_rates = node_rates.contiguous()
    edge_rates = [distance_rates.contiguous(), weight_rates.contiguous()]
    held = [adjoint.contiguous(), node_rates[:2], node_rates[2:], *edge_rates]
    call.run("second", lambda k: [*held, rate, centre, others[k], by_coefficient[k]])
    return rate, _joined(centre, others), _total(by_coefficient)


def _keep(ctx: Any, inputs: tuple, output: Any) -> None:
    *tensors, ctx.per_length, ctx.n_pieces = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor | None, ...]:
    given = (adjoint, *ctx.saved_tensors, ctx.per_length, ctx.n_pieces)
    if in_geometry():
        nodes, distance, weight = by_geometry(*given)
        return nodes, None, distance, weight, *[None] * 5
    return *by_parameters(*given), *[None] * 7


def _second(ctx: Any, *rates: Tensor) -> tuple[Tensor | None, ...]:
    rate, nodes, coefficient = second(*rates, *ctx.saved_tensors, ctx.per_length, ctx.n_pieces)
    return rate, nodes, coefficient, None, None, None, None, None, None, None


messages.register_autograd(_backward, setup_context=_keep)
by_geometry.register_autograd(_second, setup_context=_keep)


@messages.register_fake
def _(nodes: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(nodes[0])


@by_geometry.register_fake
def _(adjoint: Tensor, nodes: Tensor, coefficient: Tensor, distance: Tensor, weight: Tensor, *rest: Any) -> Any:
    return torch.empty_like(nodes), torch.empty_like(distance), torch.empty_like(weight)


@by_parameters.register_fake
def _(adjoint: Tensor, nodes: Tensor, coefficient: Tensor, *rest: Any) -> Any:
    return torch.empty_like(nodes), torch.empty_like(coefficient)


@second.register_fake
def _(node_rates: Tensor, a: Tensor, b: Tensor, adjoint: Tensor, nodes: Tensor, coefficient: Tensor, *r: Any) -> Any:
    return torch.empty_like(nodes[0]), torch.empty_like(nodes), torch.empty_like(coefficient)

"""What a block of M3GNet does with each edge as an operator in C, compiled on first use where there is a compiler.

For the edge ij with the features g and q the block has a three-body term and two gated perceptrons, the edges' and the
atoms' (k = 0, 1), whose first layers begin with what belongs to the atoms, P_i + Q_j:

    e¹ = e + o(W_3 q)
    a_k = P_ik + Q_jk + W_1k e_k,   y_k = W_2k silu(a_k) + b_k,   e_0 = e¹, e_1 = e²
    e² = e¹ + o(y_0) ⊙ W_d0 g,      m_i = Σ_j o(y_1) ⊙ silu(W_d1 g)

with o(y) = silu(y_g) ⊙ σ(y_s). Operators give (e², m, and a and y), the gradient of these for forces (in P, Q, q, e and
g) or for the loss (in P, Q, q, e and the weights), and what backpropagation through the first of the two asks for:

    rates of e² and m for rates of P, Q, q, e, g; of adjoint · rate the gradients in q, in the weights, and in a and y

The last are those at fixed adjoints of the layers, element by element. As a and y are outputs of the first operator,
automatic differentiation hands them to its gradient in the parameters, which takes them along: nothing is multiplied
by a matrix twice, and 24 units² multiplications an edge and perceptron do for a step of training.

Without a compiler, with ``MDL_PHYSPRE_NATIVE=0``, in double precision, on other devices than the processor, and for
channels that do not fill whole vectors, tensor operations are used (:mod:`mdl_physpre.potentials.m3gnet_layers`).
"""

from __future__ import annotations

import ctypes
import math
import weakref
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from mdl_physpre.potentials.edge_op import in_geometry
from mdl_physpre.potentials.native import VECTOR_BYTES, can_use_c, compiled, limits, ranges_of_atoms, run_ranges

SOURCE = Path(__file__).with_name("m3gnet_native.c")
DTYPES = {torch.float32: "float"}
"""Precisions that run in C; double precision gains little, because its exponentials are not vectorised."""

FUNCTIONS = ("block", "by_geometry", "by_parameters", "second")
NUMBERS = ("n_edges", "n_near", "units", "size", "n_radial", "wide", "narrow")
SUMS = ("gate_sum", "first_sum", "second_sum", "bias_sum", "scale_sum", "encoder_sum")
TENSORS = (
    "i", "j", "near", "start", "centre", "neighbour", "q", "e", "radial", "gate", "gate_t", "first", "first_t",
    "second", "second_t", "bias", "scale", "encoder", "edge", "message", "kept", "edge_bar", "message_bar", "kept_bar",
    "centre_bar", "neighbour_bar", "q_bar", "e_bar", "radial_bar", "bars", *SUMS, "centre_dot", "neighbour_dot",
    "q_dot", "e_dot", "radial_dot", "edge_dot", "message_dot", "kept_ext", "q_ext",
)  # fmt: skip


class _Block(ctypes.Structure):
    """Block of m3gnet_rows.h."""

    _fields_ = [*((name, ctypes.c_int64) for name in NUMBERS), *((name, ctypes.c_void_p) for name in TENSORS)]


@lru_cache(maxsize=4)
def library(real: str) -> ctypes.CDLL | None:
    """The compiled functions in precision ``real`` (``float`` or ``double``), or None where they cannot be had."""
    return compiled(SOURCE, real, FUNCTIONS, "M3GNet")


def library_for(like: Tensor, units: int) -> ctypes.CDLL | None:
    """The compiled functions for tensors as ``like``, or None where tensor operations do the work."""
    whole = units % (VECTOR_BYTES // like.element_size()) == 0
    return library(DTYPES[like.dtype]) if whole and can_use_c(like, DTYPES) else None


def _parts(weights: Tensor, units: int, size: int, n_radial: int) -> dict[str, Tensor]:
    """Matrices in ``weights`` (…, n), in the order in which they stand there; an encoder may be missing."""
    shapes = {
        "gate": (2 * units, size), "first": (4 * units, units), "second": (4, units, units), "bias": (4, units),
        "scale": (2, n_radial, units), "encoder": (n_radial, units),
    }  # fmt: skip
    found, at = {}, 0
    for name, shape in shapes.items():
        length = torch.Size(shape).numel()
        if at < weights.shape[-1]:
            found[name] = weights[..., at : at + length].unflatten(-1, shape)
        at += length
    return found


def _spread(matrix: Tensor) -> Tensor:
    """Rows an odd number of vectors apart: those a power of two apart would crowd into few places of the cache."""
    lanes = VECTOR_BYTES // matrix.element_size()
    vectors = -(-matrix.shape[-1] // lanes)
    copy = matrix.new_empty(*matrix.shape[:-1], (vectors + 1 - vectors % 2) * lanes)
    copy[..., : matrix.shape[-1]] = matrix
    return copy


class _Call:
    """The arguments of an operator as its C functions take them: tensors by the names of ``TENSORS``."""

    def __init__(self, q: Tensor, e: Tensor | None, radial: Tensor, weights: Tensor, i: Tensor, j: Tensor, near: Tensor,
                 start: Tensor, units: int) -> None:  # fmt: skip
        self.weights, self.sizes = weights, (units, q.shape[1], radial.shape[1])
        parts = _parts(weights.contiguous(), *self.sizes)
        first_t = parts["first"].view(2, 2 * units, units).mT
        self.held: dict[str, Tensor | None] = {
            **parts, "q": q, "e": e, "radial": radial, "i": i, "j": j, "near": near, "start": start,
            "gate_t": _spread(parts["gate"].T), "first": _spread(parts["first"]), "first_t": _spread(first_t),
            "second": _spread(parts["second"]), "second_t": _spread(parts["second"].mT),
        }  # fmt: skip
        narrow, wide = self.held["second"].shape[-1], self.held["first_t"].shape[-1]  # type: ignore[union-attr]
        self.numbers = (len(i), len(q), *self.sizes, wide, narrow)
        self.library, self.ranges = cast(ctypes.CDLL, library(DTYPES[q.dtype])), ranges_of_atoms(start)

    def run(self, name: str, by_thread: dict[str, Tensor], **arrays: Tensor | None) -> None:
        """Call a function; ``by_thread`` holds arrays of which each thread has its own."""
        given = {k: None if t is None else t.contiguous() for k, t in (self.held | arrays).items()}
        length = ctypes.c_int64.in_dll(self.library, "length").value
        scratch = self.weights.new_empty(len(self.ranges), 6 * length * self.numbers[-2])

        def arguments(k: int) -> list[Any]:
            pointers = {n: t.data_ptr() for n, t in given.items() if t is not None}
            pointers |= {n: t[k].data_ptr() for n, t in by_thread.items()}
            fields = _Block(**dict(zip(NUMBERS, self.numbers)), **pointers)
            return [ctypes.byref(fields), *limits(self.ranges[k]), scratch[k]]

        run_ranges(getattr(self.library, name), self.ranges, arguments)

    def weight_sums(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Zeros for the gradient of the weights, once for each thread, and its parts."""
        sums = self.weights.new_zeros(len(self.ranges), len(self.weights))
        return sums, {f"{name}_sum": part for name, part in _parts(sums, *self.sizes).items()}


_idle: dict[int, np.ndarray] = {}
"""Memory of arrays of edges that are gone."""


def rows(like: Tensor, *shape: int) -> Tensor:
    """An array of undefined values, in memory that an earlier one had: fresh pages cost a third of the time.

    Memory comes back when a tensor is freed. Where none of it has the right size, all that is idle is given up.
    """
    n, dtype = math.prod(shape), np.dtype(f"f{like.element_size()}")
    sizes = {key: len(a) - VECTOR_BYTES for key, a in list(_idle.items()) if a.dtype == dtype}
    fits = sorted((size, key) for key, size in sizes.items() if n <= size <= 2 * n)
    memory = next((found for _, key in fits if (found := _idle.pop(key, None)) is not None), None)
    if memory is None:
        _idle.clear()
        memory = np.empty(n + VECTOR_BYTES, dtype)
    first = -memory.ctypes.data % VECTOR_BYTES // dtype.itemsize
    lent = memory[first : first + n]  # which the tensor holds as long as it lives
    weakref.finalize(lent, _idle.__setitem__, id(memory), memory).atexit = False
    return torch.from_numpy(lent).view(shape)


def _total(by_thread: Tensor) -> Tensor:
    return by_thread[0] if len(by_thread) == 1 else by_thread.sum(0)


@torch.library.custom_op("mdl_physpre::m3gnet_block", mutates_args=(), device_types="cpu")
def block(
    centre: Tensor, neighbour: Tensor, q: Tensor, e: Tensor | None, radial: Tensor, weights: Tensor, i: Tensor,
    j: Tensor, near: Tensor, start: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """e² (E, units), m (N, units), and a_0, y_0, a_1, y_1 (4, E, 2 units).

    Parameters
    ----------
    centre, neighbour : (N, 4 units), P and Q of the edges' perceptron, then of the atoms'; each of two halves, the
        value's, then the gate's.
    q : (n_near, size), of the edges ``near`` (n_near,) alone, in ascending order; the others have no three-body term.
    e : (E, units); where it is None, edges begin with silu(W_e g).
    radial : (E, n_radial), g.
    weights : W_3, W_1, W_2, b, W_d and perhaps W_e, flattened and one after the other.
    i, j : (E,), sorted by i. start : (N + 1,), the first edge of each atom.
    """
    units = centre.shape[1] // 4
    call = _Call(q, e, radial, weights, i, j, near, start, units)
    edge, message = rows(q, len(i), units), torch.zeros_like(centre[:, :units])
    kept = rows(q, 4, len(i), 2 * units)
    call.run("block", {}, centre=centre, neighbour=neighbour, edge=edge, message=message, kept=kept)
    return edge, message, kept


@torch.library.custom_op("mdl_physpre::m3gnet_block_by_geometry", mutates_args=(), device_types="cpu")
def by_geometry(
    edge_bar: Tensor | None, message_bar: Tensor, kept: Tensor, q: Tensor, e: Tensor | None, radial: Tensor,
    weights: Tensor, i: Tensor, j: Tensor, near: Tensor, start: Tensor, again: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients in P, Q, q, e and g.

    ``again``: for :func:`second` also those in silu(a_0), silu(a_1) and e², (5, E, units).
    """
    n_atoms, units = message_bar.shape
    call = _Call(q, e, radial, weights, i, j, near, start, units)
    found = {
        "centre_bar": kept.new_zeros(n_atoms, 4 * units), "q_bar": torch.empty_like(q),
        "e_bar": rows(q, len(i), units), "radial_bar": torch.zeros_like(radial),
        **({"bars": rows(q, 5, len(i), units)} if again else {}),
    }  # fmt: skip
    neighbour = kept.new_zeros(len(call.ranges), n_atoms, 4 * units)
    own = {"neighbour_bar": neighbour}
    call.run("by_geometry", own, edge_bar=edge_bar, message_bar=message_bar, kept=kept, **found)
    bars = found.get("bars", kept.new_empty(0))
    return found["centre_bar"], _total(neighbour), found["q_bar"], found["e_bar"], found["radial_bar"], bars


@torch.library.custom_op("mdl_physpre::m3gnet_block_by_parameters", mutates_args=(), device_types="cpu")
def by_parameters(
    edge_bar: Tensor | None, message_bar: Tensor, kept_bar: Tensor | None, edge: Tensor, kept: Tensor, q: Tensor,
    e: Tensor | None, radial: Tensor, weights: Tensor, i: Tensor, j: Tensor, near: Tensor, start: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients in P, Q, q, e and the weights."""
    n_atoms, units = message_bar.shape
    call = _Call(q, e, radial, weights, i, j, near, start, units)
    found = {
        "centre_bar": kept.new_zeros(n_atoms, 4 * units), "q_bar": torch.empty_like(q),
        "e_bar": rows(q, len(i), units),
    }  # fmt: skip
    neighbour, (sums, parts) = kept.new_zeros(len(call.ranges), n_atoms, 4 * units), call.weight_sums()
    given = {"edge_bar": edge_bar, "message_bar": message_bar, "kept_bar": kept_bar, "edge": edge, "kept": kept}
    call.run("by_parameters", {"neighbour_bar": neighbour, **parts}, **given, **found)
    return found["centre_bar"], _total(neighbour), found["q_bar"], found["e_bar"], _total(sums)


@torch.library.custom_op("mdl_physpre::m3gnet_block_second", mutates_args=(), device_types="cpu")
def second(
    centre_dot: Tensor | None, neighbour_dot: Tensor | None, q_dot: Tensor, e_dot: Tensor | None, radial_dot: Tensor,
    message_bar: Tensor, e_bar: Tensor, bars: Tensor, kept: Tensor, q: Tensor, e: Tensor | None, radial: Tensor,
    weights: Tensor, i: Tensor, j: Tensor, near: Tensor, start: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Rates of e² and m, and of adjoint · rate the gradients in a and y, in q and in the weights."""
    units = message_bar.shape[1]
    call = _Call(q, e, radial, weights, i, j, near, start, units)
    sums, parts = call.weight_sums()
    found = {
        "edge_dot": rows(q, *e_bar.shape), "message_dot": torch.zeros_like(message_bar),
        "kept_ext": rows(q, *kept.shape), "q_ext": torch.empty_like(q),
    }  # fmt: skip
    given = {"centre_dot": centre_dot, "neighbour_dot": neighbour_dot, "q_dot": q_dot, "e_dot": e_dot,
             "radial_dot": radial_dot, "message_bar": message_bar, "e_bar": e_bar, "bars": bars,
             "kept": kept}  # fmt: skip
    call.run("second", parts, **given, **found)
    return found["edge_dot"], found["message_dot"], found["kept_ext"], found["q_ext"], _total(sums)


def _keep_block(ctx: Any, inputs: tuple, output: Any) -> None:
    _, _, *given = inputs
    edge, _, kept = output
    ctx.save_for_backward(edge, kept, *given)
    ctx.n_atoms = len(inputs[0])
    ctx.set_materialize_grads(False)


def _keep_gradient(ctx: Any, inputs: tuple, output: Any) -> None:
    _, message_bar, *given, _ = inputs
    ctx.save_for_backward(message_bar, output[3], output[5], *given)
    ctx.mark_non_differentiable(output[5])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, edge_bar: Tensor | None, message_bar: Tensor | None, kept_bar: Tensor | None) -> tuple:
    edge, kept, *given = ctx.saved_tensors
    has_e = given[1] is not None
    if message_bar is None:
        message_bar = edge.new_zeros(ctx.n_atoms, edge.shape[1])
    by_g = by_weights = None
    if in_geometry():
        centre, neighbour, q, e, by_g, _ = by_geometry(edge_bar, message_bar, kept, *given, torch.is_grad_enabled())
    else:
        centre, neighbour, q, e, by_weights = by_parameters(edge_bar, message_bar, kept_bar, edge, kept, *given)
    return centre, neighbour, q, e if has_e else None, by_g, by_weights, None, None, None, None


def _second(ctx: Any, centre: Tensor, neighbour: Tensor, q: Tensor, e: Tensor, g: Tensor, _: None) -> tuple:
    message_bar, e_bar, bars, kept, *given = ctx.saved_tensors
    q, g = (torch.zeros_like(like) if dot is None else dot for dot, like in ((q, given[0]), (g, given[2])))
    rates = (centre, neighbour, q, e, g)
    edge_dot, message_dot, kept_ext, q_ext, weights = second(*rates, message_bar, e_bar, bars, kept, *given)
    edge_dot = edge_dot if ctx.needs_input_grad[0] else None
    return edge_dot, message_dot, kept_ext, q_ext, None, None, weights, None, None, None, None, None


block.register_autograd(_backward, setup_context=_keep_block)
by_geometry.register_autograd(_second, setup_context=_keep_gradient)


@block.register_fake
def _(centre: Tensor, neighbour: Tensor, q: Tensor, e: Any, radial: Tensor, weights: Tensor, i: Tensor, *r: Any) -> Any:
    units = centre.shape[1] // 4
    return radial.new_empty(len(i), units), centre.new_empty(len(centre), units), radial.new_empty(4, len(i), 2 * units)


@by_geometry.register_fake
def _(edge_bar: Any, message_bar: Tensor, kept: Tensor, q: Tensor, e: Any, radial: Tensor, weights: Tensor, i: Tensor,
      j: Tensor, near: Tensor, start: Tensor, again: bool) -> Any:  # fmt: skip
    n_atoms, units = message_bar.shape
    nodes = [kept.new_empty(n_atoms, 4 * units) for _ in range(2)]
    e_bar = kept.new_empty(len(radial), units)
    bars = kept.new_empty(5, len(radial), units) if again else kept.new_empty(0)
    return *nodes, torch.empty_like(q), e_bar, torch.empty_like(radial), bars


@by_parameters.register_fake
def _(edge_bar: Any, message_bar: Tensor, kept_bar: Any, edge: Tensor, kept: Tensor, q: Tensor, e: Any, radial: Tensor,
      weights: Tensor, *rest: Tensor) -> Any:  # fmt: skip
    nodes = [kept.new_empty(len(message_bar), 4 * edge.shape[1]) for _ in range(2)]
    return *nodes, torch.empty_like(q), torch.empty_like(edge), torch.empty_like(weights)


@second.register_fake
def _(a: Any, b: Any, c: Tensor, d: Any, f: Tensor, message_bar: Tensor, e_bar: Tensor, bars: Tensor, kept: Tensor,
      q: Tensor, e: Any, radial: Tensor, weights: Tensor, *rest: Tensor) -> Any:  # fmt: skip
    return tuple(torch.empty_like(t) for t in (e_bar, message_bar, kept, q, weights))

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
channels that do not fill whole vectors, tensor operations are used (:mod:`.layers`).
"""

from __future__ import annotations

import ctypes
import math
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mdl_physpre.potentials.kernels.c_code import VECTOR_BYTES, Call, CCode, PerThread, structure
from mdl_physpre.potentials.kernels.edge_op import arguments_of, in_geometry, operator

# double precision gains little, because its exponentials are not vectorised
CODE = CCode(Path(__file__).with_name("operators.c"), {torch.float32: "float"}, "M3GNet")
BLOCK = structure(
    "n_edges n_near units size n_radial wide narrow",
    "i j near start centre neighbour q e radial gate gate_t first first_t second second_t bias scale encoder "
    "edge message kept edge_bar message_bar kept_bar centre_bar neighbour_bar q_bar e_bar radial_bar bars "
    "gate_sum first_sum second_sum bias_sum scale_sum encoder_sum "
    "centre_dot neighbour_dot q_dot e_dot radial_dot edge_dot message_dot kept_ext q_ext",
)


def available_for(like: Tensor, units: int) -> bool:
    """Whether the operators can be had for tensors as ``like`` and so many channels."""
    return units % (VECTOR_BYTES // like.element_size()) == 0 and CODE.library_for(like) is not None


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


class Edges(NamedTuple):
    """What all operators take of the edges of a block."""

    q: Tensor  # (n_near, size), of the edges ``near`` alone; the others have no three-body term
    e: Tensor | None  # (E, units); where it is None, edges begin with silu(W_e g)
    radial: Tensor  # (E, n_radial), g
    weights: Tensor  # W_3, W_1, W_2, b, W_d and perhaps W_e, flattened and one after the other
    i: Tensor  # (E,), sorted; and j
    j: Tensor
    near: Tensor  # (n_near,), in ascending order
    start: Tensor  # (N + 1,), the first edge of each atom

    def call(self, units: int) -> BlockCall:
        """These as the C functions take them."""
        size, n_radial = self.q.shape[1], self.radial.shape[1]
        parts = _parts(self.weights.contiguous(), units, size, n_radial)
        first, second = parts["first"], parts["second"]
        spread = {
            "gate_t": _spread(parts["gate"].T), "first": _spread(first), "second": _spread(second),
            "first_t": _spread(first.view(2, 2 * units, units).mT), "second_t": _spread(second.mT),
        }  # fmt: skip
        wide, narrow = spread["first_t"].shape[-1], spread["second"].shape[-1]
        numbers = dict(n_edges=len(self.i), n_near=len(self.q), units=units, size=size, n_radial=n_radial)
        return BlockCall(CODE, BLOCK, self, wide=wide, narrow=narrow, **numbers, **(parts | spread))


class BlockCall(Call):
    """Calls for the edges of a block."""

    def work(self, name: str, **fields: Any) -> None:
        """Call a function, with scratch for each thread."""
        length = ctypes.c_int64.in_dll(self.library, "length").value
        scratch = self.given["weights"].new_empty(len(self.ranges), 6 * length * self.given["wide"])
        self.run(name, PerThread(scratch), **fields)

    def weight_sums(self) -> tuple[PerThread, dict[str, PerThread]]:
        """Zeros for the gradient of the weights, and its parts."""
        sums = self.sums(self.given["weights"])
        sizes = (self.given[name] for name in ("units", "size", "n_radial"))
        return sums, {f"{name}_sum": PerThread(part) for name, part in _parts(sums.values, *sizes).items()}


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


ARGUMENTS = arguments_of(Edges)


@operator("m3gnet_block", f"Tensor centre, Tensor neighbour, {ARGUMENTS}", results=3)
def block(centre: Tensor, neighbour: Tensor, *edges: Any) -> tuple[Tensor, ...]:
    """e² (E, units), m (N, units), and a_0, y_0, a_1, y_1 (4, E, 2 units).

    Parameters
    ----------
    centre, neighbour : (N, 4 units), P and Q of the edges' perceptron, then of the atoms'; each of two halves, the
        value's, then the gate's.
    edges : of :class:`Edges`.
    """
    given, units = Edges(*edges), centre.shape[1] // 4
    n_edges = len(given.i)
    edge, message = rows(centre, n_edges, units), centre.new_zeros(len(centre), units)
    kept = rows(centre, 4, n_edges, 2 * units)
    given.call(units).work("block", centre=centre, neighbour=neighbour, edge=edge, message=message, kept=kept)
    return edge, message, kept


ADJOINTS = "Tensor? edge_bar, Tensor message_bar"


@operator("m3gnet_block_by_geometry", f"{ADJOINTS}, Tensor kept, {ARGUMENTS}, bool again", results=6)
def by_geometry(edge_bar: Tensor | None, message_bar: Tensor, kept: Tensor, *given: Any) -> tuple[Tensor, ...]:
    """Gradients in P, Q, q, e and g.

    ``again``: for :func:`second` also those in silu(a_0), silu(a_1) and e², (5, E, units).
    """
    *edges, again = given
    (q, _, radial, *_), (n_atoms, units) = edges, message_bar.shape
    call = Edges(*edges).call(units)
    found = {
        "centre_bar": q.new_zeros(n_atoms, 4 * units), "q_bar": q.new_empty(q.shape),
        "e_bar": rows(q, len(radial), units), "radial_bar": radial.new_zeros(radial.shape),
    }  # fmt: skip
    neighbour, bars = call.sums(found["centre_bar"]), rows(q, 5, len(radial), units) if again else None
    call.work("by_geometry", edge_bar=edge_bar, message_bar=message_bar, kept=kept, neighbour_bar=neighbour, bars=bars,
              **found)  # fmt: skip
    centre, *others = found.values()
    return centre, neighbour.total(), *others, q.new_empty(0) if bars is None else bars


@operator(
    "m3gnet_block_by_parameters", f"{ADJOINTS}, Tensor? kept_bar, Tensor edge, Tensor kept, {ARGUMENTS}", results=5
)
def by_parameters(
    edge_bar: Tensor | None, message_bar: Tensor, kept_bar: Tensor | None, edge: Tensor, kept: Tensor, *edges: Any
) -> tuple[Tensor, ...]:
    """Gradients in P, Q, q, e and the weights."""
    q, (n_atoms, units) = edges[0], message_bar.shape
    call = Edges(*edges).call(units)
    centre, q_bar, e_bar = q.new_zeros(n_atoms, 4 * units), q.new_empty(q.shape), rows(q, *edge.shape)
    neighbour, (sums, parts) = call.sums(centre), call.weight_sums()
    call.work("by_parameters", edge_bar=edge_bar, message_bar=message_bar, kept_bar=kept_bar, edge=edge, kept=kept,
              centre_bar=centre, neighbour_bar=neighbour, q_bar=q_bar, e_bar=e_bar, **parts)  # fmt: skip
    return centre, neighbour.total(), q_bar, e_bar, sums.total()


RATES = "Tensor? centre_dot, Tensor? neighbour_dot, Tensor q_dot, Tensor? e_dot, Tensor radial_dot"
FIRST = "Tensor message_bar, Tensor e_bar, Tensor bars, Tensor kept"


@operator("m3gnet_block_second", f"{RATES}, {FIRST}, {ARGUMENTS}", ("e_bar", "message_bar", "kept", "q", "weights"))
def second(
    centre_dot: Tensor | None, neighbour_dot: Tensor | None, q_dot: Tensor, e_dot: Tensor | None, radial_dot: Tensor,
    message_bar: Tensor, e_bar: Tensor, bars: Tensor, kept: Tensor, *edges: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Rates of e² and m, and of adjoint · rate the gradients in a and y, in q and in the weights."""
    q = edges[0]
    call = Edges(*edges).call(message_bar.shape[1])
    sums, parts = call.weight_sums()
    found = {
        "edge_dot": rows(q, *e_bar.shape), "message_dot": q.new_zeros(message_bar.shape),
        "kept_ext": rows(q, *kept.shape), "q_ext": q.new_empty(q.shape),
    }  # fmt: skip
    call.work("second", centre_dot=centre_dot, neighbour_dot=neighbour_dot, q_dot=q_dot, e_dot=e_dot,
              radial_dot=radial_dot, message_bar=message_bar, e_bar=e_bar, bars=bars, kept=kept, **parts,
              **found)  # fmt: skip
    return *found.values(), sums.total()


def _keep_block(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, _, *given = inputs
    edge, _, kept = output
    ctx.save_for_backward(edge, kept, *given)
    ctx.n_atoms = len(inputs[0])
    ctx.set_materialize_grads(False)


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, message_bar, *given, _ = inputs
    ctx.save_for_backward(message_bar, output[3], output[5], *given)
    ctx.mark_non_differentiable(output[5])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, edge_bar: Tensor | None, message_bar: Tensor | None, kept_bar: Tensor | None
) -> tuple[Any, ...]:
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


def _second(ctx: Any, centre: Tensor, neighbour: Tensor, q: Tensor, e: Tensor, g: Tensor, _: None) -> tuple[Any, ...]:
    message_bar, e_bar, bars, kept, *given = ctx.saved_tensors
    q, g = (torch.zeros_like(like) if dot is None else dot for dot, like in ((q, given[0]), (g, given[2])))
    rates = (centre, neighbour, q, e, g)
    edge_dot, message_dot, kept_ext, q_ext, weights = second(*rates, message_bar, e_bar, bars, kept, *given)
    edge_dot = edge_dot if ctx.needs_input_grad[0] else None
    return edge_dot, message_dot, kept_ext, q_ext, None, None, weights, None, None, None, None, None


block.register_autograd(_backward, setup_context=_keep_block)
by_geometry.register_autograd(_second, setup_context=_keep_gradient)


@block.register_fake
def _(centre: Tensor, neighbour: Tensor, q: Tensor, e: Any, radial: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    units, n_edges = centre.shape[1] // 4, len(radial)
    shapes = (n_edges, units), (len(centre), units), (4, n_edges, 2 * units)
    return tuple(centre.new_empty(shape) for shape in shapes)


@by_geometry.register_fake
def _(edge_bar: Any, message_bar: Tensor, kept: Tensor, q: Tensor, e: Any, radial: Tensor, *rest: Any) -> Any:
    n_atoms, units = message_bar.shape
    bars = (5, len(radial), units) if rest[-1] else (0,)
    shapes = (n_atoms, 4 * units), (n_atoms, 4 * units), q.shape, (len(radial), units), radial.shape, bars
    return tuple(kept.new_empty(shape) for shape in shapes)


@by_parameters.register_fake
def _(edge_bar: Any, message_bar: Tensor, kept_bar: Any, edge: Tensor, kept: Tensor, q: Tensor, e: Any, radial: Tensor,
      weights: Tensor, *rest: Tensor) -> Any:  # fmt: skip
    nodes = (len(message_bar), 4 * edge.shape[1])
    return tuple(kept.new_empty(shape) for shape in (nodes, nodes, q.shape, edge.shape, weights.shape))

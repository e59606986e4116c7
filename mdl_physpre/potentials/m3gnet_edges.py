"""What M3GNet does with each edge, and the derivatives of it, on tensors.

The encoder and the block, which is a three-body term and two gated perceptrons, the edges' and the atoms':

    encoder      t = d
    three_body   t = s + o of y = W_3 q                          near edges only; t = s for the others
    perceptron   a = W_1 e + P_i + Q_j,  y = W_2 silu(a) + b,  t = s + o ⊙ d

with o = silu(y_g) σ(y_s), d = p or silu(p) and p = W g(r_ij). The target t and the source s belong to an edge or to its
centre. Of each there is the adjoint (a bar: derivative of the total energy in a value), the tangent (a dot: derivative
of a value along a change of positions and cell) and the tangent of the adjoint, called second. Arrays of a, y and their
derivatives are (n_edges, 2 units), the value's half before the gate's, and each half has its own W_2. In single
precision the same is done in C (:mod:`mdl_physpre.potentials.m3gnet_native`).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Piece(NamedTuple):
    """A range of edges, and the range of the near edges (within the three-body cutoff) among them."""

    edges: slice
    near: slice


class Arrays(SimpleNamespace):
    """What an operation reads and writes, of all edges; an operation works on those of a piece.

    silu : bool, whether d = silu(p); ``radial`` and ``weight`` give p, ``radial_dot`` its tangent.
    i, j : centre and neighbour of each edge.
    at : row of the target of each edge, None where it is the edge's own; the near edges of a three-body term.
    node : P and Q of every atom side by side, their tangents, or the sums of their adjoints, which are added to.
    first, second, bias, gate : W_1, W_2, b and W_3.
    e, q, a, y : as above, with their tangents ``e_dot``, … ; ``h_bar`` is the adjoint of silu(a).
    source, target : s and t, or their tangents; where there is no source, the target is added to.
    target_bar, target_bar_dot : adjoint of t and its tangent.
    above, below : adjoint of e, or its tangent, without this operation (None for zero) and with it.
    radial_bar, weight_sum, … : adjoints of g, and gradients of the parameters, which are added to.
    q_bar : adjoint of q, or its tangent.
    """

    def __getattr__(self, name: str) -> Any:
        return None


def silu_derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    """First and second derivative of silu(x) = x σ(x)."""
    s = torch.sigmoid(x)
    slope = s * (1.0 + x * (1.0 - s))
    return slope, s * (1.0 - s) * (2.0 + x * (1.0 - 2.0 * s))


class _Factor:
    """d of the rows and its derivatives in p, with the tangent of the radial functions where there is one."""

    def __init__(self, r: slice, x: Arrays) -> None:
        self.radial, self.weight = x.radial[r], x.weight
        self.tangent: Any = None if x.radial_dot is None else x.radial_dot[r]
        p = self.radial @ x.weight
        self.d, self.slope, self.curvature = p, torch.ones_like(p), torch.zeros_like(p)
        if x.silu:
            self.d, (self.slope, self.curvature) = functional.silu(p), silu_derivatives(p)


class _Opening:
    """The two halves of y and their derivatives: G = silu(y_g), S = σ(y_s), o = G S."""

    def __init__(self, y: Tensor) -> None:
        yg, ys = y.chunk(2, dim=1)
        self.G, self.S = functional.silu(yg), torch.sigmoid(ys)
        self.G1, self.G2 = silu_derivatives(yg)
        self.S1 = self.S * (1.0 - self.S)
        self.S2 = self.S1 * (1.0 - 2.0 * self.S)
        self.o = self.G * self.S

    def tangent(self, y_dot: Tensor) -> Tensor:
        yg, ys = y_dot.chunk(2, dim=1)
        return self.G1 * self.S * yg + self.G * self.S1 * ys

    def adjoint(self, o_bar: Tensor) -> Tensor:
        return torch.cat([o_bar * self.G1 * self.S, o_bar * self.G * self.S1], dim=1)

    def second(self, y_dot: Tensor, o_bar: Tensor, o_bar_dot: Tensor) -> Tensor:
        """The tangent of :meth:`adjoint`."""
        yg, ys = y_dot.chunk(2, dim=1)
        first = o_bar_dot * self.G1 * self.S + o_bar * (self.G2 * self.S * yg + self.G1 * self.S1 * ys)
        second = o_bar_dot * self.G * self.S1 + o_bar * (self.G1 * self.S1 * yg + self.G * self.S2 * ys)
        return torch.cat([first, second], dim=1)


def encoder(piece: Piece, x: Arrays) -> None:
    x.target[piece.edges] = _Factor(piece.edges, x).d


def encoder_adjoint(piece: Piece, x: Arrays) -> None:
    f = _Factor(piece.edges, x)
    x.radial_bar[piece.edges] += (x.target_bar[piece.edges] * f.slope) @ f.weight.T


def encoder_tangent(piece: Piece, x: Arrays) -> None:
    f = _Factor(piece.edges, x)
    x.target[piece.edges] = f.slope * (f.tangent @ f.weight)


def encoder_second(piece: Piece, x: Arrays) -> None:
    f, t_bar, t_bar_dot = _Factor(piece.edges, x), x.target_bar[piece.edges], x.target_bar_dot[piece.edges]
    p_bar_dot = t_bar_dot * f.slope + t_bar * f.curvature * (f.tangent @ f.weight)
    x.weight_sum += f.radial.T @ p_bar_dot + f.tangent.T @ (t_bar * f.slope)


def _three_body(piece: Piece, x: Arrays) -> None:
    r, n = piece
    x.target[r] = x.source[r]
    x.target.index_add_(0, x.at[n], _Opening(x.q[n] @ x.gate.T).o)


def _three_body_adjoint(piece: Piece, x: Arrays) -> None:
    n = piece.near
    y_bar = _Opening(x.q[n] @ x.gate.T).adjoint(x.target_bar.index_select(0, x.at[n]))
    torch.mm(y_bar, x.gate, out=x.q_bar[n])


def _three_body_tangent(piece: Piece, x: Arrays) -> None:
    r, n = piece
    x.target[r] = x.source[r]
    x.target.index_add_(0, x.at[n], _Opening(x.q[n] @ x.gate.T).tangent(x.q_dot[n] @ x.gate.T))


def _three_body_second(piece: Piece, x: Arrays) -> None:
    n = piece.near
    opening, y_dot = _Opening(x.q[n] @ x.gate.T), x.q_dot[n] @ x.gate.T
    o_bar, o_bar_dot = (bar.index_select(0, x.at[n]) for bar in (x.target_bar, x.target_bar_dot))
    y_bar_dot = opening.second(y_dot, o_bar, o_bar_dot)
    x.gate_sum.addmm_(y_bar_dot.T, x.q[n]).addmm_(opening.adjoint(o_bar).T, x.q_dot[n])
    torch.mm(y_bar_dot, x.gate, out=x.q_bar[n])


def _perceptron(piece: Piece, x: Arrays) -> None:
    r = piece.edges
    a = torch.mm(x.e[r], x.first.T, out=x.a[r])
    _add_nodes(r, x, a)
    _halves(functional.silu(a), x.second.mT, x.y[r])
    x.y[r] += x.bias
    _add_to_target(r, x, _Opening(x.y[r]).o * _Factor(r, x).d)


def _perceptron_adjoint(piece: Piece, x: Arrays) -> None:
    r = piece.edges
    opening, f, t_bar = _Opening(x.y[r]), _Factor(r, x), _of_target(r, x, x.target_bar)
    x.radial_bar[r] += (t_bar * opening.o * f.slope) @ f.weight.T
    _halves(opening.adjoint(t_bar * f.d), x.second, x.h_bar[r])
    _add_below(r, x, x.h_bar[r] * silu_derivatives(x.a[r])[0])


def _perceptron_tangent(piece: Piece, x: Arrays) -> None:
    r = piece.edges
    a_dot = torch.mm(x.e_dot[r], x.first.T, out=x.a_dot[r])
    _add_nodes(r, x, a_dot)
    _halves(silu_derivatives(x.a[r])[0] * a_dot, x.second.mT, x.y_dot[r])
    opening, f = _Opening(x.y[r]), _Factor(r, x)
    _add_to_target(r, x, opening.tangent(x.y_dot[r]) * f.d + opening.o * f.slope * (f.tangent @ f.weight))


def _perceptron_second(piece: Piece, x: Arrays) -> None:
    r = piece.edges
    opening, f, y_dot = _Opening(x.y[r]), _Factor(r, x), x.y_dot[r]
    t_bar, t_bar_dot = (_of_target(r, x, bar) for bar in (x.target_bar, x.target_bar_dot))
    p_dot = f.tangent @ f.weight
    p_bar_dot = (t_bar_dot * opening.o + t_bar * opening.tangent(y_dot)) * f.slope
    p_bar_dot += t_bar * opening.o * f.curvature * p_dot
    x.weight_sum += f.radial.T @ p_bar_dot + f.tangent.T @ (t_bar * opening.o * f.slope)
    y_bar = opening.adjoint(t_bar * f.d)
    y_bar_dot = opening.second(y_dot, t_bar * f.d, t_bar_dot * f.d + t_bar * f.slope * p_dot)
    x.bias_sum += y_bar_dot.sum(0)

    a, a_dot, h_bar = x.a[r], x.a_dot[r], x.h_bar[r]
    slope, curvature = silu_derivatives(a)
    h, h_dot, h_bar_dot = functional.silu(a), slope * a_dot, torch.empty_like(a)
    _halves(y_bar_dot, x.second, h_bar_dot)
    for sums, *halves in zip(x.second_sum, *(t.chunk(2, dim=1) for t in (y_bar, y_bar_dot, h, h_dot)), strict=True):
        bar, bar_dot, value, dot = halves
        sums.addmm_(bar_dot.T, value).addmm_(bar.T, dot)
    a_bar_dot = h_bar_dot * slope + h_bar * (curvature * a_dot)
    x.first_sum.addmm_(a_bar_dot.T, x.e[r]).addmm_((h_bar * slope).T, x.e_dot[r])
    _add_below(r, x, a_bar_dot)


def block(piece: Piece, three: Arrays, edge: Arrays, atom: Arrays) -> None:
    _three_body(piece, three)
    _perceptron(piece, edge)
    _perceptron(piece, atom)


def block_adjoint(piece: Piece, three: Arrays, edge: Arrays, atom: Arrays) -> None:
    _perceptron_adjoint(piece, atom)
    _perceptron_adjoint(piece, edge)
    _three_body_adjoint(piece, three)


def block_tangent(piece: Piece, three: Arrays, edge: Arrays, atom: Arrays) -> None:
    _three_body_tangent(piece, three)
    _perceptron_tangent(piece, edge)
    _perceptron_tangent(piece, atom)


def block_second(piece: Piece, three: Arrays, edge: Arrays, atom: Arrays) -> None:
    _perceptron_second(piece, atom)
    _perceptron_second(piece, edge)
    _three_body_second(piece, three)


def _halves(b: Tensor, matrices: Tensor, out: Tensor) -> None:
    """Each half of the rows of b times its own matrix."""
    u = b.shape[1] // 2
    torch.mm(b[:, :u], matrices[0], out=out[:, :u])
    torch.mm(b[:, u:], matrices[1], out=out[:, u:])


def _add_nodes(r: slice, x: Arrays, a: Tensor) -> None:
    p, q = x.node.chunk(2, dim=1)
    a += p.index_select(0, x.i[r])
    a += q.index_select(0, x.j[r])


def _add_below(r: slice, x: Arrays, a_bar: Tensor) -> None:
    """What follows from the adjoint of a, or from its tangent, for P and Q and for e."""
    p, q = x.node.chunk(2, dim=1)
    p.index_add_(0, x.i[r], a_bar)
    q.index_add_(0, x.j[r], a_bar)
    if x.above is None:
        torch.mm(a_bar, x.first, out=x.below[r])
    else:
        torch.addmm(x.above[r], a_bar, x.first, out=x.below[r])


def _of_target(r: slice, x: Arrays, values: Tensor) -> Tensor:
    return values[r] if x.at is None else values.index_select(0, x.at[r])


def _add_to_target(r: slice, x: Arrays, values: Tensor) -> None:
    if x.at is None:
        torch.add(x.source[r], values, out=x.target[r])
    else:
        x.target.index_add_(0, x.at[r], values)

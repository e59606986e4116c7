"""What M3GNet does with each edge apart from matrix products, and the derivatives of it.

Two operations and, of each, its adjoint (a bar: derivative of the total energy in a value), its tangent (a dot:
derivative of a value along a change of positions and cell) and the tangent of its adjoint:

    hidden   a_ij ← a_ij + P_i + Q_j,  h = silu(a)              the first layer of a gated perceptron
    gate     o = silu(y_g) σ(y_s),  t ← t + o ⊙ d               the second layer; t belongs to an edge or to its centre

with d = p, silu(p) or 1 and p = W g(r_ij); where there is no y, o = 1. Arrays are (rows, 2 units), the value's half
before the gate's, one row an edge. In single precision the same is done in C, in one pass over memory
(:mod:`mdl_physpre.potentials.m3gnet_native`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Factor(NamedTuple):
    """d of each row: radial functions (rows, max_n), their tangent, W (max_n, units), and whether d = silu(p)."""

    radial: Tensor
    tangent: Tensor | None
    weight: Tensor
    silu: bool

    def value(self) -> Tensor:
        p = self.radial @ self.weight
        return functional.silu(p) if self.silu else p

    def derivatives(self) -> tuple[Tensor, Tensor]:
        """dd/dp and d²d/dp²."""
        p = self.radial @ self.weight
        return silu_derivatives(p) if self.silu else (torch.ones_like(p), torch.zeros_like(p))


def silu_derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    """First and second derivative of silu(x) = x σ(x)."""
    s = torch.sigmoid(x)
    slope = s * (1.0 + x * (1.0 - s))
    return slope, s * (1.0 - s) * (2.0 + x * (1.0 - 2.0 * s))


def hidden(i: Tensor, j: Tensor, node: Tensor, a: Tensor) -> Tensor:
    """h; adds P_i + Q_j to ``a`` in place. ``node`` (n_atoms, 4 units) holds P and Q side by side."""
    p, q = node.chunk(2, dim=1)
    a += p.index_select(0, i)
    a += q.index_select(0, j)
    return functional.silu(a)


def hidden_adjoint(i: Tensor, j: Tensor, a: Tensor, h_bar: Tensor, node_bar: Tensor) -> Tensor:
    """ā; adds its sums to those of P and Q."""
    a_bar = h_bar * silu_derivatives(a)[0]
    _add_to_nodes(i, j, a_bar, node_bar)
    return a_bar


def hidden_tangent(i: Tensor, j: Tensor, node_dot: Tensor, a: Tensor, a_dot: Tensor) -> Tensor:
    """ḣ; adds Ṗ_i + Q̇_j to ``a_dot`` in place."""
    p, q = node_dot.chunk(2, dim=1)
    a_dot += p.index_select(0, i)
    a_dot += q.index_select(0, j)
    return silu_derivatives(a)[0] * a_dot


def hidden_second(
    i: Tensor, j: Tensor, a: Tensor, a_dot: Tensor, h_bar: Tensor, h_bar_dot: Tensor, node_bar_dot: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h, ḣ, ā and the tangent of ā; adds the sums of the last to those of P and Q."""
    slope, curvature = silu_derivatives(a)
    a_bar_dot = h_bar_dot * slope + h_bar * (curvature * a_dot)
    _add_to_nodes(i, j, a_bar_dot, node_bar_dot)
    return functional.silu(a), slope * a_dot, h_bar * slope, a_bar_dot


def _add_to_nodes(i: Tensor, j: Tensor, values: Tensor, node: Tensor) -> None:
    p, q = node.chunk(2, dim=1)
    p.index_add_(0, i, values)
    q.index_add_(0, j, values)


class _Gate:
    """The two halves of y and their derivatives: G = silu(y_g), S = σ(y_s), o = G S; o = 1 where there is no y."""

    def __init__(self, y: Tensor | None, like: Tensor) -> None:
        if y is None:
            self.G, self.S, self.G1 = torch.ones_like(like), torch.ones_like(like), torch.zeros_like(like)
            self.G2 = self.S1 = self.S2 = self.G1
            return
        yg, ys = y.chunk(2, dim=1)
        self.G, self.S = functional.silu(yg), torch.sigmoid(ys)
        self.G1, self.G2 = silu_derivatives(yg)
        self.S1 = self.S * (1.0 - self.S)
        self.S2 = self.S1 * (1.0 - 2.0 * self.S)

    def tangent(self, y_dot: Tensor | None) -> Tensor:
        if y_dot is None:
            return torch.zeros_like(self.G)
        yg, ys = y_dot.chunk(2, dim=1)
        return self.G1 * self.S * yg + self.G * self.S1 * ys


def gate(
    y: Tensor | None,
    bias: Tensor | None,
    factor: Factor | None,
    at: Tensor,
    target: Tensor,
    source: Tensor | None = None,
) -> None:
    """Row ``at`` of the target is that of the source (of itself where None) plus o ⊙ d; ``y`` gets the bias added."""
    if bias is not None and y is not None:
        y += bias
    terms = []
    if y is not None:
        yg, ys = y.chunk(2, dim=1)
        terms.append(functional.silu(yg) * torch.sigmoid(ys))
    if factor is not None:
        terms.append(factor.value())
    _add_to_rows(at, terms[0] * terms[1] if len(terms) == 2 else terms[0], target, source)


def _add_to_rows(at: Tensor, values: Tensor, target: Tensor, source: Tensor | None) -> None:
    if source is None:
        target.index_add_(0, at, values)
    else:
        target.index_copy_(0, at, source.index_select(0, at) + values)


def gate_adjoint(
    y: Tensor | None, factor: Factor | None, at: Tensor, target_bar: Tensor, radial_bar: Tensor | None
) -> Tensor | None:
    """ȳ; adds the adjoint of the radial functions to ``radial_bar``."""
    t_bar = target_bar.index_select(0, at)
    g, o_bar = _Gate(y, t_bar), t_bar
    if factor is not None and radial_bar is not None:
        o_bar = t_bar * factor.value()
        radial_bar += (t_bar * (g.G * g.S) * factor.derivatives()[0]) @ factor.weight.T
    return None if y is None else torch.cat([o_bar * g.G1 * g.S, o_bar * g.G * g.S1], dim=1)


def gate_tangent(
    y: Tensor | None,
    y_dot: Tensor | None,
    factor: Factor | None,
    at: Tensor,
    target_dot: Tensor,
    source: Tensor | None = None,
) -> None:
    """Row ``at`` of ``target_dot`` is that of the source (of itself where None) plus the tangent of o ⊙ d."""
    g = _Gate(y, target_dot[: len(at)])
    o_dot = g.tangent(y_dot)
    if factor is not None and factor.tangent is not None:
        d_dot = factor.derivatives()[0] * (factor.tangent @ factor.weight)
        o_dot = o_dot * factor.value() + g.G * g.S * d_dot
    _add_to_rows(at, o_dot, target_dot, source)


def gate_second(
    y: Tensor | None,
    y_dot: Tensor | None,
    factor: Factor | None,
    at: Tensor,
    target_bar: Tensor,
    target_bar_dot: Tensor,
    weight_bar_dot: Tensor | None,
) -> tuple[Tensor, Tensor] | None:
    """ȳ and its tangent; adds the gradient of W to ``weight_bar_dot``."""
    t_bar, t_bar_dot = target_bar.index_select(0, at), target_bar_dot.index_select(0, at)
    g, o_bar, o_bar_dot = _Gate(y, t_bar), t_bar, t_bar_dot
    if factor is not None and factor.tangent is not None and weight_bar_dot is not None:
        d, (slope, curvature) = factor.value(), factor.derivatives()
        p_dot = factor.tangent @ factor.weight
        o, o_dot = g.G * g.S, g.tangent(y_dot)
        o_bar, o_bar_dot = t_bar * d, t_bar_dot * d + t_bar * slope * p_dot
        p_bar = t_bar * o * slope
        p_bar_dot = (t_bar_dot * o + t_bar * o_dot) * slope + t_bar * o * curvature * p_dot
        weight_bar_dot += factor.radial.T @ p_bar_dot + factor.tangent.T @ p_bar
    if y_dot is None:
        return None
    yg, ys = y_dot.chunk(2, dim=1)
    y_bar = torch.cat([o_bar * g.G1 * g.S, o_bar * g.G * g.S1], dim=1)
    first = o_bar_dot * g.G1 * g.S + o_bar * (g.G2 * g.S * yg + g.G1 * g.S1 * ys)
    second = o_bar_dot * g.G * g.S1 + o_bar * (g.G1 * g.S1 * yg + g.G * g.S2 * ys)
    return y_bar, torch.cat([first, second], dim=1)

"""Energies of M3GNet, their derivatives in its features, and the gradient of both in its parameters, by hand.

Four sweeps through the blocks: energies; adjoints (derivatives of the total energy E); tangents along a change of the
features; and adjoints of Σ α_i E_i + dE/dt, which are the gradient of a loss on energies and forces. Names with ``bar``
are adjoints, with ``dot`` tangents. Edges are taken in pieces that stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdl_physpre.potentials import m3gnet_edges as tensor_operations
from mdl_physpre.potentials.m3gnet_basis import Features
from mdl_physpre.potentials.m3gnet_edges import Factor
from mdl_physpre.potentials.m3gnet_native import native_operations

PIECE = 1024
"""Edges worked on together on a processor."""


class Perceptron(NamedTuple):
    """A gated perceptron on [v_i, v_j, e_ij] and what it is multiplied with; the value's weights before the gate's."""

    first: Tensor  # (2 units, units): the part of the first layer that acts on e_ij
    second: Tensor  # (2, units, units)
    bias: Tensor  # (2 units,), of the second layer
    radial: Tensor  # (max_n, units)


class BlockParameters(NamedTuple):
    """Parameters of a block, joined so that each product with the nodes or the edges is one."""

    node_weight: Tensor  # (8 units, units): P and Q of the edge perceptron, P and Q of the atom perceptron
    node_bias: Tensor
    mask_weight: Tensor  # (size, units)
    mask_bias: Tensor
    gate: Tensor  # (2 units, size)
    edge: Perceptron
    atom: Perceptron

    @classmethod
    def unpack(cls, tensors: Sequence[Tensor]) -> BlockParameters:
        node_weight, node_bias, mask_weight, mask_bias, gate = tensors[:5]
        edge, atom = Perceptron(*tensors[5:9]), Perceptron(*tensors[9:])
        return cls(node_weight, node_bias, mask_weight, mask_bias, gate, edge, atom)

    def pack(self) -> list[Tensor]:
        return [self.node_weight, self.node_bias, self.mask_weight, self.mask_bias, self.gate, *self.edge, *self.atom]


BLOCK_TENSORS = 13


class Edges:
    """Centre, neighbour (n_edges,) and near edges (n_near,), and the pieces they are cut into.

    A piece is a range of edges and the range of near edges among them; the edges of an atom stay together.
    """

    def __init__(self, centre: Tensor, neighbour: Tensor, near: Tensor, n_atoms: int) -> None:
        self.centre, self.neighbour, self.near, self.n_atoms = centre, neighbour, near, n_atoms
        self.row = torch.arange(len(centre), device=centre.device)
        self.near_centre = centre.index_select(0, near)
        cuts = torch.tensor([0, len(centre)])
        if centre.device.type == "cpu" and len(centre) > PIECE:
            start = torch.bincount(centre, minlength=n_atoms).cumsum(0)
            goals = torch.arange(PIECE, len(centre), PIECE)
            cuts = torch.cat([cuts[:1], start[torch.searchsorted(start, goals)], cuts[1:]]).unique()
        near_cuts = torch.searchsorted(near, cuts.to(near.device)).tolist()
        ends = cuts.tolist()
        self.pieces = [
            (slice(a, b), slice(c, d)) for a, b, c, d in zip(ends, ends[1:], near_cuts, near_cuts[1:]) if b > a
        ]


class Workspace:
    """Memory for the arrays of one batch, which the next batch uses again: fresh pages cost a sixth of the time.

    On a processor only; a GPU's memory is kept by torch itself.
    """

    idle: dict[torch.dtype, list[Tensor]] = {}

    def __init__(self, like: Tensor) -> None:
        self.like, self.used = like, 0
        kept = self.idle.setdefault(like.dtype, []) if like.device.type == "cpu" else []
        self.memory = kept.pop() if kept else like.new_empty(0)

    def rows(self, n: int, width: int) -> Tensor:
        """An array (n, width) of undefined values."""
        start = self.used
        self.used += -(-n * width // 16) * 16
        if self.used <= len(self.memory):
            return self.memory[start : start + n * width].view(n, width)
        return self.like.new_empty(n, width)

    def release(self) -> None:
        """Hands the memory on; its arrays must not be used any more."""
        if self.like.device.type == "cpu":
            fits = self.used <= len(self.memory) <= 4 * self.used
            kept = self.idle[self.like.dtype]
            kept[:] = [self.memory if fits else self.like.new_empty(self.used)]


class Sweeps:
    """The four sweeps for one batch; later ones use what earlier ones leave in ``states``."""

    def __init__(self, edges: Edges, features: Features, encoder: Tensor, blocks: Sequence[BlockParameters]) -> None:
        self.edges, self.features, self.encoder, self.blocks = edges, features, encoder, blocks
        self.states: list[SimpleNamespace] = []
        self.units = encoder.shape[1]
        native = native_operations(features.radial, self.units, features.radial.shape[1])
        self.operations: Any = native or tensor_operations

        self.workspace = Workspace(features.radial)

    def release(self) -> None:
        """Hands the memory of the sweeps on to the next batch."""
        self.states.clear()
        self.workspace.release()

    def _rows(self, width: int, like: Tensor) -> Tensor:
        return self.workspace.rows(len(like), width * self.units)

    def energies(self, v: Tensor) -> Tensor:
        """Vectors (n_atoms, units) of the atoms after the last block."""
        edges, features, ops, u = self.edges, self.features, self.operations, self.units
        e = self._rows(1, features.radial).zero_()
        for w in self.blocks:
            s = SimpleNamespace(v=v, e1=self._rows(1, e), e2=self._rows(1, e))
            s.m = torch.sigmoid(torch.addmm(w.mask_bias, v, w.mask_weight.T))
            s.q = s.m.index_select(0, edges.near_centre) * features.three_body
            s.t, s.a1, s.y1, s.a2, s.y2 = (self._rows(2, x) for x in (s.q, e, e, e, e))
            node = torch.addmm(w.node_bias, v, w.node_weight.T)
            v = v.clone()
            for r, n in edges.pieces:
                i, j = edges.centre[r], edges.neighbour[r]
                if not self.states:
                    ops.gate(None, None, Factor(features.radial[r], None, self.encoder, True), edges.row[r], e)
                s.e1[r] = e[r]
                torch.mm(s.q[n], w.gate.T, out=s.t[n])
                ops.gate(s.t[n], None, None, edges.near[n], s.e1)
                for p, e_in, a, y, part in ((w.edge, s.e1, s.a1, s.y1, 0), (w.atom, s.e2, s.a2, s.y2, 1)):
                    torch.mm(e_in[r], p.first.T, out=a[r])
                    h = ops.hidden(i, j, node[:, 4 * u * part : 4 * u * (part + 1)], a[r])
                    _halves(h, p.second.mT, y[r])
                    factor = Factor(features.radial[r], None, p.radial, part == 1)
                    if part == 0:
                        ops.gate(y[r], p.bias, factor, edges.row[r], s.e2, s.e1)
                    else:
                        ops.gate(y[r], p.bias, factor, i, v)
            e = s.e2
            self.states.append(s)
        return v

    def adjoints(self, v_bar: Tensor) -> Features:
        """dE/d(features), from dE/dv of the atoms after the last block."""
        edges, features, ops, u = self.edges, self.features, self.operations, self.units
        radial_bar = torch.zeros_like(features.radial)
        three_body_bar = torch.zeros_like(features.three_body)
        e_bar: Tensor | None = None
        for w, s in zip(reversed(self.blocks), reversed(self.states), strict=True):
            s.v_bar, s.h1_bar, s.h2_bar = v_bar, self._rows(2, s.e1), self._rows(2, s.e1)
            s.e1_bar, s.e2_bar, s.q_bar = self._rows(1, s.e1), self._rows(1, s.e1), torch.empty_like(s.q)
            s.node_bar = v_bar.new_zeros(len(v_bar), 8 * u)
            for r, n in edges.pieces:
                i, j, row = edges.centre[r], edges.neighbour[r], edges.row[r]
                factor = Factor(features.radial[r], None, w.atom.radial, True)
                y_bar = ops.gate_adjoint(s.y2[r], factor, i, v_bar, radial_bar[r])
                _halves(y_bar, w.atom.second, s.h2_bar[r])
                a_bar = ops.hidden_adjoint(i, j, s.a2[r], s.h2_bar[r], s.node_bar[:, 4 * u :])
                _plus_product(e_bar, r, a_bar, w.atom.first, s.e2_bar)
                factor = Factor(features.radial[r], None, w.edge.radial, False)
                y_bar = ops.gate_adjoint(s.y1[r], factor, row, s.e2_bar, radial_bar[r])
                _halves(y_bar, w.edge.second, s.h1_bar[r])
                a_bar = ops.hidden_adjoint(i, j, s.a1[r], s.h1_bar[r], s.node_bar[:, : 4 * u])
                _plus_product(s.e2_bar, r, a_bar, w.edge.first, s.e1_bar)
                t_bar = ops.gate_adjoint(s.t[n], None, edges.near[n], s.e1_bar, None)
                torch.mm(t_bar, w.gate, out=s.q_bar[n])
            three_body_bar += s.m.index_select(0, edges.near_centre) * s.q_bar
            s.m_bar = torch.zeros_like(s.m).index_add(0, edges.near_centre, features.three_body * s.q_bar)
            s.z_bar = s.m_bar * s.m * (1.0 - s.m)
            v_bar = v_bar + s.node_bar @ w.node_weight + s.z_bar @ w.mask_weight
            e_bar = s.e1_bar
        for r, _ in edges.pieces:
            factor = Factor(features.radial[r], None, self.encoder, True)
            ops.gate_adjoint(None, factor, edges.row[r], e_bar, radial_bar[r])
        return Features(radial_bar, three_body_bar)

    def tangents(self, dot: Features) -> Tensor:
        """Change of the atoms' vectors after the last block when the features change by ``dot``."""
        edges, features, ops, u = self.edges, self.features, self.operations, self.units
        e_dot = self._rows(1, features.radial).zero_()
        v_dot = torch.zeros_like(self.states[0].v)
        for w, s in zip(self.blocks, self.states, strict=True):
            s.v_dot, s.e1_dot, s.e2_dot = v_dot, self._rows(1, e_dot), self._rows(1, e_dot)
            s.z_dot = v_dot @ w.mask_weight.T
            s.q_dot = (s.m * (1.0 - s.m) * s.z_dot).index_select(0, edges.near_centre) * features.three_body
            s.q_dot += s.m.index_select(0, edges.near_centre) * dot.three_body
            s.t_dot, s.a1_dot, s.y1_dot, s.a2_dot, s.y2_dot = (self._rows(2, x) for x in (s.t, s.a1, s.y1, s.a2, s.y2))
            node_dot = v_dot @ w.node_weight.T
            v_dot = v_dot.clone()
            for r, n in edges.pieces:
                i, j = edges.centre[r], edges.neighbour[r]
                if s is self.states[0]:
                    factor = Factor(features.radial[r], dot.radial[r], self.encoder, True)
                    ops.gate_tangent(None, None, factor, edges.row[r], e_dot)
                s.e1_dot[r] = e_dot[r]
                torch.mm(s.q_dot[n], w.gate.T, out=s.t_dot[n])
                ops.gate_tangent(s.t[n], s.t_dot[n], None, edges.near[n], s.e1_dot)
                for p, e_in, a, a_dot, y, y_dot, part in (
                    (w.edge, s.e1_dot, s.a1, s.a1_dot, s.y1, s.y1_dot, 0),
                    (w.atom, s.e2_dot, s.a2, s.a2_dot, s.y2, s.y2_dot, 1),
                ):
                    torch.mm(e_in[r], p.first.T, out=a_dot[r])
                    h_dot = ops.hidden_tangent(i, j, node_dot[:, 4 * u * part : 4 * u * (part + 1)], a[r], a_dot[r])
                    _halves(h_dot, p.second.mT, y_dot[r])
                    factor = Factor(features.radial[r], dot.radial[r], p.radial, part == 1)
                    if part == 0:
                        ops.gate_tangent(y[r], y_dot[r], factor, edges.row[r], s.e2_dot, s.e1_dot)
                    else:
                        ops.gate_tangent(y[r], y_dot[r], factor, i, v_dot)
            e_dot = s.e2_dot
        return v_dot

    def gradients(self, dot: Features, v_bar_dot: Tensor) -> tuple[Tensor, Tensor, list[BlockParameters]]:
        """Gradient in the atoms' first vectors, in the encoder and in each block, given that in the last vectors."""
        edges, features, ops, u = self.edges, self.features, self.operations, self.units
        e_bar_dot: Tensor | None = None
        gradients = [BlockParameters.unpack([torch.zeros_like(p) for p in w.pack()]) for w in self.blocks]
        for w, s, g in zip(reversed(self.blocks), reversed(self.states), reversed(gradients), strict=True):
            e1_bar_dot, e2_bar_dot = self._rows(1, s.e1), self._rows(1, s.e1)
            q_bar_dot = torch.empty_like(s.q)
            node_bar_dot = torch.zeros_like(s.node_bar)
            for r, n in edges.pieces:
                i, j, row = edges.centre[r], edges.neighbour[r], edges.row[r]
                for p, gp, a, a_dot, y, y_dot, h_bar, e_in, e_in_dot, above, below, at, bar, bar_dot, part in (
                    (w.atom, g.atom, s.a2, s.a2_dot, s.y2, s.y2_dot, s.h2_bar, s.e2, s.e2_dot, e_bar_dot, e2_bar_dot,
                     i, s.v_bar, v_bar_dot, 1),
                    (w.edge, g.edge, s.a1, s.a1_dot, s.y1, s.y1_dot, s.h1_bar, s.e1, s.e1_dot, e2_bar_dot, e1_bar_dot,
                     row, s.e2_bar, e2_bar_dot, 0),
                ):  # fmt: skip
                    factor = Factor(features.radial[r], dot.radial[r], p.radial, part == 1)
                    y_bar, y_bar_dot = ops.gate_second(y[r], y_dot[r], factor, at, bar, bar_dot, gp.radial)
                    h_bar_dot = torch.empty_like(y_bar)
                    _halves(y_bar_dot, p.second, h_bar_dot)
                    h, h_dot, a_bar, a_bar_dot = ops.hidden_second(
                        i, j, a[r], a_dot[r], h_bar[r], h_bar_dot, node_bar_dot[:, 4 * u * part : 4 * u * (part + 1)]
                    )
                    gp.bias.add_(y_bar_dot.sum(0))
                    for k, half in enumerate((slice(None, u), slice(u, None))):
                        gp.second[k].addmm_(y_bar_dot[:, half].T, h[:, half]).addmm_(y_bar[:, half].T, h_dot[:, half])
                    gp.first.addmm_(a_bar_dot.T, e_in[r]).addmm_(a_bar.T, e_in_dot[r])
                    _plus_product(above, r, a_bar_dot, p.first, below)
                t_bar, t_bar_dot = ops.gate_second(s.t[n], s.t_dot[n], None, edges.near[n], s.e1_bar, e1_bar_dot, None)
                g.gate.addmm_(t_bar_dot.T, s.q[n]).addmm_(t_bar.T, s.q_dot[n])
                torch.mm(t_bar_dot, w.gate, out=q_bar_dot[n])
            sums = dot.three_body * s.q_bar + features.three_body * q_bar_dot
            m_bar_dot = torch.zeros_like(s.m).index_add(0, edges.near_centre, sums)
            slope = s.m * (1.0 - s.m)
            z_bar_dot = m_bar_dot * slope + s.m_bar * slope * (1.0 - 2.0 * s.m) * s.z_dot
            g.mask_weight.addmm_(z_bar_dot.T, s.v).addmm_(s.z_bar.T, s.v_dot)
            g.mask_bias.add_(z_bar_dot.sum(0))
            g.node_weight.addmm_(node_bar_dot.T, s.v).addmm_(s.node_bar.T, s.v_dot)
            g.node_bias.add_(node_bar_dot.sum(0))
            v_bar_dot = v_bar_dot + node_bar_dot @ w.node_weight + z_bar_dot @ w.mask_weight
            e_bar_dot = e1_bar_dot
        encoder = torch.zeros_like(self.encoder)
        for r, _ in edges.pieces:
            factor = Factor(features.radial[r], dot.radial[r], self.encoder, True)
            ops.gate_second(None, None, factor, edges.row[r], self.states[0].e1_bar, e_bar_dot, encoder)
        return v_bar_dot, encoder, gradients


def _halves(x: Tensor, weights: Tensor, out: Tensor) -> None:
    """Each half of the rows of x times its own matrix."""
    u = x.shape[1] // 2
    torch.mm(x[:, :u], weights[0], out=out[:, :u])
    torch.mm(x[:, u:], weights[1], out=out[:, u:])


def _plus_product(rest: Tensor | None, r: slice, a: Tensor, b: Tensor, out: Tensor) -> None:
    """Rows r of ``out`` become those of ``rest`` (nothing where None) plus a b."""
    if rest is None:
        torch.mm(a, b, out=out[r])
    else:
        torch.addmm(rest[r], a, b, out=out[r])

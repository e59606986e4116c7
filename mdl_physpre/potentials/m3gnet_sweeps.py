"""Energies of M3GNet, their derivatives in its features, and the gradient of both in its parameters, by hand.

Four sweeps through the blocks: energies; adjoints (derivatives of the total energy E); tangents along a change of the
features; and adjoints of Σ α_i E_i + dE/dt, which are the gradient of a loss on energies and forces. Names with ``bar``
are adjoints, with ``dot`` tangents. Edges are taken in pieces that stay in the processor's cache, by C in its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdl_physpre.potentials import m3gnet_edges as tensor_operations
from mdl_physpre.potentials.m3gnet_basis import Features
from mdl_physpre.potentials.m3gnet_edges import Arrays, Piece
from mdl_physpre.potentials.m3gnet_native import native_operations

PIECE = 1024
"""Edges that tensor operations work on together on a processor."""


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
    """Centre, neighbour (n_edges,) and near edges (n_near,), and the pieces they are cut into for tensor operations.

    The edges of an atom stay together.
    """

    def __init__(self, centre: Tensor, neighbour: Tensor, near: Tensor, n_atoms: int) -> None:
        self.centre, self.neighbour, self.near, self.n_atoms = centre, neighbour, near, n_atoms
        self.near_centre = centre.index_select(0, near)
        cuts = torch.tensor([0, len(centre)])
        if centre.device.type == "cpu" and len(centre) > PIECE:
            start = torch.bincount(centre, minlength=n_atoms).cumsum(0)
            goals = torch.arange(PIECE, len(centre), PIECE)
            cuts = torch.cat([cuts[:1], start[torch.searchsorted(start, goals)], cuts[1:]]).unique()
        self.whole = Piece(slice(0, len(centre)), slice(0, len(near)))
        near_cuts = torch.searchsorted(near, cuts.to(near.device)).tolist()
        ends = cuts.tolist()
        self.pieces = [
            Piece(slice(a, b), slice(c, d)) for a, b, c, d in zip(ends, ends[1:], near_cuts, near_cuts[1:]) if b > a
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
        self.edges, self.features, self.blocks = edges, features, blocks
        self.states: list[SimpleNamespace] = []
        self.units = encoder.shape[1]
        native = native_operations(features.radial, self.units)
        self.operations: Any = native or tensor_operations
        self.pieces = [edges.whole] if native else edges.pieces
        self.workspace = Workspace(features.radial)
        self.encoder = Arrays(radial=features.radial, weight=encoder, silu=True)

    def release(self) -> None:
        """Hands the memory of the sweeps on to the next batch."""
        self.states.clear()
        self.workspace.release()

    def _rows(self, width: int) -> Tensor:
        return self.workspace.rows(len(self.edges.centre), width * self.units)

    def _perceptron(self, p: Perceptron, **arrays: Any) -> Arrays:
        edges = self.edges
        return Arrays(
            i=edges.centre, j=edges.neighbour, radial=self.features.radial, weight=p.radial, first=p.first,
            second=p.second, bias=p.bias, a=self._rows(2), y=self._rows(2), **arrays,
        )  # fmt: skip

    def energies(self, v: Tensor) -> Tensor:
        """Vectors (n_atoms, units) of the atoms after the last block."""
        edges, ops, u = self.edges, self.operations, self.units
        e = self.encoder.target = self._rows(1)
        for w in self.blocks:
            s, e1, e2 = SimpleNamespace(v=v), self._rows(1), self._rows(1)
            s.m = torch.sigmoid(torch.addmm(w.mask_bias, v, w.mask_weight.T))
            s.q = s.m.index_select(0, edges.near_centre) * self.features.three_body
            node = torch.addmm(w.node_bias, v, w.node_weight.T)
            v = v.clone()
            s.three_body = Arrays(at=edges.near, gate=w.gate, q=s.q, source=e, target=e1)
            s.edge = self._perceptron(w.edge, node=node[:, : 4 * u], e=e1, source=e1, target=e2)
            s.atom = self._perceptron(w.atom, node=node[:, 4 * u :], e=e2, target=v, at=edges.centre, silu=True)
            for piece in self.pieces:
                if not self.states:
                    ops.encoder(piece, self.encoder)
                ops.block(piece, s.three_body, s.edge, s.atom)
            e = e2
            self.states.append(s)
        return v

    def adjoints(self, v_bar: Tensor) -> Features:
        """dE/d(features), from dE/dv of the atoms after the last block."""
        edges, features, ops, u = self.edges, self.features, self.operations, self.units
        radial_bar = torch.zeros_like(features.radial)
        three_body_bar = torch.zeros_like(features.three_body)
        e_bar: Tensor | None = None
        for w, s in zip(reversed(self.blocks), reversed(self.states), strict=True):
            e1_bar, e2_bar, s.q_bar = self._rows(1), self._rows(1), torch.empty_like(s.q)
            s.node_bar = v_bar.new_zeros(len(v_bar), 8 * u)
            s.atom.target_bar, s.edge.target_bar, s.three_body.target_bar = v_bar, e2_bar, e1_bar
            s.atom.node, s.atom.above, s.atom.below = s.node_bar[:, 4 * u :], e_bar, e2_bar
            s.edge.node, s.edge.above, s.edge.below = s.node_bar[:, : 4 * u], e2_bar, e1_bar
            for x in (s.atom, s.edge):
                x.h_bar, x.radial_bar = self._rows(2), radial_bar
            s.three_body.q_bar = s.q_bar
            for piece in self.pieces:
                ops.block_adjoint(piece, s.three_body, s.edge, s.atom)
            three_body_bar += s.m.index_select(0, edges.near_centre) * s.q_bar
            s.m_bar = torch.zeros_like(s.m).index_add(0, edges.near_centre, features.three_body * s.q_bar)
            s.z_bar = s.m_bar * s.m * (1.0 - s.m)
            v_bar = v_bar + s.node_bar @ w.node_weight + s.z_bar @ w.mask_weight
            e_bar = e1_bar
        self.encoder.target_bar, self.encoder.radial_bar = e_bar, radial_bar
        for piece in self.pieces:
            ops.encoder_adjoint(piece, self.encoder)
        return Features(radial_bar, three_body_bar)

    def tangents(self, dot: Features) -> Tensor:
        """Change of the atoms' vectors after the last block when the features change by ``dot``."""
        edges, features, ops, u = self.edges, self.features, self.operations, self.units
        e_dot = self.encoder.target = self._rows(1)
        self.encoder.radial_dot = dot.radial
        v_dot = torch.zeros_like(self.states[0].v)
        for w, s in zip(self.blocks, self.states, strict=True):
            s.v_dot, e1_dot, e2_dot = v_dot, self._rows(1), self._rows(1)
            s.z_dot = v_dot @ w.mask_weight.T
            s.q_dot = (s.m * (1.0 - s.m) * s.z_dot).index_select(0, edges.near_centre) * features.three_body
            s.q_dot += s.m.index_select(0, edges.near_centre) * dot.three_body
            node_dot = v_dot @ w.node_weight.T
            v_dot = v_dot.clone()
            s.three_body.q_dot, s.three_body.source, s.three_body.target = s.q_dot, e_dot, e1_dot
            s.edge.node, s.edge.e_dot, s.edge.source, s.edge.target = node_dot[:, : 4 * u], e1_dot, e1_dot, e2_dot
            s.atom.node, s.atom.e_dot, s.atom.target = node_dot[:, 4 * u :], e2_dot, v_dot
            for x in (s.edge, s.atom):
                x.radial_dot, x.a_dot, x.y_dot = dot.radial, self._rows(2), self._rows(2)
            for piece in self.pieces:
                if s is self.states[0]:
                    ops.encoder_tangent(piece, self.encoder)
                ops.block_tangent(piece, s.three_body, s.edge, s.atom)
            e_dot = e2_dot
        return v_dot

    def gradients(self, dot: Features, v_bar_dot: Tensor) -> tuple[Tensor, Tensor, list[BlockParameters]]:
        """Gradient in the atoms' first vectors, in the encoder and in each block, given that in the last vectors."""
        edges, features, ops, u = self.edges, self.features, self.operations, self.units
        e_bar_dot: Tensor | None = None
        gradients = [BlockParameters.unpack([torch.zeros_like(p) for p in w.pack()]) for w in self.blocks]
        for w, s, g in zip(reversed(self.blocks), reversed(self.states), reversed(gradients), strict=True):
            e1_bar_dot, e2_bar_dot, q_bar_dot = self._rows(1), self._rows(1), torch.empty_like(s.q)
            node_bar_dot = torch.zeros_like(s.node_bar)
            s.atom.node, s.edge.node = node_bar_dot[:, 4 * u :], node_bar_dot[:, : 4 * u]
            s.atom.above, s.atom.below, s.edge.above, s.edge.below = e_bar_dot, e2_bar_dot, e2_bar_dot, e1_bar_dot
            s.atom.target_bar_dot, s.edge.target_bar_dot = v_bar_dot, e2_bar_dot
            s.three_body.target_bar_dot = e1_bar_dot
            for x, p in ((s.atom, g.atom), (s.edge, g.edge)):
                x.first_sum, x.second_sum, x.bias_sum, x.weight_sum = p
            s.three_body.q_bar, s.three_body.gate_sum = q_bar_dot, g.gate
            for piece in self.pieces:
                ops.block_second(piece, s.three_body, s.edge, s.atom)
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
        self.encoder.target_bar_dot, self.encoder.weight_sum = e_bar_dot, torch.zeros_like(self.encoder.weight)
        for piece in self.pieces:
            ops.encoder_second(piece, self.encoder)
        return v_bar_dot, self.encoder.weight_sum, gradients

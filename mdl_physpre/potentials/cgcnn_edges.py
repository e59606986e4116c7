"""The four sweeps over the edges of one convolution, as tensor operations on chunks that stay in the cache.

See :mod:`mdl_physpre.potentials.cgcnn_kernels` for what they are parts of. The softplus channel is kept with its sign
turned, because softplus(a) = -log sigmoid(-a) makes one sigmoid and one logarithm do for both channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mdl_physpre.potentials import cgcnn_native

CHUNK_EDGES = 1024
CHUNK_ATOMS = 24


@dataclass
class Chunk:
    """The edges of the atoms ``start`` to ``stop``: ``first`` to ``last``."""

    start: int
    stop: int
    first: int
    last: int
    neighbour: Tensor  # (e,)
    basis: Tensor  # (e, K + atoms): φ(d), and 1 in the column of the centre
    weighted: Tensor  # (e, atoms): w in the column of the centre
    slope: Tensor  # (e, K): φ'(d)

    @property
    def centre(self) -> Tensor:
        """(e, atoms): 1 in the column of the centre."""
        return self.basis[:, self.slope.shape[1] :]


@dataclass
class Edges:
    """What the sweeps need to know of the edges, none of it dependent on the parameters."""

    n_atoms: int
    chunks: list[Chunk]  # for the tensor operations; empty where C does the sweeps
    native: cgcnn_native.NativeSweeps | None
    weights: Tensor  # (E,) w = f / n_i
    weight_slope: Tensor  # (E,) f'(d) / n_i
    centre: Tensor  # (E,)


def cut_edges(
    centre: Tensor, neighbour: Tensor, basis: Tensor, slope: Tensor, weights: Tensor, weight_slope: Tensor, n_atoms: int
) -> Edges:
    """Edges, sorted by centre, cut into chunks of whole atoms for the tensor operations."""
    counts = torch.bincount(centre, minlength=n_atoms).tolist()
    chunks: list[Chunk] = []
    atom = first = 0
    while atom < n_atoms:
        start, last = atom, first
        while atom < n_atoms and atom - start < CHUNK_ATOMS:
            if last > first and last - first + counts[atom] > CHUNK_EDGES:
                break
            last += counts[atom]
            atom += 1
        if last > first:
            edges, k = slice(first, last), basis.shape[1]
            row, column = torch.arange(last - first, device=centre.device), centre[edges] - start
            joined = basis.new_zeros(last - first, k + atom - start)
            joined[:, :k] = basis[edges]
            joined[row, k + column] = 1.0
            weighted = joined[:, k:] * weights[edges, None]
            chunks.append(Chunk(start, atom, first, last, neighbour[edges], joined, weighted, slope[edges]))
        first = last
    return Edges(n_atoms, chunks, None, weights, weight_slope, centre)


class Workspace:
    """Buffers that are used again for every chunk, so that they stay in the cache."""

    def __init__(self, edges: Edges, like: Tensor, dim: int, pairs: int, singles: int) -> None:
        rows = max((c.last - c.first for c in edges.chunks), default=0)
        self.dim = dim
        self._pairs = [like.new_empty(2 * rows * dim) for _ in range(pairs)]
        self._singles = [like.new_empty(rows * dim) for _ in range(singles)]

    def pairs(self, rows: int) -> list[Tensor]:
        """Buffers (2, rows, dim): first the sigmoid channel, then the softplus channel."""
        return [b[: 2 * rows * self.dim].view(2, rows, self.dim) for b in self._pairs]

    def singles(self, rows: int) -> list[Tensor]:
        """Buffers (rows, dim)."""
        return [b[: rows * self.dim].view(rows, self.dim) for b in self._singles]


@dataclass
class Layer:
    """One convolution's parameters and node values."""

    node_weight: Tensor  # (dim, 4 dim)
    node_bias: Tensor  # (4 dim)
    edge_weight: Tensor  # (2, K, dim); in C K counts coefficients of polynomials
    h: Tensor  # (N, dim)
    centre: Tensor  # P_i (2, N, dim)
    neighbour: Tensor  # P_j (2, N, dim)


def _linear(chunk: Chunk, basis: Tensor, neighbour: Tensor, centre: Tensor, edge_weight: Tensor, out: Tensor) -> None:
    """out = P_j + P_i + C φ for both channels, (2, e, dim)."""
    coefficients = torch.cat([edge_weight, centre[:, chunk.start : chunk.stop]], dim=1)
    for channel in (0, 1):
        torch.index_select(neighbour[channel], 0, chunk.neighbour, out=out[channel])
        out[channel].addmm_(basis, coefficients[channel])


def _gate(activation: Tensor, log: Tensor) -> tuple[Tensor, Tensor]:
    """In place: (q, u) = sigmoid of both channels, and log u = -softplus. Returns q and u."""
    q, u = activation.sigmoid_()
    u.clamp_(min=torch.finfo(u.dtype).tiny)
    torch.log(u, out=log)
    return q, u


def _gate_slopes(q: Tensor, u: Tensor, log: Tensor, slopes: Tensor) -> None:
    """slopes = (∂g/∂a^f, ∂g/∂(-a^s)); ``log`` becomes g."""
    log.mul_(q).neg_()
    torch.addcmul(log, log, q, value=-1.0, out=slopes[0])
    torch.mul(q, u, out=slopes[1]).sub_(q)


def convolve(edges: Edges, layer: Layer) -> Tensor:
    """m (N, dim) of one convolution."""
    if edges.native is not None:
        return edges.native.energies(layer)
    m = torch.zeros_like(layer.h)
    space = Workspace(edges, m, m.shape[1], 1, 1)
    for chunk in edges.chunks:
        (a,), (log,) = space.pairs(len(chunk.basis)), space.singles(len(chunk.basis))
        _linear(chunk, chunk.basis, layer.neighbour, layer.centre, layer.edge_weight, a)
        q, _ = _gate(a, log)
        log.mul_(q)
        m[chunk.start : chunk.stop].addmm_(chunk.weighted.T, log, alpha=-1.0, beta=0.0)
    return m


def convolve_adjoint(
    edges: Edges, layer: Layer, adjoint: Tensor, distance: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """λ of P_i and P_j, both (2, N, dim), from λ of m; adds to λ of d at fixed w and to λ of w, both (E,)."""
    if edges.native is not None:
        return edges.native.adjoints(layer, adjoint, distance, weight)
    centre, neighbour = torch.zeros_like(layer.centre), torch.zeros_like(layer.neighbour)
    space = Workspace(edges, adjoint, adjoint.shape[1], 2, 2)
    for chunk in edges.chunks:
        (a, slopes), (g, spread) = space.pairs(len(chunk.basis)), space.singles(len(chunk.basis))
        _linear(chunk, chunk.basis, layer.neighbour, layer.centre, layer.edge_weight, a)
        q, u = _gate(a, g)
        _gate_slopes(q, u, g, slopes)
        own = adjoint[chunk.start : chunk.stop]
        weight[chunk.first : chunk.last] += ((g @ own.T) * chunk.centre).sum(1)
        torch.mm(chunk.weighted, own, out=spread)
        slopes.mul_(spread)
        along = torch.zeros_like(chunk.slope)
        for channel in (0, 1):
            centre[channel, chunk.start : chunk.stop] = chunk.centre.T @ slopes[channel]
            neighbour[channel].index_add_(0, chunk.neighbour, slopes[channel])
            along.addmm_(slopes[channel], layer.edge_weight[channel].T)
        distance[chunk.first : chunk.last] += (along * chunk.slope).sum(1)
    return centre, neighbour


def convolve_tangent(
    edges: Edges, layer: Layer, centre: Tensor, neighbour: Tensor, distance: Tensor, weight: Tensor
) -> Tensor:
    """d/dt of m, from those of P_i, P_j, d and w."""
    if edges.native is not None:
        return edges.native.tangents(layer, centre, neighbour, distance, weight)
    m = torch.zeros_like(layer.h)
    space = Workspace(edges, m, m.shape[1], 3, 1)
    for chunk in edges.chunks:
        (a, slopes, moved), (g,) = space.pairs(len(chunk.basis)), space.singles(len(chunk.basis))
        _linear(chunk, chunk.basis, layer.neighbour, layer.centre, layer.edge_weight, a)
        q, u = _gate(a, g)
        _gate_slopes(q, u, g, slopes)
        _linear(chunk, _tangent_basis(chunk, distance), neighbour, centre, layer.edge_weight, moved)
        own = m[chunk.start : chunk.stop]
        own.addmm_((chunk.centre * weight[chunk.first : chunk.last, None]).T, g, beta=0.0)
        slopes.mul_(moved)
        slopes[0].add_(slopes[1])
        own.addmm_(chunk.weighted.T, slopes[0])
    return m


def convolve_gradients(
    edges: Edges, layer: Layer, adjoints: tuple[Tensor, Tensor], tangents: tuple[Tensor, Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """d/dt of λ of P_i and P_j, and the gradient of C, from λ and λ̇ of m and the tangents of P_i, P_j, d and w."""
    if edges.native is not None:
        return edges.native.gradients(layer, adjoints, tangents)
    adjoint, adjoint_dot = adjoints
    centre_dot, neighbour_dot, distance, weight = tangents
    centre, neighbour = torch.zeros_like(layer.centre), torch.zeros_like(layer.neighbour)
    edge_weight = torch.zeros_like(layer.edge_weight)
    space = Workspace(edges, adjoint, adjoint.shape[1], 4, 3)
    for chunk in edges.chunks:
        (a, slopes, moved, turned), (g, spread, spread_dot) = (
            space.pairs(len(chunk.basis)),
            space.singles(len(chunk.basis)),
        )
        _linear(chunk, chunk.basis, layer.neighbour, layer.centre, layer.edge_weight, a)
        q, u = _gate(a, g)
        _gate_slopes(q, u, g, slopes)
        tangent_basis = _tangent_basis(chunk, distance)
        _linear(chunk, tangent_basis, neighbour_dot, centre_dot, layer.edge_weight, moved)
        # d/dt of the slopes: ġ - q (ġ + x) and y_f (1 - q) - u y_s, with x = slope_f ȧ_f, ġ = x + slope_s ȧ_s
        torch.mul(slopes[1], moved[0], out=turned[1])
        torch.addcmul(turned[1], turned[1], q, value=-1.0, out=turned[1])
        moved.mul_(slopes)
        turned[1].addcmul_(u, moved[1], value=-1.0)
        g_dot = moved[1].add_(moved[0])
        torch.add(g_dot, moved[0], out=moved[0])
        torch.addcmul(g_dot, q, moved[0], value=-1.0, out=turned[0])
        own = slice(chunk.start, chunk.stop)
        torch.mm(chunk.weighted, adjoint[own], out=spread)
        torch.mm(chunk.weighted, adjoint_dot[own], out=spread_dot)
        spread_dot.addmm_(chunk.centre * weight[chunk.first : chunk.last, None], adjoint[own])
        turned.mul_(spread).addcmul_(slopes, spread_dot)  # λ̇ of a
        slopes.mul_(spread)  # λ of a
        k = chunk.slope.shape[1]
        for channel in (0, 1):
            both = chunk.basis.T @ turned[channel]
            edge_weight[channel] += both[:k]
            centre[channel, own] = both[k:]
            edge_weight[channel].addmm_(tangent_basis[:, :k].T, slopes[channel])
            neighbour[channel].index_add_(0, chunk.neighbour, turned[channel])
    return centre, neighbour, edge_weight


def _tangent_basis(chunk: Chunk, distance: Tensor) -> Tensor:
    tangent = chunk.basis.clone()
    torch.mul(chunk.slope, distance[chunk.first : chunk.last, None], out=tangent[:, : chunk.slope.shape[1]])
    return tangent

"""Energies and forces of a crystal graph convolutional network by hand, and their gradient in the parameters.

One convolution, with the sums a_e = P_i + P_j + C φ(d_e) for the edge e = (i, j), is

    m_i = Σ_e w_e g_e,    g = sigmoid(a^f) softplus(a^s)

P_i and P_j are matrix products of each node, not of each edge; φ spans the radial basis (:func:`compress_basis`). Four
sweeps over the edges make a training step:

    energies      h ← h + m, layer by layer
    derivatives   adjoints λ = ∂E/∂(·) backwards, which give γ_e = dE/dd_e and with it forces and stress
    tangents      d/dt of every quantity for distances that change by ḋ_e, layer by layer
    gradients     d/dt of the adjoints, backwards; Σ (λ̇ y + λ ẏ) is the gradient of Σ_i α_i E_i + Σ_e γ_e ḋ_e

where α and ḋ are the loss's derivatives in E and γ. The last two replace the second backward pass of automatic
differentiation. All sweeps recompute the edge quantities in chunks that stay in the cache, so memory hardly grows with
the number of edges. The softplus channel is kept with its sign turned, because softplus(a) = -log sigmoid(-a) makes one
sigmoid and one logarithm do for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

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
    chunks: list[Chunk]
    weights: Tensor  # (E,) w = f / n_i
    weight_slope: Tensor  # (E,) f'(d) / n_i
    centre: Tensor  # (E,)


def compress_basis(gaussians: Tensor, tolerance: float) -> Tensor:
    """Orthonormal columns Q (n, K) that span the rows of ``gaussians`` (samples, n) to a relative ``tolerance``.

    Overlapping Gaussians are far from independent: g(d) = Q Qᵀ g(d) to rounding with few columns, so that
    W g(d) = (W Q)(Qᵀ g(d)) needs a matrix product over K instead of n values for each edge.
    """
    _, size, right = torch.linalg.svd(gaussians, full_matrices=False)
    return right[size > tolerance * size[0]].T.contiguous()


def make_edges(
    centre: Tensor, neighbour: Tensor, basis: Tensor, slope: Tensor, weights: Tensor, weight_slope: Tensor, n_atoms: int
) -> Edges:
    """Edges, sorted by centre, cut into chunks of whole atoms."""
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
    return Edges(n_atoms, chunks, weights, weight_slope, centre)


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
    edge_weight: Tensor  # (2, K, dim)
    h: Tensor  # (N, dim)
    centre: Tensor  # P_i (2, N, dim)
    neighbour: Tensor  # P_j (2, N, dim)


def _split(p: Tensor) -> tuple[Tensor, Tensor]:
    both = p.view(p.shape[0], 4, -1).transpose(0, 1).contiguous()
    return both[:2], both[2:]


def _join(centre: Tensor, neighbour: Tensor) -> Tensor:
    return torch.cat([centre, neighbour]).transpose(0, 1).reshape(centre.shape[1], -1)


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


@dataclass
class Sweep:
    """All that the first two sweeps leave behind for the last two."""

    layers: list[Layer]
    inputs: list[Tensor]  # of the read-out layers
    sums: list[Tensor]  # before their activation
    message_adjoints: list[Tensor]
    node_adjoints: list[Tensor]  # of P_i and P_j joined, (N, 4 dim)
    sum_adjoints: list[Tensor]  # of the read-out's sums


def energies_and_slopes(edges: Edges, h: Tensor, parameters: Sequence[Tensor], n_layers: int, slopes: bool) -> Any:
    """Network energies (N,), γ = dE/dd (E,) if wanted, and the :class:`Sweep`."""
    sweep = Sweep([], [], [], [], [], [])
    for k in range(n_layers):
        node_weight, node_bias, edge_weight = parameters[3 * k : 3 * k + 3]
        layer = Layer(node_weight, node_bias, edge_weight, h, *_split(torch.addmm(node_bias, h, node_weight)))
        h = h + convolve(edges, layer)
        sweep.layers.append(layer)
    read_out = parameters[3 * n_layers :]
    for weight, bias in zip(read_out[:-2:2], read_out[1:-2:2], strict=True):
        sweep.inputs.append(h)
        sweep.sums.append(functional.linear(h, weight, bias))
        h = functional.silu(sweep.sums[-1])
    sweep.inputs.append(h)
    energies = functional.linear(h, read_out[-2], read_out[-1])[:, 0]
    if not slopes:
        return energies, None, sweep
    adjoint = read_out[-2].expand(len(h), -1)
    for weight, sums in zip(reversed(read_out[:-2:2]), reversed(sweep.sums), strict=True):
        sweep.sum_adjoints.insert(0, adjoint * _silu_slope(sums))
        adjoint = sweep.sum_adjoints[0] @ weight
    distance, weight = torch.zeros_like(edges.weights), torch.zeros_like(edges.weights)
    for layer in reversed(sweep.layers):
        sweep.message_adjoints.insert(0, adjoint)
        joined = _join(*convolve_adjoint(edges, layer, adjoint, distance, weight))
        sweep.node_adjoints.insert(0, joined)
        adjoint = adjoint + joined @ layer.node_weight.T
    # w = f / n_i with n_i = 1 + Σ f
    mean = torch.zeros_like(energies).index_add_(0, edges.centre, weight * edges.weights)
    return energies, distance + edges.weight_slope * (weight - mean.index_select(0, edges.centre)), sweep


def parameter_gradients(
    edges: Edges, sweep: Sweep, parameters: Sequence[Tensor], energy_seed: Tensor, distance: Tensor
) -> list[Tensor]:
    """Gradient of Σ α_i E_i + Σ γ_e ḋ_e in the first node vectors and in the parameters, in their order."""
    n_layers = len(sweep.layers)
    moved = edges.weight_slope * distance
    norm = torch.zeros_like(energy_seed).index_add_(0, edges.centre, moved)  # d/dt of n_i, over n_i
    weight = moved - edges.weights * norm.index_select(0, edges.centre)
    h, hs, nodes = torch.zeros_like(sweep.layers[0].h), [], []
    for layer in sweep.layers:
        hs.append(h)
        nodes.append(_split(h @ layer.node_weight))
        h = h + convolve_tangent(edges, layer, *nodes[-1], distance, weight)
    read_out = parameters[3 * n_layers :]
    inputs, sums = [h], []
    for matrix, base in zip(read_out[:-2:2], sweep.sums, strict=True):
        sums.append(inputs[-1] @ matrix.T)
        inputs.append(sums[-1] * _silu_slope(base))

    gradients: list[Tensor] = [energy_seed @ sweep.inputs[-1] + inputs[-1].sum(0), energy_seed.sum()[None]]
    gradients[0] = gradients[0][None]
    adjoint, adjoint_dot = read_out[-2].expand(len(h), -1), energy_seed[:, None] * read_out[-2]
    for k in reversed(range(len(sums))):
        matrix, base = read_out[2 * k], sweep.sums[k]
        inner = adjoint_dot * _silu_slope(base) + adjoint * (_silu_curvature(base) * sums[k])
        outer = sweep.sum_adjoints[k]
        gradients = [inner.T @ sweep.inputs[k] + outer.T @ inputs[k], inner.sum(0), *gradients]
        adjoint, adjoint_dot = outer @ matrix, inner @ matrix
    for k in reversed(range(n_layers)):
        layer = sweep.layers[k]
        *by_node, edge_weight = convolve_gradients(
            edges, layer, (sweep.message_adjoints[k], adjoint_dot), (*nodes[k], distance, weight)
        )
        inner = _join(*by_node)
        node_weight = layer.h.T @ inner + hs[k].T @ sweep.node_adjoints[k]
        gradients = [node_weight, inner.sum(0), edge_weight, *gradients]
        adjoint_dot = adjoint_dot + inner @ layer.node_weight.T
    return [adjoint_dot, *gradients]


def _silu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


def _silu_curvature(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1.0 - s) * (2.0 + x * (1.0 - 2.0 * s))


class EnergiesAndSlopes(torch.autograd.Function):
    """(E_i, dE/dd_e) as a function of the first node vectors and the parameters, differentiable once."""

    @staticmethod
    def forward(ctx: Any, edges: Edges, n_layers: int, h: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        energies, slopes, ctx.sweep = energies_and_slopes(edges, h, parameters, n_layers, True)
        ctx.edges = edges
        ctx.save_for_backward(*parameters)
        return energies, slopes

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, energy_seed: Tensor, distance: Tensor) -> tuple[Any, ...]:
        gradients = parameter_gradients(
            ctx.edges, ctx.sweep, ctx.saved_tensors, energy_seed.contiguous(), distance.contiguous()
        )
        return (None, None, *gradients)

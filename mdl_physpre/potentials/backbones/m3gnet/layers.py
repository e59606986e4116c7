"""The layers of M3GNet under MatterSim's names."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdl_physpre.potentials.backbones.m3gnet import operators
from mdl_physpre.potentials.backbones.m3gnet.basis import Features


class Layer(nn.Module):
    """One linear map. A module put in place of ``linear``, such as an adapter, has to be linear, too."""

    def __init__(self, size_in: int, size_out: int, bias: bool = True) -> None:
        super().__init__()
        self.size_in = size_in
        self.linear: nn.Module = nn.Linear(size_in, size_out, bias=bias)
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)

    @property
    def weight(self) -> Tensor:
        """The matrix (size_out, size_in) of the map, whatever module makes it."""
        if isinstance(self.linear, nn.Linear):
            return self.linear.weight
        like = next(self.parameters())
        unit = torch.eye(self.size_in, dtype=like.dtype, device=like.device)
        return (self.linear(unit) - self.bias).T

    @property
    def bias(self) -> Tensor:
        """What a map with a bias adds, (size_out,)."""
        if isinstance(self.linear, nn.Linear):
            return self.linear.bias
        return self.linear(next(self.parameters()).new_zeros(1, self.size_in))[0]


class Encoder(nn.Module):
    """One linear map without a bias, under MatterSim's name for it."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Layer(size_in, size_out, bias=False))

    @property
    def weight(self) -> Tensor:
        """The matrix (size_out, size_in)."""
        return cast(Layer, self.mlp[0]).weight


class GatedMLP(nn.Module):
    """g(x) ⊙ σ(x): two perceptrons, silu after each layer but σ's last, which has a sigmoid.

    ``linear_end``: no activation after the last layer of g.
    """

    def __init__(self, sizes: list[int], bias: bool = True, linear_end: bool = False) -> None:
        super().__init__()
        self.g = nn.ModuleList(Layer(a, b, bias) for a, b in zip(sizes, sizes[1:]))
        self.sigma = nn.ModuleList(Layer(a, b, bias) for a, b in zip(sizes, sizes[1:]))
        self.linear_end = linear_end

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x, x
        for g, sigma in zip(self.g[:-1], self.sigma[:-1]):
            value, gate = functional.silu(g(value)), functional.silu(sigma(gate))
        value, gate = self.g[-1](value), torch.sigmoid(self.sigma[-1](gate))
        return (value if self.linear_end else functional.silu(value)) * gate

    def layers(self) -> list[tuple[Layer, Layer]]:
        """The linear maps of g and of σ, layer by layer."""
        return [(cast(Layer, g), cast(Layer, sigma)) for g, sigma in zip(self.g, self.sigma)]


class ThreeBody(nn.Module):
    """Adds the three-body sums of an edge, weighted by its centre, to the edge's vector."""

    def __init__(self, units: int, size: int) -> None:
        super().__init__()
        self.atom_mlp = Layer(units, size)
        self.edge_gate_mlp = GatedMLP([size, units], bias=False)


class Edges(NamedTuple):
    """Centre and neighbour (n_edges,), and for C code what it wants besides; ``None`` where tensor operations work.

    near : (n_near,), the edges within the three-body cutoff. start : (n_atoms + 1,), the first edge of each atom.
    """

    centre: Tensor
    neighbour: Tensor
    near: Tensor | None = None
    start: Tensor | None = None


class Block(nn.Module):
    """One block of the network; see :class:`M3GNet`."""

    def __init__(self, units: int, max_n: int, max_l: int) -> None:
        super().__init__()
        self.gated_mlp_atom = GatedMLP([3 * units, units, units])
        self.edge_layer_atom = Layer(max_n, units, bias=False)
        self.gated_mlp_edge = GatedMLP([3 * units, units, units])
        self.edge_layer_edge = Layer(max_n, units, bias=False)
        self.three_body = ThreeBody(units, max_n * max_l)

    def _for_edges(self, v: Tensor, features: Features) -> tuple[Tensor, ...]:
        """What an edge needs: P, Q (n_atoms, 4 units) and q of the atoms, and weights that act on edges.

        The first layers of both perceptrons act on [v_i, v_j, e_ij]: W_1 [v_i, v_j, e_ij] + b = P_i + Q_j + W e_ij.
        Both stand side by side, the edges' before the atoms', and of each the value's half before the gate's.
        """
        (g_e, s_e), (g2_e, s2_e) = self.gated_mlp_edge.layers()
        (g_a, s_a), (g2_a, s2_a) = self.gated_mlp_atom.layers()
        first, second = (g_e, s_e, g_a, s_a), (g2_e, s2_e, g2_a, s2_a)
        by_centre, by_neighbour, by_edge = torch.cat([x.weight for x in first]).split(v.shape[1], dim=1)
        centre = torch.addmm(torch.cat([x.bias for x in first]), v, by_centre.T)
        mask = torch.sigmoid(self.three_body.atom_mlp(v))
        q = mask.index_select(0, features.centre) * features.three_body
        matrices, biases = torch.stack([x.weight for x in second]), torch.stack([x.bias for x in second])
        return centre, v @ by_neighbour.T, q, by_edge, matrices, biases

    def forward(
        self, v: Tensor, e: Tensor, factors: tuple[Tensor, Tensor], features: Features, edges: Edges
    ) -> tuple[Tensor, Tensor]:
        """Vectors of atoms (n_atoms, units) and edges (n_edges, units) after the block.

        ``factors`` : W_d g for the edges, and its silu for the atoms, (n_edges, units).
        """
        centre, neighbour, q, by_edge, matrices, biases = self._for_edges(v, features)
        units = v.shape[1]
        e = e + self.three_body.edge_gate_mlp(q)
        a = centre.index_select(0, edges.centre) + neighbour.index_select(0, edges.neighbour)
        own, weight = a.split(2 * units, dim=1), by_edge.split(2 * units)

        def messages(k: int, e: Tensor) -> Tensor:
            h = functional.silu(torch.addmm(own[k], e, weight[k].T)).unflatten(1, (2, units)).transpose(0, 1)
            both = slice(2 * k, 2 * k + 2)
            value, gate = torch.baddbmm(biases[both, None], h, matrices[both].mT).unbind()
            return functional.silu(value) * torch.sigmoid(gate) * factors[k]

        e = e + messages(0, e)
        return v.index_add(0, edges.centre, messages(1, e).to(v.dtype)), e

    def in_c(
        self, v: Tensor, e: Tensor | None, encoder: Tensor, features: Features, edges: Edges
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`forward`; without ``e`` the edges begin with the silu of ``encoder`` (units, max_n) times g."""
        centre, neighbour, q, *weights = self._for_edges(v, features)
        ((g, sigma),) = self.three_body.edge_gate_mlp.layers()
        last = [self.edge_layer_edge.weight.T, self.edge_layer_atom.weight.T]
        last += [encoder.T] if e is None else []
        packed = torch.cat([w.flatten() for w in (g.weight, sigma.weight, *weights, *last)])
        assert edges.near is not None and edges.start is not None
        ends = edges.centre, edges.neighbour, edges.near, edges.start
        e, messages, _ = operators.block(centre, neighbour, q, e, features.radial, packed, *ends)
        return v + messages, e


class Constants(nn.Module):
    """Numbers that a MatterSim state dictionary holds and that follow from the sizes of the network."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        for name, value in values.items():
            self.register_buffer(name, value)


class AtomScaling(nn.Module):
    """Scale and reference energy of each element: eV by atomic number, (max_z + 1,)."""

    scale: Tensor
    shift: Tensor

    def __init__(self, max_z: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((max_z + 1,), float(scale)))
        self.register_buffer("shift", torch.zeros(max_z + 1, dtype=torch.float64))

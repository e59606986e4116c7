"""The layers of M3GNet under MatterSim's names, and their parameters joined for the sweeps."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdl_physpre.potentials.m3gnet_basis import Features


class Layer(nn.Module):
    """One linear map."""

    def __init__(self, size_in: int, size_out: int, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(size_in, size_out, bias=bias)
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Encoder(nn.Module):
    """One linear map without a bias, under MatterSim's name for it."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Layer(size_in, size_out, bias=False))

    @property
    def weight(self) -> Tensor:
        """The matrix (size_out, size_in)."""
        return self.get_parameter("mlp.0.linear.weight")


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

    def linears(self) -> list[list[nn.Linear]]:
        """The linear maps of g, and those of σ."""
        return [[cast(Layer, layer).linear for layer in part] for part in (self.g, self.sigma)]

    def packed(self) -> list[Tensor]:
        """Weight and bias of each layer of g, then of σ."""
        return [p for part in self.linears() for linear in part for p in (linear.weight, linear.bias)]


class ThreeBody(nn.Module):
    """Adds the three-body sums of an edge, weighted by its centre, to the edge's vector."""

    def __init__(self, units: int, size: int) -> None:
        super().__init__()
        self.atom_mlp = Layer(units, size)
        self.edge_gate_mlp = GatedMLP([size, units], bias=False)


class Block(nn.Module):
    """One block of the network; see :class:`M3GNet`."""

    def __init__(self, units: int, max_n: int, max_l: int) -> None:
        super().__init__()
        self.gated_mlp_atom = GatedMLP([3 * units, units, units])
        self.edge_layer_atom = Layer(max_n, units, bias=False)
        self.gated_mlp_edge = GatedMLP([3 * units, units, units])
        self.edge_layer_edge = Layer(max_n, units, bias=False)
        self.three_body = ThreeBody(units, max_n * max_l)

    def forward(
        self, v: Tensor, e: Tensor, features: Features, edges: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Vectors of atoms (n_atoms, units) and edges (n_edges, units) after the block."""
        centre, neighbour, near = edges
        weights = torch.sigmoid(self.three_body.atom_mlp(v)).index_select(0, centre.index_select(0, near))
        e = e.index_add(0, near, self.three_body.edge_gate_mlp(weights * features.three_body))
        ends = torch.cat([v.index_select(0, centre), v.index_select(0, neighbour)], dim=1)
        e = e + self.gated_mlp_edge(torch.cat([ends, e], dim=1)) * self.edge_layer_edge(features.radial)
        messages = self.gated_mlp_atom(torch.cat([ends, e], dim=1))
        messages = messages * functional.silu(self.edge_layer_atom(features.radial))
        return v.index_add(0, centre, messages), e

    def packed(self) -> list[Tensor]:
        """Parameters in the order of :class:`mdl_physpre.potentials.m3gnet_sweeps.BlockParameters`."""
        units = len(self.edge_layer_edge.linear.weight)
        node_weights, node_biases, perceptrons = [], [], []
        for mlp, layer in (
            (self.gated_mlp_edge, self.edge_layer_edge),
            (self.gated_mlp_atom, self.edge_layer_atom),
        ):
            (g1, g2), (s1, s2) = mlp.linears()
            first, bias = torch.cat([g1.weight, s1.weight]), torch.cat([g1.bias, s1.bias])
            node_weights += [first[:, :units], first[:, units : 2 * units]]
            node_biases += [bias, torch.zeros_like(bias)]
            second = torch.stack([g2.weight, s2.weight])
            perceptrons += [first[:, 2 * units :], second, torch.cat([g2.bias, s2.bias]), layer.linear.weight.T]
        mask = self.three_body.atom_mlp.linear
        (g,), (sigma,) = self.three_body.edge_gate_mlp.linears()
        gate = torch.cat([g.weight, sigma.weight])
        return [torch.cat(node_weights), torch.cat(node_biases), mask.weight, mask.bias, gate, *perceptrons]


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

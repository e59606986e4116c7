"""Simple potentials and calculators for tests of labelling."""

from __future__ import annotations

import torch
from ase.calculators.lj import LennardJones
from torch import nn

from mdl_physpre.potentials.base import AtomicPotential, edge_vectors


class SoftWall(AtomicPotential):
    """E_i = 1/2 sum_j D exp(-2 (r - 1)) (1 - r/rc)^2, for any element or the ones given."""

    def __init__(self, cutoff: float = 5.0, depth: float = 3.0, elements: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.cutoff, self.elements = cutoff, elements
        self.depth = nn.Parameter(torch.tensor(depth, dtype=torch.float64))

    def atomic_energies(self, graph):
        r = torch.linalg.norm(edge_vectors(graph), dim=1)
        pair = 0.5 * self.depth * torch.exp(-2 * (r - 1)) * (1 - r / self.cutoff) ** 2
        return torch.zeros_like(graph.pos[:, 0]).index_add(0, graph.edge_index[0], pair)


class Fragile(LennardJones):
    """Lennard-Jones that refuses structures with an oxygen atom and gives NaN for those with three atoms."""

    def calculate(self, atoms=None, properties=None, system_changes=None):
        if 8 in atoms.numbers:
            raise RuntimeError("no oxygen, please")
        super().calculate(atoms, properties, system_changes)
        if len(atoms) == 3:
            self.results["forces"] = self.results["forces"] * float("nan")


def soft_wall(depth: float = 3.0) -> SoftWall:
    return SoftWall(depth=depth)

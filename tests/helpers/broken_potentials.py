"""A sound pair potential, and what can be wrong with one, each by itself."""

from __future__ import annotations

import torch

from mdl_physpre import evaluate
from mdl_physpre.potentials import AtomicPotential
from mdl_physpre.potentials.base import edge_vectors

CUTOFF = 5.0


class Sound(AtomicPotential):
    """Half of a Morse energy, 3 eV deep at 2.2 Å, for each pair, brought to zero at the cutoff with two derivatives."""

    def __init__(self, elements=(29,)):
        super().__init__()
        self.elements, self.cutoff = elements, CUTOFF

    def switch(self, r):
        x = ((r - 0.6 * CUTOFF) / (0.4 * CUTOFF)).clamp(0, 1)
        return 1 - x**3 * (10 - 15 * x + 6 * x**2)

    def pair(self, r):
        return 3.0 * ((1 - torch.exp(-1.5 * (r - 2.2))) ** 2 - 1)

    def vectors(self, graph):
        return edge_vectors(graph)

    def atomic_energies(self, graph):
        r = self.vectors(graph).norm(dim=1)
        terms = 0.5 * self.pair(r) * self.switch(r) * (r < CUTOFF)
        return graph.pos.new_full((len(graph.z),), -2.0).index_add(0, graph.edge_index[0], terms)


class DependsOnPlace(Sound):
    def atomic_energies(self, graph):
        return super().atomic_energies(graph) + 1e-3 * graph.pos[:, 0]


class DependsOnDirection(Sound):
    def vectors(self, graph):
        return edge_vectors(graph) * graph.pos.new_tensor([1.0, 1.01, 1.0])


class DependsOnHand(Sound):
    """The triple product of the atom's three vectors r_ij weighted by r, r², r³, which a mirror turns around."""

    def atomic_energies(self, graph):
        vectors = edge_vectors(graph)
        r = vectors.norm(dim=1, keepdim=True)
        moments = [
            torch.zeros_like(graph.pos).index_add(0, graph.edge_index[0], vectors * r**n * self.switch(r))
            for n in range(3)
        ]
        hand = (torch.linalg.cross(moments[0], moments[1]) * moments[2]).sum(1)
        return super().atomic_energies(graph) + 1e-3 * torch.tanh(hand)


class DependsOnOrder(Sound):
    def atomic_energies(self, graph):
        first = torch.cumsum(graph.n_atoms, 0) - graph.n_atoms
        place = torch.arange(len(graph.z)) - first[graph.batch]
        return super().atomic_energies(graph) * (1 + 1e-3 * (place % 2))


class DependsOnCell(Sound):
    def atomic_energies(self, graph):
        return super().atomic_energies(graph) + 1e-3 * graph.cell.norm(dim=2).sum(1)[graph.batch]


class FewImages(Sound):
    """Finds neighbours in the cells next to its own alone."""

    def switch(self, r):
        return super().switch(r) * self.near

    def atomic_energies(self, graph):
        self.near = (graph.cell_offsets.abs() <= 1).all(1)
        return super().atomic_energies(graph)


class Jumps(Sound):
    def switch(self, r):
        return torch.ones_like(r)


class Kinks(Sound):
    """Zero at the cutoff, with a slope there."""

    def switch(self, r):
        return 1 - r / CUTOFF


class WrongForces(Sound):
    def predictions(self, graph, forces, stress):
        found = by_derivatives(graph, forces, stress, self)
        found.forces = None if found.forces is None else 1.001 * found.forces
        return found


class WrongStress(Sound):
    def predictions(self, graph, forces, stress):
        found = by_derivatives(graph, forces, stress, self)
        found.stress = None if found.stress is None else -found.stress
        return found


class StressOfWrongShape(Sound):
    def predictions(self, graph, forces, stress):
        found = by_derivatives(graph, forces, stress, self)
        found.stress = None if found.stress is None else found.stress[:, :2]
        return found


class ForcesOfWrongShape(Sound):
    def predictions(self, graph, forces, stress):
        found = by_derivatives(graph, forces, stress, self)
        found.forces = None if found.forces is None else found.forces[:, :2]
        return found


class PullsAlong(Sound):
    """Forces with a constant part."""

    def predictions(self, graph, forces, stress):
        found = by_derivatives(graph, forces, stress, self)
        if found.forces is not None:
            found.forces = found.forces + 1e-3 * (graph.n_atoms > 1)[graph.batch, None]
        return found


class NotExtensive(Sound):
    def atomic_energies(self, graph):
        return super().atomic_energies(graph) / graph.n_atoms[graph.batch] ** 0.1


class Attractive(Sound):
    def pair(self, r):
        return -3.0 * torch.exp(-r)


class Hollow(Sound):
    """A wall, and a fall behind it."""

    def pair(self, r):
        return super().pair(r) - 20000.0 * torch.exp(-8.0 * r)


class Random(Sound):
    def atomic_energies(self, graph):
        return super().atomic_energies(graph) + 1e-3 * torch.rand(len(graph.z))


class MixesBatches(Sound):
    def atomic_energies(self, graph):
        return super().atomic_energies(graph) + 1e-3 * (len(graph.n_atoms) > 1)


class NotFinite(Sound):
    def pair(self, r):
        return torch.where(r < 0.4, torch.nan, super().pair(r))


class NeedsEdges(Sound):
    def atomic_energies(self, graph):
        if not graph.edge_index.shape[1]:
            raise ValueError("no edges")
        return super().atomic_energies(graph)


class InSingle(Sound):
    """Computes in single precision whatever it is given."""

    def predictions(self, graph, forces, stress):
        low = {k: v.float() if v.is_floating_point() else v for k, v in graph._store.items()}
        return by_derivatives(type(graph).from_tensors(**low), forces, stress, self)


class InSingleWithWrongForces(InSingle):
    def predictions(self, graph, forces, stress):
        found = super().predictions(graph, forces, stress)
        found.forces = None if found.forces is None else 1.1 * found.forces
        return found


def by_derivatives(graph, forces, stress, potential):
    class Bare(Sound):
        pass

    bare = Bare(potential.elements)
    for name in ("switch", "pair", "vectors"):
        setattr(bare, name, getattr(potential, name))
    return evaluate(bare, graph, forces=forces, stress=stress)

"""Small structures, and the routes by which a potential gives forces and stress, for the tests of every network."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule

from mdl_physpre import build_graph
from mdl_physpre.potentials.base import AtomicPotential
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.kernels.c_code import tensor_operations

ROUTES = ["prediction", "training", "autograd"]


def crystal(seed: int = 0) -> Atoms:
    """A triclinic Si-O cell, narrower than 4 Å, unwrapped, out of equilibrium."""
    rng = np.random.default_rng(seed)
    cell = np.diag([3.1, 3.6, 4.4]) + 0.7 * rng.uniform(-1, 1, (3, 3))
    fractions = np.array([[0, 0, 0], [0.5, 0.45, 0.1], [0.1, 0.5, 0.55], [1.6, -0.4, 0.5]])
    fractions += 0.05 * rng.uniform(-1, 1, (4, 3))
    return Atoms("SiO2Si", scaled_positions=fractions, cell=cell, pbc=True)


def left_handed() -> Atoms:
    atoms = crystal(3)
    return Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell[[1, 0, 2]], pbc=True)


def slab() -> Atoms:
    atoms = crystal(4)
    atoms.pbc = [True, True, False]
    return atoms


def alone(symbol: str) -> Atoms:
    return Atoms(symbol, cell=[9, 9, 9], pbc=True)


BATCHES = {
    "mixed": lambda: [crystal(0), alone("Si"), molecule("H2O"), slab(), left_handed()],
    "one": lambda: [crystal(1)],
    "no edges": lambda: [alone("O"), Atoms("Si")],
    "own images only": lambda: [bulk("Si", "sc", a=2.6)],
    "no three-body terms": lambda: [Atoms("SiO", positions=[[0, 0, 0], [3.5, 0, 0]], cell=[9, 9, 9], pbc=True)],
}


class WithoutShortcuts(AtomicPotential):
    """The same potential without C code and tables, differentiated by autograd alone."""

    def __init__(self, potential: AtomicPotential) -> None:
        super().__init__()
        self.cutoff, self.elements = potential.cutoff, potential.elements
        self._given = [potential]

    def atomic_energies(self, graph):
        with tensor_operations():
            return self._given[0].atomic_energies(graph)


def predict(
    potential: AtomicPotential, atoms, route: str = "prediction", forces: bool = True, stress: bool = True, train=False
):
    """By one of ``ROUTES``; with a graph of derivatives where the route is that of training, or ``train`` says so."""
    graph = build_graph(atoms, potential.cutoff, dtype=next(potential.parameters()).dtype)
    wrapped = WithoutShortcuts(potential) if route == "autograd" else potential
    return evaluate(wrapped, graph, forces=forces, stress=stress, create_graph=train or route == "training")

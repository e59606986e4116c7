"""A potential of a few dozen parameters, small enough to train to the end in a test."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from torch import Tensor, nn

from mdl_physpre.potentials.base import Backbone, edge_vectors
from mdl_physpre.potentials.energy_reference import EnergyReference
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import AtomGraph, GraphDataset, build_graph
from mdl_physpre.structures.labels import set_labels

CUTOFF = 4.0


class TinyPotential(Backbone):
    """E_i = E0(z_i) + Σ_j MLP(r_ij, z_i + z_j)·(1 − (r/rc)²)³."""

    def __init__(self, hidden: int = 8, cutoff: float = CUTOFF) -> None:
        super().__init__()
        self.hidden, self.cutoff = hidden, cutoff
        self.reference = EnergyReference()
        self.layers = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def hyperparameters(self) -> dict:
        return {"hidden": self.hidden, "cutoff": self.cutoff}

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        i, j = graph.edge_index
        r = edge_vectors(graph).norm(dim=1)
        kinds = (graph.z[i] + graph.z[j]).to(r.dtype) / 20 - 1
        pair = self.layers(torch.stack([r - 2, kinds], dim=1))[:, 0] * (1 - (r / self.cutoff) ** 2) ** 3
        network = torch.zeros(len(graph.z), dtype=r.dtype).index_add(0, i, pair)
        return self.reference(graph.z) + network


def cells(n: int, seed: int = 0, n_atoms: int = 4, periodic: bool = True) -> list[Atoms]:
    """Random small cells of Si and O, unlabelled."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        box = np.eye(3) * 4.2 + rng.normal(0, 0.1, (3, 3))
        grid = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])[:n_atoms]
        positions = grid @ box + rng.normal(0, 0.15, (n_atoms, 3))
        symbols = rng.permutation(["Si", "O", "O", "Si"])[:n_atoms]
        made.append(Atoms(symbols, positions=positions, cell=box if periodic else None, pbc=periodic))
    return made


def labelled(structures: list[Atoms], seed: int = 11, scale: float = 1.0) -> list[Atoms]:
    """The structures with labels from another tiny potential, which the trained one can learn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        teacher = TinyPotential().double()
    for atoms in structures:
        periodic = bool(atoms.pbc.all())
        result = evaluate(teacher, build_graph(atoms, CUTOFF), stress=periodic)
        set_labels(
            atoms,
            energy=scale * float(result.energies),
            forces=scale * result.forces.numpy(),
            stress=scale * result.stress[0].numpy() if periodic else None,
        )
    return structures


def potential(seed: int = 0) -> TinyPotential:
    """With weights drawn from a seed."""
    torch.manual_seed(seed)
    return TinyPotential()


def data(n: int = 12, n_val: int = 6, dtype: torch.dtype = torch.float32) -> tuple[GraphDataset, GraphDataset]:
    """So many labelled structures to train on and to validate by."""
    train, val = labelled(cells(n)), labelled(cells(n_val, seed=1))
    return GraphDataset(train, CUTOFF, dtype=dtype), GraphDataset(val, CUTOFF, dtype=dtype)

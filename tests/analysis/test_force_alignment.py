"""Angles between forces: known directions, no directions, chance, and results put together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms

from mdl_physpre import evaluate
from mdl_physpre.analysis import force_alignment
from mdl_physpre.analysis.force_alignment import pooled_alignment
from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials import AtomicPotential, EAMInteraction
from mdl_physpre.structures.graph import build_graph


class Fixed(AtomicPotential):
    """E = −Σ_i F_i · r_i: each atom feels a force of its own, by its place in the structure."""

    def __init__(self, forces):
        super().__init__()
        self.cutoff = 3.0
        self.given = torch.nn.Parameter(torch.as_tensor(np.asarray(forces), dtype=torch.float64))

    def atomic_energies(self, graph):
        first = torch.cumsum(graph.n_atoms, 0) - graph.n_atoms
        place = torch.arange(len(graph.z)) - first[graph.batch]
        return -(self.given[place] * graph.pos).sum(1)


def molecules(n_structures, n_atoms):
    rng = np.random.default_rng(0)
    return [Atoms(["H"] * n_atoms, positions=5 * rng.normal(size=(n_atoms, 3))) for _ in range(n_structures)]


def turned(degrees):
    return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees)), 0.0]


def test_known_angles_fall_into_their_bins():
    angles = [0.0, 1e-5, 44.0, 91.0, 91.0, 180.0]
    lengths = np.array([1.0, 4.0, 2.0, 0.5, 1.0, 9.0])
    first = Fixed([[1.0, 0.0, 0.0]] * 6)
    second = Fixed([length * np.array(turned(a)) for a, length in zip(angles, lengths)])
    found = force_alignment(first, second, molecules(3, 6), bins=4)
    assert found.edges == (0.0, 45.0, 90.0, 135.0, 180.0)
    assert found.atoms == (9, 0, 6, 3)
    weights = np.sqrt(lengths)
    np.testing.assert_allclose(
        found.weighted, [3 * weights[:3].sum(), 0, 3 * weights[3:5].sum(), 3 * weights[5]], rtol=1e-12
    )
    assert found.mean == pytest.approx(np.mean(angles), rel=1e-9)
    assert found.weighted_mean == pytest.approx(np.average(angles, weights=weights), rel=1e-9)
    assert found.share_above_90 == pytest.approx(0.5)
    assert found.weighted_share_above_90 == pytest.approx(weights[3:].sum() / weights.sum())
    assert sum(found.isotropic) == pytest.approx(1.0)


def test_atoms_without_force_are_counted_apart():
    first = Fixed([[1, 0, 0], [0, 0, 0], [1e-4, 0, 0], [0, 2, 0]])
    second = Fixed([[1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]])
    found = force_alignment(first, second, molecules(2, 4))
    assert (found.n_atoms, found.zero_force) == (2, 6)
    assert (found.zero_force_first, found.zero_force_second) == (4, 4)
    assert sum(found.atoms) == 2
    none = force_alignment(first, Fixed(np.zeros((4, 3))), molecules(1, 4))
    assert (none.n_atoms, none.mean, none.share_above_90) == (0, None, None)


def test_independent_directions_give_the_isotropic_histogram():
    rng = np.random.default_rng(1)
    n = 20_000
    found = force_alignment(Fixed(rng.normal(size=(n, 3))), Fixed(rng.normal(size=(n, 3))), molecules(1, n), bins=18)
    expected = n * np.array(found.isotropic)
    assert np.sum((np.array(found.atoms) - expected) ** 2 / expected) < 45  # χ² of 17 degrees of freedom
    assert found.mean == pytest.approx(90.0, abs=1.0)


def test_parts_put_together_are_the_whole():
    rng = np.random.default_rng(2)
    first, second = (Fixed(rng.normal(size=(5, 3))) for _ in range(2))
    structures = [atoms[: k + 2] for k, atoms in enumerate(molecules(4, 5))]
    whole = force_alignment(first, second, structures)
    parts = pooled_alignment([force_alignment(first, second, part) for part in (structures[:1], structures[1:])])
    for key, value in whole.model_dump().items():
        assert getattr(parts, key) == pytest.approx(value, rel=1e-12), key


def test_the_forces_are_those_of_each_potential_alone():
    """Two potentials of different cutoff and precision, against angles computed from their own forces."""
    rng = np.random.default_rng(3)
    structures = []
    for _ in range(3):
        atoms = Atoms(["Si", "O", "O"], positions=rng.uniform(0, 4, (3, 3)), cell=np.eye(3) * 4.5, pbc=True)
        structures.append(atoms)
    torch.manual_seed(0)
    first = EAMInteraction(["Si", "O"], cutoff=4.0)
    second = EAMInteraction(["Si", "O"], cutoff=6.0, init="reference").float()
    found = force_alignment(first, second, structures, bins=180)
    angles = []
    for atoms in structures:
        a, b = (
            evaluate(p, build_graph(atoms, p.cutoff, dtype=d)).forces.double().numpy()
            for p, d in ((first, torch.float64), (second, torch.float32))
        )
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        angles += np.degrees(np.arccos(cosine)).tolist()
    assert found.mean == pytest.approx(np.mean(angles), abs=1e-3)
    assert found.n_atoms == 9


def test_what_cannot_be_compared_is_said():
    potential = Fixed([[1, 0, 0]])
    with pytest.raises(DataError, match="no structures"):
        force_alignment(potential, potential, [])
    with pytest.raises(ConfigError, match="bins is 5"):
        force_alignment(potential, potential, molecules(1, 1), bins=5)

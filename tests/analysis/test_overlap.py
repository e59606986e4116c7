"""Smallest distances against brute force over images."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list as ase_neighbour_list
from hypothesis import given, settings
from hypothesis import strategies as st

from mdl_physpre.analysis.overlap import minimum_distance, overlap


def brute_force(atoms: Atoms) -> float:
    images = [range(-4, 5) if p else (0,) for p in atoms.pbc]
    best = np.inf
    for s in np.stack(np.meshgrid(*images, indexing="ij"), axis=-1).reshape(-1, 3):
        d = np.linalg.norm(atoms.positions[None] + s @ atoms.cell[:] - atoms.positions[:, None], axis=2)
        np.fill_diagonal(d, np.inf)
        best = min(best, d.min())
    return best


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7), st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_minimum_distance_is_that_of_all_images(seed: int, n: int, pbc: tuple[bool, bool, bool]) -> None:
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(1.5, 9, 3)) + np.tril(rng.uniform(-1, 1, (3, 3)), -1)
    atoms = Atoms(f"H{n}", rng.uniform(-5, 5, (n, 3)), cell=cell, pbc=pbc)
    atoms.wrap()
    want = brute_force(atoms)
    atoms.positions += rng.integers(-2, 3, (n, 3)) * np.array(pbc) @ cell  # unwrapped on purpose
    assert minimum_distance(atoms.positions, cell, pbc) == pytest.approx(want, rel=1e-9)


def test_minimum_distance_against_ase() -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        atoms = Atoms("Si6", rng.random((6, 3)) * 5, cell=np.eye(3) * 5 + rng.random((3, 3)), pbc=True)
        i, j, d = ase_neighbour_list("ijd", atoms, 6.0)
        assert minimum_distance(atoms.positions, atoms.cell[:], atoms.pbc) == pytest.approx(d[i != j].min(), rel=1e-9)


def test_far_pairs_are_found_and_own_images_are_no_pair() -> None:
    assert minimum_distance(np.array([[0, 0, 0], [70.0, 0, 0]]), np.zeros((3, 3)), (False,) * 3) == pytest.approx(70)
    narrow = np.diag([1.0, 30.0, 30.0])
    assert np.isnan(minimum_distance(np.zeros((1, 3)), narrow, (True,) * 3))
    assert minimum_distance(np.array([[0, 0, 0], [0, 4.0, 0]]), narrow, (True,) * 3) == pytest.approx(4)


def test_overlap_of_a_trajectory() -> None:
    def frame(distance: float) -> Atoms:
        return Atoms("H2", [[0, 0, 0], [distance, 0, 0]], cell=[10, 10, 10], pbc=True)

    found = overlap([frame(d) for d in (2.0, 1.5, 1.01, 1.0, 0.7, 9.5)])
    assert found.verdict == "failed"
    assert found.first_frame == 3, "half of the start is an overlap already"
    assert found.min_distance == pytest.approx(0.5), "through the cell's face"
    assert overlap([frame(2.0), frame(1.001)]).verdict == "passed"
    assert overlap([Atoms("H", cell=[3, 3, 3], pbc=True)] * 2).verdict == "n/a"

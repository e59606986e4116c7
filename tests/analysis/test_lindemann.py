"""Lindemann indices against the formula, written out over a stored trajectory, in both conventions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from mdl_physpre.analysis.lindemann import LindemannAccumulator, lindemann_index
from mdl_physpre.analysis.minimum_image import MinimumImage


def random_walk(atoms: Atoms, frames: int, step: float, seed: int, breathing: float = 0.0) -> list[Atoms]:
    """Atoms that diffuse, in a cell that may be scaled at random in each frame, and they with it."""
    rng = np.random.default_rng(seed)
    trajectory = [atoms.copy()]
    for _ in range(frames):
        following = trajectory[-1].copy()
        following.positions += rng.normal(0, step, following.positions.shape)
        if breathing:
            following.set_cell(following.cell[:] * rng.uniform(1 - breathing, 1 + breathing), scale_atoms=True)
        trajectory.append(following)
    return trajectory


def shortest_image(vector: np.ndarray, atoms: Atoms) -> np.ndarray:
    """Which lattice translation makes the vector shortest, in whole lattice vectors."""
    grid = np.stack(np.meshgrid(*[range(-4, 5) if p else (0,) for p in atoms.pbc], indexing="ij"), -1).reshape(-1, 3)
    return grid[np.argmin(np.linalg.norm(vector + grid @ atoms.cell[:], axis=1))]


def direct(trajectory: list[Atoms], distance: str) -> np.ndarray:
    first = trajectory[0]
    n = len(first)
    q = np.zeros(n)
    for i in range(n):
        for j in range(n):
            if i == j:
                continue
            vectors = np.array([f.positions[j] - f.positions[i] for f in trajectory])
            images = np.array([shortest_image(v, f) for v, f in zip(vectors, trajectory)])
            if distance == "continuous":
                images[:] = images[0]
            vectors = vectors + np.array([s @ f.cell[:] for s, f in zip(images, trajectory)])
            r = np.linalg.norm(vectors, axis=1)
            q[i] += np.sqrt(max((r**2).mean() - r.mean() ** 2, 0)) / r.mean() / (n - 1)
    return q


def cases() -> list[Atoms]:
    skew = Atoms("Si4", np.random.default_rng(0).random((4, 3)) * 4, cell=[[4, 0, 0], [3, 4, 0], [-2, 3, 5]], pbc=True)
    slab = Atoms("Cu3", [[0, 0, 0], [1.5, 1, 1], [3, 2, 9]], cell=[[4, 0, 0], [1, 4, 0], [2, 3, 20]])
    slab.pbc = (True, True, False)
    cluster = Atoms("Ar5", np.random.default_rng(1).random((5, 3)) * 6)
    left_handed = bulk("NaCl", "rocksalt", a=5.6)
    left_handed.set_cell(left_handed.cell[[1, 0, 2]], scale_atoms=False)
    left_handed.rattle(0.1, seed=2)  # the six nearest images of rock salt are equally near
    return [skew, slab, cluster, left_handed]


@pytest.mark.parametrize("distance", ["continuous", "minimum_image"])
@pytest.mark.parametrize("breathing", [0.0, 0.04])
@pytest.mark.parametrize("which", range(4))
def test_index_is_the_formula(which: int, distance: str, breathing: float) -> None:
    trajectory = random_walk(cases()[which], 30, 0.3, which, breathing if cases()[which].pbc.all() else 0.0)
    found = lindemann_index(trajectory, distance)
    want = direct(trajectory, distance)
    np.testing.assert_allclose(found.local, want, rtol=1e-9)
    assert found.mean == pytest.approx(want.mean(), rel=1e-9)
    assert found.samples == 31


def test_the_conventions_differ_where_an_atom_diffuses() -> None:
    atoms = Atoms("H3", [[0, 0, 0], [2, 0, 0], [0, 2, 0]], cell=[4, 4, 4], pbc=True)
    trajectory = []
    for k in range(200):
        frame = atoms.copy()
        frame.positions[2] += [0.4 * k, 0, 0]
        trajectory.append(frame)
    assert lindemann_index(trajectory).local[2] > 0.5
    assert lindemann_index(trajectory, "minimum_image").local[2] < 0.25


def test_a_rigid_translation_is_no_fluctuation() -> None:
    atoms = cases()[0]
    trajectory = []
    for k in range(50):
        frame = atoms.copy()
        frame.positions += [0.3 * k, -0.2 * k, 1.7 * k]
        trajectory.append(frame)
    for distance in ("continuous", "minimum_image"):
        assert lindemann_index(trajectory, distance).local.max() < 1e-7


def test_batches_and_leaving_structures_change_nothing() -> None:
    atoms = [*cases(), Atoms("He", cell=[3, 3, 3], pbc=True)]
    trajectories = [random_walk(a, 20, 0.2, k) for k, a in enumerate(atoms)]

    def together(which: list[int], frame: int) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([trajectories[k][frame].positions for k in which]))

    everything = list(range(len(atoms)))
    cells, pbc = [a.cell[:] for a in atoms], [a.pbc for a in atoms]
    for distance in ("continuous", "minimum_image"):
        sums = LindemannAccumulator(together(everything, 0), [len(a) for a in atoms], cells, pbc, distance)
        for frame in range(10):
            sums.add(together(everything, frame))
        left = [0, 2, 3, 4]
        sums.keep(left)
        for frame in range(10, 21):
            sums.add(together(left, frame))
        local, mean = sums.indices()
        first = 0
        for row, k in enumerate(left):
            alone = lindemann_index(trajectories[k], distance)
            np.testing.assert_allclose(local[first : first + len(atoms[k])].numpy(), alone.local, rtol=1e-12)
            if len(atoms[k]) == 1:
                assert np.isnan(alone.mean)
                assert mean[row].isnan()
            else:
                assert float(mean[row]) == pytest.approx(alone.mean, rel=1e-12)
            first += len(atoms[k])


def test_minimum_image_in_flat_and_skew_cells() -> None:
    rng = np.random.default_rng(4)
    for _ in range(200):
        cell = rng.normal(size=(3, 3)) * rng.uniform(1, 6, 3)[:, None]
        if abs(np.linalg.det(cell)) < 0.3 * np.linalg.norm(cell, axis=1).prod():
            continue
        pbc = rng.random(3) < 0.7
        vectors = rng.uniform(-2, 2, (5, 3)) @ cell
        grid = np.stack(np.meshgrid(*[np.arange(-7, 8) * p for p in pbc], indexing="ij"), -1).reshape(-1, 3)
        want = np.linalg.norm(vectors[:, None] + (grid @ cell)[None], axis=2).min(axis=1)
        found = MinimumImage([cell], [pbc])(torch.from_numpy(vectors), torch.zeros(5, dtype=torch.int64))
        np.testing.assert_allclose(found.norm(dim=1).numpy(), want, rtol=1e-9)

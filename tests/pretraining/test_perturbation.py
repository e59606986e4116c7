from __future__ import annotations

import itertools
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import covalent_radii
from hypothesis import given, settings
from hypothesis import strategies as st

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.pretraining.copies import random_strain
from mdl_physpre.pretraining.perturbation import (
    PerturbationSettings,
    PerturbedParent,
    close_pairs,
    perturb,
    strengths,
)


@st.composite
def any_structure(draw, least=1, most=9):
    """Random atoms in any cell: skew, left-handed, narrow, periodic in any directions, positions outside the cell."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(least, most))
    shape = np.zeros((3, 3))
    while abs(np.linalg.det(shape)) < 0.15:  # rows of unit length; the flattest cells would keep brute force too long
        shape = rng.normal(size=(3, 3))
        shape /= np.linalg.norm(shape, axis=1)[:, None]
    stretch = draw(st.sampled_from([(1, 1, 1), (0.5, 1, 2), (0.6, 0.6, 2)]))
    cell = shape * np.array(stretch)[:, None] * np.cbrt(20.0 * n)
    pbc = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    positions = rng.uniform(-1, 2, size=(n, 3)) @ cell
    return Atoms(numbers=rng.choice([8, 14, 15], n), positions=positions, cell=cell, pbc=pbc)


def brute_force_distances(atoms: Atoms) -> np.ndarray:
    """Shortest distance of each pair over so many images that no nearer one can be left out."""
    cell, pbc = atoms.cell.array, atoms.pbc
    fractional = atoms.positions @ np.linalg.inv(cell)
    fractional[:, pbc] %= 1.0
    positions = fractional @ cell
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    farthest = max(np.linalg.norm(positions[:, None] - positions[None], axis=-1).max(), 1.0)
    spans = [range(-int(farthest / h) - 1, int(farthest / h) + 2) if p else (0,) for h, p in zip(heights, pbc)]
    shifts = np.array(list(itertools.product(*spans))) @ cell
    d = np.linalg.norm(positions[None, :, None] - positions[:, None, None] + shifts[None, None], axis=-1)
    return d.min(axis=2)


def brute_force_pairs(atoms: Atoms, n: int) -> list[float]:
    d = brute_force_distances(atoms)
    np.fill_diagonal(d, np.inf)
    found = []
    while len(found) < n:
        i, j = np.unravel_index(np.argmin(d), d.shape)
        found.append(d[i, j])
        d[[i, j], :] = d[:, [i, j]] = np.inf
    return found


@settings(max_examples=150, deadline=None)
@given(any_structure(least=1), st.integers(0, 5))
def test_close_pairs_are_the_greedy_choice_by_brute_force(atoms, n):
    pairs = close_pairs(atoms, n)
    count = min(n, len(atoms) // 2)
    assert len(pairs.i) == len(pairs.j) == count
    assert len({*pairs.i, *pairs.j}) == 2 * count  # no atom in two pairs
    assert pairs.distances == pytest.approx(brute_force_pairs(atoms, count), abs=1e-6)
    # each vector leads from i to an image of j
    steps = (pairs.vectors - atoms.positions[pairs.j] + atoms.positions[pairs.i]) @ np.linalg.inv(atoms.cell.array)
    assert np.allclose(steps, np.rint(steps), atol=1e-6)
    assert np.allclose(steps[:, ~atoms.pbc], 0, atol=1e-6)


def test_images_of_an_atom_itself_are_no_pair():
    atoms = Atoms("SiO", positions=[[0, 0, 0], [0.5, 0.5, 9]], cell=[1, 1, 30], pbc=True)  # own images at 1 Å
    pairs = close_pairs(atoms, 3)
    assert (pairs.i.tolist(), pairs.j.tolist()) == ([0], [1])
    assert pairs.distances[0] == pytest.approx(np.sqrt(0.5 + 81))


def test_pairs_far_apart_are_found():
    atoms = Atoms("P4", positions=[[0, 0, 0], [2, 0, 0], [0, 300, 0], [0, 0, 4000]])
    assert close_pairs(atoms, 5).distances == pytest.approx([2.0, np.hypot(300, 4000)])


def test_equal_distances_go_by_the_order_of_atoms():
    atoms = bulk("Si", cubic=True)
    pairs = close_pairs(atoms, 4)
    for seed in range(3):
        noisy = atoms.copy()
        noisy.positions += np.random.default_rng(seed).normal(scale=1e-9, size=(8, 3))
        again = close_pairs(noisy, 4)
        assert (pairs.i.tolist(), pairs.j.tolist()) == (again.i.tolist(), again.j.tolist())
        assert np.allclose(pairs.vectors, again.vectors, atol=1e-7)


@settings(max_examples=80, deadline=None)
@given(any_structure(least=2), st.integers(1, 4), st.floats(0, 1), st.integers(0, 1000))
def test_pull_moves_both_atoms_along_the_minimum_image(atoms, n, share, seed):
    pairs = close_pairs(atoms, n)
    moved = perturb(atoms, n_pairs=n, pull=1.0, n_sites=0, perturb=0.0, pull_share=share, seed=seed)
    moves = moved.positions - atoms.positions
    untouched = np.setdiff1d(np.arange(len(atoms)), [*pairs.i, *pairs.j])
    assert (moves[untouched] == 0).all()
    unit = pairs.vectors / pairs.distances[:, None]
    pulls = np.einsum("ij,ij->i", moves[pairs.i], unit)
    assert np.allclose(moves[pairs.i], pulls[:, None] * unit, atol=1e-9)
    assert np.allclose(moves[pairs.j], -moves[pairs.i], atol=1e-9)
    assert (pulls >= 0).all()
    assert (pulls <= share).all()


@pytest.mark.parametrize(("share", "closes"), [(0.5, 1.0), (1.0, 2.0)])
def test_gap_closes_by_the_drawn_pull(share, closes):
    atoms = Atoms("SiO", positions=[[0.2, 0, 0], [9.8, 0, 0]], cell=[10, 10, 10], pbc=True)  # 0.4 Å across the face
    atoms.positions[1, 1] = 3.0
    gap = close_pairs(atoms, 1).distances[0]
    drawn = np.array(
        [gap - close_pairs(perturb(atoms, 1, 1.0, 0, 0.0, share, seed=k), 1).distances[0] for k in range(400)]
    )
    assert 0 <= drawn.min()
    assert drawn.max() <= closes
    assert drawn.max() > 0.97 * closes
    assert drawn.mean() == pytest.approx(closes / 2, abs=0.1 * closes)  # uniform


@settings(max_examples=50, deadline=None)
@given(any_structure(), st.integers(0, 12), st.integers(0, 1000))
def test_random_sites_are_distinct_and_within_the_strength(atoms, n_sites, seed):
    moved = perturb(atoms, n_pairs=0, n_sites=n_sites, perturb=0.7, seed=seed)
    length = np.linalg.norm(moved.positions - atoms.positions, axis=1)
    assert (length > 0).sum() == min(n_sites, len(atoms))
    assert length.max() <= 0.7 + 1e-12


def test_random_directions_cover_the_sphere_evenly():
    atoms = Atoms("P")
    moves = np.array([perturb(atoms, seed=k).positions[0] for k in range(3000)])
    length = np.linalg.norm(moves, axis=1)
    assert length.mean() == pytest.approx(0.5, abs=0.03)
    directions = moves / length[:, None]
    assert np.abs(directions.mean(axis=0)).max() < 0.05
    assert directions.T @ directions / 3000 == pytest.approx(np.eye(3) / 3, abs=0.03)


@settings(max_examples=30, deadline=None)
@given(any_structure())
def test_zero_strength_changes_nothing(atoms):
    moved = perturb(atoms, pull=0.0, perturb=0.0, seed=3)
    assert (moved.positions == atoms.positions).all()
    assert (moved.cell.array == atoms.cell.array).all()
    assert (moved.pbc == atoms.pbc).all()


def test_copy_keeps_names_and_drops_labels():
    atoms = bulk("Si", cubic=True)
    atoms.info.update(structure_id="a", group="g", energy=-1.0, REF_energy=3, dft_stress="1 2 3", fold=np.int64(2))
    atoms.arrays["forces"] = np.ones((8, 3))
    atoms.set_masses([30.0] * 8)
    before = atoms.copy()
    moved = perturb(atoms, seed=1)
    assert moved.calc is None
    assert set(moved.arrays) == {"numbers", "positions", "masses"}
    assert moved.info == {"group": "g", "fold": 2, "parent": "a", "pull_strength": 1.0, "perturb_strength": 1.0}
    assert (atoms.positions == before.positions).all()
    assert atoms.info == before.info


def test_positions_stay_unwrapped():
    atoms = bulk("Si", cubic=True)
    atoms.positions += [40, -70, 3]
    assert np.abs(perturb(atoms, seed=0).positions - atoms.positions).max() <= 1.5


def test_strengths_are_those_of_the_paper():
    assert strengths(1.0, 0.0, 5) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert strengths(0.5, 0.25, 2) == pytest.approx([0.5, 0.375])


def draws_of(task):
    """All draws of the structures with the given indices, in the given order."""
    structures, indices, options = task
    chosen = PerturbationSettings(**options)
    drawn = {}
    for k in indices:
        parent = PerturbedParent(structures[k], k, chosen)
        for r in reversed(range(chosen.n_aug)):
            drawn[k, r] = parent.draw(r, 0, seed=5)[0].positions
    return drawn


def test_draws_do_not_depend_on_order_or_process():
    rng = np.random.default_rng(0)
    structures = [Atoms("P6", positions=rng.uniform(0, 6, (6, 3)), cell=[6, 6, 6], pbc=True) for _ in range(6)]
    whole = draws_of((structures, range(6), {"n_aug": 3}))
    with ProcessPoolExecutor(2, get_context("spawn" if os.name == "nt" else "fork")) as pool:
        parts = list(pool.map(draws_of, [(structures, k, {"n_aug": 3}) for k in ([4, 1], [5, 0], [3, 2])]))
    again = {slot: positions for part in parts for slot, positions in part.items()}
    assert whole.keys() == again.keys()
    assert all((whole[slot] == again[slot]).all() for slot in whole)


def test_seed_structure_round_epoch_and_attempt_each_change_the_draw():
    atoms = bulk("Si", cubic=True)
    named = atoms.copy()
    named.info["structure_id"] = "0"
    chosen = PerturbationSettings(pull=(0.1, 0.1), perturb=(0.1, 0.1))
    parent = PerturbedParent(atoms, 0, chosen)
    first = parent.draw(0, 0, seed=0)[0].positions
    assert (PerturbedParent(named, 7, chosen).draw(0, 0, seed=0)[0].positions == first).all()  # index 0 is called "0"
    others = [
        parent.draw(1, 0, seed=0),
        parent.draw(0, 1, seed=0),
        parent.draw(0, 0, seed=1),
        parent.draw(0, 0, seed=0, epoch=1),
        PerturbedParent(atoms, 1, chosen).draw(0, 0, seed=0),
    ]
    positions = [first, *(atoms.positions for atoms, _ in others)]
    for a, b in itertools.combinations(positions, 2):
        assert np.abs(a - b).max() > 1e-3


@settings(max_examples=60, deadline=None)
@given(any_structure(least=2), st.integers(0, 100))
def test_distance_filter_agrees_with_brute_force(atoms, seed):
    chosen = PerturbationSettings(n_aug=1, n_pairs=3, pull=(2.0, 0.0), perturb=(1.0, 0.0))
    radii = covalent_radii[atoms.numbers]
    radii_sum = radii[:, None] + radii[None]
    pairs = np.triu_indices(len(atoms), 1)
    own = (brute_force_distances(atoms) / radii_sum)[pairs].min()
    bound = min(chosen.min_distance, own / 2)
    parent = PerturbedParent(atoms, 0, chosen)
    moved = perturb(atoms, 3, 2.0, 5, 1.0, rng=np.random.default_rng(seed))
    found = (brute_force_distances(moved) / radii_sum)[pairs].min()
    assert parent.too_close(moved.positions - atoms.positions) == (found < bound)


def test_rejected_draws_are_redrawn_then_weakened():
    # A pull of up to 20 Å on a pair of 2.2 Å is nearly always too much, so strengths are halved until it fits.
    atoms = Atoms("P2", positions=[[0, 0, 0], [2.2, 0, 0]])
    chosen = PerturbationSettings(
        n_aug=1, n_pairs=1, pull=(2.0, 0.0), n_sites=0, min_distance=0.9, max_redraws=1, max_weakenings=3
    )
    parent = PerturbedParent(atoms, 0, chosen)
    parent.bound = 0.95
    seen = set()
    for seed in range(200):
        moved, attempt = parent.draw(0, 0, seed)
        if moved is None:
            assert attempt == chosen.max_attempts == 8
            seen.add(None)
            continue
        assert moved.info["attempt"] == attempt
        assert moved.info["pull_strength"] == pytest.approx(2.0 * 0.5 ** (attempt // 2))
        assert moved.get_distance(0, 1) >= 0.95 * 2 * covalent_radii[15]
        seen.add(chosen.weakenings(attempt))
    assert seen >= {0, 1, 2, 3}


def test_compressed_parent_keeps_its_draws():
    atoms = Atoms("P2", positions=[[0, 0, 0], [0.5, 0, 0]])  # 0.23 of the sum of covalent radii
    chosen = PerturbationSettings(n_aug=1, pull=(0.1, 0.0), perturb=(0.01, 0.0), n_sites=1)
    assert PerturbedParent(atoms, 0, chosen).draw(0, 0, seed=0)[0] is not None


def test_one_atom_and_molecule():
    one = Atoms("P", cell=[20, 20, 20], pbc=True)
    assert len(close_pairs(one, 2).i) == 0
    assert 0 < np.linalg.norm(perturb(one, seed=0).positions[0]) <= 1
    assert PerturbedParent(one, 0, PerturbationSettings()).draw(0, 0, 0)[0] is not None
    water = molecule("H2O")
    pairs = close_pairs(water, 2)
    assert len(pairs.i) == 1
    assert pairs.distances[0] == pytest.approx(water.get_distance(0, 1))


def test_bad_input_is_named():
    together = Atoms("Si2", positions=[[1, 1, 1], [11, 1, 1]], cell=[10, 10, 10], pbc=True)
    together.info["structure_id"] = "x7"
    with pytest.raises(DataError, match="x7.*0 and 1 are in one place"):
        perturb(together, seed=0)
    broken = Atoms("Si2", positions=[[0, 0, 0], [np.nan, 0, 0]])
    with pytest.raises(DataError, match="not finite"):
        perturb(broken, seed=0)
    with pytest.raises(ConfigError, match="either rng or seed"):
        perturb(bulk("Si"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_aug": 0}, "n_aug"),
        ({"n_pairs": 1.5}, "n_pairs"),
        ({"pull": 1.0}, "pull"),
        ({"perturb": ("a", 0)}, "perturb"),
        ({"pull": (-1.0, 0)}, "pull"),
        ({"pull_share": 2}, "pull_share"),
        ({"min_distance": 1.5}, "min_distance"),
        ({"max_force": 0}, "max_force"),
    ],
)
def test_settings_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=rf"^{message}[.01]*: found"):
        PerturbationSettings(**options)


def test_settings_take_lists_from_a_configuration():
    assert PerturbationSettings(pull=[1, 0]).pull == (1.0, 0.0)


def test_strain_is_off_and_changes_nothing_but_itself():
    """The draws of Algorithm 1 are bit for bit what they are without it; with it, the same ones follow a strain."""
    atoms = bulk("Si", cubic=True)
    plain, strained = (PerturbedParent(atoms, 0, PerturbationSettings(strain=s)) for s in ((0, 0), (0.05, 0.01)))
    assert PerturbationSettings().strain == (0.0, 0.0) and "strain" not in PerturbationSettings().asked()
    for round_ in range(5):
        one, other = (parent.draw(round_, 0, seed=3)[0] for parent in (plain, strained))
        assert one.cell[:].tolist() == atoms.cell[:].tolist() and "strain_strength" not in one.info
        follows = np.linalg.solve(atoms.cell[:], other.cell[:])
        largest = 0.05 - 0.008 * round_
        assert other.info["strain_strength"] == pytest.approx(largest)
        assert follows == pytest.approx(follows.T) and 0 < np.abs(follows - np.eye(3)).max() <= largest
        assert other.positions == pytest.approx(one.positions @ follows, abs=1e-12)
        assert other.info["pull_strength"] == one.info["pull_strength"]


def test_strain_reaches_its_bounds_in_volume_and_shear():
    rng = np.random.default_rng(0)
    drawn = np.array([random_strain(rng, 0.1) - np.eye(3) for _ in range(4000)])
    assert (drawn == drawn.transpose(0, 2, 1)).all() and 0.099 < np.abs(drawn).max() <= 0.1
    i, j = np.triu_indices(3)
    upper = drawn[:, i, j]
    assert upper.std(0) == pytest.approx(np.full(6, 0.1 / 3**0.5), rel=0.05)
    assert np.corrcoef(upper.T) == pytest.approx(np.eye(6), abs=0.06), "each component by itself"
    assert np.linalg.eigvalsh(np.eye(3) + drawn).min() > 1 - 3 * 0.1


def test_slabs_and_molecules_keep_their_cells():
    slab = bulk("Si", cubic=True)
    slab.pbc = (True, True, False)
    moved = PerturbedParent(slab, 0, PerturbationSettings(strain=(0.1, 0.1))).draw(0, 0, seed=0)[0]
    assert moved.cell[:].tolist() == slab.cell[:].tolist() and "strain_strength" not in moved.info
    assert perturb(slab, strain=0.1, seed=0).cell[:].tolist() == slab.cell[:].tolist()
    assert perturb(bulk("Si", cubic=True), strain=0.1, seed=0).cell[0, 1] != 0
    with pytest.raises(ConfigError, match="strain"):
        PerturbationSettings(strain=(0.3, 0.0))


@settings(max_examples=40, deadline=None)
@given(any_structure(least=2), st.integers(0, 100))
def test_distance_filter_sees_the_strain(atoms, seed):
    chosen = PerturbationSettings(n_aug=1, pull=(0.5, 0.0), perturb=(0.5, 0.0), strain=(0.2, 0.0))
    radii = covalent_radii[atoms.numbers]
    pairs = np.triu_indices(len(atoms), 1)
    parent = PerturbedParent(atoms, 0, chosen)
    moved, _ = parent.draw(0, 0, seed)
    if moved is not None:
        found = (brute_force_distances(moved) / (radii[:, None] + radii[None]))[pairs].min()
        assert found >= parent.bound * (1 - 1e-9)

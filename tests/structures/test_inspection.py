"""Inspection: closest pairs against brute force, duplicates that are made on purpose."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell

from mdl_physpre.structures.inspect import format_inspection, inspect_structures
from mdl_physpre.structures.labels import set_labels


def random_crystal(seed, n=6):
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(5, 7, 3)) + rng.uniform(-1, 1, (3, 3))
    return Atoms(rng.choice(["Si", "O"], n), scaled_positions=rng.uniform(size=(n, 3)), cell=cell, pbc=True)


def test_closest_pairs_against_ase():
    structures = [random_crystal(seed) for seed in range(8)]
    result = inspect_structures(structures)
    expected = {}
    for index, atoms in enumerate(structures):
        big = atoms.repeat(3)  # the middle copy sees all its neighbours without images
        middle = range(13 * len(atoms), 14 * len(atoms))
        for i in middle:
            for j in range(len(big)):
                if i != j:
                    pair = "-".join(sorted((big.symbols[i], big.symbols[j])))
                    d = np.linalg.norm(big.positions[i] - big.positions[j])
                    expected[pair] = min(expected.get(pair, (np.inf, 0)), (d, index))
    assert [row["pair"] for row in result["closest_pairs"]] == ["O-O", "O-Si", "Si-Si"]
    for row in result["closest_pairs"]:
        distance, index = expected["-".join(sorted(row["pair"].split("-")))]
        assert row["distance"] == pytest.approx(distance, abs=1e-9)
        assert row["structure"] == str(index)


def test_pairs_that_meet_only_far_away_or_not_at_all():
    far = Atoms("SiO", [[0, 0, 0], [8, 0, 0]], cell=[30] * 3, pbc=True)
    rows = {row["pair"]: row["distance"] for row in inspect_structures([far])["closest_pairs"]}
    assert rows == {"O-O": None, "O-Si": pytest.approx(8.0), "Si-Si": None}
    assert "none within 10 Å" in format_inspection(inspect_structures([far]))


def moved(atoms, seed):
    """The same structure shifted, turned, its atoms in another order, its cell doubled."""
    rng = np.random.default_rng(seed)
    copy = make_supercell(atoms, np.diag([2, 1, 1]))[rng.permutation(2 * len(atoms))]
    copy.rotate(rng.uniform(10, 170), rng.normal(size=3), rotate_cell=True)
    copy.positions += rng.uniform(-3, 3, 3)
    copy.wrap()
    return copy


def test_duplicates_across_sets_are_suspected_and_others_are_not():
    train = [random_crystal(seed) for seed in range(10)]
    test = [random_crystal(99), moved(train[4], 1), random_crystal(98)]
    (row,) = inspect_structures({"train": train, "test": test})["duplicates"]
    assert row == {"sets": ["train", "test"], "number": 1, "examples": [["4", "1"]]}
    assert "between train and test: 1 structures, e.g. 4 ~ 1" in format_inspection(
        inspect_structures({"train": train, "test": test})
    )


def test_another_energy_speaks_against_a_duplicate():
    one = set_labels(bulk("Si"), energy=-10.0)
    same, other = set_labels(bulk("Si"), energy=-10.0005), set_labels(bulk("Si"), energy=-11.0)
    assert inspect_structures([one, same])["duplicates"][0]["number"] == 1
    assert inspect_structures([one, other])["duplicates"] == []
    assert inspect_structures([one, other], same_energy=1.0)["duplicates"][0]["number"] == 1
    strained = bulk("Si", a=5.45)
    assert inspect_structures([one, strained])["duplicates"] == []
    assert inspect_structures([one, strained], same_distance=0.05)["duplicates"][0]["number"] == 1


def test_counts_ranges_and_text():
    structures = [set_labels(random_crystal(k), energy=-6.0 * k, forces=np.full((6, 3), k)) for k in range(3)]
    structures.append(Atoms("P", info={"config_type": "atom"}))
    result = inspect_structures(structures)
    part = result["sets"]["structures"]
    assert (part["structures"], part["atoms"], part["one_atom"], part["periodic"]) == (4, 19, 1, 3)
    assert part["atoms_per_structure"] == [1, 6.0, 6]
    assert part["elements"]["P"] == 1
    assert part["ranges"]["energy per atom (eV)"] == [-2.0, -1.0, 0.0]
    assert part["ranges"]["largest force (eV/Å)"][2] == pytest.approx(np.sqrt(12))
    assert part["labels"] == {"structures": 4, "energy": 3, "forces": 3, "stress": 0}
    json.dumps(result, allow_nan=False)
    text = format_inspection(result)
    for words in (
        "4 structures, 19 atoms",
        "1 of one atom",
        "config_type (1)",
        "energy per atom",
        "suspected duplicates",
    ):
        assert words in text


def test_an_empty_set_and_single_atoms():
    result = inspect_structures({"a": [], "b": [Atoms("P"), Atoms("P")]})
    assert result["sets"]["a"]["structures"] == 0
    assert result["closest_pairs"] == [{"pair": "P-P", "distance": None, "set": None, "structure": None}]
    format_inspection(result)

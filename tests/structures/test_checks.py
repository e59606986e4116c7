"""Checks of structures against brute force, and labels that are asked for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st

from mdl_physpre.errors import DataError
from mdl_physpre.structures.check import check_structures, require_labels
from mdl_physpre.structures.labels import set_labels


def shortest_distance(atoms):
    """Over all pairs and the images next to them, written out."""
    best = np.inf
    shifts = [np.array(s) * atoms.pbc for s in itertools.product((-2, -1, 0, 1, 2), repeat=3)]
    for i, j in itertools.product(range(len(atoms)), repeat=2):
        for shift in shifts:
            d = np.linalg.norm(atoms.positions[j] + shift @ atoms.cell[:] - atoms.positions[i])
            if i != j or (shift @ atoms.cell[:]).any():
                best = min(best, d)
    return best


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), pbc=st.sampled_from([(1, 1, 1), (1, 0, 1), (0, 0, 0)]), place=st.floats(0.02, 2.5)
)
def test_atoms_in_one_place_are_found_as_by_brute_force(seed, pbc, place):
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(3, 5, 3)) + rng.uniform(-0.5, 0.5, (3, 3))
    atoms = Atoms("P3", scaled_positions=rng.uniform(0, 1, (3, 3)), cell=cell, pbc=pbc)
    if rng.random() < 0.5:  # close to an atom, or to its image across the boundary
        atoms.positions[2] = atoms.positions[0] + rng.normal(size=3) * place / 2 + (rng.integers(-1, 2, 3) * pbc) @ cell
    distance = shortest_distance(atoms)
    if abs(distance - place) < 1e-9:
        return
    if distance < place:
        with pytest.raises(DataError, match="in one place|own periodic image"):
            check_structures([atoms], same_place=place)
    else:
        check_structures([atoms], same_place=place)


def test_an_atom_on_its_own_image_and_a_single_atom_in_a_box():
    check_structures([Atoms("P", cell=[20] * 3, pbc=True), Atoms("P")])
    with pytest.raises(DataError, match=r"set.xyz: structure 7 \(tiny\): atom 0 and its own periodic image are 0.05"):
        tiny = Atoms("P", cell=[0.05, 5, 5], pbc=True, info={"structure_id": "tiny"})
        check_structures([tiny], "set.xyz", indices=[7])


def test_no_atoms_and_wrong_forces():
    with pytest.raises(DataError, match="structure 1: has no atoms"):
        check_structures([Atoms("P"), Atoms()])
    atoms = set_labels(Atoms("P2", [[0, 0, 0], [0, 0, 2]]), forces=np.zeros((2, 3)))
    atoms.calc.results["forces"] = np.zeros((1, 3))
    with pytest.raises(DataError, match=r"forces have shape \(1, 3\); expected \(2, 3\)"):
        check_structures([atoms])


def test_zero_volume_matters_only_where_periodic():
    flat = Atoms("P", cell=[[5, 0, 0], [0, 5, 0], [5, 5, 0]], pbc=True)
    with pytest.raises(DataError, match="no volume"):
        check_structures([flat])
    check_structures([Atoms("P"), Atoms("P", cell=[5, 5, 0], pbc=(True, True, False))])  # a slab without a third vector


def test_labels_asked_for():
    labelled = set_labels(Atoms("P"), energy=-1.0, forces=np.zeros((1, 3)))
    bare = Atoms("P", info={"dft_stress": np.zeros(6)})
    require_labels([labelled, bare], {"energy": 0.01, "forces": 50, "stress": 0})
    with pytest.raises(DataError, match=r"p.xyz: none of 2 structures has stress; .*dft_stress.*weight of stress to 0"):
        require_labels([labelled, bare], {"energy": 0.01, "stress": 50}, "p.xyz")
    with pytest.raises(DataError, match=r"has energy or forces \(no label at all\)"):
        require_labels([bare], ["energy", "forces"])

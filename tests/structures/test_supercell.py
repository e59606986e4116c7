"""Supercells of at least so many atoms."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixBondLengths

from mdl_physpre.structures.neighbours import neighbour_list
from mdl_physpre.structures.supercell import enlarge


@pytest.mark.parametrize("min_atoms, expected", [(0, 2), (2, 2), (3, 4), (30, 32)])
def test_doubled_until_large_enough(min_atoms, expected):
    salt = bulk("MgO", "rocksalt", 4.2)
    salt.info["structure_id"] = "salt"
    large = enlarge(salt, min_atoms)
    assert len(large) == expected and large.info == {"structure_id": "salt"} and len(salt) == 2
    assert large.get_volume() / len(large) == pytest.approx(salt.get_volume() / 2)
    counts = [np.bincount(neighbour_list(a.positions, a.cell[:], a.pbc, 4.0)[0]) for a in (salt, large)]
    assert set(counts[0]) == set(counts[1])  # the same crystal


def test_shortest_periodic_vector_first():
    slab = Atoms("Si", positions=[[0, 0, 0]], cell=[3.0, 10.0, 1.0], pbc=[True, True, False])
    assert enlarge(slab, 5).cell.lengths().tolist() == [12.0, 20.0, 1.0]


def test_molecules_stay_as_they_are():
    assert len(enlarge(molecule("H2O"), 100)) == 3


def test_masses_and_constraints_stay():
    heavy = bulk("Cu", cubic=True)
    heavy.set_masses([63.0, 65.0, 63.0, 65.0])
    heavy.set_constraint(FixBondLengths([[0, 1]]))
    large = enlarge(heavy, 8)
    assert large.get_masses().tolist() == 2 * [63.0, 65.0, 63.0, 65.0]
    assert not large.constraints and len(enlarge(heavy, 4).constraints) == 1

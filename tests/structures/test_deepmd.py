"""Folders of DeePMD-kit, written and read back."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from mdl_physpre.errors import DataError
from mdl_physpre.structures.labels import get_labels, set_labels
from mdl_physpre.structures.read import read_structures
from mdl_physpre.structures.write import write_structures
from tests.helpers.small_cells import crystal, slab


def labelled(atoms: Atoms, seed: int, stress: bool = True) -> Atoms:
    rng = np.random.default_rng(seed)
    tensor = rng.normal(size=(3, 3))
    return set_labels(atoms, rng.normal(), rng.normal(size=(len(atoms), 3)), tensor + tensor.T if stress else None)


def test_round_trip(tmp_path):
    first, second, water = labelled(crystal(0), 0), labelled(crystal(1), 1), labelled(molecule("H2O"), 2, stress=False)
    turned = labelled(crystal(2)[[1, 0, 2, 3]], 3)  # the same elements, in another order
    write_structures(tmp_path / "set", [first, water, turned, second], format="deepmd")
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == ["000-O2Si2", "001-H2O", "002-O2Si2"]
    for k in range(3):
        (folder,) = (tmp_path / "set").glob(f"00{k}-*")
        assert (folder / "type_map.raw").read_text().split() == ["H", "O", "Si"]
    virials = np.load(tmp_path / "set/000-O2Si2/set.000/virial.npy")
    np.testing.assert_allclose(virials[1].reshape(3, 3), -second.cell.volume * get_labels(second).stress)
    found = read_structures(tmp_path / "set")
    for wanted, read in zip([first, second, water, turned], found, strict=True):
        assert (wanted.numbers == read.numbers).all() and (wanted.pbc == read.pbc).all()
        np.testing.assert_array_equal(wanted.positions, read.positions)
        a, b = get_labels(wanted), get_labels(read)
        assert a.energy == b.energy
        np.testing.assert_array_equal(a.forces, b.forces)
        if wanted is water:
            assert b.stress is None
        else:
            np.testing.assert_allclose(a.stress, b.stress, rtol=1e-12)


def test_what_it_cannot_hold(tmp_path):
    with pytest.raises(DataError, match="structure 1.*periodic in some directions"):
        write_structures(tmp_path / "set", [labelled(crystal(), 0), slab()], format="deepmd")
    assert not list(tmp_path.iterdir())
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="exists already"):
        write_structures(tmp_path / "set", [labelled(crystal(), 0)], format="deepmd")

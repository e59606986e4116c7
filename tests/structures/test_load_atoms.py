"""load-atoms:NAME, with a package of that name put in its place."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from ase import Atoms

from mdl_physpre import read_structures
from mdl_physpre.errors import DataError
from mdl_physpre.structures import get_labels


@pytest.fixture
def load_atoms(monkeypatch):
    """A module whose data sets carry labels as the real ones do: energy in info, forces in arrays, no calculator."""
    calls = []

    def load_dataset(name, root=None):
        calls.append((name, root))
        if name != "P-GAP-20":
            raise ValueError(f"no data set {name}")
        atoms = Atoms(
            "P2", [[0, 0, 0], [2.2, 0, 0]], cell=[9] * 3, pbc=True, info={"energy": -9.5, "config_type": "dimer"}
        )
        atoms.arrays["forces"] = np.ones((2, 3))
        return (atoms,)

    module = types.ModuleType("load_atoms")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "load_atoms", module)
    return calls


def test_structures_and_labels(load_atoms, tmp_path):
    (atoms,) = read_structures("load-atoms:P-GAP-20", root=tmp_path)
    assert load_atoms == [("P-GAP-20", str(tmp_path))]
    assert get_labels(atoms).energy == -9.5
    assert (get_labels(atoms).forces == 1).all()
    assert atoms.info == {"config_type": "dimer", "structure_id": "0"}


def test_an_unknown_name(load_atoms):
    with pytest.raises(DataError, match="load-atoms:Q: cannot be loaded: ValueError: no data set Q"):
        read_structures("load-atoms:Q")
    with pytest.raises(DataError, match="no name given"):
        read_structures("load-atoms:")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "load_atoms", None)
    with pytest.raises(DataError, match=r"not installed.*pip install 'mdl-physpre\[load-atoms\]'"):
        read_structures("load-atoms:P-GAP-20")

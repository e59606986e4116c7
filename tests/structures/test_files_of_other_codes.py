"""Files that state their units or types: LAMMPS dumps, FitSNAP, DeePMD-kit, SchNetPack."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ase import Atoms, units
from ase.db import connect

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.structures.read import read_structures

DUMP = """ITEM: TIMESTEP
0
ITEM: NUMBER OF ATOMS
2
ITEM: BOX BOUNDS pp pp pp
0 4
0 4
0 4
ITEM: ATOMS id {columns}
1 {first} 0 0 0
2 {second} 1.5 1.5 1.5
"""


def test_a_dump_without_elements_needs_the_types(tmp_path):
    path = tmp_path / "a.lammpstrj"
    path.write_text(DUMP.format(columns="type x y z", first=2, second=1))
    with pytest.raises(DataError, match="has types of atoms and no elements.*types: "):
        read_structures(path)
    for types in (["Cu", "Au"], "Cu,Au"):
        assert str(read_structures(path, types=types)[0].symbols) in ("AuCu",)
    with pytest.raises(DataError, match="more types than the 1 elements"):
        read_structures(path, types=["Cu"])
    with pytest.raises(ConfigError, match="'Xy' is no element"):
        read_structures(path, types=["Xy", "Au"])


def test_a_dump_with_elements(tmp_path):
    path = tmp_path / "a.dump"
    path.write_text(DUMP.format(columns="element x y z", first="Au", second="Cu"))
    assert str(read_structures(path)[0].symbols) == "AuCu"


def test_fitsnap(tmp_path):
    stress = [[10.0, 1, 0], [1, 20, 0], [0, 0, 30]]
    data = {"AtomTypes": ["Cu", "Cu"], "Positions": [[0, 0, 0], [1.8, 1.8, 0]], "Energy": -7.0, "NumAtoms": 2,
            "Forces": [[0, 0, 0.1], [0, 0, -0.1]], "Lattice": (3.6 * np.eye(3)).tolist(), "Stress": stress}  # fmt: skip
    path = tmp_path / "a.json"
    path.write_text("# a comment\n" + json.dumps({"Dataset": {"Data": [data], "StressStyle": "kB"}}))
    labels = get_labels(read_structures(path)[0])
    assert labels.energy == -7.0 and labels.forces[1, 2] == -0.1
    np.testing.assert_allclose(labels.stress, -np.array(stress) * 0.1 * units.GPa)
    path.write_text(json.dumps({"Dataset": {"Data": [data], "EnergyStyle": "hartree"}}))
    with pytest.raises(DataError, match="EnergyStyle is 'hartree'"):
        read_structures(path)
    for name in ("Energy", "Forces", "Stress", "Lattice"):
        path.write_text(json.dumps({"Dataset": {"Data": [data | {name: {"a": 1}}]}}))
        with pytest.raises(DataError, match="a.json: item 0: .* in numbers"):
            read_structures(path)


def test_a_folder_of_deepmd(tmp_path):
    (tmp_path / "set.000").mkdir()
    (tmp_path / "type.raw").write_text("0 1\n")
    (tmp_path / "type_map.raw").write_text("Cu\nAu\n")
    virial = np.diag([0.3, 0.2, 0.1])
    rows = {"coord": [0, 0, 0, 1.8, 1.8, 0.0], "box": 3.6 * np.eye(3), "force": np.zeros(6), "virial": virial}
    arrays = {name: np.array([np.ravel(row)] * 3, dtype=float) for name, row in rows.items()}
    arrays["energy"] = np.arange(3.0)
    for name, values in arrays.items():
        np.save(tmp_path / "set.000" / f"{name}.npy", values)
    found = read_structures(tmp_path)
    assert [get_labels(a).energy for a in found] == [0, 1, 2] and str(found[0].symbols) == "CuAu"
    np.testing.assert_allclose(get_labels(found[2]).stress, -virial / 3.6**3)
    for types in ("", "0\n0 1\n2", "0 -1", "0 1 x"):
        (tmp_path / "type.raw").write_text(types)
        with pytest.raises(DataError, match="type.raw"):
            read_structures(tmp_path)
    (tmp_path / "type.raw").write_text("0 1\n")
    np.save(tmp_path / "set.000" / "energy.npy", np.arange(2.0))
    with pytest.raises(DataError, match="expected as many each"):
        read_structures(tmp_path)


def test_a_database_that_states_its_units(tmp_path):
    atoms = Atoms("CuAu", positions=[[0, 0, 0], [3, 3, 0]], cell=[7] * 3, pbc=True)  # in Bohr
    with connect(tmp_path / "a.db") as database:
        database.write(atoms, data={"energy": np.array([-2.0]), "forces": np.full((2, 3), 0.01)})
    for unit, right in (("Hartree", units.Hartree), ("kcal/mol", units.kcal / units.mol)):
        database.metadata = {
            "_property_unit_dict": {"energy": unit, "forces": "Hartree/Bohr"},
            "_distance_unit": "Bohr",
        }
        found = read_structures(tmp_path / "a.db")[0]
        assert get_labels(found).energy == pytest.approx(-2 * right)
        assert get_labels(found).forces[0, 0] == pytest.approx(0.01 * units.Hartree / units.Bohr)
        np.testing.assert_allclose(found.positions[1], np.array([3, 3, 0]) * units.Bohr)
        assert found.cell[0, 0] == pytest.approx(7 * units.Bohr)
    database.metadata = {"_property_unit_dict": {"energy": "parsec"}, "_distance_unit": "Ang"}
    with pytest.raises(DataError, match="'parsec' is not known"):
        read_structures(tmp_path / "a.db")

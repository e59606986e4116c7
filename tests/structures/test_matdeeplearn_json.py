"""MatDeepLearn's JSON, and conversion to it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ase import Atoms

from mdl_physpre import read_structures, write_structures
from mdl_physpre.errors import DataError
from mdl_physpre.structures import get_labels
from mdl_physpre.structures.conversion import convert
from mdl_physpre.structures.labels import set_labels
from tests.helpers.structure_strategies import water_like

ITEM = {
    "structure_id": "17",
    "atomic_numbers": [14, 8],
    "positions": [[0.0, 0.0, 0.0], [1.6, 0.0, 0.0]],
    "cell": [[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [1.0, 0.0, 9.0]],
    "y": -12.5,
    "forces": [[0.1, 0.0, 0.0], [-0.1, 0.0, 0.0]],
    "stress": [[[0.01, 0.0, 0.0], [0.0, 0.02, 0.0], [0.0, 0.0, 0.03]]],
}


def write_items(tmp_path, *items):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(items))
    return path


def test_the_schema_is_written_exactly(tmp_path):
    atoms = water_like()
    atoms.info.update(structure_id="a-1", config_type="molecule")
    write_structures(tmp_path / "a.json", [atoms])
    (item,) = json.loads((tmp_path / "a.json").read_text())
    assert set(item) == set(ITEM)
    assert item["structure_id"] == "a-1"
    assert item["atomic_numbers"] == [8, 1, 1]
    assert np.shape(item["positions"]) == np.shape(item["forces"]) == (3, 3)
    assert np.shape(item["cell"]) == (3, 3)
    assert np.shape(item["stress"]) == (1, 3, 3)
    assert isinstance(item["y"], float)
    np.testing.assert_array_equal(item["stress"][0], get_labels(atoms).stress)
    assert item["stress"][0][1][2] == 0.004  # yz comes fourth in Voigt order


def test_the_schema_is_read(tmp_path):
    (atoms,) = read_structures(write_items(tmp_path, ITEM))
    labels = get_labels(atoms)
    assert atoms.info["structure_id"] == "17"
    assert atoms.pbc.all()
    assert labels.energy == -12.5
    np.testing.assert_array_equal(labels.forces, ITEM["forces"])
    np.testing.assert_array_equal(labels.stress, ITEM["stress"][0])
    np.testing.assert_array_equal(atoms.cell[:], ITEM["cell"])


@pytest.mark.parametrize(
    "change",
    [{"y": [-12.5]}, {"cell": [ITEM["cell"]]}, {"stress": ITEM["stress"][0]}, {"stress": [0.01, 0.02, 0.03, 0, 0, 0]}],
)
def test_other_shapes_are_read_as_the_same(tmp_path, change):
    (atoms,) = read_structures(write_items(tmp_path, ITEM | change))
    assert get_labels(atoms).energy == -12.5
    np.testing.assert_array_equal(atoms.cell[:], ITEM["cell"])
    np.testing.assert_allclose(get_labels(atoms).stress, ITEM["stress"][0])


def test_without_a_cell_a_structure_is_not_periodic(tmp_path):
    zero = ITEM | {"cell": np.zeros((3, 3)).tolist()}
    none = {k: v for k, v in ITEM.items() if k != "cell"} | {"structure_id": "18"}
    for atoms in read_structures(write_items(tmp_path, zero, none)):
        assert not atoms.pbc.any()
        assert get_labels(atoms).stress is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": None}, "key 'positions' is missing"),
        ({"atomic_numbers": [14, 8, 8]}, r"positions has shape \(2, 3\); expected \(3, 3\)"),
        ({"atomic_numbers": ["Si", "O"]}, "atomic_numbers is"),
        ({"atomic_numbers": [14, 0]}, "atomic number 0"),
        ({"forces": [[0.1, 0.0, 0.0]]}, r"forces has shape \(1, 3\); expected \(2, 3\)"),
        ({"forces": [[0.1, 0.0], [0.1, 0.0, 0.0]]}, "forces is"),
        ({"cell": [1, 2, 3]}, r"cell has shape \(3,\)"),
        ({"stress": [1, 2, 3]}, r"stress has shape \(3,\)"),
        ({"y": [1.0, 2.0]}, "y has 2 numbers"),
        ({"y": "low"}, "y is 'low'"),
        ({"y": float("nan")}, "energy is nan"),
        ({"positions": [[0, 0, float("nan")], [1, 1, 1]]}, "positions of atom 0"),
        ({"cell": [[9, 0, 0], [0, 9, 0], [9, 9, 0]]}, "no volume"),
    ],
)
def test_bad_items_are_named(tmp_path, change, message):
    path = write_items(tmp_path, ITEM, ITEM | {"structure_id": "18"} | change)
    with pytest.raises(DataError, match=message) as caught:
        read_structures(path)
    assert f"{path}: structure 1" in str(caught.value)


def test_an_item_that_is_no_dictionary(tmp_path):
    with pytest.raises(DataError, match="structure 1: found int"):
        read_structures(write_items(tmp_path, ITEM, 3))


def test_convert_says_what_the_host_will_drop_or_misread(tmp_path, caplog):
    structures = [water_like(), set_labels(Atoms("P", cell=[20] * 3, pbc=True), energy=-1.0, forces=np.zeros((1, 3)))]
    slab = water_like()
    slab.pbc = (True, True, False)
    write_structures(tmp_path / "a.extxyz", [*structures, slab])
    result = convert(tmp_path / "a.extxyz", tmp_path / "b.json")
    assert result["structures"] == 3
    assert result["labels"] == {"structures": 3, "energy": 3, "forces": 3, "stress": 1}
    assert "1 of 3 structures have one atom, which MatDeepLearn drops without a word: 1" in caplog.text
    assert "2 of 3 structures have no stress" in caplog.text
    assert "periodic in some directions only" in caplog.text
    assert len(json.loads((tmp_path / "b.json").read_text())) == 3
    back = convert(tmp_path / "b.json", tmp_path / "c.extxyz")
    assert back["warnings"] == []
    assert [a.pbc.tolist() for a in read_structures(tmp_path / "c.extxyz")][2] == [True, True, False]


def test_convert_keeps_its_input(tmp_path):
    write_structures(tmp_path / "a.extxyz", [water_like()])
    with pytest.raises(DataError, match="the same file"):
        convert(tmp_path / "a.extxyz", tmp_path / "a.extxyz")
    with pytest.raises(DataError, match="no known format"):
        convert(tmp_path / "a.extxyz", tmp_path / "b.cif")

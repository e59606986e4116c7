"""Every format gives back what was written."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mdl_physpre import read_structures, write_structures
from mdl_physpre.structures import get_labels
from tests.helpers.structure_strategies import TRICKY, WORDS, labelled_structures, water_like

SETTINGS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
DIGITS = {".extxyz": 0.51e-8, ".extxyz.gz": 0.51e-8, ".db": 0, ".json": 0}  # extended XYZ keeps eight decimals


def there_and_back(structures, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"structures{suffix}"
        write_structures(path, structures)
        assert [p.name for p in Path(folder).iterdir()] == [path.name]  # no temporary file stays
        return read_structures(path)


def assert_same_structures(found, given_, tolerance):
    assert len(found) == len(given_)
    for a, b in zip(found, given_):
        np.testing.assert_array_equal(a.numbers, b.numbers)
        np.testing.assert_allclose(a.positions, b.positions, rtol=0, atol=tolerance)
        assert a.pbc.tolist() == b.pbc.tolist()
        mine, theirs = get_labels(a), get_labels(b)
        for name in ("energy", "forces", "stress"):
            one, two = getattr(mine, name), getattr(theirs, name)
            assert (one is None) == (two is None), name
            if one is not None:
                np.testing.assert_allclose(one, two, rtol=1e-15, atol=tolerance if name == "forces" else 1e-15)


def same(a, b):
    if isinstance(b, dict):
        return set(a) == set(b) and all(same(a[k], b[k]) for k in b)
    if isinstance(b, (list, np.ndarray)):
        return np.array_equal(np.asarray(a), np.asarray(b))
    return type(a) in (type(b), np.bool_, np.int64) and a == b


@pytest.mark.parametrize("suffix", [".extxyz", ".extxyz.gz", ".db"])
@SETTINGS
@given(structures=st.lists(labelled_structures(), min_size=1, max_size=4))
def test_structures_labels_and_info_come_back(suffix, structures):
    found = there_and_back(structures, suffix)
    assert_same_structures(found, structures, DIGITS[suffix])
    for index, (a, b) in enumerate(zip(found, structures)):
        np.testing.assert_allclose(a.cell[:], b.cell[:], rtol=1e-15)
        assert set(a.info) == {*b.info, "structure_id"}
        assert a.info["structure_id"] == str(index)
        for key, value in b.info.items():
            assert same(a.info[key], value), (key, a.info[key], value)
        np.testing.assert_array_equal(a.arrays["site"], b.arrays["site"])


@SETTINGS
@given(structures=st.lists(labelled_structures(info=False), min_size=1, max_size=4))
def test_matdeeplearn_json_comes_back(structures):
    found = there_and_back(structures, ".json")
    assert_same_structures(found, structures, 0)
    for a, b in zip(found, structures):
        # the format has a cell for periodic structures only
        np.testing.assert_array_equal(a.cell[:], b.cell[:] if b.pbc.any() else np.zeros((3, 3)))


@pytest.mark.parametrize("suffix", [".extxyz", ".db", ".json"])
@SETTINGS
@given(names=st.lists(st.one_of(WORDS, TRICKY), min_size=1, max_size=4, unique=True))
def test_ids_come_back_as_the_same_strings(suffix, names):
    structures = []
    for name in names:
        structures.append(water_like())
        structures[-1].info["structure_id"] = name
    assert [a.info["structure_id"] for a in there_and_back(structures, suffix)] == names


@pytest.mark.parametrize("suffix", [".extxyz", ".db"])
def test_other_results_of_a_calculation_stay(suffix):
    atoms = water_like()
    atoms.calc.results["magmoms"] = np.array([0.5, 0.0, -0.5])
    (found,) = there_and_back([atoms], suffix)
    np.testing.assert_allclose(found.calc.results["magmoms"], [0.5, 0.0, -0.5])


def test_labels_of_a_living_calculator_are_written():
    from ase.build import bulk
    from ase.calculators.emt import EMT

    copper = bulk("Cu")
    copper.calc = EMT()
    energy = copper.get_potential_energy()
    (found,) = there_and_back([copper], ".extxyz")
    assert get_labels(found).energy == pytest.approx(energy, abs=1e-12)


def test_new_labels_are_not_overruled_by_old_reference_entries():
    atoms = water_like(energy=-1.0)
    atoms.info["REF_energy"] = -99.0
    atoms.arrays["REF_forces"] = np.full((3, 3), 7.0)
    (found,) = there_and_back([atoms], ".extxyz")
    assert get_labels(found).energy == -1.0
    np.testing.assert_allclose(get_labels(found).forces, get_labels(atoms).forces, atol=1e-8)


def test_equal_structures_give_equal_compressed_files(tmp_path):
    write_structures(tmp_path / "a.extxyz.gz", [water_like()])
    write_structures(tmp_path / "b.extxyz.gz", [water_like()])
    assert (tmp_path / "a.extxyz.gz").read_bytes() == (tmp_path / "b.extxyz.gz").read_bytes()

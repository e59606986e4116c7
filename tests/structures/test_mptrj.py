"""MPtrj JSON: pymatgen structures, units, filters, and files larger than the buffer."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from mdl_physpre import read_structures
from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.structures import get_labels
from mdl_physpre.structures.formats import json_stream
from mdl_physpre.structures.formats.json_stream import iterate_json

LATTICE = Lattice([[4.0, 0.1, 0.0], [0.0, 4.2, 0.3], [0.2, 0.0, 4.4]])
STRESS_KBAR = [[10.0, 1.0, 2.0], [1.0, 20.0, 3.0], [2.0, 3.0, 30.0]]


def entry(species=("Li", "O"), **change):
    crystal = Structure(LATTICE, species, [[0, 0, 0], [0.5, 0.5, 0.5]][: len(species)])
    n = len(species)
    frame = {
        "structure": crystal.as_dict(),
        "uncorrected_total_energy": -10.0,
        "corrected_total_energy": -10.7,
        "energy_per_atom": -10.7 / n,
        "ef_per_atom": -1.2,
        "e_per_atom_relaxed": -5.5,
        "ef_per_atom_relaxed": -1.3,
        "force": (np.arange(3.0 * n).reshape(n, 3) / 10).tolist(),
        "stress": STRESS_KBAR,
        "magmom": [0.1 * k for k in range(n)],
        "bandgap": 2.5,
        "mp_id": "mp-1",
    }
    return frame | change


def write_json(tmp_path, content, name="MPtrj.json"):
    path = tmp_path / name
    data = json.dumps(content).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", ["MPtrj.json", "MPtrj.json.gz"])
def test_labels_units_and_provenance(tmp_path, name):
    path = write_json(tmp_path, {"mp-1": {"mp-1-0-0": entry(), "mp-1-1-3": entry(stress=None, magmom=None)}}, name)
    first, second = read_structures(path)
    labels = get_labels(first)
    assert labels.energy == -10.7
    np.testing.assert_allclose(labels.forces, np.arange(6.0).reshape(2, 3) / 10)
    # 1 kBar = 0.1 GPa = 6.241509e-4 eV/Å³; VASP counts compression as positive
    np.testing.assert_allclose(labels.stress, -6.241509074e-4 * np.array(STRESS_KBAR), rtol=1e-8)
    assert get_labels(second).stress is None
    assert first.info["structure_id"] == "mp-1/mp-1-0-0"
    assert (first.info["mp_id"], first.info["frame_id"]) == ("mp-1", "mp-1-0-0")
    np.testing.assert_allclose(first.arrays["dft_magmoms"], [0.0, 0.1])
    assert "dft_magmoms" not in second.arrays
    np.testing.assert_allclose(first.cell[:], LATTICE.matrix)
    np.testing.assert_allclose(first.positions[1], LATTICE.matrix.sum(axis=0) / 2)
    assert first.pbc.all()


def test_choice_of_energy(tmp_path):
    no_total = entry(corrected_total_energy=None)
    path = write_json(tmp_path, {"mp-1": {"a": entry(), "b": no_total, "c": no_total | {"energy_per_atom": None}}})
    assert [get_labels(a).energy for a in read_structures(path)] == [-10.7, pytest.approx(-10.7), None]
    assert [get_labels(a).energy for a in read_structures(path, energy="uncorrected")] == [-10.0] * 3
    with pytest.raises(ConfigError, match="expected 'corrected' or 'uncorrected'"):
        read_structures(path, energy="raw")


def test_only_some_elements(tmp_path):
    path = write_json(tmp_path, {"mp-1": {"a": entry(), "b": entry(("Li", "F"))}, "mp-2": {"c": entry(("Li",))}})
    found = read_structures(path, elements=["O", "Li", "Mn"])
    assert [a.info["frame_id"] for a in found] == ["a", "c"]
    with pytest.raises(DataError, match="nothing but Mn"):
        read_structures(path, elements=["Mn"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"structure": {"lattice": 3}}, "not a pymatgen structure"),
        ({"structure": Structure(LATTICE, [{"Li": 0.5, "Na": 0.5}], [[0, 0, 0]]).as_dict()}, "disordered"),
        ({"force": "none"}, "force is 'none'"),
        ({"stress": [1.0, 2.0]}, "stress has shape"),
        ({"corrected_total_energy": "low"}, "corrected_total_energy is 'low'"),
    ],
)
def test_bad_frames_are_named(tmp_path, change, message):
    path = write_json(tmp_path, {"mp-1": {"a": entry(), "b": entry(**change)}})
    with pytest.raises(DataError, match=message) as caught:
        read_structures(path)
    assert f"{path}: mp-1/b" in str(caught.value)


def test_wrong_forces_and_missing_structure_are_named(tmp_path):
    with pytest.raises(DataError, match=r"structure 0.*forces has shape \(1, 3\); expected \(2, 3\)"):
        read_structures(write_json(tmp_path, {"mp-1": {"a": entry(force=[[0, 0, 0]])}}))
    with pytest.raises(DataError, match="mp-1/b: key 'structure' is missing"):
        read_structures(write_json(tmp_path, {"mp-1": {"a": entry(), "b": {"force": []}}}))


def test_a_truncated_file(tmp_path):
    path = write_json(tmp_path, {"mp-1": {"a": entry()}, "mp-2": {"b": entry()}})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="truncated"):
        read_structures(path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None)
@given(
    content=st.one_of(st.lists(VALUES, max_size=5), st.dictionaries(st.text(), VALUES, max_size=5)),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    ascii_=st.booleans(),
)
@example(content=[123, 4.5, 1e-30, -2.5e200, True], chunk=1, indent=None, ascii_=True)
@example(content=[123, 4.5, 1e-30, -2.5e200, None], chunk=3, indent=1, ascii_=True)
def test_items_are_the_same_whatever_the_buffer(tmp_path_factory, content, chunk, indent, ascii_):
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=ascii_), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK", chunk)
        found = list(iterate_json(path))
    expected = list(content.items()) if isinstance(content, dict) else list(enumerate(content))
    assert found == expected


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(1, 200), chunk=st.integers(1, 40))
def test_every_truncation_is_an_error(tmp_path_factory, cut, chunk):
    text = json.dumps({"mp-1": {"a": [1.5, 2, "x"]}, "mp-2": {"b": {"c": None, "d": True}}, "mp-3": "end"})
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(text[: max(1, len(text) - cut)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK", chunk)
        with pytest.raises(DataError, match="truncated"):
            list(iterate_json(path))

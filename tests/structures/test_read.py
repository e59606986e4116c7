"""Reading extended XYZ and ASE databases: labels from every place, options, and bad input."""

from __future__ import annotations

import gzip
import logging

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.db import connect
from ase.io import write as ase_write

from mdl_physpre import read_structures, write_structures
from mdl_physpre.errors import ConfigError, DataError, PhyspreError
from mdl_physpre.structures import get_labels
from mdl_physpre.structures.labels import set_labels

STRESS = np.array([[0.01, 0.06, 0.05], [0.06, 0.02, 0.04], [0.05, 0.04, 0.03]])
HEAD = 'Lattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3:forces:R:3 pbc="T T T"'
ROWS = "Si 0 0 0 0.1 0.2 0.3\nO 1.6 0 0 -0.1 -0.2 -0.3\n"


def frame(extra="energy=-5.5", head=HEAD, rows=ROWS):
    return f"{rows.count(chr(10))}\n{head} {extra}\n{rows}"


def write_file(tmp_path, text, name="set.extxyz"):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "0.01 0.02 0.03 0.04 0.05 0.06",
        "0.01 0.06 0.05 0.06 0.02 0.04 0.05 0.04 0.03",
        "0.01, 0.06, 0.05, 0.06, 0.02, 0.04, 0.05, 0.04, 0.03",
        "[[0.01, 0.06, 0.05], [0.06, 0.02, 0.04], [0.05, 0.04, 0.03]]",
        "[[[0.01, 0.06, 0.05], [0.06, 0.02, 0.04], [0.05, 0.04, 0.03]]]",
        "_JSON [[[0.01, 0.06, 0.05], [0.06, 0.02, 0.04], [0.05, 0.04, 0.03]]]",
        "[[0.01 0.06 0.05] [0.06 0.02 0.04] [0.05 0.04 0.03]]",
    ],
)
@pytest.mark.parametrize("key", ["stress", "REF_stress"])
def test_every_form_of_stress_in_extended_xyz(tmp_path, key, text):
    (atoms,) = read_structures(write_file(tmp_path, frame(f'energy=-5.5 {key}="{text}"')))
    np.testing.assert_allclose(get_labels(atoms).stress, STRESS, atol=1e-15)
    assert key not in atoms.info


@pytest.mark.parametrize("shape", [(6,), (3, 3), (1, 3, 3), (9,)])
def test_every_shape_of_stress_under_a_key_of_the_user(tmp_path, shape):
    atoms = Atoms("Si", cell=[5, 5, 5], pbc=True)
    atoms.info["my_stress"] = np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.06]) if shape == (6,) else STRESS.reshape(shape)
    write_structures(tmp_path / "a.extxyz", [atoms])
    (found,) = read_structures(tmp_path / "a.extxyz", keys={"stress": "my_stress"})
    np.testing.assert_allclose(get_labels(found).stress, STRESS, atol=1e-15)


def test_user_keys_then_reference_entries_then_calculator_results(tmp_path):
    atoms = set_labels(
        Atoms("OH", [[0, 0, 0], [0.97, 0, 0]], cell=[9] * 3, pbc=True), 1.0, np.full((2, 3), 1.0), STRESS
    )
    atoms.info.update(REF_energy=2.0, mine=3.0)
    atoms.arrays.update(REF_forces=np.full((2, 3), 2.0), my_forces=np.full((2, 3), 3.0))
    path = tmp_path / "a.extxyz"
    ase_write(path, atoms, format="extxyz")
    plain = get_labels(read_structures(path)[0])
    assert plain.energy == 2.0
    assert (plain.forces == 2.0).all()
    np.testing.assert_allclose(plain.stress, STRESS)
    (found,) = read_structures(path, keys={"energy": "mine", "forces": "my_forces"})
    assert get_labels(found).energy == 3.0
    assert (get_labels(found).forces == 3.0).all()
    assert not {"mine", "REF_energy"} & set(found.info)
    assert set(found.arrays) == {"numbers", "positions"}
    assert get_labels(read_structures(path, keys={"energy": "energy"})[0]).energy == 1.0


def test_labels_of_mixed_origin_are_reported(tmp_path, caplog):
    path = write_file(tmp_path, frame("REF_energy=-1") + frame("energy=-2"))
    with caplog.at_level(logging.WARNING):
        structures = read_structures(path)
    assert [get_labels(a).energy for a in structures] == [-1, -2]
    assert "energy comes from 'REF_energy' in 1 structures and 'energy' in 1" in caplog.text


def test_a_structure_without_periodic_directions_has_no_stress(tmp_path):
    text = frame(f'energy=1 stress="{" ".join(["0.0"] * 9)}"', head="Properties=species:S:1:pos:R:3:forces:R:3")
    labels = get_labels(read_structures(write_file(tmp_path, text))[0])
    assert labels.stress is None
    assert labels.energy == 1


def test_missing_labels_are_none_not_zero(tmp_path):
    path = write_file(tmp_path, frame("energy=-1") + frame("", head=HEAD.replace(":forces:R:3", ""), rows="Si 0 0 0\n"))
    first, second = (get_labels(a) for a in read_structures(path))
    assert first.energy == -1
    assert first.stress is None
    assert second.energy is None
    assert second.forces is None


def test_one_atom_works(tmp_path):
    (atoms,) = read_structures(write_file(tmp_path, frame(rows="Si 0 0 0 0 0 0\n")))
    assert get_labels(atoms).forces.shape == (1, 3)


def test_given_ids_are_kept_and_made_unique(tmp_path, caplog):
    path = write_file(tmp_path, "".join(frame(f"structure_id={name}") for name in ("a", "b", "a")))
    assert [a.info["structure_id"] for a in read_structures(path)] == ["a#0", "b", "a#2"]
    assert "'a' is carried by 2 structures" in caplog.text


def test_only_some_elements(tmp_path):
    path = write_file(tmp_path, frame() + frame(rows="Si 0 0 0 0 0 0\n") + frame(rows="O 0 0 0 0 0 0\n"))
    assert [str(a.symbols) for a in read_structures(path, elements=["Si"])] == ["Si"]
    with pytest.raises(DataError, match="nothing but P"):
        read_structures(path, elements=["P"])
    with pytest.raises(ConfigError, match="did you mean 'Si'"):
        read_structures(path, elements=["Sii"])


def test_ase_database_from_ase(tmp_path):
    path = tmp_path / "a.db"
    with connect(path) as database:
        atoms = set_labels(Atoms("OH", [[0, 0, 0], [0.97, 0, 0]], cell=[9] * 3, pbc=True), 1.0, np.ones((2, 3)), STRESS)
        database.write(atoms, kind="radical", data={"REF_energy": 2.5})
    (found,) = read_structures(path)
    assert get_labels(found).energy == 2.5
    np.testing.assert_allclose(get_labels(found).stress, STRESS)
    assert found.info["kind"] == "radical"


def test_written_database_can_be_selected_from_by_ase(tmp_path):
    structures = [Atoms("O", info={"kind": k, "matrix": np.eye(2)}) for k in ("hot", "cold", "hot")]
    write_structures(tmp_path / "a.db", structures)
    assert connect(tmp_path / "a.db").count(kind="hot") == 2


def test_ase_json_database(tmp_path):
    path = tmp_path / "a.json"
    connect(path).write(set_labels(Atoms("O"), energy=-1.5))
    assert get_labels(read_structures(path)[0]).energy == -1.5


BAD_TEXT = {
    "no number of atoms": ("Si 0 0 0\n", r"structure 0, line 1: found 'Si 0 0 0'; expected a number of atoms"),
    "no atoms": ("0\n\n", r"structure 0, line 1: 0 atoms"),
    "truncated in a frame": (
        frame() + frame()[: -len("O 1.6 0 0 -0.1 -0.2 -0.3\n")],
        r"structure 1, line 5: 2 atoms announced, the file ends after 1",
    ),
    "truncated in a line": (frame() + frame()[:-15], r"structure 1: "),
    "blank line between frames": (frame() + "\n" + frame(), r"structure 1, line 5: found ''"),
    "too few columns": (frame(rows="Si 0 0 0 1\n"), r"structure 0: "),
    "unknown element": (frame() + frame(rows="Xq 0 0 0 0 0 0\n"), r"structure 1: 'Xq' is no element"),
    "text for a number": (frame(rows="Si 0 0 zero 0 0 0\n"), r"structure 0: "),
    "NaN position": (frame() + frame(rows="Si 0 nan 0 0 0 0\n"), r"structure 1: positions of atom 0 are \[0 nan 0\]"),
    "NaN force": (frame(rows="Si 0 0 0 0 nan 0\n"), r"structure 0: forces of atom 0 are"),
    "NaN energy": (frame("energy=nan"), r"structure 0: energy is nan"),
    "infinite energy": (frame("energy=inf"), r"structure 0: energy is inf"),
    "NaN stress": (frame('stress="nan 0 0 0 0 0 0 0 0"'), r"structure 0: stress of row 0"),
    "energy of two numbers": (frame('REF_energy="1.0 2.0"'), r"structure 0: REF_energy is .*expected one number"),
    "energy that is text": (frame("REF_energy=low"), r"structure 0: REF_energy is 'low'; expected one number"),
    "forces of two columns": (
        frame(head=HEAD.replace("forces:R:3", "forces:R:2"), rows="Si 0 0 0 1 2\n"),
        r"structure 0: forces has shape \(1, 2\); expected \(1, 3\)",
    ),
    "stress of five numbers": (frame('stress="1 2 3 4 5"'), r"structure 0: .*stress is"),
    "cell without volume": (frame(head=HEAD.replace("0 0 9", "0 9 0")), r"structure 0: cell .* no volume"),
    "no vector along a periodic direction": (
        frame(head=HEAD.replace("0 0 9", "0 0 0")),
        r"structure 0: cell .* no vector",
    ),
    "periodic without a cell": ('1\npbc="T T T"\nSi 0 0 0\n', r"structure 0: cell"),
    "two atoms in one place": (
        frame() + frame(rows="Si 0 0 0 0 0 0\nO 8.99 0 0 0 0 0\n"),
        r"structure 1: atoms 0 \(Si\) and 1 \(O\) are in one place \(0.0100 Å apart",
    ),
}


@pytest.mark.parametrize("case", BAD_TEXT)
@pytest.mark.parametrize("zipped", [False, True])
def test_bad_content_names_file_and_structure(tmp_path, case, zipped):
    text, message = BAD_TEXT[case]
    path = tmp_path / ("bad.extxyz.gz" if zipped else "bad.extxyz")
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    with pytest.raises(DataError, match=message) as caught:
        read_structures(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def bad_files(folder):
    whole = gzip.compress(frame().encode() * 50)
    return {
        "empty.extxyz": (b"", "empty"),
        "empty.extxyz.gz": (b"", "empty"),
        "blank.extxyz": (b"\n \n", "nothing but blanks"),
        "nothing.extxyz.gz": (gzip.compress(b""), "nothing but blanks"),
        "cut.extxyz.gz": (whole[: len(whole) // 2], "ends too early|corrupt"),
        "corrupt.extxyz.gz": (
            whole[:20] + bytes([whole[20] ^ 255, whole[21] ^ 255]) + whole[22:],
            "corrupt|not a text",
        ),
        "plain.extxyz.gz": (frame().encode(), "not gzip"),
        "binary.extxyz": (bytes(range(128, 256)), "not a text file"),
        "empty.db": (b"", "empty"),
        "noise.db": (b"not a database at all" * 99, "not a readable ASE database"),
        "empty.json": (b"", "empty"),
        "cut.json": (b'[{"atomic_numbers": [1], "positions": [[0, 0', "not valid JSON|too early"),
        "number.json": (b"3", "not valid JSON"),
        "none.json": (b"[]", "holds no structure"),
        "other.json": (b'[{"a": 1}]', "MatDeepLearn"),
        "cut.json.gz": (
            gzip.compress(b"[" + b'{"atomic_numbers": [1], "positions": [[0, 0, 0]]},' * 99)[:40],
            "early|corrupt",
        ),
    }


@pytest.mark.parametrize("name", bad_files(None))
def test_bad_files(tmp_path, name):
    content, message = bad_files(tmp_path)[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_structures(path)
    assert str(path) in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


def test_a_missing_file_and_its_nearest_name(tmp_path):
    write_file(tmp_path, frame(), "phosphorus.extxyz")
    with pytest.raises(DataError, match="no such file; did you mean 'phosphorus.extxyz'"):
        read_structures(tmp_path / "phosphorous.extxyz")
    with pytest.raises(DataError, match="is a folder"):
        read_structures(tmp_path.rename(tmp_path.with_suffix(".xyz")))
    with pytest.raises(DataError, match="no such file"):
        read_structures(tmp_path / "a.cif")


def test_whatever_else_ase_reads(tmp_path):
    """A trajectory with results of a calculator, a CIF, a POSCAR without a suffix; and what ASE does not know."""
    frames = [bulk("Cu", cubic=True), bulk("Cu", cubic=True).repeat(2)]
    for atoms in frames:
        atoms.calc = EMT()
        atoms.get_stress()
    ase_write(tmp_path / "a.traj", frames)
    found = read_structures(tmp_path / "a.traj")
    assert [len(atoms) for atoms in found] == [4, 32]
    assert get_labels(found[1]).energy == pytest.approx(frames[1].get_potential_energy())
    for name, kind in (("a.cif", "cif"), ("POSCAR", "vasp")):
        ase_write(tmp_path / name, frames[0], format=kind)
        (one,) = read_structures(tmp_path / name)
        np.testing.assert_allclose(one.cell[:], frames[0].cell[:], atol=1e-6)
    (tmp_path / "a.cif").write_text("data_\n_cell_length_a\n")
    with pytest.raises(DataError, match=r"a.cif: ASE cannot read it"):
        read_structures(tmp_path / "a.cif")
    (tmp_path / "a.thing").write_text("hello")
    with pytest.raises(DataError, match="stands for no known format.*nor does ASE know it"):
        read_structures(tmp_path / "a.thing")


def test_unknown_keys_and_options_name_the_nearest(tmp_path):
    path = write_file(tmp_path, frame("dft_energy=-1 note=hello"))
    with pytest.raises(
        DataError, match=r"no structure has 'dft_enregy', which keys.energy names; did you mean 'dft_energy'"
    ):
        read_structures(path, keys={"energy": "dft_enregy"})
    with pytest.raises(ConfigError, match="unknown label 'force'; did you mean 'forces'"):
        read_structures(path, keys={"force": "f"})
    with pytest.raises(ConfigError, match="unknown option 'element'; did you mean 'elements'"):
        read_structures(path, element=["Si"])
    assert issubclass(DataError, PhyspreError)


def test_checks_can_be_left_out(tmp_path):
    path = write_file(tmp_path, frame(rows="Si 0 0 0 0 0 0\nO 0 0 0 0 0 0\n"))
    with pytest.raises(DataError, match="in one place"):
        read_structures(path)
    assert len(read_structures(path, check=False)) == 1

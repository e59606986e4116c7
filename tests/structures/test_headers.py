"""Headers of extended XYZ: keys in any case, periodic directions in every spelling, errors that say what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from mdl_physpre.errors import DataError
from mdl_physpre.structures.formats.extxyz_header import directions, parse_header
from mdl_physpre.structures.read import read_structures

CELL = "4 0 0 0 5 0 0 0 6"


def read(tmp_path, header, row="Cu 0 0 0"):
    (tmp_path / "a.xyz").write_text(f"1\n{header}\n{row}\n")
    return read_structures(tmp_path / "a.xyz", check=False)[0]


@pytest.mark.parametrize("lattice", ["Lattice", "lattice", "LATTICE", "lAttIce"])
@pytest.mark.parametrize("properties", ["Properties", "properties", "PROPERTIES"])
@pytest.mark.parametrize("pbc", ["pbc", "PBC", "Pbc"])
def test_keys_in_any_case(tmp_path, lattice, properties, pbc):
    header = f'{lattice}="{CELL}" {properties}=species:S:1:pos:R:3:forces:R:3 {pbc}="T F T" energy=1.5'
    atoms = read(tmp_path, header, "Cu 0.5 0 0 1 2 3")
    np.testing.assert_array_equal(atoms.cell[:], np.diag([4.0, 5.0, 6.0]))
    assert atoms.pbc.tolist() == [True, False, True]
    assert atoms.calc.results["forces"].tolist() == [[1, 2, 3]]


def test_columns_of_atoms_in_any_case(tmp_path):
    atoms = read(tmp_path, f'Lattice="{CELL}" Properties=Species:S:1:POS:R:3:forces:R:3', "Au 0.5 1 2 1 2 3")
    assert str(atoms.symbols) == "Au" and atoms.positions[0].tolist() == [0.5, 1, 2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [('"T T F"', "TTF"), ("TTF", "TTF"), ("FFF", "FFF"), ('"f f f"', "FFF"), ('"F, F, F"', "FFF"), ('"0 0 0"', "FFF"),
     ("000", "FFF"), ("110", "TTF"), ('"1 1 0"', "TTF"), ("true", "TTT"), ("F", "FFF"), ("[T, F, T]", "TFT"),
     ('"True False True"', "TFT"), ("{T T T}", "TTT"), ('".true. .false. .true."', "TFT"), ('"yes no no"', "TFF")],
)  # fmt: skip
def test_periodic_directions(tmp_path, text, expected):
    assert directions(text) == [letter == "T" for letter in expected]
    header = f'Lattice="{CELL}" Properties=species:S:1:pos:R:3 pbc={text}'
    assert read(tmp_path, header).pbc.tolist() == [letter == "T" for letter in expected]


@pytest.mark.parametrize("text", ['"T T"', "maybe", '"T T X"', "TTTT", '"2 0 0"', '""', "-1", '"T T F T"'])
def test_directions_that_mean_nothing(tmp_path, text):
    with pytest.raises(DataError, match=r"structure 0: pbc is .*expected T or F for each of three directions"):
        read(tmp_path, f'Lattice="{CELL}" Properties=species:S:1:pos:R:3 pbc={text}')


@pytest.mark.parametrize(
    ("header", "message"),
    [(f'Lattice="{CELL}" lattice="1 0 0 0 1 0 0 0 1"', "the header holds Lattice twice"),
     (f'Lattice="{CELL}" pbc=T PBC=F', "the header holds pbc twice"),
     ('Lattice="4 5 6"', "Lattice='4 5 6' has 3 entries; expected 9 numbers"),
     ('cell="4 0 0 0 5 0 0 0 6"', "has cell and no Lattice"),
     ('Box="4 5 6 90 90 90"', "has Box and no Lattice"),
     (f'Lattice="{CELL}" periodic="T T F"', "has periodic and no pbc"),
     (f'Lattice="{CELL} Properties=species:S:1:pos:R:3', "a quotation mark of the header is not closed"),
     (f'Lattice="{CELL}" energy=1.5 energy=2.5', "the header holds energy twice"),
     (f'Lattice="{CELL}" Properties=element:S:1:pos:R:3', "Properties has no species or Z, only element, pos"),
     (f'Lattice="{CELL}" Properties=species:S:1:position:R:3', "Properties has no pos"),
     (f'Lattice="{CELL}" stress="1 2 3"', "stress is .*; expected 6 or 9 numbers"),
     (f'Lattice="{CELL}" x="_JSON [1, "', "x is .*, which is no JSON"),
     (f'Lattice="{CELL}" Properties=species:S:1:pos:R:3:forces:R:3', "structure 0: line 3: 4 columns, .* announces 7"),
     ("Properties=species:S:1:pos:R:3:tags:I", "Properties is .*; expected name:type:columns")],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path, header, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, header)


def test_the_same_key_twice_with_the_same_value_is_no_contradiction(tmp_path):
    assert read(tmp_path, f'Lattice="{CELL}" LATTICE="{CELL}"').cell[0, 0] == 4


def test_lists_of_different_lengths_are_kept(tmp_path):
    atoms = read(tmp_path, f'Lattice="{CELL}" neighbours="_JSON [[1, 2], [3]]" note="a b" name="PBC=F"')
    assert atoms.info["neighbours"] == [[1, 2], [3]]
    assert atoms.info["note"] == "a b" and atoms.info["name"] == "PBC=F"


def test_other_keys_stay_as_they_are():
    assert parse_header("a=1 b=T Energy=2") == {"a": 1, "b": True, "Energy": 2}

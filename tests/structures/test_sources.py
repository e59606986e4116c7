"""Several files as one set: lists, patterns, folders."""

from __future__ import annotations

import pytest
from ase.build import bulk

from mdl_physpre.errors import DataError
from mdl_physpre.structures.labels import set_labels
from mdl_physpre.structures.read import read_structures
from mdl_physpre.structures.write import write_structures


@pytest.fixture
def folder(tmp_path):
    for k, name in enumerate(("b.extxyz", "a.extxyz", "c.db")):
        write_structures(
            tmp_path / name, [set_labels(bulk("Cu", a=3.6 + 0.1 * j), energy=float(10 * k + j)) for j in (0, 1)]
        )
    (tmp_path / "notes.txt").write_text("nothing")
    return tmp_path


def energies(source):
    return [a.calc.results["energy"] for a in read_structures(source)]


def test_lists_patterns_and_folders(folder):
    assert energies([folder / "b.extxyz", folder / "a.extxyz"]) == [0, 1, 10, 11]
    assert energies(str(folder / "*.extxyz")) == [10, 11, 0, 1]
    assert energies(folder) == [10, 11, 0, 1, 20, 21]
    assert energies([str(folder / "*.db"), folder / "a.extxyz"]) == [20, 21, 10, 11]


def test_structures_keep_the_name_of_their_file(folder):
    names = [a.info["structure_id"] for a in read_structures(str(folder / "?.extxyz"))]
    assert names == ["a.extxyz-0", "a.extxyz-1", "b.extxyz-0", "b.extxyz-1"]


def test_what_is_not_there_is_named(folder):
    with pytest.raises(DataError, match=r"\*\.cif: no file has a name of this pattern"):
        read_structures(str(folder / "*.cif"))
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="empty: a folder without a file of a known format"):
        read_structures(folder / "empty")
    with pytest.raises(DataError, match="an empty list of files"):
        read_structures([])
    with pytest.raises(DataError, match="nowhere.xyz"):
        read_structures([folder / "a.extxyz", folder / "nowhere.xyz"])

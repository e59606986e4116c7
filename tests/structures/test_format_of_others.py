"""A format that another package brings, as the documentation shows it; and formats by name."""

from __future__ import annotations

import pytest
from ase import Atoms

from mdl_physpre import read_structures, write_structures
from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.structures.formats.base import FORMATS, formats
from tests.helpers.pages import run_page


def test_the_page_on_formats_runs(tmp_path):
    run_page("extending/format.md", tmp_path)


def test_every_format_of_the_package_is_found_by_its_name():
    assert [FORMATS.name_of(type(one)) for one in formats()][: len(FORMATS.built_in)] == list(FORMATS.built_in)


def test_a_format_by_name_whatever_the_file_is_called(tmp_path):
    write_structures(tmp_path / "structures.data", Atoms("O"), format="extxyz")
    assert len(read_structures(tmp_path / "structures.data", format="extxyz")) == 1
    with pytest.raises(ConfigError, match="unknown format 'extxy': did you mean 'extxyz'"):
        read_structures(tmp_path / "structures.data", format="extxy")


def test_what_is_only_read(tmp_path):
    with pytest.raises(DataError, match=r"MPtrj.* is read, but not written; known: \.extxyz"):
        write_structures(tmp_path / "a.json", Atoms("O"), format="mptrj")
    assert not (tmp_path / "a.json").exists()

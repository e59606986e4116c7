"""Writing is all or nothing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from ase import Atoms

from mdl_physpre import read_structures, write_structures
from mdl_physpre.errors import DataError

SUFFIXES = [".extxyz", ".extxyz.gz", ".db", ".json"]
STRUCTURES = [Atoms("O", [[0, 0, k]]) for k in range(400)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_disk_that_fills_leaves_the_old_file_and_nothing_else(tmp_path, suffix):
    """In a process of its own, whose files may not grow beyond 1000 bytes."""
    path = tmp_path / f"set{suffix}"
    write_structures(path, [Atoms("Si")])
    before = path.read_bytes()
    code = f"""
        import resource, sys
        from ase import Atoms
        from ase.db import connect
        from mdl_physpre import write_structures
        from mdl_physpre.errors import DataError
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_structures({str(path)!r}, [Atoms("O", [[0.1 * k, k ** 1.5, k ** 0.5]]) for k in range(2000)])
        except DataError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert f"{path}: cannot be written" in done.stdout, done.stderr
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failing_rename_leaves_nothing(tmp_path, suffix, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(DataError, match="Read-only file system"):
        write_structures(tmp_path / f"set{suffix}", STRUCTURES[:2])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, a folder that nobody can write to")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_that_cannot_be_written(suffix):
    with pytest.raises(DataError, match="cannot be written"):
        write_structures(f"/proc/set{suffix}", STRUCTURES[:2])


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(DataError, match="cannot be written"):
        write_structures(tmp_path / "a" / "b.extxyz", STRUCTURES[:2])


def test_a_structure_that_cannot_be_written_leaves_nothing(tmp_path):
    bad = Atoms("O", [[0, 0, float("nan")]])
    with pytest.raises(DataError, match="structure 1 holds numbers that are not finite"):
        write_structures(tmp_path / "a.json", [Atoms("O"), bad])
    odd = Atoms("O")
    odd.set_array("thing", __import__("numpy").zeros((1, 2, 2, 2)))
    with pytest.raises(DataError, match="structure 0 cannot be written as extended XYZ"):
        write_structures(tmp_path / "a.extxyz", [odd])
    assert list(tmp_path.iterdir()) == []


def test_folders_are_made_and_one_structure_will_do(tmp_path):
    write_structures(tmp_path / "new" / "folder" / "a.extxyz", Atoms("O"))
    assert len(read_structures(tmp_path / "new" / "folder" / "a.extxyz")) == 1


def test_nothing_to_write_and_unknown_format(tmp_path):
    with pytest.raises(DataError, match="no structure to write"):
        write_structures(tmp_path / "a.extxyz", [])
    with pytest.raises(DataError, match="stands for no known format"):
        write_structures(tmp_path / "a.cif", STRUCTURES[:1])

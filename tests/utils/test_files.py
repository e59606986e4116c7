"""Files written whole or not at all."""

from __future__ import annotations

import gzip

import pytest

from mdl_physpre.errors import DataError, PhyspreError, TrainingError
from mdl_physpre.utils.files import read_text, replacing, write_bytes, write_text


def test_text_comes_back_also_through_gzip(tmp_path):
    for name in ("a.txt", "deep/a.txt.gz"):
        write_text(tmp_path / name, "σ = 1\n")
        assert read_text(tmp_path / name) == "σ = 1\n"
    first = (tmp_path / "deep" / "a.txt.gz").read_bytes()
    assert gzip.decompress(first).decode() == "σ = 1\n"
    write_text(tmp_path / "deep" / "a.txt.gz", "σ = 1\n")
    assert (tmp_path / "deep" / "a.txt.gz").read_bytes() == first, "the time of writing is in the file"


def test_an_older_file_stays_where_writing_fails(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("kind", [DataError, TrainingError, PhyspreError])
def test_the_error_is_of_the_kind_that_the_caller_names(tmp_path, kind):
    (tmp_path / "file").write_text("")
    with pytest.raises(kind, match="cannot be written") as caught:
        write_text(tmp_path / "file" / "a.txt", "x", kind)
    assert type(caught.value) is kind

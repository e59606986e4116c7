"""Stages: done only when done.json stands, redone when what they depend on changes."""

import json
from pathlib import Path

import pytest

from mdl_physpre.errors import PhyspreError
from mdl_physpre.runs.stage import Stage, write_json
from mdl_physpre.utils.processes import run_lock


def test_a_stage_is_done_for_its_key_only(tmp_path):
    stage = Stage(tmp_path / "1", {"a": 1})
    assert stage.result() is None
    stage.begin()
    assert stage.finish({"x": 2})["x"] == 2
    assert Stage(tmp_path / "1", {"a": 1}).result()["x"] == 2
    assert Stage(tmp_path / "1", {"a": 2}).result() is None


def test_begin_keeps_the_work_of_the_same_key_and_clears_that_of_another(tmp_path):
    stage = Stage(tmp_path / "1", {"a": 1})
    stage.begin()
    (stage.folder / "half").write_text("done")
    Stage(tmp_path / "1", {"a": 1}).begin()
    assert (stage.folder / "half").exists()
    Stage(tmp_path / "1", {"a": 2}).begin()
    assert not (stage.folder / "half").exists()


def test_a_truncated_done_file_is_no_result(tmp_path):
    stage = Stage(tmp_path / "1", {"a": 1})
    stage.begin()
    stage.finish({"x": 2})
    (stage.folder / "done.json").write_text('{"key":')
    assert stage.result() is None


def test_nothing_half_written(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert list(tmp_path.iterdir()) == []
    write_json(tmp_path / "a.json", {"x": 1, "missing": [float("nan")]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1, "missing": [None]}


def test_a_full_disk_is_a_clear_error():
    with pytest.raises(PhyspreError, match="cannot be written"):
        write_json(Path("/proc/nothing/here"), "x")


def test_a_second_process_is_kept_out(tmp_path):
    with run_lock(tmp_path / "run"), pytest.raises(PhyspreError, match="another process"), run_lock(tmp_path / "run"):
        pass
    with run_lock(tmp_path / "run"):
        pass

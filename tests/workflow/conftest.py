"""What most of these tests are on: data, and one small run for each module, which may have its own."""

from __future__ import annotations

import pytest

from mdl_physpre.workflow.run import run
from tests.helpers.small_runs import CONFIG, write_oxide


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Rattled rock salt, labelled by a potential."""
    path = tmp_path_factory.mktemp("data") / "mgo.extxyz"
    write_oxide(path)
    return path


@pytest.fixture(scope="module")
def config(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.yml"
    path.write_text(CONFIG.format(data=data))
    return path


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, run(config, out=folder)

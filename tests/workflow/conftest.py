"""The data that most runs of these tests are on."""

from __future__ import annotations

import pytest

from tests.helpers.small_runs import write_oxide


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Rattled rock salt, labelled by a potential."""
    path = tmp_path_factory.mktemp("data") / "mgo.extxyz"
    write_oxide(path)
    return path

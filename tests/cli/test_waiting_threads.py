"""The command tells OpenMP that waiting threads sleep, before PyTorch loads it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from ase.build import bulk
from ase.io import write

from mdl_physpre.cli.program import let_waiting_threads_sleep

OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def test_it_takes_effect_in_the_command(tmp_path):
    write(tmp_path / "a.extxyz", bulk("Cu"))
    environment = {k: v for k, v in os.environ.items() if k not in OWN} | {"OMP_DISPLAY_ENV": "VERBOSE"}
    command = [sys.executable, "-m", "mdl_physpre.cli.main", "inspect", str(tmp_path / "a.extxyz")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "OMP_WAIT_POLICY" not in done.stderr:
        pytest.skip("this PyTorch has an OpenMP that does not tell")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr and "'ACTIVE'" not in done.stderr


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_user_has_set_stays(monkeypatch, name):
    for one in OWN:
        monkeypatch.delenv(one, raising=False)
    monkeypatch.setenv(name, "1")
    let_waiting_threads_sleep()
    assert os.environ[name] == "1" and ("OMP_WAIT_POLICY" in os.environ) == (name == "OMP_WAIT_POLICY")

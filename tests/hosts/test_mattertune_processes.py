"""The command mattertune with two processes, over gloo, in the real MatterTune."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mdl_physpre.potentials.open import open_potential
from tests.helpers.mattertune_cases import configuration, model_section, needs_host, write_data, written

pytestmark = needs_host
FIT = {"epochs": 10, "n_basis": 2, "cutoff": 4.0}


def command(path: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "mdl_physpre.hosts.mattertune.cli", "finetune", str(path), "--out", str(out)]


def environment() -> dict[str, str]:
    """As that of the tests, without what a training in this process left there."""
    launched = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {**{k: v for k, v in os.environ.items() if k not in launched}, "OMP_NUM_THREADS": "1"}


def test_two_processes_take_the_steps_of_one(tmp_path):
    """Half of the structures each, in every step; strategy auto, the host's default."""
    content = configuration(write_data(tmp_path))
    content["physpre"] = {"eam": FIT, "perturbation": {"n_aug": 1}, "pretrain": {"max_epochs": 2}}
    best = {}
    for devices, batch in ((1, 6), (2, 3)):
        content["trainer"]["devices"], content["data"]["batch_size"] = devices, batch
        out = tmp_path / str(devices)
        found = subprocess.run(
            command(written(tmp_path, content), out), env=environment(), capture_output=True, text=True, timeout=600
        )
        assert found.returncode == 0, found.stderr[-3000:]
        assert found.stdout.splitlines()[-1] == str(out / "4-finetune" / "best.ckpt")
        assert ("MEMBER: 2/2" in found.stderr) is (devices == 2)
        best[devices] = {s: open_potential(out / s / "best.ckpt").state_dict() for s in ("3-pretrain", "4-finetune")}
    for stage, weights in best[1].items():
        for name, value in weights.items():
            assert torch.allclose(value, best[2][stage][name], atol=2e-4), (stage, name)


def test_two_processes_killed_and_started_again(tmp_path):
    content = configuration(write_data(tmp_path), model=model_section(num_blocks=1))
    content["trainer"] |= {"devices": 2, "strategy": "ddp"}
    content["physpre"] = {"eam": FIT, "perturbation": {"n_aug": 1}, "pretrain": {"max_epochs": 40}}
    path, out = written(tmp_path, content), tmp_path / "run"
    with open(tmp_path / "killed.txt", "w") as told:
        first = subprocess.Popen(command(path, out), env=environment(), stdout=told, stderr=told)
        for _ in range(4800):  # on a busy machine
            if (out / "3-pretrain" / "best.ckpt").is_file() or first.poll() is not None:
                break
            time.sleep(0.1)
        others = subprocess.run(["pgrep", "-P", str(first.pid)], capture_output=True, text=True).stdout.split()
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert others and not (out / "3-pretrain" / "done.json").exists(), (tmp_path / "killed.txt").read_text()[-3000:]
    for _ in range(100):
        running = [p for p in others if Path(f"/proc/{p}").exists()]
        if not running:
            break
        time.sleep(0.1)
    assert not running  # the second process ends with the first
    eam = (out / "1-eam" / "eam.pt").stat().st_mtime_ns
    found = subprocess.run(command(path, out), env=environment(), capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr[-3000:]
    assert (out / "4-finetune" / "done.json").is_file() and (out / "1-eam" / "eam.pt").stat().st_mtime_ns == eam


def test_one_that_is_not_the_first_waits_and_reads(tmp_path, monkeypatch):
    """As torchrun and SLURM start them: all at once, over an old run with other settings."""
    from mdl_physpre.hosts.mattertune import ranks

    ranks.end_preparing(tmp_path, "old")
    monkeypatch.setenv("RANK", "1")
    assert not ranks.is_first()
    script = "import pathlib, sys\nfrom mdl_physpre.hosts.mattertune.ranks import wait_until_prepared\n"
    script += "wait_until_prepared(pathlib.Path(sys.argv[1]), 'new')"
    waiting = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(3)
    ranks.end_preparing(tmp_path, "new")
    assert waiting.wait(30) == 0

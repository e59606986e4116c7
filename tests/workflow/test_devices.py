"""One device for a run: who resolves it, where networks go, several processes for one network, and what is refused."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from mdl_physpre import load_potential, save_potential
from mdl_physpre.cli.main import app
from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials import EAMInteraction
from mdl_physpre.potentials.adapters.from_ase import CalculatorPotential
from mdl_physpre.runs.layout import plan_of
from mdl_physpre.runs.read import read_summary
from mdl_physpre.utils import devices
from mdl_physpre.utils.devices import available_device, device_in_turn, put_on
from mdl_physpre.workflow.config.file import parse_config
from mdl_physpre.workflow.run import run
from mdl_physpre.workflow.setup import device_of
from mdl_physpre.workflow.stages import network as network_stages
from tests.helpers.small_runs import write_oxide

CONFIG = """
task: {{device: cpu, identifier: small}}
dataset: {{src: {data}, split: {{test: 2, val: 3}}}}
model: {{name: CGCNN, cutoff: 4.0, dim1: 8, dim2: 8, gc_count: 1, post_fc_count: 1, edge_dim: 8}}
optim: {{max_epochs: 2, lr: 1.0e-3, batch_size: 4}}
physpre:
  arms: [pretrain]
  eam: {{cutoff: 5.0, n_basis: 2, epochs: 3}}
  perturbation: {{n_aug: 1, n_pairs: 1, validation: false}}
  pretrain: {{max_epochs: 2}}
  dynamics: {{n_structures: 0}}
  report: {{formats: []}}
"""
LEAST = {"dataset": {"src": "x.extxyz"}, "model": {"name": "CGCNN"}}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    save_potential(folder / "eam.pt", write_oxide(folder / "mgo.extxyz", 12))
    (folder / "small.yml").write_text(CONFIG.format(data=folder / "mgo.extxyz"))
    return folder


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two GPUs, as far as names go."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    def empty(*size, device):
        if torch.device(device).type == "cuda" and (torch.device(device).index or 0) > 1:
            raise RuntimeError("invalid device ordinal")

    monkeypatch.setattr(devices.torch, "empty", empty)


def test_auto_is_resolved_in_one_place(two_gpus):
    assert available_device("auto") == available_device("cuda") == torch.device("cuda:0")
    assert available_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"device 'cuda:2' is not available here; available: cpu, cuda:0, cuda:1"):
        available_device("cuda:2")
    with pytest.raises(ConfigError, match="device 'gpu0' is not available"):
        available_device("gpu0")


def test_networks_take_the_gpus_in_turn(two_gpus):
    assert [str(device_in_turn("auto", k)) for k in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert [str(device_in_turn("cuda:1", k)) for k in range(2)] == ["cuda:1", "cuda:1"]
    assert [str(device_in_turn("cpu", k)) for k in range(2)] == ["cpu", "cpu"]
    config = parse_config({**LEAST, "physpre": {"n_networks": 2, "arms": ["baseline", "sam"]}})
    assert [str(device_of(config, k)) for k in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]


def test_without_a_gpu_auto_is_the_cpu_and_cuda_an_error():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert available_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="task.device: device 'cuda' is not available here; available: cpu"):
        device_of(parse_config({**LEAST, "task": {"device": "cuda"}}))


def test_a_calculator_stays_where_it_was_built():
    from ase.calculators.lj import LennardJones

    calculator = CalculatorPotential(LennardJones)
    assert put_on(calculator, "meta") is calculator
    assert put_on(EAMInteraction(elements=["Mg"], cutoff=4.0, n_basis=2), "meta").E0.device.type == "meta"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": {"device": "cuda:0"}, "optim": {"device": "cpu"}}, "optim.device: unknown key"),
        ({"task": {"devices": 0}}, "task.devices: found 0"),
        ({"task": {"devices": 2, "processes": 2}}, "processes is 2 and devices is 2"),
        ({"task": {"compile": "always"}}, "task.compile"),
        ({"optim": {"precision": "fp16"}}, "optim.precision: found 'fp16'"),
        ({"optim": {"devices": 2}}, "optim.devices: unknown key"),
    ],
)
def test_mistakes_are_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        parse_config({**LEAST, **changes})


def test_compile_follows_the_device():
    for value, expected in (("auto", (True, False)), (True, (True, True)), (False, (False, False))):
        task = parse_config({**LEAST, "task": {"compile": value}}).task
        assert (task.compiles_on("cuda:1"), task.compiles_on("cpu")) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["optim.precision=bf16"], "precision is 'bf16'.*runs on cpu"),
        (["optim.precision=tf32"], "precision is 'tf32'.*runs on cpu"),
        (["task.device=cuda:7"], "task.device: device 'cuda:7' is not available here; available: cpu"),
        (["task.device=auto", "task.devices=64"], "devices is 64, and this machine has"),
        (["task.device=meta"], "has no double precision; training needs cpu or cuda"),
    ],
)
def test_a_run_is_refused_before_its_first_stage(files, tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        run(files / "small.yml", changes, out=tmp_path / "run")
    assert not (tmp_path / "run" / "1-eam").exists()


def test_every_stage_of_a_network_has_its_device(files, tmp_path, monkeypatch):
    """Two networks, by name on two devices: what trains, tests and simulates them is told so."""
    seen = []

    def training_stage(*arguments):
        seen.append(("train", str(arguments[-1])))
        potential = load_potential(files / "eam.pt").to("meta")
        return potential, "key"

    def stage(what):
        return lambda *a, **_: seen.append((what, a[-2].E0.device.type))

    monkeypatch.setattr(network_stages, "device_of", lambda config, number: torch.device("cuda", number))
    monkeypatch.setattr(network_stages, "training_stage", training_stage)
    monkeypatch.setattr(network_stages, "errors_stage", stage("test"))
    monkeypatch.setattr(network_stages, "dynamics_stage", stage("simulate"))
    monkeypatch.setattr(network_stages, "network_result", lambda *_: "found")
    config = parse_config({**LEAST, "physpre": {"n_networks": 2, "arms": ["pretrain"]}})
    plan = plan_of(config.model_dump())
    for network in plan.networks:
        assert network_stages.network_stages(tmp_path, config, None, plan, network) == "found"
    assert [s for s in seen if s[0] == "train"] == [("train", "cuda:0"), ("train", "cuda:1")]
    assert {s for s in seen if s[0] != "train"} == {("test", "meta"), ("simulate", "meta")}


COMMANDS = {
    "evaluate": ("evaluate", "eam.pt", "mgo.extxyz"),
    "doctor": ("doctor", "eam.pt"),
    "md": ("md", "eam.pt", "mgo.extxyz", "--steps", "2", "--n-structures", "2"),
    "label": ("label", "mgo.extxyz", "OUT", "--teacher", "eam.pt"),
    "perturb": ("perturb", "mgo.extxyz", "OUT", "--teacher", "eam.pt"),
}


@pytest.mark.parametrize("name", list(COMMANDS))
def test_commands_take_a_device(files, tmp_path, name):
    arguments = [str(files / a) if (files / a).exists() else a for a in COMMANDS[name]]
    arguments = [str(tmp_path / "made.extxyz") if a == "OUT" else a for a in arguments]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
    assert result.exit_code == 0, (result.output, result.exception)
    wrong = CliRunner().invoke(app, [*arguments, "--device", "cuda:9"])
    assert isinstance(wrong.exception, ConfigError)
    assert re.search(r"device 'cuda:9' is not available here; available: cpu", str(wrong.exception))


def slurm(folder, *arguments):
    """Two processes with what Slurm says to those of one step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(2):
        said = {
            "SLURM_STEP_NUM_TASKS": 2, "SLURM_STEP_NUM_NODES": 1, "SLURM_NNODES": 1, "SLURM_NTASKS": 2,
            "SLURM_NTASKS_PER_NODE": 2, "SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": 0,
            "SLURM_JOB_NAME": "training", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1,
        }  # fmt: skip
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "mdl_physpre.cli.main", *map(str, arguments)],
                env={**os.environ, **{key: str(value) for key, value in said.items()}},
                cwd=folder,
                stderr=subprocess.PIPE,
            )
        )
    return [(process.communicate()[1].decode(), process.returncode) for process in started]


def test_a_run_on_ranks_that_slurm_started_is_the_run_of_one_process(files, tmp_path):
    """Pretraining and finetuning on two processes; one of them does the rest, and writes."""
    ended = slurm(tmp_path, "run", files / "small.yml", "--out", "two", "task.devices=2")
    assert [code for _, code in ended] == [0, 0], ended
    assert "training, pretrain" in ended[0][0] and "training" not in ended[1][0]
    alone = run(files / "small.yml", out=tmp_path / "one")
    both = read_summary(tmp_path / "two")
    for quantity in ("energy_mae", "forces_mae", "stress_mae"):
        expected = getattr(alone.arms["pretrain"].errors["test"], quantity)
        assert getattr(both.arms["pretrain"].errors["test"], quantity) == pytest.approx(expected, rel=1e-4)
    # the same run goes on in one process: nothing is left to do
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "two").rglob("done.json")}
    run(files / "small.yml", out=tmp_path / "two")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "two").rglob("done.json")} == before


def test_the_first_rank_s_error_ends_the_others(files, tmp_path):
    ended = slurm(tmp_path, "run", files / "small.yml", "--out", "two", "task.devices=2", "optim.precision=bf16")
    assert ended[0][1] == 1 and "precision is 'bf16'" in ended[0][0]
    assert ended[1] == ("", 0)

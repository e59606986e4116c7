"""How long a run will take: what is counted, that nothing is written, and what is left of a run that has begun."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from ase.build import bulk
from typer.testing import CliRunner

from mdl_physpre import estimate_run, write_structures
from mdl_physpre.cli.main import app
from mdl_physpre.structures.labels import set_labels
from mdl_physpre.workflow import estimated_stages
from mdl_physpre.workflow.estimate import RunEstimate, StageEstimate, format_estimate
from mdl_physpre.workflow.run import run

CONFIG = """
task: {identifier: cu, seed: 1}
dataset: {src: cu.extxyz, split: {test: 4, val: 4}}
model: {name: CGCNN, cutoff: 4.0, dim1: 8, dim2: 8, gc_count: 1, post_fc_count: 1, edge_dim: 8}
optim: {max_epochs: 6, batch_size: 4}
physpre:
  arms: [baseline, pretrain]
  eam: {cutoff: 5.0, n_basis: 2, epochs: 5}
  perturbation: {n_aug: 3, n_pairs: 1}
  pretrain: {max_steps: 7, batch_size: 5}
  dynamics: {temperature: 300, timestep: 1.0, steps: 12, n_structures: 3}
  report: {formats: []}
"""
ARMS = "physpre.arms=[baseline, pretrain, replay, hybrid, sam+pretrain, zbl]"
EMT = "physpre.teacher={calculator: ase.calculators.emt.EMT}"


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Rattled copper with made-up labels, in the working directory."""
    rng, made = np.random.default_rng(0), []
    for k in range(21):
        atoms = bulk("Cu", cubic=True).repeat((1, 1, 1 + k % 2))
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        made.append(set_labels(atoms, rng.normal(), rng.normal(size=(len(atoms), 3)), 0.01 * np.eye(3)))
    write_structures(tmp_path / "cu.extxyz", made)
    (tmp_path / "cu.yml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cu.yml"


def test_every_stage_is_counted_and_nothing_is_written(config, tmp_path):
    before, state = sorted(tmp_path.rglob("*")), torch.random.get_rng_state()
    found = estimate_run(config, [ARMS, "physpre.n_networks=2"])
    assert sorted(tmp_path.rglob("*")) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert logging.root.manager.disable == logging.NOTSET
    stages = {one.stage: one for one in found.stages}
    after = ("finetune", "errors", "dynamics")
    assert list(stages) == [
        "1-eam", "2-pretraining-set",
        *(f"3-networks/baseline/{stage}" for stage in after),
        *(f"3-networks/pretrain/{stage}" for stage in ("pretrain", *after)),
        *(f"3-networks/replay/{stage}" for stage in after),  # its pretraining is that of the arm before
        *(f"3-networks/hybrid/{stage}" for stage in after),
        *(f"3-networks/sam+pretrain/{stage}" for stage in after),
        *(f"3-networks/zbl/{stage}" for stage in after),
    ]  # fmt: skip
    assert all(one.seconds is not None and one.seconds > 0 for one in found.stages)
    assert {one.networks for one in found.stages[:2]} == {1} and {one.networks for one in found.stages[2:]} == {2}
    assert stages["2-pretraining-set"].work == "labels of 51 structures", "3 of each of 13 + 4"
    assert stages["3-networks/pretrain/pretrain"].work == "7 steps, 1 epochs of 39 structures, batches of 5 structures"
    own = "24 steps, 6 epochs of 13 structures, batches of 4 structures"
    assert stages["3-networks/replay/finetune"].work == own
    assert stages["3-networks/zbl/dynamics"].work == "12 steps of 3 structures"


def test_what_is_done_is_not_counted(config, caplog):
    with caplog.at_level(logging.INFO, logger="mdl_physpre"):
        run(config, out="runs/cu")
    said = [record.getMessage() for record in caplog.records]
    (told,) = [k for k, text in enumerate(said) if "together about" in text]
    assert told < next(k for k, text in enumerate(said) if text.startswith("training, baseline"))
    assert estimate_run(config).stages == () and format_estimate(estimate_run(config)) == "every stage is done"
    more = estimate_run(config, ["physpre.n_networks=3", "physpre.arms=[baseline]", "physpre.stress.tests=[heating]"])
    assert [(one.stage, one.networks) for one in more.stages] == [
        ("3-networks/baseline/finetune", 2), ("3-networks/baseline/errors", 2), ("3-networks/baseline/dynamics", 2),
        ("3-networks/baseline/stress", 3),
    ]  # fmt: skip
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="mdl_physpre"):
        run(config, out="runs/cu")
    assert "together about" not in caplog.text


def test_the_command(config, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    found = CliRunner().invoke(app, ["run", str(config), "--dry-run", EMT, "task.processes=2"])
    assert found.exit_code == 0 and sorted(tmp_path.rglob("*")) == before
    lines = found.output.splitlines()
    (labels,) = [line for line in lines if line.startswith("2-pretraining-set")]
    assert labels.split()[-2:] == ["–", "–"], "another program is not called beforehand"
    assert "with 2 processes, and 2 stages of which nothing is known beforehand" in lines[-1]


def test_hot_frames_are_counted_and_not_timed(config):
    found = {
        one.stage: one for one in estimate_run(config, ["physpre.hot_frames.n=2", "physpre.arms=[pretrain]"]).stages
    }
    assert found["2-pretraining-set"].work == "labels of 85 structures" and found["2-pretraining-set"].seconds is None
    assert "of 65 structures" in found["3-networks/pretrain/pretrain"].work


def test_the_fit_of_a_teacher_is_tried(config):
    changed = ["physpre.teacher={fit: angular_eam}", "physpre.arms=[hybrid]"]
    found = {one.stage: one for one in estimate_run(config, changed).stages}
    assert found["1-teacher"].work == "fit to 13 structures" and found["1-teacher"].seconds > 0
    assert found["3-networks/hybrid/finetune"].seconds > 0 and "1-eam" not in found


def test_seconds_are_shared_out_among_processes():
    stages = (StageEstimate(stage="1-eam", work="", seconds=10.0),
              StageEstimate(stage="3-networks/baseline/finetune", work="", networks=4, seconds=100.0),
              StageEstimate(stage="3-networks/baseline/stress", work="", networks=4))  # fmt: skip
    assert RunEstimate(stages=stages, processes=2).seconds == 210.0


def test_a_trial_that_fails_stops_nothing(config, monkeypatch):
    def broken(*_):
        raise ValueError("no")

    monkeypatch.setattr(estimated_stages.trials, "training_cost", broken)
    found = {one.stage: one.seconds for one in estimate_run(config).stages}
    assert found["3-networks/baseline/finetune"] is None and found["1-eam"] is not None
    assert run(config).arms["baseline"].networks

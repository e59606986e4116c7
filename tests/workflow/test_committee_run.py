"""A run with several networks of an arm: they are a committee, in its summary, its report, and by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ase.io import read

from mdl_physpre import load_potential, open_potential, read_structures, run
from mdl_physpre.analysis import committee_errors
from mdl_physpre.analysis.calibration import CommitteeErrors
from mdl_physpre.potentials import Committee
from mdl_physpre.runs.read import read_run, read_summary
from tests.helpers.small_runs import called

WORK = [
    "physpre.arms=[baseline]", "physpre.n_networks=2", "physpre.dynamics.n_structures=0", "optim.max_epochs=3",
    "physpre.report.formats=[html,csv,png]",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, run(config, WORK, out=folder)


def test_what_the_networks_are_together_is_computed_once(finished, config):
    folder, summary = finished
    (found,) = summary.arms["baseline"].committee.values()
    assert isinstance(found, CommitteeErrors) and found.forces.n == 4 * 8 and found.energy.n == 4
    errors = [network.errors["test"].forces_rmse for network in summary.arms["baseline"].networks]
    assert found.errors.forces_rmse <= np.sqrt(np.mean(np.square(errors)))  # of the mean: Jensen
    stored = (folder / "3-networks/baseline/committee/done.json").stat().st_mtime_ns
    assert read_summary(folder) == run(config, WORK, out=folder) == summary
    assert (folder / "3-networks/baseline/committee/done.json").stat().st_mtime_ns == stored
    (folder / "summary.json").rename(folder / "summary.kept")
    assert read_run(folder).summary.arms["baseline"].committee == {"test": found}
    (folder / "summary.kept").rename(folder / "summary.json")


def test_the_report_shows_it(finished):
    folder, summary = finished
    page = (folder / "report.html").read_text()
    assert "What the spread between networks says of their error" in page and "could not be drawn" not in page
    found = summary.arms["baseline"].committee["test"]
    assert f"{found.forces.factor:.3g}" in page
    rows = (folder / "report/committee.csv").read_text().splitlines()
    assert len(rows) == 1 + 1 + len(found.forces.counts) + 1 + len(found.energy.counts)
    assert (folder / "report/calibration.svg").stat().st_size > 5000


def test_commands_take_the_arm(finished, data, tmp_path):
    folder, _ = finished
    committee = open_potential(f"{folder}/baseline")
    assert isinstance(committee, Committee) and len(committee.potentials) == 2
    told = called("evaluate", folder / "baseline", data, "--json", tmp_path / "errors.json")
    found = committee_errors(load_potential(folder / "baseline"), read_structures(data))
    assert "rank correlation" in told and f"{found.forces.factor:.3g}" in told
    stored = CommitteeErrors.model_validate(json.loads((tmp_path / "errors.json").read_text()))
    assert stored.forces.n == found.forces.n == 24 * 8
    assert "rank correlation" not in called("evaluate", folder / "3-networks/baseline/finetune/best.pt", data)
    out = tmp_path / "md"
    options = ("--steps", 10, "--n-structures", 2, "--trajectory-interval", 5, "--out", out)
    told = called("md", folder / "baseline", data, "max_force_spread=100.0", *options)
    assert "force spread, eV/Å" in told
    verdicts = json.loads((out / "verdicts.json").read_text())["verdicts"]
    assert [v["checks"]["uncertain"] for v in verdicts] == ["passed"] * 2
    assert all(v["metrics"]["max_force_spread"] > 0 for v in verdicts)
    assert read(out / "trajectories/00001.extxyz", -1).arrays["force_spread"].shape == (8,)
    called("label", data, tmp_path / "labelled.extxyz", "--teacher", folder / "baseline")
    assert len(read_structures(tmp_path / "labelled.extxyz")) == 24

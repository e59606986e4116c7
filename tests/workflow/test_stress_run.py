"""The stage of stress tests: added to a finished run it is all that is done, and it is read where a run is read."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ase.build import bulk
from typer.testing import CliRunner

from mdl_physpre import label, write_structures
from mdl_physpre.cli.main import app
from mdl_physpre.report.status import run_status
from mdl_physpre.runs.layout import plan_of
from mdl_physpre.runs.read import read_run, read_summary
from mdl_physpre.runs.summary import NetworkResult
from mdl_physpre.stress_tests import StressResult
from mdl_physpre.workflow.config.file import load_config
from mdl_physpre.workflow.run import run
from mdl_physpre.workflow.stages.stress import of_network
from tests.helpers.pair_potentials import Morse

CONFIG = """
dataset: {{src: {data}, split: {{test: 4, val: 4}}}}
model: {{name: CGCNN, cutoff: 4.0, dim1: 8, dim2: 8, gc_count: 1, post_fc_count: 1, edge_dim: 8}}
optim: {{max_epochs: 2, lr: 1.0e-3, batch_size: 4}}
physpre:
  arms: [baseline]
  n_networks: 2
  dynamics: {{n_structures: 0}}
  report: {{formats: []}}
"""

HEAT = [
    "physpre.stress.tests=[heating]", "physpre.stress.n_structures=2", "physpre.stress.min_atoms=16",
    "physpre.stress.heating.temperature_end=600", "physpre.stress.heating.rate=2e4",
]  # fmt: skip


def times(folder) -> dict[str, int]:
    return {p.parent.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("done.json")}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("config"), np.random.default_rng(0)
    structures = [bulk("Cu", "fcc", a=3.5 * rng.uniform(0.98, 1.03), cubic=True) for _ in range(20)]
    for atoms in structures:
        atoms.positions += rng.normal(0, 0.08, atoms.positions.shape)
    write_structures(folder / "cu.extxyz", label(structures, Morse(), progress=False))
    (folder / "small.yml").write_text(CONFIG.format(data=folder / "cu.extxyz"))
    return folder / "small.yml"


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A run without stress tests, and what of it was done when."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert all(not n.stress for n in run(config, out=folder).arms["baseline"].networks)
    return folder, times(folder)


def test_added_later_it_is_all_that_is_done(finished, config):
    folder, before = finished
    summary = run(config, HEAT, out=folder)
    after, new = times(folder), {f"3-networks/baseline{n}/stress/heating" for n in ("", "-2")}
    assert after.keys() - before.keys() == new and {k: after[k] for k in before} == before
    assert summary == read_summary(folder)
    first, second = (n.stress["heating"] for n in summary.arms["baseline"].networks)
    assert isinstance(first, StressResult) and (first.unit, len(first.points)) == ("K", 2)
    assert first.settings["seed"] != second.settings["seed"] and {p.n_atoms for p in first.points} == {16}
    assert [p.structure_id for p in first.points] == [p.structure_id for p in second.points]
    assert (folder / "3-networks" / "baseline" / "stress" / "heating" / "verdicts.json").is_file()
    run(config, [*HEAT, "physpre.stress.heating.seed=5"], out=folder, overwrite=True)
    assert {k for k, t in times(folder).items() if t != after.get(k)} == new
    assert read_summary(folder).arms["baseline"].networks[0].stress["heating"].settings["seed"] == 5


def test_an_oracle_along_stress_tests(finished, config):
    folder, _ = finished
    by = [
        *HEAT, "physpre.stress.tests=[heating,compression]", "physpre.stress.compression.volume_step=0.2",
        "physpre.stress.compression.steps=5", "physpre.stress.compression.start_steps=5",
        "physpre.stress.oracle=calculator:ase.calculators.emt.EMT", "physpre.stress.oracle_frames=5",
    ]  # fmt: skip
    summary = run(config, [*by, "physpre.report.formats=[html,csv]"], out=folder, overwrite=True)
    for network in summary.arms["baseline"].networks:
        found = network.stress["heating"].oracle
        assert found.wrong.n == 2 and found.means.frames > 0 and found.rows == ()
        stored = folder / "3-networks" / network.name / "stress" / "heating" / "oracle_errors.json"
        assert json.loads(stored.read_text())["rows"][-1]["thermostat"] <= 600
        pressed = network.stress["compression"].oracle
        assert (pressed.quantity, pressed.unit, pressed.wrong.n) == ("pressure", "GPa", 2) and pressed.means.frames > 0
    for test, unit in (("heating", "K"), ("compression", "GPa")):
        assert f"Errors along the stress test {test}" in (folder / "report.html").read_text()
        assert f"from_{unit}" in (folder / "report" / f"oracle-errors-{test}.csv").read_text()
    assert summary == read_summary(folder)
    after = times(folder)
    run(config, by, out=folder)
    assert times(folder) == after
    assert run(config, HEAT, out=folder, overwrite=True).arms["baseline"].networks[0].stress["heating"].oracle is None


def test_what_is_missing_is_said(finished, config):
    folder, _ = finished
    run(config, HEAT, out=folder)
    (folder / "3-networks" / "baseline-2" / "stress" / "heating" / "done.json").unlink()
    (folder / "summary.json").unlink()
    assert read_run(folder).missing == ["baseline: stress test heating is not finished (1 of 2 networks)"]
    stages = {one.stage: one for one in run_status(folder).stages}
    assert stages["3-networks/baseline/stress/heating"].state == "done"
    unfinished = stages["3-networks/baseline-2/stress/heating"]
    assert unfinished.state == "stopped" and unfinished.left is not None
    shown = CliRunner().invoke(app, ["status", str(folder)])
    assert "3-networks/baseline-2/stress/heating" in shown.output
    run(config, HEAT, out=folder)
    assert not read_run(folder).missing


def test_runs_and_summaries_of_before_are_read(finished, config):
    content = load_config(config).model_dump(mode="json")
    del content["physpre"]["stress"]
    assert plan_of(content).stress == ()
    network = read_run(finished[0]).summary.arms["baseline"].networks[0].plain()
    del network["stress"]
    assert NetworkResult.model_validate(json.loads(json.dumps(network))).stress == {}


def test_settings_of_a_network(config):
    chosen = load_config(config, HEAT).physpre.stress.chosen()["heating"]
    assert (of_network(chosen, 7, True).seed, of_network(chosen, 7, True).compile) == (7, True)
    given = load_config(config, [*HEAT, "physpre.stress.heating.seed=3"]).physpre.stress.chosen()["heating"]
    assert of_network(given, 7, False).seed == 3

"""Longer trainings go on from their last epoch, and networks that are trained already are trained further."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mdl_physpre import load_potential, save_potential
from mdl_physpre.errors import ConfigError
from mdl_physpre.hosts.matdeeplearn.settings import engine_config
from mdl_physpre.potentials import CGCNN
from mdl_physpre.runs.stage import Stage
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.structures.read import read_structures
from mdl_physpre.training.energy_zero import energy_errors
from mdl_physpre.utils.overwrite import WouldDelete
from mdl_physpre.workflow.config.file import load_config
from mdl_physpre.workflow.run import run
from tests.helpers.small_runs import write_oxide
from tests.helpers.without_times import without_times

CHECKPOINTS = Path(__file__).parents[1] / "data"
CONFIG = """
dataset: {{src: {data}, split: {{test: 3, val: 3}}}}
model: {{name: CGCNN, cutoff: 4.0, dim1: 8, dim2: 8, gc_count: 1, post_fc_count: 1, edge_dim: 8}}
optim: {{max_epochs: 3, lr: 1.0e-3, batch_size: 4, ema_decay: 0.9}}
physpre:
  eam: {{cutoff: 5.0, n_basis: 2, epochs: 3}}
  perturbation: {{n_aug: 1, n_pairs: 1}}
  pretrain: {{max_epochs: 2}}
  dynamics: {{n_structures: 0}}
  report: {{formats: []}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_oxide(folder / "mgo.extxyz", 14)
    (folder / "small.yml").write_text(CONFIG.format(data=folder / "mgo.extxyz"))
    return folder / "small.yml"


def log(folder, arm, stage="finetune"):
    with open(folder / "3-networks" / arm / stage / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_more_epochs_go_on_and_give_what_a_whole_run_gives(finished, config, tmp_path):
    folder = tmp_path / "longer"
    shutil.copytree(finished[0], folder)
    before = {arm: log(folder, arm) for arm in ("baseline", "pretrain")}
    longer = run(config, ["optim.max_epochs=5"], out=folder)
    whole = run(config, ["optim.max_epochs=5"], out=tmp_path / "whole")
    for arm, rows in before.items():
        assert log(folder, arm)[:3] == rows, "not done again: the times are the same"
        assert without_times(log(folder, arm)) == without_times(log(tmp_path / "whole", arm))
        assert longer.arms[arm].errors == whole.arms[arm].errors
        assert longer.arms[arm].errors["test"] != finished[1].arms[arm].errors["test"]
    run(config, ["optim.max_epochs=4"], out=folder, overwrite=True)
    assert len(log(folder, "baseline")) == 4, "fewer epochs begin anew"
    assert log(folder, "baseline")[:3] != before["baseline"]


def test_a_rate_that_depends_on_the_length_begins_anew(config, tmp_path):
    only = ["optim.schedule=cosine", "physpre.arms=[baseline]"]
    run(config, only, out=tmp_path / "run")
    before = log(tmp_path / "run", "baseline")
    with pytest.raises(WouldDelete, match="finetune.max_epochs: 3 there, 4 here"):
        run(config, [*only, "optim.max_epochs=4"], out=tmp_path / "run")
    run(config, [*only, "optim.max_epochs=4"], out=tmp_path / "run", overwrite=True)
    after = log(tmp_path / "run", "baseline")
    assert len(after) == 4 and float(after[2]["lr"]) > float(before[2]["lr"])


def test_a_stage_goes_on_only_where_nothing_else_differs(tmp_path):
    def begun(**depends):
        stage = Stage(tmp_path / "1", depends, grows=("how.n",), free=True)
        stage.begin()
        kept = (stage.folder / "half").exists()
        (stage.folder / "half").write_text("")
        return kept

    assert not begun(a=1, how={"n": 2})
    assert begun(a=1, how={"n": 2}) and begun(a=1, how={"n": 5}) and begun(a=1, how={"n": 6})
    assert not begun(a=1, how={"n": 4})
    assert not begun(a=2, how={"n": 9})
    assert not begun(a=2, how={"n": 10, "m": 1})


def start(config, tmp_path, file, *overrides, model=None):
    raw = yaml.safe_load(config.read_text())
    raw["model"] = {"start_from": str(file), **(model or {})}
    path = tmp_path / "start.yml"
    path.write_text(yaml.safe_dump(raw))
    return load_config(path, overrides)


def test_both_stages_start_from_a_trained_network(finished, config, tmp_path):
    file = finished[0] / "3-networks" / "baseline" / "finetune" / "best.pt"
    shutil.copy(file, tmp_path / "start.pt")
    given = start(config, tmp_path, "start.pt", "optim.lr=1e-7", "physpre.pretrain.lr=1e-7", model={"dim1": 8})
    assert (given.model.name, given.model.cutoff) == ("CGCNN", 4.0) and Path(given.model.start_from).is_absolute()
    summary = run(given, out=tmp_path / "run")
    for arm in ("baseline", "pretrain"):  # at such a rate nothing moves
        assert summary.arms[arm].errors["test"].forces_mae == pytest.approx(
            finished[1].arms["baseline"].errors["test"].forces_mae, rel=1e-2
        )
    written = load_config(tmp_path / "run" / "config.yml")
    assert written.model == given.model
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("done.json")}
    run(given, out=tmp_path / "run")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("done.json")} == done
    torch.manual_seed(5)
    save_potential(tmp_path / "start.pt", CGCNN(["Mg", "O"], 4.0, dim1=8, dim2=8, gc_count=1))
    run(given, out=tmp_path / "run", overwrite=True)
    moved = [path for path in done if path.stat().st_mtime_ns != done[path]]
    assert len([path for path in moved if path.parent.name in ("baseline", "pretrain")]) == 2, "another file"


def test_a_network_of_another_program_with_another_zero_of_energy(config, tmp_path):
    given = start(
        config, tmp_path, CHECKPOINTS / "mattersim" / "m3gnet.pth", "physpre.arms=[baseline]", "optim.lr=1e-7"
    )
    assert given.model.name == "M3GNet"
    run(given, out=tmp_path / "run")
    trained = load_potential(tmp_path / "run" / "3-networks" / "baseline" / "finetune" / "best.pt")
    graphs = GraphDataset(read_structures(given.dataset.src), trained.cutoff)
    first = load_potential(given.model.start_from)
    before, after = (np.abs(energy_errors(p, graphs)).mean() for p in (first, trained))
    assert after < 0.5 * before


def test_what_does_not_fit_is_said_before_anything_is_trained(finished, config, tmp_path):
    torch.manual_seed(0)
    save_potential(tmp_path / "mg.pt", CGCNN(["Mg", "Si"], 4.0, dim1=8, dim2=8, gc_count=1))
    with pytest.raises(ConfigError, match=r"model\.start_from: .*mg\.pt knows Mg, Si; the data hold O, too"):
        run(start(config, tmp_path, tmp_path / "mg.pt"), out=tmp_path / "run")
    assert not (tmp_path / "run" / "1-eam").exists()
    for model, words in (
        (
            {"cutoff": 5.0},
            r"model\.cutoff is 5\.0, and in .*mg\.pt \(model\.start_from\) it is 4\.0; leave the key out",
        ),
        ({"name": "M3GNet"}, r"model\.name is 'M3GNet', and in .* it is 'CGCNN'"),
        ({"units": 8}, r"model\.units is 8, and in .* there is no such key"),
    ):
        with pytest.raises(ConfigError, match=words):
            start(config, tmp_path, tmp_path / "mg.pt", model=model)
    with pytest.raises(ConfigError, match=r"start_from: .*none\.pt: no such file"):
        start(config, tmp_path, tmp_path / "none.pt")
    with pytest.raises(ConfigError, match="arms: 'hybrid': hybrid adds energies"):
        start(config, tmp_path, tmp_path / "mg.pt", "physpre.arms=[baseline, hybrid]")
    with pytest.raises(ConfigError, match=r"model\.start_from: is for physpre run"):
        engine_config(yaml.safe_load((tmp_path / "start.yml").read_text()))


def test_a_recipe_leaves_the_network_of_a_file_alone(tmp_path):
    torch.manual_seed(0)
    save_potential(tmp_path / "mg.pt", CGCNN(["Mg", "O"], 4.0, dim1=8, dim2=8, gc_count=1))
    (tmp_path / "a.yml").write_text("recipe: default\ndataset: {src: a.xyz}\nmodel: {start_from: mg.pt}\n")
    config = load_config(tmp_path / "a.yml")
    assert config.model.name == "CGCNN" and config.model.hyperparameters == {} and config.optim.ema_decay == 0.99

"""The command mattertune with the real MatterTune."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.adapters.ase_calculator import PotentialCalculator
from mdl_physpre.potentials.backbones.m3gnet.network import M3GNet
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.checkpoints.mattersim import read_mattersim_checkpoint
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.potentials.energy_reference import fit_energy_reference
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.open import open_potential
from mdl_physpre.structures.graph import build_graph
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.structures.read import read_structures
from tests.helpers.mattertune_cases import (
    MATTERSIM,
    PROPERTIES,
    ROOT,
    SMALL,
    assert_same,
    calculated,
    configuration,
    crystal,
    model,
    model_section,
    needs_host,
    saved,
    trained,
    write_data,
    written,
)

pytestmark = needs_host


@pytest.fixture
def data_file(tmp_path) -> Path:
    return write_data(tmp_path)


# --- the command


FIT = {"epochs": 20, "n_basis": 3, "cutoff": 4.0}


def test_two_stages_by_the_command(data_file, tmp_path, monkeypatch):
    from mdl_physpre.hosts.mattertune.checkpoints import load_host_model
    from mdl_physpre.hosts.mattertune.run import finetune

    content = configuration(data_file)
    content["physpre"] = {
        "eam": FIT, "perturbation": {"n_aug": 2}, "pretrain": {"max_epochs": 3, "lr": 2e-3, "batch_size": 4},
    }  # fmt: skip
    path, out = written(tmp_path, content), tmp_path / "run"
    start = finetune(path, out=out, pretrain_only=True)
    assert start == (out / "3-pretrain" / "best.ckpt").absolute()
    assert not (out / "4-finetune").exists()
    times = {
        p: p.stat().st_mtime_ns for p in out.rglob("*.*") if p.name not in ("stage.json", ".lock", "prepared.json")
    }
    best = finetune(path, out=out)
    assert {p: p.stat().st_mtime_ns for p in times} == times  # what was done is not done again
    host, ours = load_host_model(best), open_potential(best)
    own = load_potential(out / "4-finetune" / "potential.pt")
    assert own.training_energies is not None and "O2Si" in own.training_energies.compositions
    for atoms in (crystal(8), crystal(9, 3)):
        expected = calculated(atoms, host.ase_calculator())
        assert_same(expected, calculated(atoms, PotentialCalculator(ours)))
        assert_same(expected, calculated(atoms, PotentialCalculator(own)))
    made = read_structures(out / "2-pretraining-set" / "train.extxyz")
    eam = load_potential(out / "1-eam" / "eam.pt")
    assert len(made) == 12
    labels = evaluate(eam, build_graph(made, eam.cutoff, dtype=torch.float32)).energies.numpy()
    assert np.allclose([get_labels(a).energy for a in made], labels, rtol=1e-5)
    # both stages have the settings that the configuration gives them
    settings = {s: yaml.safe_load((out / s / "config.yml").read_text()) for s in ("3-pretrain", "4-finetune")}
    assert settings["3-pretrain"]["trainer"]["max_epochs"] == 3 and settings["3-pretrain"]["data"]["batch_size"] == 4
    assert settings["3-pretrain"]["model"]["optimizer"]["lr"] == 2e-3
    assert settings["4-finetune"]["trainer"]["max_epochs"] == 2
    assert settings["4-finetune"]["model"]["optimizer"]["lr"] == 1e-3
    # finetuning starts with the pretrained weights: with no step taken, they are what it has
    content["model"]["optimizer"]["lr"] = 1e-30
    content["model"]["optimizer"]["weight_decay"] = 0.0
    content["physpre"]["pretrain"]["lr"] = 2e-3
    second = finetune(written(tmp_path, content), out=tmp_path / "still")
    before = open_potential(tmp_path / "still" / "3-pretrain" / "best.ckpt").state_dict()
    after = open_potential(second).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_hosts_own_backbone_in_two_stages(data_file, tmp_path, monkeypatch):
    pytest.importorskip("mattersim.forcefield.potential", reason="mattersim is not installed")
    from mdl_physpre.hosts.mattertune.checkpoints import load_host_model
    from mdl_physpre.hosts.mattertune.run import finetune

    weights = tmp_path / ".local" / "mattersim" / "pretrained_models" / "mattersim-v1.0.0-1M.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(MATTERSIM.read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    content = configuration(data_file)
    content["model"] = {
        "name": "mattersim", "pretrained_model": "MatterSim-v1.0.0-1M", "reset_output_heads": False,
        "graph_convertor": {"twobody_cutoff": 5.0, "has_threebody": True, "threebody_cutoff": 4.0},
        "properties": PROPERTIES, "optimizer": {"name": "AdamW", "lr": 1e-3},
    }  # fmt: skip
    content["trainer"]["max_epochs"] = 1
    content["physpre"] = {"eam": FIT, "perturbation": {"n_aug": 1}, "pretrain": {"max_epochs": 1}}
    best = finetune(written(tmp_path, content), out=tmp_path / "run")
    start, end = (open_potential(tmp_path / "run" / stage / "best.ckpt") for stage in ("3-pretrain", "4-finetune"))
    name = "graph_conv.0.gated_mlp_atom.g.0.linear.weight"
    published = read_mattersim_checkpoint(MATTERSIM).state_dict()[name]
    moved = [float((p.state_dict()[name] - published).abs().max()) for p in (start, end)]
    assert 0 < moved[0] < 0.01 and 0 < moved[1] < 0.02 and moved[0] != moved[1]
    # in both stages the zero of energy is that of the data, 20 eV below the published network's
    for potential in (start, end):
        off = [
            calculated(a, PotentialCalculator(potential))["energy"] - get_labels(a).energy
            for a in read_structures(data_file)
        ]
        assert np.mean(np.abs(off)) < 2.0, off
    host = load_host_model(best)
    expected = calculated(crystal(8), host.ase_calculator())
    assert_same(expected, calculated(crystal(8), PotentialCalculator(end)), rtol=1e-4)


def test_a_stopped_training_goes_on_after_its_last_epoch(data_file, tmp_path, monkeypatch):
    from mattertune.finetune.base import FinetuneModuleBase

    from mdl_physpre.hosts.mattertune.run import finetune

    content, begun = configuration(data_file), []
    content["trainer"]["max_epochs"] = 4
    path, out = written(tmp_path, content), tmp_path / "run"

    def begin(self):
        begun.append((self.current_epoch, len(self.optimizers().state)))
        if len(begun) == 3:
            raise RuntimeError("the power fails")

    monkeypatch.setattr(FinetuneModuleBase, "on_train_epoch_start", begin, raising=False)
    with pytest.raises(RuntimeError, match="the power fails"):
        finetune(path, out=out)
    stage = out / "4-finetune"
    assert (stage / "last.ckpt").is_file() and not (stage / "done.json").exists()
    best = finetune(path, out=out)
    assert [epoch for epoch, _ in begun] == [0, 1, 2, 2, 3] and begun[3][1] == begun[2][1] > 0  # the optimiser's state
    assert best.is_file() and not (stage / "last.ckpt").exists()
    rows = [len((stage / "log" / f"metrics{k}.csv").read_text().splitlines()) for k in ("-until-1", "")]
    assert min(rows) > 2


def test_without_pretraining_and_the_file_of_a_stage_alone(data_file, tmp_path):
    from mdl_physpre.hosts.mattertune.run import finetune

    content = configuration(data_file)
    content["physpre"] = {"pretrain": None, "seed": 3}
    best = finetune(written(tmp_path, content), out=tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir() if p.is_dir()) == ["4-finetune"]
    stage = yaml.safe_load((tmp_path / "run" / "4-finetune" / "config.yml").read_text())
    expected = fit_energy_reference(read_structures(data_file)).as_dict()
    assert stage["model"]["energy_reference"] == pytest.approx(expected)
    _, path = trained(stage, tmp_path / "host")  # the host alone takes the file as it is
    assert open_potential(path).hyperparameters() == open_potential(best).hyperparameters()
    plain = configuration(data_file)  # no section physpre: nothing is put into the network
    plain["trainer"]["checkpoint"] = {"filename": "mine", "save_last": True}
    finetune(written(tmp_path, plain), out=tmp_path / "plain")
    assert (tmp_path / "plain" / "4-finetune" / "mine.ckpt").is_file()
    stage = yaml.safe_load((tmp_path / "plain" / "4-finetune" / "config.yml").read_text())
    assert "energy_reference" not in stage["model"]
    with pytest.raises(ConfigError, match="nothing to pretrain"):
        finetune(written(tmp_path, content), out=tmp_path / "none", pretrain_only=True)


@pytest.mark.parametrize("where", ["recipes", "trainer"])
def test_averaged_weights_are_saved(data_file, tmp_path, where):
    """With a decay of 1 the averages stay the first weights, those of the checkpoint that training starts from."""
    from mdl_physpre.hosts.mattertune.run import finetune

    start = save_potential(tmp_path / "start.pt", M3GNet(["O", "Si"], **SMALL))
    content = configuration(data_file, model=model_section(checkpoint=str(start)))
    if where == "recipes":
        content["recipes"] = [{"name": "ema", "decay": 1.0}]
    else:
        content["trainer"]["ema"] = {"decay": 1.0}
    best = finetune(written(tmp_path, content), out=tmp_path / "run")
    before, after = load_potential(start).state_dict(), open_potential(best).state_dict()
    assert all(torch.allclose(before[n], after[n], atol=1e-6) for n in before if "reference" not in n)
    content["recipes"], content["trainer"]["ema"] = (
        [{"name": "ema", "decay": 1.0, "validate_original_weights": True}],
        None,
    )
    raw = open_potential(finetune(written(tmp_path, content), out=tmp_path / "raw")).state_dict()
    assert not all(torch.allclose(before[n], raw[n], atol=1e-6) for n in before if "reference" not in n)


def test_command_gives_way_to_the_hosts_own(monkeypatch):
    from mdl_physpre.hosts.mattertune import cli

    class Point:
        value = "mattertune.cli:main"

        def load(self):
            return lambda: called.append("host")

    called: list[str] = []
    monkeypatch.setattr(cli, "entry_points", lambda **_: [Point()])
    cli.main()
    assert called == ["host"]


def test_energy_reference_of_a_checkpoint_is_what_it_leaves(data_file, tmp_path):
    from mdl_physpre.hosts.mattertune.config_file import validated
    from mdl_physpre.hosts.mattertune.energies import with_energy_reference

    structures = read_structures(data_file)
    torch.manual_seed(7)
    potential = M3GNet(["O", "Si"], **SMALL)  # the one that made the labels, but for 20 eV for each structure
    raw = configuration(data_file, model=model_section(checkpoint=str(save_potential(tmp_path / "p.pt", potential))))
    found = with_energy_reference(raw, validated(raw, "c.yml"), structures)["model"]["energy_reference"]
    assert 4 * found[8] + 2 * found[14] == pytest.approx(-20.0, abs=1e-4)
    scaled = {**raw, "model": {**raw["model"], "normalizers": {"energy": [{"mean": 0.0, "std": 2.0}]}}}
    assert with_energy_reference(scaled, validated(scaled, "c.yml"), structures) is scaled


def test_finetuning_begins_with_the_energies_of_the_elements(data_file, tmp_path, caplog):
    """Those of the data in the network, or the host's per_atom_references; without either it is said."""
    from mdl_physpre.hosts.mattertune.run import finetune

    def first_error(name, **sections):
        content = configuration(data_file, **sections)
        content["trainer"]["max_epochs"] = 1
        content["model"]["optimizer"] = {"name": "AdamW", "lr": 1e-12}
        finetune(written(tmp_path, content), out=tmp_path / name)
        rows = (tmp_path / name / "4-finetune" / "log" / "metrics.csv").read_text().splitlines()
        column = rows[0].split(",").index("val/energy_mae")
        return next(float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column])

    fitted = fit_energy_reference(read_structures(data_file)).as_dict()
    reference = {
        "energy": [{"per_atom_references": {int(z): e for z, e in fitted.items()}}, {"only_for_target": False}]
    }
    none = first_error("none")
    assert "physpre: {pretrain: null} fits them" in caplog.text
    caplog.clear()
    assert first_error("network", physpre={"pretrain": None}) < none / 5
    assert first_error("normalizer", model=model_section(normalizers=reference)) < none / 5
    assert "fits them" not in caplog.text


def test_wrong_keys_of_the_host_are_named(data_file, tmp_path):
    from mdl_physpre.hosts.mattertune.run import finetune

    content = configuration(data_file)
    content["model"]["unit"] = 16
    content["trainer"]["epochs"] = 3
    with pytest.raises(ConfigError) as error:
        finetune(written(tmp_path, content), out=tmp_path / "run")
    assert "model.unit: unknown key" in str(error.value) and "trainer.epochs: unknown key" in str(error.value)
    content = configuration(data_file)
    content["model"]["name"] = "physpre-m3gnett"
    with pytest.raises(ConfigError, match="physpre-m3gnett"):
        finetune(written(tmp_path, content), out=tmp_path / "run")


def test_predict_by_the_command(data_file, tmp_path):
    path = saved(model(), tmp_path / "m.ckpt")
    target = tmp_path / "predicted.extxyz"
    found = subprocess.run(
        [sys.executable, "-m", "mdl_physpre.hosts.mattertune.cli", "predict", str(path), str(data_file), str(target)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    potential = open_potential(path)
    differences = []
    for atoms, predicted in zip(read_structures(data_file), read_structures(target)):
        expected, labels = calculated(atoms, PotentialCalculator(potential)), get_labels(predicted)
        assert labels.energy == pytest.approx(expected["energy"], rel=1e-6)
        assert np.allclose(labels.forces, expected["forces"], atol=1e-6)
        differences.append(abs(get_labels(atoms).energy - labels.energy) / len(atoms))
    titles, values = (re.split(r"  +", line.strip()) for line in found.stdout.splitlines()[:2])
    told = dict(zip(["name", *titles], values, strict=True))
    assert float(told["E, meV/atom"]) == pytest.approx(1000 * np.mean(differences), rel=1e-3)
    assert float(told["F, eV/Å"]) > 0 and float(told["S, eV/Å³"]) > 0


@pytest.mark.parametrize("name", ["li_mn_o", "li_mn_o_pretrain"])
def test_configurations_run(name, tmp_path):
    if not os.environ.get("PHYSPRE_DATA"):
        pytest.skip("PHYSPRE_DATA is not set")
    from mdl_physpre.hosts.mattertune.run import finetune

    overrides = ["trainer.max_epochs=1", "model.units=8", "model.num_blocks=1", "trainer.accelerator=cpu",
                 "data.train.fraction=0.03", "data.validation.fraction=0.1"]  # fmt: skip
    if name.endswith("pretrain"):
        overrides += ["physpre.pretrain.max_epochs=1", "physpre.perturbation.n_aug=1", "physpre.eam.epochs=10"]
    best = finetune(ROOT / "configs" / "mattertune" / f"{name}.yml", overrides, tmp_path / "run")
    assert open_potential(best).elements == (3, 8, 25)

"""Pretraining sets for trainers of other packages: files, keys, units, one zero of energy, and their trainers."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from ase.data import chemical_symbols
from typer.testing import CliRunner

from mdl_physpre.cli.main import app
from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials.energy_reference import fit_energy_reference
from mdl_physpre.structures.labels import get_labels, set_labels
from mdl_physpre.structures.read import read_structures
from mdl_physpre.structures.write import write_structures
from mdl_physpre.workflow.config.file import load_config
from mdl_physpre.workflow.data import load_data
from mdl_physpre.workflow.outside import pretraining_set_for
from tests.helpers.small_cells import crystal

DEMO = Path(__file__).parents[2] / "mdl_physpre" / "demo"
CONFIG = f"""
task: {{seed: 3, threads: 1}}
dataset:
  src: {DEMO}/silica.extxyz.gz
  extra_tests: {{more: more.extxyz}}
  fraction: 0.08
  split: {{test: 4, val: 0.2}}
physpre:
  eam: {{epochs: 3, cutoff: 4.0, n_basis: 2}}
  perturbation: {{n_aug: 1, max_force: 1000}}
"""
PLAIN = ["graph-pes", "nequip", "sevennet", "mattersim"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a run with the files for every trainer, the configuration, and what was said of each."""
    folder = tmp_path_factory.mktemp("outside")
    structures = read_structures(DEMO / "silica_strained.extxyz.gz")[:4]
    write_structures(folder / "more.extxyz", structures)
    config = folder / "silica.yml"
    config.write_text(CONFIG)
    made = {t: pretraining_set_for(t, config, out=folder / "run") for t in ["mace", "deepmd", *PLAIN]}
    return folder, config, made


@pytest.fixture(scope="module")
def expected(run):
    """The sets as the run has them, and E0 by symbol."""
    folder, config, _ = run
    data = load_data(load_config(config, ["model.name=CGCNN"]))
    reference = fit_energy_reference(data.train).as_dict()
    made = folder / "run/2-pretraining-set"
    sets = {
        "pretrain": read_structures(made / "train.extxyz"), "pretrain-val": read_structures(made / "val.extxyz"),
        "train": data.train, "val": data.val, "test": data.test, "test-more": data.extra_tests["more"],
    }  # fmt: skip
    return sets, {chemical_symbols[z]: energy for z, energy in reference.items()}


def assert_same(atoms, wanted, energy, forces, stress):
    labels = get_labels(wanted)
    assert (atoms.numbers == wanted.numbers).all()
    np.testing.assert_allclose(atoms.positions, wanted.positions, atol=1e-8)
    np.testing.assert_allclose(atoms.cell.array, wanted.cell.array, atol=1e-8)
    assert energy == pytest.approx(labels.energy, abs=1e-9)
    np.testing.assert_allclose(forces, labels.forces, atol=1e-7)
    np.testing.assert_allclose(stress, labels.stress, atol=1e-9)


def test_sizes_and_zero_of_energy(run, expected):
    _, _, made = run
    sizes = {name: len(part) for name, part in expected[0].items()}
    for found in made.values():
        assert found.structures == sizes and found.stress
        assert found.energies == pytest.approx(expected[1])
        assert (found.folder / "pretrain.sh").read_text().count("E0 (eV): O ") == 1


@pytest.mark.parametrize("trainer", PLAIN)
def test_files_that_ase_reads(run, expected, trainer):
    for name, wanted in expected[0].items():
        found = ase.io.read(run[2][trainer].folder / f"{name}.extxyz", ":")
        for one, other in zip(found, wanted, strict=True):
            energy, forces = one.get_potential_energy(), one.get_forces()
            assert_same(one, other, energy, forces, one.get_stress(voigt=False))


def test_files_of_mace(run, expected):
    for name, wanted in expected[0].items():
        found = ase.io.read(run[2]["mace"].folder / f"{name}.extxyz", ":")
        for one, other in zip(found, wanted, strict=True):
            assert one.calc is None and not {"energy", "stress"} & set(one.info)
            xx, yy, zz, yz, xz, xy = one.info["REF_stress"]
            stress = [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]
            assert_same(one, other, one.info["REF_energy"], one.arrays["REF_forces"], stress)


def test_folders_of_deepmd(run, expected):
    for name, wanted in expected[0].items():
        found = read_structures(run[2]["deepmd"].folder / name)
        assert len(found) == len(wanted)
        by_energy = {round(get_labels(a).energy, 6): a for a in wanted}
        for one in found:
            labels = get_labels(one)
            other = by_energy[round(labels.energy, 6)]
            assert_same(one, other, labels.energy, labels.forces, labels.stress)


def test_both_trainings_have_one_zero_of_energy(run, expected):
    """The energies of the elements stand in the settings; finetuning begins with what was pretrained."""
    made, energies = run[2], expected[1]
    by_number = {8: energies["O"], 14: energies["Si"]}
    pretrain, finetune = (shlex.split(command.replace("\\\n", "")) for command in made["mace"].commands)
    for words in (pretrain, finetune):
        given = next(word.removeprefix("--E0s=") for word in words if word.startswith("--E0s="))
        assert ast.literal_eval(given) == pytest.approx(by_number)
    assert "--foundation_model=pretrain.model" in finetune
    settings = {
        (t, stage): yaml.safe_load((made[t].folder / f"{stage}.yaml").read_text())
        for t in ("graph-pes", "nequip", "sevennet")
        for stage in ("pretrain", "finetune")
    }
    assert settings["graph-pes", "pretrain"]["model"]["offset"]["+FixedOffset"] == pytest.approx(energies)
    assert settings["graph-pes", "finetune"]["model"] == {
        "+load_model": {"path": "graph-pes-results/pretrain/model.pt"}
    }
    assert settings["graph-pes", "finetune"]["fitting"]["pre_fit_model"] is False
    network = settings["nequip", "pretrain"]["training_module"]["model"]
    assert network["per_type_energy_shifts"] == pytest.approx(energies)
    network = settings["nequip", "finetune"]["training_module"]["model"]
    assert network["_target_"] == "nequip.model.ModelFromCheckpoint"
    for stage in ("pretrain", "finetune"):
        found = settings["sevennet", stage]
        assert dict(zip(found["model"]["chemical_species"], found["data"]["shift"])) == pytest.approx(energies)
        bias = json.loads((made["deepmd"].folder / f"{stage}.json").read_text())["model"]
        assert dict(zip(bias["type_map"], bias["preset_out_bias"]["energy"])) == pytest.approx(energies)
    assert settings["sevennet", "finetune"]["train"]["continue"]["checkpoint"] == "pretrain-run/checkpoint_best.pth"
    assert "--init-model ../pretrain-run/model.ckpt.pt" in made["deepmd"].commands[2]
    assert "--re_normalize" in made["mattersim"].commands[1] and "--no-re_normalize" in made["mattersim"].commands[2]


def test_files_that_a_recipe_names_are_there(run):
    for found in run[2].values():
        text = "".join(p.read_text() for p in found.folder.iterdir() if p.suffix in (".sh", ".yaml"))
        for name in set(re.findall(r"[\w-]+\.extxyz", text)):
            assert (found.folder / name).is_file(), name
        subprocess.run(["sh", "-n", "pretrain.sh"], cwd=found.folder, check=True)


def test_the_command(run):
    folder, config, _ = run
    result = CliRunner().invoke(app, ["pretraining-set", str(config), "--for", "mace", "--out", str(folder / "run")])
    assert isinstance(result.exception, DataError) and "for-mace: exists already" in str(result.exception)
    shutil.rmtree(folder / "run/for-mattersim")
    result = CliRunner().invoke(
        app, ["pretraining-set", str(config), "--for", "mattersim", "--out", str(folder / "run")]
    )
    assert result.exit_code == 0 and "for-mattersim: pretrain (" in result.stdout
    assert "torchrun" in result.stdout


def test_what_is_refused(run, tmp_path):
    folder, config, _ = run
    with pytest.raises(ConfigError, match="unknown trainer 'macee': did you mean .mace"):
        pretraining_set_for("macee", config)
    structures = [set_labels(crystal(k), energy=-10.0 + 0.1 * k, forces=np.zeros((4, 3))) for k in range(8)]
    structures[2] = set_labels(structures[2], energy=-10.0)
    write_structures(tmp_path / "some.extxyz", structures)
    changes = [
        f"dataset.src={tmp_path}/some.extxyz",
        "dataset.extra_tests={}",
        "dataset.fraction=1",
        "dataset.split.val=2",
    ]
    with pytest.raises(DataError, match=r": structure .* has no forces; other trainers need both"):
        pretraining_set_for("mace", config, [*changes, "optim.weight_stress=0"], out=tmp_path / "run")
    assert not list((tmp_path / "run").glob("*mace*"))


def trained(run, tmp_path, trainer: str, program: str, changes: dict[str, str]) -> Path:
    """The folder after the recipe was run, shortened, with a rate of learning of nothing in the second training."""
    pytest.importorskip(program)
    command = {"mace": "mace_run_train", "graph_pes": "graph-pes-train"}[program]
    if shutil.which(command) is None:
        pytest.skip(f"{command} is not on the path")
    folder = tmp_path / trainer
    shutil.copytree(run[2][trainer].folder, folder)
    for path in (*folder.glob("*.sh"), *folder.glob("*.yaml")):
        text = path.read_text()
        for old, new in changes.items():
            text = text.replace(old, new)
        path.write_text(text)
    done = subprocess.run(
        ["sh", "pretrain.sh"], cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def assert_carried(calculators, atoms, first_labels):
    """Finetuning that learns nothing gives the pretrained network; that has learned the sign of the stress."""
    before, after = calculators
    for calculator in (before, after):
        atoms.calc = calculator
    one, other = before.get_potential_energy(atoms), after.get_potential_energy(atoms)
    assert one == pytest.approx(other, abs=1e-4)
    np.testing.assert_allclose(before.get_forces(atoms), after.get_forces(atoms), atol=1e-4)
    labels, predicted = first_labels
    assert np.corrcoef(np.ravel(labels), np.ravel(predicted))[0, 1] > 0.3


def test_finetuning_by_mace_starts_from_the_pretrained_network(run, expected, tmp_path):
    changes = {"num_channels=64": "num_channels=8", "epochs=150": "epochs=1", "epochs=15\n": "epochs=8\n"}
    changes["lr=0.002"] = "lr=1e-12"
    folder = trained(run, tmp_path, "mace", "mace", changes)
    from mace.calculators import MACECalculator

    calculators = [MACECalculator(str(folder / f"{s}.model"), device="cpu") for s in ("pretrain", "finetune")]
    for calculator in calculators:
        energies = calculator.models[0].atomic_energies_fn.atomic_energies.ravel().tolist()
        assert energies == pytest.approx([expected[1]["O"], expected[1]["Si"]])
    assert_carried(calculators, expected[0]["test"][0].copy(), stresses(calculators[0], expected[0]["pretrain"]))


def test_finetuning_by_graph_pes_starts_from_the_pretrained_network(run, expected, tmp_path):
    changes = {"channels: 64": "channels: 8", "epochs: 150": "epochs: 1", "epochs: 15\n": "epochs: 8\n"}
    changes["lr: 0.0005"] = "lr: 1.0e-12"
    folder = trained(run, tmp_path, "graph-pes", "graph_pes", changes)
    from graph_pes.models import load_model

    models = [load_model(folder / f"graph-pes-results/{stage}/model.pt") for stage in ("pretrain", "finetune")]
    calculators = [model.ase_calculator(device="cpu") for model in models]
    assert_carried(calculators, expected[0]["test"][0].copy(), stresses(calculators[0], expected[0]["pretrain"]))


def stresses(calculator, structures):
    labels, predicted = [], []
    for atoms in structures:
        labels.append(get_labels(atoms).stress)
        copy = atoms.copy()
        copy.calc = calculator
        predicted.append(copy.get_stress(voigt=False))
    return labels, predicted

"""What the plugin for MatDeepLearn does before MatDeepLearn is there: messages, checks, data, patches, laziness."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import bulk
from torch_geometric.data import Data
from typer.testing import CliRunner

from mdl_physpre import build_graph, evaluate
from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.hosts.cli import app
from mdl_physpre.hosts.locate import HOSTS, root_of
from mdl_physpre.hosts.matdeeplearn import checks
from mdl_physpre.hosts.matdeeplearn.data import energy_reference, host_items, usable, write_items
from mdl_physpre.hosts.matdeeplearn.job import run_folder
from mdl_physpre.hosts.matdeeplearn.loss import PhyspreLoss
from mdl_physpre.hosts.matdeeplearn.perturb import Perturb, reference_table
from mdl_physpre.hosts.matdeeplearn.plan import labels_of
from mdl_physpre.hosts.matdeeplearn.settings import engine_config, stage_optim
from mdl_physpre.potentials import EAMInteraction
from mdl_physpre.structures import set_labels
from tests.helpers.matdeeplearn_runs import CUTOFF, configuration, crystals

LABELS = ("energy", "forces", "stress")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )


# ---- what is imported, and what a host of another version says


def test_no_host_is_imported_until_a_name_is_used() -> None:
    code = (
        "import sys, mdl_physpre.hosts.matdeeplearn, mdl_physpre.hosts.cli, mdl_physpre.workflow.run\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('matdeeplearn', 'mattertune')]"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_entry_points_name_what_is_there() -> None:
    points = {p.value for group in ("matdeeplearn.plugins", "mdl_physpre.commands") for p in entry_points(group=group)}
    assert {"mdl_physpre.hosts.matdeeplearn.plugin:register", "mdl_physpre.hosts.cli:app"} <= points


def test_without_a_host_one_sentence_says_how_to_get_it(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'matdeeplearn': raise ModuleNotFoundError(name)\n"
        "sys.path = [p for p in sys.path if 'MatDeepLearn' not in p]\n"
        "import mdl_physpre.hosts.locate as l\n"
        "l.find_spec = lambda name: None\n"
        "import mdl_physpre.hosts.matdeeplearn as m\n"
        "try: m.TwoStageTrainer\n"
        "except Exception as e: print(type(e).__name__, e)"
    )
    done = python(code, MATDEEPLEARN_HOME="")
    assert done.stdout.startswith("HostError MatDeepLearn is not installed: git clone https://"), done.stderr


def fake_host(folder: Path, registry: str) -> Path:
    """A checkout with a registry and no more."""
    (folder / "matdeeplearn" / "common").mkdir(parents=True)
    (folder / "matdeeplearn" / "__init__.py").write_text("")
    (folder / "matdeeplearn" / "common" / "__init__.py").write_text("")
    (folder / "matdeeplearn" / "common" / "registry.py").write_text(registry)
    return folder


@pytest.mark.parametrize(
    "registry, lacks",
    [
        (
            "class registry:\n"
            "    def register_model(name): pass\n"
            "    def register_trainer(name): pass\n"
            "    def register_loss(name): pass\n",
            "registry.register_transform, which MatDeepLearn has since 2023-02",
        ),
        ("class registry:\n    def register_model(): pass\n", "argument 'name' of .*register_model"),
        ("import torch_scatter_of_old\n", "needs torch_scatter_of_old, which is not installed"),
        ("", "lacks matdeeplearn.common.registry.registry, which MatDeepLearn has since 2022-10"),
    ],
)
def test_another_version_says_what_it_lacks_and_since_when(registry: str, lacks: str, tmp_path: Path) -> None:
    home = fake_host(tmp_path, registry)
    code = (
        "import re, sys\nfrom mdl_physpre.hosts.matdeeplearn.names import host\n"
        "try: host()\n"
        "except Exception as e: print(type(e).__name__, e)"
    )
    done = python(code, MATDEEPLEARN_HOME=str(home))
    assert done.stdout.startswith("HostError")
    assert re.search(lacks, done.stdout), done.stdout + done.stderr


def test_hosts_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("matdeeplearn") is not None:
        pytest.skip("MatDeepLearn is installed: Python would find there what the old one made up here lacks")
    home = fake_host(tmp_path / "old", "class registry: pass\n")
    monkeypatch.setenv("MATDEEPLEARN_HOME", str(home))
    assert root_of(HOSTS["matdeeplearn"]) == home
    done = python("from mdl_physpre.hosts.cli import app; app()", MATDEEPLEARN_HOME=str(home), MATTERTUNE_HOME="")
    assert done.returncode == 0, done.stderr
    for words in ("MatDeepLearn:", "patch: none for this version", "has 'old' in its path", "tasks is missing",
                  "would not work", "MatterTune"):  # fmt: skip
        assert words in done.stdout, done.stdout
    runner = CliRunner()
    for arguments, words in (
        (["patch", "matdeeplearn"], "no patch here knows"),
        (["patch", "matdeplearn"], "did you mean 'matdeeplearn'"),
    ):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 1 and words in str(result.exception)
    monkeypatch.setenv("MATDEEPLEARN_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="holds no package matdeeplearn"):
        root_of(HOSTS["matdeeplearn"])


# ---- checks


def test_neighbours_that_the_host_would_lose() -> None:
    """Primitive copper at 8 Å: 176 edges; two images along an axis find 104 of them."""
    copper = bulk("Cu", a=3.61) * (1, 1, 1)
    double = copper * (2, 1, 1)
    found = checks.neighbourhood(copper, 8.0)
    assert found.counts.tolist() == [176]
    graph = {"edge_calc_method": "ocp", "num_offsets": 2, "n_neighbors": 250}
    said = checks.about_neighbours([double, copper], 8.0, graph)
    needed = checks.images_needed([copper], 8.0)
    assert len(said) == 1 and "num_offsets is 2" in said[0] and "of its 176 edges" in said[0]
    assert needed == 4 and checks.about_neighbours([copper], 8.0, {**graph, "num_offsets": needed}) == []
    cut = checks.about_neighbours([copper], 8.0, {**graph, "num_offsets": 4, "n_neighbors": 150})
    assert len(cut) == 1 and "have up to 176" in cut[0] and "set it to 176" in cut[0]
    assert "set it to ocp" in checks.about_neighbours([], 8.0, {**graph, "edge_calc_method": "mdl"})[0]


def test_what_is_said_of_structures() -> None:
    good = crystals(1)[0]
    single = set_labels(Atoms("Si", cell=[9, 9, 9], pbc=True), energy=-1.0, forces=np.zeros((1, 3)))
    slab, left, open_one = good.copy(), good.copy(), good.copy()
    slab.pbc = (True, True, False)
    left.set_cell(left.cell.array[[1, 0, 2]])
    open_one.set_cell(np.zeros((3, 3)))
    open_one.pbc = False
    for atoms in (slab, left, open_one):
        atoms.calc = good.calc
    said = "\n".join(checks.about_structures([good, single, slab, left, open_one], LABELS))
    for words in ("1 of 5 structures (1) have one atom", "3 of 5 structures (1, 2, 4) have no stress",
                  "(2) are periodic in", "(3) have a left-handed cell", "(4) have no cell"):  # fmt: skip
        assert words in said
    assert checks.about_structures([good], LABELS) == []
    assert usable([good, single], LABELS) == [good]


def test_what_is_said_of_settings(tmp_path: Path) -> None:
    (tmp_path / "flat.json").write_text(json.dumps([{"stress": [[0.0] * 3] * 3}, {"stress": [[[0.0] * 3] * 3]}]))
    assert "stress of 1 structures has shape (3, 3)" in checks.about_source(str(tmp_path / "flat.json"))[0]
    model: dict[str, Any] = {"name": "CGCNN", "gradient": True, "otf_edge_index": True, "otf_edge_attr": True}
    assert checks.about_model(model) == []
    said = checks.about_model({**model, "pool": "global_mean_pool", "envelope": True, "gradient": False})
    assert [words in text for words, text in zip(("not grow", "envelope", "no forces"), said)] == [True] * 3


# ---- data


def test_items_are_the_same_structures() -> None:
    """Wrapped, right-handed, with the energies of the elements taken off: the same energy, forces and stress."""
    potential = EAMInteraction(["Si", "O"], CUTOFF, 2)
    atoms = crystals(1)[0]
    atoms.positions[0] += 2 * atoms.cell[1]
    labels = atoms.calc
    atoms.set_cell(atoms.cell.array[[1, 0, 2]])
    atoms.calc = labels
    table = reference_table({"Si": -2.0, "O": -3.0})
    item = host_items([atoms, atoms], table, LABELS)
    assert len({i["structure_id"] for i in item}) == 2
    assert np.linalg.det(item[0]["cell"]) > 0 and np.shape(item[0]["stress"]) == (1, 3, 3)
    fractional = np.asarray(item[0]["positions"]) @ np.linalg.inv(item[0]["cell"])
    assert (fractional > -1e-9).all() and (fractional < 1 + 1e-9).all()
    again = Atoms(item[0]["atomic_numbers"], item[0]["positions"], cell=item[0]["cell"], pbc=True)
    found = evaluate(potential, build_graph(again, CUTOFF))
    assert found.forces is not None and found.stress is not None
    assert item[0]["y"] - 4 * (2.0 + 3.0) == pytest.approx(float(found.energies), abs=1e-3)
    np.testing.assert_allclose(item[0]["forces"], found.forces, atol=1e-4)
    np.testing.assert_allclose(item[0]["stress"][0], found.stress[0], atol=1e-5)


def test_items_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not finite"):
        write_items(tmp_path / "x.json", [{"y": float("nan")}])
    assert not list(tmp_path.iterdir())


def test_energy_reference_by_symbol() -> None:
    structures = [set_labels(Atoms("SiO2"), energy=-1.0 - 2 * 3.0), set_labels(Atoms("SiO"), energy=-1.0 - 3.0)]
    assert energy_reference(structures) == pytest.approx({"Si": -1.0, "O": -3.0})
    with pytest.raises(ConfigError, match="'Sj' is no element"):
        reference_table({"Sj": 1.0})


# ---- configuration


def test_hosts_configuration_is_read(tmp_path: Path) -> None:
    """MatDeepLearn's ratios, words for numbers, losses and schedulers that only it knows."""
    config = configuration(tmp_path)
    del config["dataset"]["split"]
    config["dataset"].update(train_ratio=0.6, val_ratio=0.2, test_ratio=0.1, pt_path="x", transforms=[])
    config["optim"].update(
        lr="5e-4", loss={"loss_type": "TorchLossWrapper", "loss_args": {"loss_fn": "l1_loss"}},
        scheduler={"scheduler_type": "StepLR", "scheduler_args": {"step_size": 3}},
    )  # fmt: skip
    config["submit"] = False
    config["task"].update(output_frequency=1, model_save_frequency=1, log_id="x")
    found = engine_config(config)
    assert found.optim.lr == 5e-4
    assert found.dataset.split.test == 0.1 and found.dataset.split.val == pytest.approx(0.25)
    assert found.dataset.fraction == pytest.approx(0.8 / 0.9)
    config["dataset"].update(train_ratio=0.9, test_ratio=0.3)
    with pytest.raises(ConfigError, match="sum is at most 1"):
        engine_config(config)
    for arm in ("hybrid", "replay"):
        with pytest.raises(ConfigError, match="cannot be trained in MatDeepLearn"):
            engine_config(configuration(tmp_path, physpre={"arms": [arm]}))


def test_what_is_for_the_host_alone_is_read_by_both() -> None:
    from mdl_physpre.workflow.config.file import parse_config

    model = {"name": "physpre.CGCNN", "edges": "physpre"}
    found = parse_config({"model": model, "dataset": {"src": "x.xyz"}, "physpre": {"report": True}})
    assert found.model.name == "CGCNN" and not found.model.hyperparameters and found.physpre.report.formats


def test_loss_of_a_stage(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    engine = engine_config(config)
    given = {"max_epochs": 7, "lr": 1.0, "loss": {"loss_type": "ForceLoss", "loss_args": {"weight_energy": 3}}}
    kept = stage_optim(given, engine.training_settings(), False)
    assert kept == given
    pretraining = stage_optim(given, engine.pretraining_settings(), True)
    assert pretraining["max_epochs"] == 2 and pretraining["loss"]["loss_type"] == "ForceStressLoss"
    assert labels_of(pretraining["loss"]) == LABELS and labels_of(given["loss"]) == ("energy", "forces")
    config["physpre"]["pretrain"].update(force_tail=10, weight_stress=0)
    special = stage_optim(given, engine_config(config).pretraining_settings(), True)["loss"]
    assert special["loss_type"] == "PhyspreLoss" and labels_of(special) == ("energy", "forces")
    PhyspreLoss(**special["loss_args"])


def test_a_folder_to_go_on_from(tmp_path: Path) -> None:
    inside = tmp_path / "results" / "ID" / "pretrain" / "finetune" / "checkpoint_0"
    inside.mkdir(parents=True)
    with pytest.raises(ConfigError, match="no folder of a job"):
        run_folder(str(inside / "checkpoint.pt"))
    (tmp_path / "results" / "ID" / "run.json").write_text("{}")
    assert (
        run_folder(str(inside / "checkpoint.pt")) == tmp_path / "results" / "ID" == run_folder(str(inside.parents[2]))
    )


# ---- the transform


def data_of(atoms: Atoms, name: str = "a", count: Any = None) -> Data:
    """A structure as MatDeepLearn's data sets give it; ``count``: its number of atoms, a plain one in preprocessing."""
    item = host_items([atoms], np.zeros(119), LABELS)[0]
    return Data(
        pos=torch.tensor(item["positions"]), cell=torch.tensor([item["cell"]]), z=torch.tensor(item["atomic_numbers"]),
        y=torch.tensor([[item["y"]]]), forces=torch.tensor(item["forces"]), stress=torch.tensor(item["stress"]),
        n_atoms=torch.tensor([len(atoms)]) if count is None else count, structure_id=[[name]],
    )  # fmt: skip


def test_perturbed_structures_have_the_teachers_labels() -> None:
    atoms = crystals(1)[0]
    potential = EAMInteraction(["Si", "O"], CUTOFF, 2)
    labelled = Perturb(teacher=potential, n_sites=2, seed=1)(data_of(atoms))
    kept = Perturb(n_sites=2, seed=1, keep_labels=True)(data_of(atoms))
    assert torch.equal(kept.pos, labelled.pos) and torch.equal(kept.y, data_of(atoms).y)
    assert not torch.equal(Perturb(n_sites=2, seed=2, keep_labels=True)(data_of(atoms)).pos, kept.pos)
    moved = atoms.copy()
    moved.positions = labelled.pos.numpy()
    expected = evaluate(potential, build_graph(moved, CUTOFF))
    assert expected.forces is not None
    np.testing.assert_allclose(labelled.forces, expected.forces, atol=1e-3)
    with pytest.raises(DataError, match=r"structure a: .*max_force"):
        Perturb(teacher=potential, max_force=1e-6)(data_of(atoms))


def test_only_what_the_network_learns_from_is_perturbed() -> None:
    atoms = crystals(1)[0]
    for split in ("train", "all"):
        with torch.no_grad():  # as MatDeepLearn validates and predicts
            seen = Perturb(n_sites=2, keep_labels=True, split=split)(data_of(atoms))
        assert torch.equal(seen.pos, data_of(atoms).pos) is (split == "train")


def test_in_preprocessing_the_tensors_themselves_change() -> None:
    """MatDeepLearn passes a shallow copy of a structure through PyG's Compose and throws the result away."""
    from torch_geometric.transforms import Compose

    potential = EAMInteraction(["Si", "O"], CUTOFF, 2)
    data, before = (data_of(crystals(1)[0], count=8) for _ in range(2))
    with pytest.raises(ConfigError, match="split: all"):
        Perturb(teacher=potential)(data)
    Compose([Perturb(teacher=potential, n_sites=2, split="all")])(data)
    for key in ("pos", "y", "forces", "stress"):
        assert not torch.equal(data[key], before[key]), key


def test_labels_of_many_at_a_time_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from mdl_physpre.hosts.matdeeplearn import perturb

    potential, structures = EAMInteraction(["Si", "O"], CUTOFF, 2), crystals(5)
    sizes: list[int] = []
    compute = perturb.compute_labels

    def counting(given: Any, *rest: Any, **options: Any) -> Any:
        sizes.append(len(given))
        return compute(given, *rest, **options)

    monkeypatch.setattr(perturb, "compute_labels", counting)
    found = []
    for batch in (1, 32):
        monkeypatch.setattr(perturb, "BATCH", batch)
        transform = Perturb(teacher=potential, n_sites=2, seed=3)
        sizes.clear()
        found.append(
            [transform(data_of(a, str(k))) for _ in range(3) for k, a in enumerate(structures)]  # three epochs
        )
        assert max(sizes) == (1 if batch == 1 else 5)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.pos, other.pos)
        np.testing.assert_allclose(one.forces, other.forces, rtol=1e-4, atol=1e-4)


def test_transform_says_what_is_wrong() -> None:
    data = data_of(crystals(1)[0])
    data.edge_index = torch.zeros((2, 1))
    with pytest.raises(DataError, match="set preprocess_edges"):
        Perturb(keep_labels=True)(data)
    for given, words in (
        ({"n_augg": 1, "keep_labels": True}, "n_augg"),
        ({"teacher": "nobody"}, "nobody"),
        ({"teacher": EAMInteraction(["Si"]), "keep_labels": True}, "either"),
        ({}, "either a teacher"),
        ({"n_aug": 0, "keep_labels": True}, "n_aug"),
        ({"split": "val", "keep_labels": True}, "train or all"),
    ):
        with pytest.raises(ConfigError, match=words):
            Perturb(**given)  # type: ignore[arg-type]


def test_configuration_of_the_zeolites_names_the_trainer() -> None:
    config = yaml.safe_load((Path(__file__).parents[2] / "configs" / "silica_eam_pretrain.yml").read_text())
    assert config["trainer"] == "mdl_physpre.hosts.matdeeplearn.TwoStageTrainer"
    assert config["dataset"]["processed"] is True and config["task"]["run_mode"] == "train"

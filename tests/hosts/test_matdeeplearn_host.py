"""The real MatDeepLearn: models, transform, two-stage training, checkpoints, patched and unpatched."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ase.build import bulk

from mdl_physpre import build_graph, evaluate, label, open_potential
from mdl_physpre.errors import CheckpointError, ConfigError
from mdl_physpre.hosts.patching import change, inspect, patches_for
from mdl_physpre.potentials import CGCNN, EAMInteraction, TorchMDET
from mdl_physpre.potentials.checkpoints.matdeeplearn import write_matdeeplearn_checkpoint
from mdl_physpre.potentials.checkpoints.matdeeplearn_models import LATE, eam_state
from mdl_physpre.structures import GraphDataset
from mdl_physpre.structures.labels import get_labels, set_labels
from mdl_physpre.training.loss import label_errors, total_loss
from mdl_physpre.training.settings import TrainingSettings
from tests.helpers.matdeeplearn_runs import (
    CUTOFF,
    HOST,
    ROOT,
    command,
    configuration,
    crystals,
    environment,
    host_batch,
    host_model,
    needs_host,
    run_here,
    run_main,
)

pytestmark = needs_host


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mdl_physpre.hosts.matdeeplearn.plugin import register

    register()
    monkeypatch.chdir(tmp_path)


# ---- registration


def test_registration_is_lazy_and_can_be_repeated() -> None:
    from mdl_physpre.hosts.matdeeplearn import TwoStageTrainer
    from mdl_physpre.hosts.matdeeplearn.names import host
    from mdl_physpre.hosts.matdeeplearn.plugin import register
    from mdl_physpre.hosts.matdeeplearn.status import problems, registered

    before = {kind: dict(names) for kind, names in host().registry.mapping.items()}
    register()
    assert before == {kind: dict(names) for kind, names in host().registry.mapping.items()}
    assert host().registry.get_trainer_class("physpre_two_stage") is TwoStageTrainer
    assert host().registry.get_model_class("eam_interaction") is host().registry.get_model_class("EAM_Interaction")
    assert "transform physpre_perturb" in registered()
    assert ROOT is not None and problems(ROOT) == []


def test_a_patched_host_imports_little_of_the_plugin() -> None:
    code = (
        "import sys\nfrom matdeeplearn.common.trainer_context import setup_imports\nsetup_imports()\n"
        "from mdl_physpre.hosts.matdeeplearn.plugin import register\nregister()\n"
        "from matdeeplearn.common.registry import registry\n"
        "loaded = [m for m in sys.modules if m.startswith('mdl_physpre.')]\n"
        "assert not [m for m in loaded if 'workflow' in m or 'potentials' in m or 'training' in m], loaded\n"
        "assert registry.get_loss_class('PhyspreLoss').__name__ == 'PhyspreLoss'\n"
        "assert registry.get_trainer_class('physpre_two_stage').__name__ == 'TwoStageTrainer'"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


# ---- the embedded-atom potential as a model


@pytest.mark.parametrize("edges", ["complete", "host"])
def test_eam_model_is_the_eam(edges: str) -> None:
    structures = crystals(3)
    eam = EAMInteraction(["Si", "O"], CUTOFF, 3, init="reference", signed_embedding=True)
    with torch.no_grad():
        for parameter in eam.parameters():
            parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
        eam.b[0] *= -1
    model = host_model("eam_interaction", atom_types=["Si", "O"], n_basis=3, edges=edges)
    model.load_state_dict(eam_state(eam))  # the names of the paper's code
    out = model(host_batch(structures))
    wrapped = [a.copy() for a in structures]
    for a in wrapped:
        a.wrap()
    expected = evaluate(eam, build_graph(wrapped, CUTOFF))
    assert expected.forces is not None and expected.stress is not None
    np.testing.assert_allclose(out["output"][:, 0].detach(), expected.energies.detach(), rtol=1e-5)
    np.testing.assert_allclose(out["pos_grad"].detach(), expected.forces.detach(), atol=2e-4)
    np.testing.assert_allclose(out["cell_grad"].detach(), expected.stress.detach(), atol=1e-5)
    gradients = torch.autograd.grad(out["pos_grad"].square().sum() + out["output"].sum(), [*model.parameters()])
    assert sum(bool(g.abs().sum() > 0) for g in gradients) == len(gradients)
    for _ in range(2):  # predictions, also after a step of training, are those of the same formula
        with torch.no_grad():
            predicted = model(host_batch(structures))
            for parameter in model.parameters():
                parameter.mul_(1.02)
        for name, values in predicted.items():
            assert not values.requires_grad
            np.testing.assert_allclose(values, out[name].detach(), rtol=2e-5, atol=2e-4)
        out = model(host_batch(structures))


def test_eam_model_says_what_is_wrong() -> None:
    for given, message in (
        ({}, "atom_types is missing"),
        ({"atom_types": ["Si"], "edges": "some"}, "complete, host"),
        ({"atom_types": ["Si"], "edges": "host", "graph_method": "mdl"}, "only ocp"),
        ({"atom_types": ["Si"], "freeze_params": ["r"]}, "known: D, rm"),
    ):
        with pytest.raises(ConfigError, match=message):
            host_model("EAM_Interaction", **given)


def test_eam_model_starts_with_energies_of_the_elements(tmp_path: Path) -> None:
    """What it predicts first is off by no more than composition cannot explain."""
    from mdl_physpre.hosts.matdeeplearn.data import host_items, write_items

    far = [set_labels(a.copy(), e.energy - 148.0, e.forces, e.stress) for a in crystals() if (e := get_labels(a))]
    write_items(tmp_path / "far.json", host_items(far, np.zeros(119), ("energy",)))
    for reference, limit in ((str(tmp_path / "far.json"), 1.0), ({"Si": -40.0, "O": 3.0}, 5.0), (None, None)):
        model = host_model("eam_interaction", atom_types=["Si", "O"], n_basis=2, energy_reference=reference)
        with torch.no_grad():
            energies = model(host_batch(far))["output"][:, 0].double().numpy()
        error = np.abs(energies - [get_labels(a).energy for a in far]).mean() / 8
        assert error < limit if limit else error > 10, error
    with pytest.raises(ConfigError, match="no element"):
        host_model("eam_interaction", atom_types=["Si", "O"], energy_reference={"Sx": 1.0})


def test_eam_trains_with_the_hosts_own_trainer(tmp_path: Path) -> None:
    """The property trainer, from main.py, with a perturbed data set made in its preprocessing."""
    from mdl_physpre.hosts.matdeeplearn.data import host_items, write_items
    from mdl_physpre.hosts.matdeeplearn.settings import complete, engine_config
    from mdl_physpre.potentials.checkpoints.own import save_potential

    config = configuration(tmp_path, trainer="mdl_physpre.hosts.matdeeplearn.TwoStageTrainer")
    complete(config, engine_config(config), 3)
    teacher = EAMInteraction(["Si", "O"], CUTOFF, 2)
    save_potential(tmp_path / "teacher.pt", teacher)
    write_items(tmp_path / "data.json", host_items(crystals(), np.zeros(119), ("energy", "forces", "stress")))
    model = "mdl_physpre.hosts.matdeeplearn.EAMInteractionModel"
    perturb = {
        "name": "mdl_physpre.hosts.matdeeplearn.Perturb",
        "args": {"teacher": "teacher.pt", "n_sites": 2, "split": "all"},
    }
    config["trainer"] = "property"
    config["model"].update(name=model, atom_types=["Si", "O"], n_basis=2, energy_reference="data.json")
    config["dataset"].update(
        src=str(tmp_path / "data.json"), processed=False, pt_path=str(tmp_path), train_ratio=0.7, val_ratio=0.2,
        test_ratio=0.1, additional_attributes=["forces", "stress"],
        transforms=[*config["dataset"]["transforms"], perturb],
    )  # fmt: skip
    config["physpre"] = {}
    told = run_main(config, tmp_path)
    assert "Saved test error" in told
    result = next((tmp_path / "results").iterdir())
    (result / "config.yml").write_text(yaml.safe_dump(config))
    potential = open_potential(result / "checkpoint_0" / "best_checkpoint.pt")
    assert isinstance(potential, EAMInteraction) and potential.n_basis == 2
    processed = torch.load(tmp_path / "data.pt", weights_only=False)[0]
    moved = crystals()[0].copy()
    moved.wrap()
    assert abs(processed.pos[:8].numpy() - moved.positions).max() > 0.01
    moved.positions = processed.pos[:8].numpy()
    expected = get_labels(label([moved], teacher, progress=False, workers=1)[0])
    assert expected.forces is not None
    np.testing.assert_allclose(processed.forces[:8], expected.forces, atol=1e-4)
    np.testing.assert_allclose(processed.y[0], expected.energy, rtol=1e-6)


# ---- the perturbation, on the fly


def test_hosts_loader_feeds_fresh_labelled_structures(tmp_path: Path) -> None:
    from mdl_physpre.hosts.matdeeplearn.data import host_dataset, host_items, loading_of_datasets
    from mdl_physpre.hosts.matdeeplearn.names import host
    from mdl_physpre.hosts.matdeeplearn.settings import complete, engine_config
    from mdl_physpre.potentials.checkpoints.own import save_potential

    teacher = EAMInteraction(["Si", "O"], CUTOFF, 2)
    save_potential(tmp_path / "teacher.pt", teacher)
    config = configuration(tmp_path)
    complete(config, engine_config(config), 3)
    wanted = ("energy", "forces", "stress")
    items = host_items(crystals(3), np.zeros(119), wanted)
    section = host_dataset(tmp_path / "host", {"train": items}, config["dataset"], wanted)
    fresh = {"name": "physpre_perturb", "otf_transform": True,
             "args": {"teacher": "teacher.pt", "n_sites": 2, "energy_reference": {"Si": 1.5}}}  # fmt: skip
    section["transforms"] = [*section["transforms"], fresh]
    allowed = set(map(id, torch.serialization.get_safe_globals()))
    with loading_of_datasets():
        train = host().PropertyTrainer._load_dataset(section, "train")["train"]
        again = host().PropertyTrainer._load_dataset(section, "train")["train"]
    assert set(map(id, torch.serialization.get_safe_globals())) == allowed
    first, second = train[0], train[0]
    assert not torch.allclose(first.pos, second.pos)
    assert torch.equal(first.pos, again[0].pos)
    for data in (first, second):
        atoms = crystals(3)[0].copy()
        atoms.positions = data.pos.numpy()
        found = get_labels(label([atoms], teacher, progress=False, workers=1)[0])
        assert found.energy is not None and found.forces is not None and found.stress is not None
        np.testing.assert_allclose(float(data.y), found.energy - 4 * 1.5, rtol=1e-5)
        np.testing.assert_allclose(data.forces, found.forces, atol=1e-3)
        np.testing.assert_allclose(data.stress[0], found.stress, atol=1e-4)
    # as MatDeepLearn validates and predicts, here and in a loader's process: structures and labels as they are
    from matdeeplearn.common.data import get_dataloader

    with torch.no_grad():
        for workers in (0, 1):
            seen = next(iter(get_dataloader(train, batch_size=3, num_workers=workers)))
            for name, data in zip(seen.structure_id, seen.to_data_list()):
                k = [item["structure_id"] for item in items].index(name[0])
                np.testing.assert_allclose(data.pos, np.array(items[k]["positions"]), atol=1e-5)
                np.testing.assert_allclose(float(data.y), items[k]["y"], rtol=1e-5)


def test_two_stage_training_keeps_the_labels_of_the_data(tmp_path: Path) -> None:
    """The transform of the page's block is left out, and said so."""
    from mdl_physpre.hosts.matdeeplearn.settings import complete, engine_config

    for name in ("mdl_physpre.hosts.matdeeplearn.Perturb", "physpre_perturb"):
        config = configuration(tmp_path)
        config["dataset"]["transforms"] = [
            {"name": "GetY", "args": {"index": -1}}, {"name": name, "otf_transform": True, "args": {"teacher": "e.pt"}},
        ]  # fmt: skip
        said = complete(config, engine_config(config), 3)
        assert [t["name"] for t in config["dataset"]["transforms"]] == ["GetY"]
        assert any("Perturb is left out" in s or "physpre_perturb is left out" in s for s in said)


# ---- one configuration, both engines


@pytest.mark.parametrize("name", ["CGCNN", "torchmd_etEarly"])
def test_first_loss_is_the_engines(name: str, tmp_path: Path) -> None:
    """Same weights, same batch, complete edges, no envelope."""
    torch.manual_seed(0)
    if name == "CGCNN":
        potential: Any = CGCNN(["Si", "O"], CUTOFF, dim1=16, dim2=16, gc_count=2, post_fc_count=1, envelope=False)
    else:
        potential = TorchMDET(
            ["Si", "O"], CUTOFF, hidden_channels=16, num_layers=2, num_rbf=16, num_heads=4, num_post_layers=1,
            post_hidden_channels=16, envelope=False,
        )  # fmt: skip
    structures = crystals(4)
    graph = GraphDataset(structures, CUTOFF).batch()
    settings = TrainingSettings()
    engine = total_loss(label_errors(evaluate(potential, graph, create_graph=True), graph, settings), settings)

    write_matdeeplearn_checkpoint(tmp_path / "same.pt", potential)
    keys = yaml.safe_load((tmp_path / "same.yml").read_text())
    model = {k: v for k, v in keys["model"].items() if k not in ("name", "model_ensemble")}
    network = host_model(LATE if name == "torchmd_etEarly" else name, **model)
    network.load_state_dict(torch.load(tmp_path / "same.pt", weights_only=True)["state_dict"])
    from mdl_physpre.hosts.matdeeplearn import PhyspreLoss
    from mdl_physpre.hosts.matdeeplearn.names import host

    weights = {"weight_energy": 0.01, "weight_force": 50.0, "weight_stress": 50.0}
    batch = host_batch(structures)
    out = network(batch.clone())
    theirs = host().registry.get_loss_class("ForceStressLoss")(**weights)(out, batch)
    assert float(theirs) == pytest.approx(float(engine), rel=1e-4)
    assert float(PhyspreLoss(**weights)(out, batch)) == pytest.approx(float(theirs), rel=1e-5)


def test_transformer_with_total_energies_takes_the_place_of_the_hosts(tmp_path: Path) -> None:
    """Where the host would pool before its output network. Twice the cell has twice the energy."""
    from mdl_physpre.hosts.matdeeplearn.names import host
    from mdl_physpre.hosts.matdeeplearn.settings import complete, engine_config

    config = configuration(tmp_path)
    config["model"] = {"name": "torchmd_etEarly", "hidden_channels": 8, "num_layers": 1, "num_heads": 2}
    said = complete(config, engine_config(config), 2)
    known = signature(host().registry.get_model_class("torchmd_etEarly")).parameters
    assert (config["model"]["name"] == LATE) == ("pool_order" not in known)
    assert any("atomic energies" in sentence for sentence in said) == ("pool_order" not in known)
    network = host_model(LATE, hidden_channels=8, num_layers=1, num_heads=2, pool="global_add_pool")
    atoms = crystals(1)[0]
    double = label([atoms * (2, 1, 1)], EAMInteraction(["Si", "O"], CUTOFF, 2), progress=False, workers=1)[0]
    once, twice = (network(host_batch([a]))["output"].item() for a in (atoms, double))
    assert twice == pytest.approx(2 * once, rel=1e-4)


# ---- two-stage training


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/ID of a run of three arms, from the host's main.py."""
    folder = tmp_path_factory.mktemp("finished")
    config = configuration(folder)
    config["physpre"].update(arms=["baseline", "sam", "pretrain"], sam={"rho": 0.05})
    config["physpre"]["pretrain"]["force_tail"] = 10
    config["optim"]["refit_reference"] = True
    (folder / "out.txt").write_text(run_main(config, folder))
    return next((folder / "results").iterdir())


def test_a_run_in_the_host(finished: Path) -> None:
    told = (finished.parents[1] / "out.txt").read_text()
    assert "stage pretrain/pretrain: 2 epochs, loss PhyspreLoss" in told
    assert "stage pretrain/finetune: 2 epochs, loss ForceStressLoss" in told
    assert (finished / "log.txt").is_file() and (finished / "1-eam" / "eam.pt").is_file()
    for stage in ("baseline/finetune", "sam/finetune", "pretrain/pretrain", "pretrain/finetune"):
        for name in ("checkpoint_0/checkpoint.pt", "checkpoint_0/best_checkpoint.pt", "config.yml", "done.json",
                     "train_results/val_predictions_pos_grad.csv"):  # fmt: skip
            assert (finished / stage / name).is_file(), f"{stage}/{name}"
    trained = open_potential(finished / "baseline" / "finetune" / "checkpoint_0" / "best_checkpoint.pt")
    assert trained.training_energies is not None
    states = {
        arm: torch.load(finished / arm / "finetune/checkpoint_0/checkpoint.pt", weights_only=True)["state_dict"]
        for arm in ("baseline", "sam", "pretrain")
    }
    weights = [states[arm]["lin_out.weight"] for arm in states]
    assert not torch.allclose(weights[0], weights[1]) and not torch.allclose(weights[0], weights[2])


def test_checkpoints_open_with_total_energies(finished: Path) -> None:
    """What physpre md opens equals the host's model by our calculator; energies are total energies again."""
    from mdl_physpre.hosts.matdeeplearn import MatDeepLearnCalculator

    file = finished / "pretrain" / "finetune" / "checkpoint_0" / "best_checkpoint.pt"
    potential, calculator = open_potential(file), MatDeepLearnCalculator(file)
    errors = []
    for atoms in crystals(4):
        expected = evaluate(potential, build_graph(atoms, CUTOFF, dtype=torch.float32))
        assert expected.forces is not None and expected.stress is not None
        energy = get_labels(atoms).energy
        assert energy is not None
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(float(expected.energies), rel=1e-5)
        np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-3)
        np.testing.assert_allclose(atoms.get_stress(voigt=False), expected.stress[0], atol=1e-4)
        errors.append(abs(float(expected.energies) - energy) / len(atoms))
    # far below the energies themselves: the reference was put back
    assert np.mean(errors) < 0.5 * np.mean([abs(e) for e in [get_labels(a).energy for a in crystals(4)]]) / 8


def test_finetune_and_predict_from_a_checkpoint(finished: Path, tmp_path: Path) -> None:
    start = str(finished / "pretrain" / "finetune" / "checkpoint_0" / "best_checkpoint.pt")
    config = configuration(tmp_path)
    config["task"].update(run_mode="finetune", checkpoint_path=start, load_training_state=True)
    config["optim"].update(max_epochs=1, lr=1e-12)
    trainer = run_here(config)
    done = tmp_path / "results" / trainer.timestamp_id / "finetune"
    atoms = crystals(1)[0]
    before, after = (
        evaluate(open_potential(f), build_graph(atoms, CUTOFF, dtype=torch.float32)).energies
        for f in (start, done / "checkpoint_0" / "best_checkpoint.pt")
    )
    assert float(before) == pytest.approx(float(after), rel=1e-5)

    config = configuration(tmp_path)
    config["task"].update(run_mode="predict", checkpoint_path=start)
    trainer = run_here(config)
    tables = list((tmp_path / "results" / trainer.timestamp_id).rglob("predict_predictions.csv"))
    assert len(tables) == 1 and len(tables[0].read_text().splitlines()) == 13

    config = configuration(tmp_path)
    config["task"].update(run_mode="finetune", checkpoint_path=start)
    config["model"].update(dim1=16)
    with pytest.raises(CheckpointError, match="of another shape"):
        run_here(config)


def test_a_stopped_job_goes_on_in_either_stage(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    config["optim"]["max_checkpoint_epochs"] = 1
    trainer = run_here(config)
    folder = tmp_path / "results" / trainer.timestamp_id
    first, second = folder / "pretrain" / "pretrain", folder / "pretrain" / "finetune"

    def epochs(stage: Path) -> int:
        file = stage / "checkpoint_0" / "checkpoint.pt"
        return torch.load(file, weights_only=True)["epoch"] if file.is_file() else 0

    seen = [(epochs(first), epochs(second))]
    while not (second / "done.json").is_file() and len(seen) < 6:
        again = configuration(tmp_path)
        again["optim"]["max_checkpoint_epochs"] = 1
        where = folder if len(seen) == 1 else first / "checkpoint_0" / "checkpoint.pt"
        again["task"].update(continue_job=True, checkpoint_path=str(where))
        assert run_here(again).timestamp_id == trainer.timestamp_id
        seen.append((epochs(first), epochs(second)))
    assert seen == [(1, 0), (2, 1), (2, 2)]
    other = configuration(tmp_path)
    other["task"].update(continue_job=True, checkpoint_path=str(folder))
    other["optim"]["lr"] = 1.0
    with pytest.raises(ConfigError, match="started with another optim"):
        run_here(other)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_killed_job_goes_on(tmp_path: Path, damaged: bool, caplog: pytest.LogCaptureFixture) -> None:
    config = configuration(tmp_path)
    config["physpre"]["pretrain"]["max_epochs"] = 60
    (tmp_path / "given.yml").write_text(yaml.safe_dump(config))
    with open(tmp_path / "killed.txt", "w") as out:
        job = subprocess.Popen(command(tmp_path / "given.yml"), cwd=tmp_path, env=environment(), stdout=out, stderr=out)
        for _ in range(2400):  # on a busy machine
            time.sleep(0.2)
            found = list(tmp_path.glob("results/*/pretrain/pretrain/checkpoint_0/best_checkpoint.pt"))
            if found or job.poll() is not None:
                break
        job.send_signal(signal.SIGKILL)
        job.wait()
    assert found, (tmp_path / "killed.txt").read_text()[-2000:]
    folder = found[0].parents[3]
    assert not (folder / "pretrain" / "pretrain" / "done.json").exists()
    if damaged:  # killed while MatDeepLearn wrote its file
        (folder / "pretrain" / "pretrain" / "checkpoint_0" / "checkpoint.pt").write_bytes(b"")
    config["task"].update(continue_job=True, checkpoint_path=str(folder))
    trainer = run_here(config)
    assert ("begins anew" in caplog.text) or not damaged
    assert trainer.timestamp_id == folder.name
    last = torch.load(folder / "pretrain/pretrain/checkpoint_0/checkpoint.pt", weights_only=True)
    assert last["epoch"] == 60 and (folder / "pretrain" / "finetune" / "done.json").is_file()


def test_online_pretraining_and_an_ensemble(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    config["physpre"]["pretrain"].update(online=True, max_epochs=1)
    config["model"]["model_ensemble"] = 2
    config["optim"]["max_epochs"] = 1
    trainer = run_here(config)
    stage = tmp_path / "results" / trainer.timestamp_id / "pretrain" / "finetune"
    both = [torch.load(stage / f"checkpoint_{k}" / "best_checkpoint.pt", weights_only=True) for k in (0, 1)]
    assert not torch.equal(both[0]["state_dict"]["lin_out.weight"], both[1]["state_dict"]["lin_out.weight"])


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"task": {"parallel": True, "run_mode": "predict"}}, "one process"),
        ({"task": {"continue_job": True}}, "give task.checkpoint_path"),
        ({"task": {"run_mode": "finetune"}}, "checkpoint_path is missing"),
        ({"model": {"name": "CGCNNN"}}, "CGCNNN"),
        ({"physpre": {"arms": ["hybrid"]}}, "no place for a second potential"),
        ({"physpre": {"armz": []}}, "armz: unknown key"),
    ],
)
def test_what_cannot_be_is_said_before_training(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run_here(configuration(tmp_path, **sections))
    assert not list(tmp_path.glob("results/*/*/*/checkpoint_0"))


# ---- the calculator for any model


def test_calculator_for_a_model_that_only_the_host_has(tmp_path: Path) -> None:
    """SchNet: forces and stress are derivatives of the energy, and no neighbour is lost when atoms drift."""
    from mdl_physpre.hosts.matdeeplearn import MatDeepLearnCalculator
    from mdl_physpre.hosts.matdeeplearn.settings import complete, engine_config

    config = configuration(tmp_path)
    config["model"] = {"name": "SchNet", "dim1": 8, "dim2": 8, "dim3": 8, "gc_count": 2, "batch_norm": False}
    complete(config, engine_config(config), 1)
    torch.manual_seed(0)
    given = {k: v for k, v in config["model"].items() if k not in ("name", "model_ensemble")}
    network = host_model("SchNet", **given)
    torch.save({"state_dict": network.state_dict(), "best_metric": 0.0, "identifier": "x"}, tmp_path / "best.pt")
    config["physpre"] = {"energy_reference": {"Si": -3.0}}
    (tmp_path / "best.yml").write_text(yaml.safe_dump(config))
    with pytest.raises(CheckpointError, match="calculator:mdl_physpre"):
        open_potential(tmp_path / "best.pt")
    atoms = crystals(1)[0]
    atoms.calc = MatDeepLearnCalculator(tmp_path / "best.pt")
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)
    assert abs(forces).max() > 1e-4
    step, moved = 0.01, []
    for sign in (1, -1):
        copy = atoms.copy()
        copy.positions[3, 1] += sign * step
        copy.calc = atoms.calc
        moved.append(copy.get_potential_energy())
    assert -(moved[0] - moved[1]) / (2 * step) == pytest.approx(forces[3, 1], abs=0.02 * abs(forces).max())
    for flipped in ([0, 1, 2], [1, 0, 2]):  # right- and left-handed
        strained = []
        for sign in (1, -1):
            copy = atoms.copy()
            copy.set_cell(copy.cell.array[flipped])
            copy.set_cell(copy.cell.array @ (np.eye(3) + sign * 2e-3 * np.diag([1, 0, 0])), scale_atoms=True)
            copy.calc = atoms.calc
            strained.append(copy.get_potential_energy())
        slope = (strained[0] - strained[1]) / (4e-3 * atoms.get_volume())
        assert slope == pytest.approx(stress[0, 0], abs=0.03 * abs(stress).max())
        left = atoms.copy()
        left.set_cell(left.cell.array[flipped])
        left.calc = atoms.calc
        np.testing.assert_allclose(left.get_stress(voigt=False), stress, atol=1e-5)
    drifted = atoms.copy()
    drifted.positions[2] += 3 * drifted.cell[0]
    drifted.calc = atoms.calc
    assert drifted.get_potential_energy() == pytest.approx(energy, abs=1e-4)
    slab = bulk("SiO", "rocksalt", a=4.3, cubic=True)
    slab.pbc = (True, True, False)
    slab.calc = atoms.calc
    assert np.isfinite(slab.get_forces()).all() and "stress" not in slab.calc.results


def test_end_of_a_run_names_what_opens_its_checkpoints(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = configuration(tmp_path)
    config["model"] = {"name": "SchNet", "dim1": 8, "dim2": 8, "dim3": 8, "gc_count": 1, "batch_norm": False}
    config["physpre"]["arms"], config["optim"]["max_epochs"] = ["baseline"], 1
    with caplog.at_level("INFO"):
        run_here(config)
    assert "take these checkpoints" not in caplog.text
    route = caplog.text.split('take them as "')[1].split('"')[0]
    atoms = crystals(1)[0]
    assert np.isfinite(float(evaluate(open_potential(route), build_graph(atoms, CUTOFF, dtype=torch.float32)).energies))


# ---- patched


def test_patched_host_finds_the_plugin_by_itself(tmp_path: Path) -> None:
    """A copy of the host, patched: from any folder, by short names, also in preprocessing; then as it was."""
    assert ROOT is not None
    copy = tmp_path / "host"
    shutil.copytree(ROOT / "matdeeplearn", copy / "matdeeplearn", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "main.py", copy / "main.py")
    change("MatDeepLearn", copy, patches_for(HOST.package))
    assert inspect(copy, patches_for(HOST.package)).state == "patched"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    config = configuration(elsewhere)
    config["trainer"] = "physpre_two_stage"
    config["model"] = {"name": "eam_interaction", "atom_types": ["Si", "O"], "n_basis": 2}
    config["physpre"]["arms"] = ["baseline"]
    config["optim"]["max_epochs"] = 1
    run_main(config, elsewhere, module=True, root=copy)
    file = next((elsewhere / "results").iterdir()) / "baseline" / "finetune" / "checkpoint_0" / "best_checkpoint.pt"
    assert isinstance(open_potential(file), EAMInteraction)
    change("MatDeepLearn", copy, patches_for(HOST.package), revert=True)
    assert inspect(copy, patches_for(HOST.package)).state == "unpatched"
    assert not (copy / "matdeeplearn" / "main.py").exists()


def test_a_version_that_the_plugin_cannot_use_is_not_patched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from mdl_physpre.hosts import cli
    from mdl_physpre.hosts.matdeeplearn import names

    assert ROOT is not None
    copy = tmp_path / "host"
    shutil.copytree(ROOT / "matdeeplearn", copy / "matdeeplearn", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cli, "require_installed", lambda _: copy)
    monkeypatch.setattr(names, "missing_names", lambda: ["this MatDeepLearn lacks much"])
    found = CliRunner().invoke(cli.app, ["patch", "matdeeplearn"])
    assert found.exit_code == 1 and "lacks much. Nothing was changed" in str(found.exception)
    assert inspect(copy, patches_for(HOST.package)).state == "unpatched"
    why = names.unregistered_path(Path("/home/me/old_projects/matdeeplearn"))
    assert why and "'old' in its path" in why and names.unregistered_path(Path("/home/me/matdeeplearn")) is None


def test_configuration_of_the_zeolites_is_taken_by_both(tmp_path: Path) -> None:
    """configs/silica_eam_pretrain.yml as it stands, up to where training begins."""
    from mdl_physpre.hosts.matdeeplearn.plan import prepare
    from mdl_physpre.workflow.config.file import load_config

    if "PHYSPRE_DATA" not in os.environ:
        pytest.skip("PHYSPRE_DATA names no folder with the zeolites")
    file = Path(__file__).parents[2] / "configs" / "silica_eam_pretrain.yml"
    engine = load_config(file)
    config = yaml.safe_load(file.read_text())
    config["task"]["save_dir"] = str(tmp_path)
    plan = prepare(config)
    assert plan.engine.physpre == engine.physpre
    assert plan.engine.dataset.model_dump() == engine.dataset.model_dump()
    assert [stage.name for arm in plan.stages() for stage in arm] == [
        "baseline/finetune", "pretrain/pretrain", "pretrain/finetune",
    ]  # fmt: skip
    assert (plan.folder / "data" / "data_train.pt").is_file()

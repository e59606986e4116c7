"""The MatterTune plugin in the real MatterTune, where it can be imported or MATTERTUNE_HOME names a checkout."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms

from mdl_physpre.errors import CheckpointError, ConfigError, DataError, PhyspreError
from mdl_physpre.hosts.mattertune.plugin import register
from mdl_physpre.potentials.base import evaluate
from mdl_physpre.potentials.calculator import PotentialCalculator
from mdl_physpre.potentials.checkpoints import load_potential, save_potential
from mdl_physpre.potentials.m3gnet import M3GNet
from mdl_physpre.potentials.mattersim_checkpoints import read_mattersim_checkpoint
from mdl_physpre.potentials.open_potential import open_potential
from mdl_physpre.potentials.reference import fit_energy_reference
from mdl_physpre.structures.graph import build_graph
from mdl_physpre.structures.labels import get_labels, set_labels
from mdl_physpre.structures.read import read_structures
from mdl_physpre.structures.write import write_structures

ROOT = Path(__file__).parents[2]
MATTERSIM = ROOT / "tests" / "data" / "mattersim" / "m3gnet.pth"

try:
    register()
    WHY_NOT = ""
except PhyspreError as error:
    WHY_NOT = str(error)
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

SMALL = {"num_blocks": 2, "units": 8, "cutoff": 4.0, "threebody_cutoff": 3.0}
PROPERTIES = [
    {"type": "energy", "loss": {"name": "mae"}},
    {"type": "forces", "conservative": True, "loss": {"name": "mae"}},
    {"type": "stresses", "conservative": True, "loss": {"name": "mae"}},
]


def model_section(**changes) -> dict:
    base = {
        "name": "physpre-m3gnet", **SMALL, "properties": PROPERTIES, "optimizer": {"name": "AdamW", "lr": 1e-3},
    }  # fmt: skip
    return {**base, **changes}


def model(**changes):
    """A module by the host's own way: its configuration is validated as one of its backbones."""
    import nshconfig
    from mattertune.backbones import ModelConfig

    torch.manual_seed(1)
    return nshconfig.TypeAdapter(ModelConfig).validate_python(model_section(**changes)).create_model()


def crystal(seed: int = 0, n: int = 6) -> Atoms:
    rng = np.random.default_rng(seed)
    cell = np.diag([5.0, 5.5, 6.0]) + rng.normal(0, 0.2, (3, 3))
    return Atoms(["Si", "O", "O"] * (n // 3), scaled_positions=rng.random((n, 3)), cell=cell, pbc=True)


def labelled(n: int = 6) -> list[Atoms]:
    """Structures with labels by an untrained network, stress too."""
    torch.manual_seed(7)
    calculator = PotentialCalculator(M3GNet(["O", "Si"], **SMALL))
    structures = [crystal(seed) for seed in range(n)]
    for atoms in structures:
        calculator.calculate(atoms)
        set_labels(atoms, -20.0 + calculator.results["energy"], *(calculator.results[k] for k in ("forces", "stress")))
    return structures


@pytest.fixture
def data_file(tmp_path) -> Path:
    write_structures(tmp_path / "data.extxyz", labelled())
    return tmp_path / "data.extxyz"


def configuration(data: Path, **sections) -> dict:
    source = {"type": "physpre-structures", "src": str(data)}
    base = {
        "model": model_section(),
        "data": {"train": source, "validation": source, "batch_size": 3, "num_workers": 0, "pin_memory": False},
        "trainer": {
            "max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1,
            "additional_trainer_kwargs": {"enable_progress_bar": False, "enable_model_summary": False},
        },
    }  # fmt: skip
    return {**base, **sections}


def written(folder: Path, content: dict) -> Path:
    path = folder / "c.yml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def calculated(atoms: Atoms, calculator) -> dict[str, np.ndarray]:
    found = atoms.copy()
    found.calc = calculator
    return {"energy": found.get_potential_energy(), "forces": found.get_forces(), "stress": found.get_stress()}


def assert_same(one, other, rtol: float = 1e-5) -> None:
    for key, value in one.items():
        assert np.allclose(value, other[key], rtol=rtol, atol=rtol * np.abs(value).max() + 1e-7), key


# --- registration


def test_registering_again_changes_nothing():
    from mattertune.main import MatterTunerConfig

    before = MatterTunerConfig
    register()
    register()
    assert MatterTunerConfig is before
    from mdl_physpre.hosts.mattertune.status import registered

    assert "backbone physpre-m3gnet" in registered()


def test_all_abstract_methods_are_defined():
    from mattertune.finetune.base import FinetuneModuleBase

    from mdl_physpre.hosts.mattertune.backbone import PhyspreM3GNetModule
    from mdl_physpre.hosts.mattertune.names import METHODS

    assert FinetuneModuleBase.__abstractmethods__ == set(METHODS)
    assert not PhyspreM3GNetModule.__abstractmethods__


# --- predictions


def test_calculator_predictor_and_our_calculator_agree():
    module = model(energy_reference={8: -3.0, 14: -5.0})
    structures = [crystal(0), crystal(1, 9), crystal(2, 3)]
    ours = PotentialCalculator(copy.deepcopy(module.backbone).eval())
    host = module.ase_calculator()
    predicted = module.property_predictor({"accelerator": "cpu"}).predict(structures, batch_size=2)
    for atoms, values in zip(structures, predicted):
        expected = calculated(atoms, ours)
        assert_same(expected, calculated(atoms, host))
        assert float(values["energy"]) == pytest.approx(expected["energy"], rel=1e-6)
        assert np.allclose(values["forces"], expected["forces"], atol=1e-6)
        voigt = np.asarray(values["stresses"])[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        assert np.allclose(voigt, expected["stress"], atol=1e-7)


def test_forces_and_stress_are_derivatives_of_the_energy():
    module = model()
    module.model_to_double()
    atoms = crystal(4)

    def predict(structure: Atoms) -> dict:
        batch = module.collate_fn([module.atoms_to_data(structure, has_labels=False)])
        return {k: np.asarray(v) for k, v in module.predict_step(batch, 0)[0].items()}

    found, h = predict(atoms), 1e-4
    for atom, axis in ((0, 0), (3, 2)):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * h
            energies.append(predict(moved)["energy"])
        assert found["forces"][atom, axis] == pytest.approx(-(energies[0] - energies[1]) / (2 * h), rel=1e-5, abs=1e-7)
    strain = np.array([[0.3, 0.1, 0.0], [0.1, -0.2, 0.4], [0.0, 0.4, 0.5]])
    energies = []
    for sign in (1, -1):
        strained = atoms.copy()
        strained.set_cell(atoms.cell[:] @ (np.eye(3) + sign * h * strain), scale_atoms=True)
        energies.append(predict(strained)["energy"])
    slope = (energies[0] - energies[1]) / (2 * h) / atoms.get_volume()
    assert (found["stresses"] * strain).sum() == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_gradient_of_the_loss_agrees_with_finite_differences():
    module = model()
    module.model_to_double()
    batch = module.collate_fn([module.atoms_to_data(a, has_labels=True) for a in labelled(3)])

    def loss() -> torch.Tensor:
        output = module(batch, mode="train")
        return module._compute_loss(output["predicted_properties"], module.batch_to_labels(batch), log=False)

    parameter = module.backbone.graph_conv[0].gated_mlp_edge.g[0].linear.weight
    (gradient,) = torch.autograd.grad(loss(), parameter)
    k = int(gradient.abs().argmax())
    with torch.no_grad():
        flat, h, values = parameter.view(-1), 1e-5, []
        for sign in (1, -1):
            flat[k] += sign * h
            values.append(float(loss()))
            flat[k] -= sign * h
    assert float(gradient.view(-1)[k]) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-4)


def test_normalizers_are_undone_by_the_host_and_by_us(tmp_path):
    references = {"8": -2.5, "14": -4.0}
    normalizers = {"energy": [{"per_atom_references": references}, {"only_for_target": False}]}
    module, atoms = model(normalizers=normalizers), crystal(5)
    plain = PotentialCalculator(copy.deepcopy(module.backbone).eval())
    expected = calculated(atoms, plain)
    expected["energy"] += 4 * -2.5 + 2 * -4.0
    assert_same(expected, calculated(atoms, module.ase_calculator()))
    path = saved(module, tmp_path / "m.ckpt")
    assert_same(expected, calculated(atoms, PotentialCalculator(open_potential(path))))
    # with the same normalizers the network is taken as it is, with others it gives total energies by itself
    assert_same(expected, calculated(atoms, model(checkpoint=str(path), normalizers=normalizers).ase_calculator()))
    assert_same(expected, calculated(atoms, model(checkpoint=str(path)).ase_calculator()))


def saved(module, path: Path) -> Path:
    """The module's checkpoint, written by Lightning."""
    from lightning.pytorch import Trainer

    trainer = Trainer(logger=False, accelerator="cpu", enable_model_summary=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


# --- where the network comes from


def test_starting_points(tmp_path):
    atoms = crystal(6)
    torch.manual_seed(5)
    potential = M3GNet(["O", "Si"], **SMALL)
    ours = save_potential(tmp_path / "ours.pt", potential)
    assert_same(calculated(atoms, PotentialCalculator(potential)), calculated(
        atoms, model(checkpoint=str(ours)).ase_calculator()))  # fmt: skip
    empty = {key: None for key in SMALL}
    module = model(checkpoint=str(MATTERSIM), **empty)
    expected = calculated(atoms, PotentialCalculator(read_mattersim_checkpoint(MATTERSIM)))
    assert_same(expected, calculated(atoms, module.ase_calculator()))
    path = saved(module, tmp_path / "m.ckpt")
    content = torch.load(path, weights_only=True)
    assert content["hyper_parameters"]["checkpoint"] is None  # it stands for itself
    assert content["hyper_parameters"]["units"] == module.backbone.units
    assert_same(expected, calculated(atoms, PotentialCalculator(open_potential(path))))
    shifted = model(checkpoint=str(path), energy_reference={8: 1.5}, **empty)
    assert calculated(atoms, shifted.ase_calculator())["energy"] == pytest.approx(
        expected["energy"] + 4 * 1.5, rel=1e-6
    )
    with pytest.raises(ConfigError, match="model.units is 8, but"):
        model(checkpoint=str(MATTERSIM))
    with pytest.raises(CheckpointError, match="no such"):
        model(checkpoint=str(tmp_path / "none.pt"))


def test_resetting_backbone_and_read_out(tmp_path):
    torch.manual_seed(5)
    path = save_potential(tmp_path / "ours.pt", M3GNet(**SMALL))
    old = load_potential(path).state_dict()
    head = model(checkpoint=str(path), reset_output_heads=True).backbone.state_dict()
    changed = {name for name in old if not torch.equal(old[name], head[name])}
    assert changed and all(name.startswith("final.") for name in changed)
    fresh = model(checkpoint=str(path), reset_backbone=True)
    state = fresh.backbone.state_dict()
    name = "graph_conv.0.gated_mlp_atom.g.0.linear.weight"
    assert not torch.equal(state[name], old[name])
    assert torch.equal(state["normalizer.scale"], old["normalizer.scale"])
    assert_same(calculated(crystal(), fresh.ase_calculator()), calculated(
        crystal(), PotentialCalculator(open_potential(saved(fresh, tmp_path / "f.ckpt")))))  # fmt: skip


def test_pruning_takes_blocks_out(tmp_path):
    module = model(pruning_message_passing=1)
    assert module.backbone.num_blocks == 1 and len(module.backbone.graph_conv) == 1
    full = model().backbone
    full.graph_conv, full.num_blocks = full.graph_conv[:1], 1
    expected = calculated(crystal(), PotentialCalculator(full.eval()))
    assert_same(expected, calculated(crystal(), module.ase_calculator()))
    path = saved(module, tmp_path / "m.ckpt")
    assert_same(expected, calculated(crystal(), PotentialCalculator(open_potential(path))))
    from mdl_physpre.hosts.mattertune.checkpoints import load_host_model

    assert_same(expected, calculated(crystal(), load_host_model(path).ase_calculator()))
    assert model(pruning_message_passing=5).backbone.num_blocks == 2
    with pytest.raises(ConfigError, match="at least one block"):
        model(pruning_message_passing=0)


# --- what is refused


def test_properties_that_it_has_not():
    with pytest.raises(ConfigError, match="'gap' is a graph_property"):
        gap = {"type": "graph_property", "name": "gap", "dtype": "float", "reduction": "mean", "loss": {"name": "mae"}}
        model(properties=[*PROPERTIES, gap])
    with pytest.raises(ConfigError, match="'forces' has conservative: false"):
        model(properties=[PROPERTIES[0], {**PROPERTIES[1], "conservative": False}])
    with pytest.raises(ConfigError, match="lacks the energy"):
        model(properties=PROPERTIES[1:])


def test_missing_labels_and_unknown_elements_are_named():
    module = model(elements=["O", "Si"])
    atoms = labelled(1)[0]
    only_energy = set_labels(atoms.copy(), energy=-1.0)
    only_energy.info["structure_id"] = "odd"
    with pytest.raises(DataError, match=r"structure O4Si2 \(odd\): has no label for 'forces'"):
        module.atoms_to_data(only_energy, has_labels=True)
    box = atoms.copy()
    box.pbc, box.cell = False, None
    set_labels(box, -1.0, np.zeros((6, 3)), np.zeros(6))
    with pytest.raises(DataError, match="has no full cell"):
        module.atoms_to_data(box, has_labels=True)
    with pytest.raises(DataError, match="holds P"):
        module.atoms_to_data(Atoms("P", cell=[9] * 3, pbc=True), has_labels=False)


# --- partition


def test_parts_add_up_to_the_whole():
    from mattertune.wrappers.ase_calculator import MatterTunePartitionCalculator

    module = model(num_blocks=1, energy_reference={8: -3.0, 14: -5.0})
    atoms = crystal(1, 9).repeat((3, 2, 2))
    atoms.rattle(0.05, seed=1)
    expected = calculated(atoms, PotentialCalculator(copy.deepcopy(module.backbone).eval()))
    module.hparams.using_partition = True
    parts: list[int] = []

    class Here:
        """An inferencer of the host that works in this process."""

        def run_inference(self, structures: list[Atoms]) -> list[dict]:
            parts.extend(map(len, structures))
            batch = module.collate_fn([module.atoms_to_data(a, has_labels=False) for a in structures])
            return module.predict_step(batch, 0)

    calculator = MatterTunePartitionCalculator(model=module, inferencer=Here(), mp_steps=1, granularity=2)
    found = calculated(atoms, calculator)
    assert len(parts) > 1
    assert found["energy"] == pytest.approx(expected["energy"], rel=1e-5)
    assert np.allclose(found["forces"], expected["forces"], atol=1e-5)
    # the host adds stresses of parts that keep the whole cell's volume
    assert np.allclose(found["stress"], expected["stress"], atol=1e-6)
    edges = module.get_connectivity_from_atoms(atoms)
    assert edges.shape[0] == 2 and edges.dtype == np.int32
    assert np.array_equal(edges, module.get_connectivity_from_data(module.atoms_to_data(atoms, False)).numpy())


def test_partition_with_normalized_energies_is_refused():
    module = model(using_partition=True, normalizers={"energy": [{"mean": 0.0, "std": 2.0}]})
    batch = module.collate_fn([module.atoms_to_data(crystal(), has_labels=False)])
    with pytest.raises(ConfigError, match="Train with energy_reference"):
        module.predict_step(batch, 0)


# --- training


def trained(content: dict, folder: Path):
    """The host's own training, without this package's command."""
    from mattertune.main import MatterTuner, MatterTunerConfig

    content = copy.deepcopy(content)
    content["trainer"] |= {
        "checkpoint": {"dirpath": str(folder), "filename": "last"},
        "loggers": [{"type": "csv", "save_dir": str(folder)}],
    }
    torch.manual_seed(2)
    return MatterTuner(MatterTunerConfig.model_validate(content)).tune(), folder / "last.ckpt"


def test_training_by_the_host_lowers_the_loss(data_file, tmp_path):
    content = configuration(data_file)
    reference = fit_energy_reference(read_structures(data_file)).as_dict()
    content["model"] = model_section(energy_reference=reference)
    content["trainer"]["max_epochs"] = 15
    output, path = trained(content, tmp_path / "out")
    rows = (tmp_path / "out" / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("val/total_loss")
    losses = [float(v) for row in rows[1:] if (v := row.split(",")[column])]
    assert len(losses) == 15 and losses[-1] < 0.7 * losses[0]
    from mdl_physpre.hosts.mattertune.checkpoints import load_host_model

    host, ours = load_host_model(path), open_potential(path)
    for atoms in (crystal(8), crystal(9, 3)):
        assert_same(calculated(atoms, PotentialCalculator(ours)), calculated(atoms, host.ase_calculator()))


def test_order_of_training_structures_changes_with_the_epoch(data_file, tmp_path, monkeypatch):
    from mdl_physpre.hosts.mattertune.backbone import PhyspreM3GNetModule

    seen: list[tuple[str, list[float]]] = []
    forward = PhyspreM3GNetModule.model_forward

    def recording(self, batch, mode):
        seen.append((mode, batch["energy"].tolist()))
        return forward(self, batch, mode)

    monkeypatch.setattr(PhyspreM3GNetModule, "model_forward", recording)
    content = configuration(data_file)
    content["trainer"] |= {"max_epochs": 3, "num_nodes": 1}
    content["trainer"]["additional_trainer_kwargs"]["num_sanity_val_steps"] = 0
    for shuffle, orders in ((True, 3), (False, 1)):
        seen.clear()
        content["model"]["shuffle"] = shuffle
        trained(content, tmp_path / str(shuffle))
        epochs = [sum((e for m, e in seen[4 * k : 4 * k + 4] if m == "train"), []) for k in range(3)]
        assert len({tuple(e) for e in epochs}) >= min(orders, 2) and len({tuple(sorted(e)) for e in epochs}) == 1
        assert (len({tuple(e) for e in epochs}) == 1) is (not shuffle)
        assert len({tuple(e) for m, e in seen if m == "val"}) == 2


def test_frozen_backbone_trains_the_read_out_alone(data_file, tmp_path):
    from mattertune.finetune.callbacks.freeze_backbone import FreezeBackboneCallback

    start = save_potential(tmp_path / "start.pt", M3GNet(**SMALL))
    old = load_potential(start).state_dict()
    content = configuration(data_file, model=model_section(checkpoint=str(start), freeze_backbone=True))
    _, path = trained(content, tmp_path / "frozen")
    new = open_potential(path).state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed and all(name.startswith("final.") for name in changed)
    module = model(checkpoint=str(start))
    FreezeBackboneCallback().on_fit_start(None, module)
    assert {n.split(".")[1] for n, _ in module.trainable_parameters()} == {"final"}
    assert len(list(module.output_head_parameters())) == len(list(module.trainable_parameters()))


def test_lora_is_trained_and_merged_into_the_file(data_file, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed")
    start = save_potential(tmp_path / "start.pt", M3GNet(**SMALL))
    old = load_potential(start).state_dict()
    recipe = {"name": "lora", "lora": {"r": 2, "lora_alpha": 4, "target_modules": "(graph_conv|final).*linear"}}
    content = configuration(data_file, model=model_section(checkpoint=str(start)), recipes=[recipe])
    output, path = trained(content, tmp_path / "lora")
    assert output.model.adapted
    potential = open_potential(path)
    new = potential.state_dict()
    assert new.keys() == old.keys()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert len(changed) > 10 and all(name.endswith(".weight") for name in changed)  # biases stay
    assert_same(
        calculated(crystal(3), PotentialCalculator(potential)),
        calculated(crystal(3), output.model.eval().ase_calculator()), rtol=1e-4,
    )  # fmt: skip
    recipe["lora"]["target_modules"] = ["linear"]
    with pytest.raises(ConfigError, match="reads its matrix directly"):
        trained(content, tmp_path / "refused")


def test_double_and_mixed_precision(data_file, tmp_path):
    content = configuration(data_file)
    for precision in ("64-true", "bf16-mixed"):
        content["trainer"] |= {"precision": precision, "max_epochs": 1}
        output, path = trained(content, tmp_path / precision)
        assert np.isfinite(float(output.trainer.callback_metrics["val/total_loss"]))
        wanted = torch.float64 if precision == "64-true" else torch.float32
        assert torch.load(path, weights_only=True)["state_dict"]["backbone.final.g.0.linear.weight"].dtype == wanted
        assert np.isfinite(calculated(crystal(), PotentialCalculator(open_potential(path)))["energy"])


# --- data sources


def test_structures_in_parts(data_file):
    from mdl_physpre.hosts.mattertune.data_sources import PhyspreStructuresConfig

    parts = {
        part: list(PhyspreStructuresConfig(src=str(data_file), part=part, test=1, val=2).create_dataset())
        for part in ("train", "val", "test", "all")
    }
    assert [len(parts[p]) for p in ("train", "val", "test", "all")] == [3, 2, 1, 6]
    energies = [get_labels(a).energy for p in ("train", "val", "test") for a in parts[p]]
    assert sorted(energies) == sorted(get_labels(a).energy for a in parts["all"])


def test_pretraining_data_from_a_source_of_the_host(data_file, tmp_path):
    import nshconfig
    from mattertune.data import DatasetConfig

    teacher = save_potential(tmp_path / "teacher.pt", M3GNet(["O", "Si"], **SMALL))
    perturbation = {"n_aug": 2, "max_force": None, "min_distance": 0}
    section = {
        "type": "physpre-pretraining",
        "source": {"type": "xyz", "src": str(data_file)},
        "teacher": str(teacher),
        "perturbation": perturbation,
    }
    build = nshconfig.TypeAdapter(DatasetConfig).validate_python
    made = list(build(section).create_dataset())
    assert len(made) == 12
    potential = load_potential(teacher)
    found = evaluate(potential, build_graph(made, potential.cutoff, dtype=torch.float32))
    assert np.allclose([get_labels(a).energy for a in made], found.energies.numpy(), rtol=1e-5)
    assert not any(np.allclose(a.positions, b.positions) for a in made for b in read_structures(data_file))
    assert np.array_equal(made[5].positions, list(build(section).create_dataset())[5].positions)
    del section["teacher"]
    fitted = list(build({**section, "eam": {"epochs": 5, "n_basis": 3, "cutoff": 4.0}}).create_dataset())
    assert len(fitted) == 12 and get_labels(fitted[0]).forces is not None
    with pytest.raises(ConfigError, match=r"eam.n_base: unknown key"):
        build({**section, "eam": {"n_base": 3}}).create_dataset()


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
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*.*") if p.name not in ("stage.json", ".lock")}
    best = finetune(path, out=out)
    assert {p: p.stat().st_mtime_ns for p in times} == times  # what was done is not done again
    host, ours = load_host_model(best), open_potential(best)
    own = load_potential(out / "4-finetune" / "potential.pt")
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
    host = load_host_model(best)
    expected = calculated(crystal(8), host.ase_calculator())
    assert_same(expected, calculated(crystal(8), PotentialCalculator(end)), rtol=1e-4)


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


def test_energy_reference_of_a_checkpoint_is_what_it_leaves(data_file, tmp_path):
    from mdl_physpre.hosts.mattertune.config_file import validated
    from mdl_physpre.hosts.mattertune.run import with_energy_reference

    structures = read_structures(data_file)
    torch.manual_seed(7)
    potential = M3GNet(["O", "Si"], **SMALL)  # the one that made the labels, but for 20 eV for each structure
    raw = configuration(data_file, model=model_section(checkpoint=str(save_potential(tmp_path / "p.pt", potential))))
    found = with_energy_reference(raw, validated(raw, "c.yml"), structures)["model"]["energy_reference"]
    assert 4 * found[8] + 2 * found[14] == pytest.approx(-20.0, abs=1e-4)
    scaled = {**raw, "model": {**raw["model"], "normalizers": {"energy": [{"mean": 0.0, "std": 2.0}]}}}
    assert with_energy_reference(scaled, validated(scaled, "c.yml"), structures) is scaled


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
    told = {line.split()[0]: float(line.split()[1]) for line in found.stdout.splitlines()}
    assert told["energy"] == pytest.approx(1000 * np.mean(differences), rel=1e-3)
    assert {"energy", "forces", "stress"} == set(told)


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

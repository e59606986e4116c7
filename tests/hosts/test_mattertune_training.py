"""MatterTune's own training with the backbone and the data sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mdl_physpre.errors import ConfigError
from mdl_physpre.hosts.mattertune.adapters import adapted_layers
from mdl_physpre.potentials.adapters.ase_calculator import PotentialCalculator
from mdl_physpre.potentials.backbones.m3gnet.network import M3GNet
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.potentials.energy_reference import fit_energy_reference
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.open import open_potential
from mdl_physpre.structures.graph import build_graph
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.structures.read import read_structures
from tests.helpers.mattertune_cases import (
    SMALL,
    assert_same,
    calculated,
    configuration,
    crystal,
    model,
    model_section,
    needs_host,
    trained,
    write_data,
)

pytestmark = needs_host


@pytest.fixture
def data_file(tmp_path) -> Path:
    return write_data(tmp_path)


# --- training


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


@pytest.mark.parametrize(
    "targets, n_adapted, dropout", [("(graph_conv|final).*linear", 32, 0.0), (["linear"], 34, 0.2)]
)
def test_lora_is_trained_and_merged_into_the_file(data_file, tmp_path, targets, n_adapted, dropout):
    pytest.importorskip("peft", reason="peft is not installed")
    start = save_potential(tmp_path / "start.pt", M3GNet(**{**SMALL, "units": 16}))
    old = load_potential(start).state_dict()
    lora = {"r": 2, "lora_alpha": 4, "target_modules": targets, "lora_dropout": dropout}
    section = model_section(checkpoint=str(start), units=16)
    output, path = trained(configuration(data_file, model=section, recipes=[{"name": "lora", "lora": lora}]), tmp_path)
    assert len(adapted_layers(output.model)) == n_adapted
    potential = open_potential(path)
    new = potential.state_dict()
    assert new.keys() == old.keys()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert len(changed) == n_adapted and all(name.endswith(".weight") for name in changed)  # biases stay
    assert_same(
        calculated(crystal(3), PotentialCalculator(potential)),
        calculated(crystal(3), output.model.eval().ase_calculator()), rtol=1e-4,
    )  # fmt: skip


def test_lora_with_whole_copies_of_modules_is_refused(data_file, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed")
    lora = {"target_modules": ["linear"], "modules_to_save": ["final"]}
    with pytest.raises(ConfigError, match="modules_to_save names final"):
        trained(configuration(data_file, recipes=[{"name": "lora", "lora": lora}]), tmp_path)


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
    drawn = build({**section, "online": True}).create_dataset()
    epochs = [[drawn[k] for k in order] for order in (range(12), range(11, -1, -1))]
    first, second = ([a.positions.round(6).tobytes() for a in epoch] for epoch in epochs)
    assert set(first) == {a.positions.round(6).tobytes() for a in made} and not set(first) & set(second)
    assert len(drawn) == len(set(second)) == 12
    energies = evaluate(potential, build_graph(epochs[1], potential.cutoff, dtype=torch.float32)).energies.numpy()
    assert np.allclose([get_labels(a).energy for a in epochs[1]], energies, rtol=1e-5)
    del section["teacher"]
    fitted = list(build({**section, "eam": {"epochs": 5, "n_basis": 3, "cutoff": 4.0}}).create_dataset())
    assert len(fitted) == 12 and get_labels(fitted[0]).forces is not None
    with pytest.raises(ConfigError, match=r"eam.n_base: unknown key"):
        build({**section, "eam": {"n_base": 3}}).create_dataset()

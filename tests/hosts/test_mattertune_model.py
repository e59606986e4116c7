"""The backbone physpre-m3gnet in the real MatterTune."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from ase import Atoms

from mdl_physpre.errors import CheckpointError, ConfigError, DataError
from mdl_physpre.hosts.mattertune.plugin import register
from mdl_physpre.potentials.adapters.ase_calculator import PotentialCalculator
from mdl_physpre.potentials.backbones.m3gnet.network import M3GNet
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.checkpoints.mattersim import read_mattersim_checkpoint
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.potentials.open import open_potential
from mdl_physpre.structures.labels import set_labels
from tests.helpers.mattertune_cases import (
    MATTERSIM,
    PROPERTIES,
    SMALL,
    assert_same,
    calculated,
    crystal,
    labelled,
    model,
    needs_host,
    saved,
)

pytestmark = needs_host


# --- registration


def test_registering_again_changes_nothing():
    from mattertune.main import MatterTunerConfig

    before = MatterTunerConfig
    register()
    register()
    assert MatterTunerConfig is before
    from mdl_physpre.hosts.mattertune.status import registered

    assert "backbone physpre-m3gnet" in registered()


def test_status_says_what_would_not_work(monkeypatch):
    import ase.constraints

    from mdl_physpre.hosts.locate import HOSTS, root_of
    from mdl_physpre.hosts.mattertune.status import problems

    root = root_of(HOSTS["mattertune"])
    before = problems(root)
    assert not any("is missing" in line or "stress" in line for line in before) or not hasattr(
        ase.constraints, "voigt_6_to_full_3x3_stress"
    )
    monkeypatch.delattr(ase.constraints, "voigt_6_to_full_3x3_stress", raising=False)
    assert any(line.startswith("stress of backbones other than physpre-m3gnet") for line in problems(root))
    monkeypatch.delattr("mattertune.main.MatterTuner")
    assert any("mattertune.main.MatterTuner is missing (there since 2024-10-30)" in line for line in problems(root))
    assert any("graph_partition is not compiled" in line for line in problems(root.parent))


def test_calculator_under_an_ase_without_the_hosts_names(monkeypatch):
    import ase.constraints

    module, atoms = model(), crystal()
    expected = calculated(atoms, PotentialCalculator(copy.deepcopy(module.backbone).eval()))
    for name in ("voigt_6_to_full_3x3_stress", "full_3x3_to_voigt_6_stress"):
        monkeypatch.delattr(ase.constraints, name, raising=False)
    assert_same(expected, calculated(atoms, module.ase_calculator()))


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
    data = module.atoms_to_data(only_energy, has_labels=True)
    assert float(data.energy) == -1.0 and data.forces.isnan().all() and data.stresses.shape == (1, 3, 3)
    bare = atoms.copy()
    bare.info["structure_id"] = "odd"
    with pytest.raises(DataError, match=r"structure O4Si2 \(odd\): has no label for 'energy', 'forces', 'stresses'"):
        module.atoms_to_data(bare, has_labels=True)
    box = atoms.copy()
    box.pbc, box.cell = False, None
    set_labels(box, -1.0, np.zeros((6, 3)), np.zeros(6))
    with pytest.raises(DataError, match="has no full cell"):
        module.atoms_to_data(box, has_labels=True)
    with pytest.raises(DataError, match="holds P"):
        module.atoms_to_data(Atoms("P", cell=[9] * 3, pbc=True), has_labels=False)


# --- partition


def test_missing_labels_are_left_out_of_loss_and_errors():
    """Forces of the first structure alone: loss and errors are those of the structures that have the label."""
    module, (whole, other) = model(elements=["O", "Si"]), labelled(2)
    energy = set_labels(other.copy(), energy=other.get_potential_energy())
    batches = [
        module.collate_fn([module.atoms_to_data(a, True) for a in one]) for one in ([whole, energy], [whole], [energy])
    ]
    found = []
    for batch in batches:
        batch = module.gpu_batch_transform(batch)
        predictions = module(batch, mode="train")["predicted_properties"]
        labels = module.batch_to_labels(batch)
        loss = module._compute_loss(predictions, labels, log=False)
        errors = {k: float(v.compute()) for k, v in module.train_metrics(predictions, labels).items()}
        for metric in module.train_metrics.modules():
            if hasattr(metric, "reset"):
                metric.reset()
        found.append((float(loss.detach()), errors))
    (both, errors), (first, of_first), (second, of_second) = found
    assert torch.isfinite(torch.tensor([both, first, second])).all()
    energies = [e["energy_mae"] for e in (of_first, of_second)]
    assert second == pytest.approx(energies[1], rel=1e-5)
    assert errors["forces_mae"] == pytest.approx(of_first["forces_mae"], rel=1e-4)
    assert both == pytest.approx(first - energies[0] + sum(energies) / 2, rel=1e-4)


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

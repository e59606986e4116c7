"""Two stages: one set of weights, one zero of energy, a fresh optimiser, and budgets that are stated."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mdl_physpre.analysis.errors import prediction_errors
from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.energy_reference import fit_energy_reference
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.training.arms import Arm, Material, parse_arm
from mdl_physpre.training.energy_zero import energy_errors
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.training.train import train_potential
from mdl_physpre.training.two_stage import initial_potential, train_arm
from tests.helpers.tiny_potential import CUTOFF, TinyPotential, cells, labelled

PRETRAIN = {"max_epochs": 3, "lr": 2e-2, "batch_size": 5}
FINETUNE = TrainingSettings(max_epochs=2, lr=1e-2, batch_size=4)


def sets(seed):
    train, val = labelled(cells(10, seed=seed), seed=seed), labelled(cells(4, seed=seed + 50), seed=seed)
    return GraphDataset(train, CUTOFF), GraphDataset(val, CUTOFF)


def material(dft, teacher=None):
    """What the arms of a run use: structures with DFT labels, and those with the labels of a teacher."""
    labelled_by_teacher = {} if teacher is None else {"pretraining_set": lambda: tuple(d.structures for d in teacher)}
    return Material(*(d.structures for d in dft), **labelled_by_teacher)


def start(dft, seed=0):
    return initial_potential(TinyPotential, Arm("baseline"), material(dft), seed)


def trained(teacher, dft, out, settings=FINETUNE, model=None, arm="pretrain"):
    model = start(dft) if model is None else model
    return train_arm(parse_arm(arm, {"pretrain": PRETRAIN}), model, material(dft, teacher), settings, out)


def test_second_stage_starts_from_the_best_weights_of_the_first_with_a_fresh_optimiser(tmp_path):
    teacher, dft = sets(1), sets(2)
    model = start(dft, seed=3)
    result = trained(teacher, dft, tmp_path / "pretrain", model=model)
    # the same, one after the other
    other = start(dft, seed=3)
    train_potential(other, *teacher, TrainingSettings(**PRETRAIN), tmp_path / "first")
    second = train_potential(load_potential(tmp_path / "first" / "best.pt"), *dft, FINETUNE, tmp_path / "second")
    assert result.stages["finetune"].history[0]["validation_loss"] == second.history[0]["validation_loss"]
    assert result.stages["finetune"].history[0]["lr"] == FINETUNE.lr
    assert result.checkpoint == tmp_path / "pretrain" / "finetune" / "best.pt"
    best = load_potential(result.checkpoint).state_dict()
    assert all(torch.equal(best[k], v) for k, v in model.state_dict().items())


def test_energy_reference_comes_from_dft_and_stays(tmp_path):
    teacher, dft = sets(1), sets(2)
    expected = fit_energy_reference(dft[0].structures).energies
    model = start(dft)
    assert torch.equal(model.reference.energies, expected)
    assert expected.abs().max() > 0
    result = trained(teacher, dft, tmp_path, model=model)
    for stage in result.stages.values():
        assert torch.equal(load_potential(stage.best_checkpoint).reference.energies, expected)


def test_forces_alone_are_learnt_with_a_reference_of_zero(tmp_path, caplog):
    teacher, dft = sets(1), sets(2)
    for dataset in (*teacher, *dft):
        for atoms in dataset.structures:
            del atoms.calc.results["energy"], atoms.calc.results["stress"]
    (teacher, dft) = (tuple(GraphDataset(d.structures, CUTOFF) for d in both) for both in (teacher, dft))
    caplog.set_level("INFO", logger="mdl_physpre")
    model = start(dft)
    assert not model.reference.energies.any()
    assert "none of 10 training structures carries an energy: the energy reference is zero" in caplog.text
    weights = {"weight_energy": 0.0, "weight_stress": 0.0}
    result = trained(teacher, dft, tmp_path, FINETUNE.changed(**weights, refit_reference=True), model)
    assert result.stages["finetune"].best_loss > 0 and not result.potential.reference.energies.any()
    with pytest.raises(ConfigError, match="weight_energy is"):
        trained(None, dft, tmp_path / "wrong", model=model, arm="baseline")


def test_arms_start_alike_and_leave_the_random_numbers_alone():
    dft = sets(2)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, second = (start(dft, seed=4).state_dict() for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[k], second[k]) for k in first)
    other = start(dft, seed=5).state_dict()
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])


def test_budgets_are_stated(tmp_path):
    teacher, dft = sets(1), sets(2)
    (alone,) = trained(None, dft, tmp_path / "baseline", arm="baseline").stages.values()
    first, second = trained(teacher, dft, tmp_path / "pretrain").stages.values()
    assert (first.epochs, first.steps, first.structures) == (3, 6, 30)
    assert second.steps == alone.steps == 6
    assert second.structures == alone.structures == 20


def test_interrupted_in_the_second_stage(tmp_path):
    teacher, dft = sets(1), sets(2)
    whole = trained(teacher, dft, tmp_path / "whole")
    trained(teacher, dft, tmp_path / "broken", FINETUNE.changed(max_epochs=1))
    resumed = trained(teacher, dft, tmp_path / "broken")
    assert resumed.stages["finetune"].best_loss == whole.stages["finetune"].best_loss
    assert all(torch.equal(whole.potential.state_dict()[k], v) for k, v in resumed.potential.state_dict().items())


def test_labels_of_the_second_stage_are_checked_before_the_first(tmp_path):
    teacher, (train, val) = sets(1), sets(2)
    for atoms in train.structures:
        del atoms.calc.results["stress"]
    with pytest.raises(ConfigError, match="weight_stress"):
        trained(teacher, (GraphDataset(train.structures, CUTOFF), val), tmp_path, model=TinyPotential())
    assert not list(tmp_path.iterdir())


def test_reference_is_refitted_at_the_very_end_only(tmp_path):
    teacher, dft = sets(1), sets(2)
    start_reference = start(dft).reference.energies
    settings = TrainingSettings(max_epochs=2, lr=0.05, batch_size=4, weight_energy=1e-6)  # energies drift
    plain = trained(teacher, dft, tmp_path / "plain", settings)
    shifted, again = (
        trained(teacher, dft, tmp_path / "shifted", settings.changed(refit_reference=True))
        for _ in range(2)  # the second finds everything done
    )
    before, after = (energy_errors(arm.potential, dft[1]) for arm in (plain, shifted))
    assert np.abs(after).mean() < np.abs(before).mean()
    # the fit written out: residuals over composition, each structure weighed by 1/n
    numbers = np.array([[np.sum(a.numbers == z) for z in (8, 14)] for a in dft[0].structures]) / 4
    expected = np.linalg.lstsq(numbers, energy_errors(plain.potential, dft[0]) / 4, rcond=1e-8)[0]
    moved = shifted.potential.reference.energies - start_reference
    np.testing.assert_allclose(moved[[8, 14]], expected, atol=1e-6)
    assert torch.equal(again.potential.reference.energies, shifted.potential.reference.energies)
    assert torch.equal(load_potential(shifted.checkpoint).reference.energies, shifted.potential.reference.energies)
    pretrained = load_potential(shifted.stages["pretrain"].best_checkpoint)
    assert torch.equal(pretrained.reference.energies, start_reference)
    forces = [prediction_errors(arm.potential, dft[1]).forces_mae for arm in (plain, shifted)]
    assert forces[0] == forces[1]

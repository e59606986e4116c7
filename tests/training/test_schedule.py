"""The learning rate of each step, the length of a training in steps, and batches that are filled with atoms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mdl_physpre.errors import CheckpointError, ConfigError
from mdl_physpre.runs.stage import decisive
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.training.data import batch_indices, epoch_batches
from mdl_physpre.training.parts import Pretrain
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.training.stopping import epochs_expected
from mdl_physpre.training.train import train_potential
from tests.helpers.tiny_potential import CUTOFF, TinyPotential, cells, data, labelled, potential
from tests.helpers.without_times import without_times

SETTINGS = TrainingSettings(max_epochs=4, lr=1e-2, batch_size=4, min_lr=1e-4)  # 3 steps in an epoch


@pytest.fixture
def rates(monkeypatch):
    """The learning rate of every step."""
    seen = []
    step = torch.optim.AdamW.step

    def watched(self, *args, **options):
        seen.append(self.param_groups[0]["lr"])
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    return seen


def by_torch(make, n):
    """Rates of n steps under a schedule of torch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=SETTINGS.lr)
    schedule, found = make(optimizer), []
    for _ in range(n):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("length", [{"max_epochs": 4}, {"max_steps": 12}])
def test_rates_are_those_of_torchs_schedules(tmp_path, rates, length):
    def cosine(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12, eta_min=SETTINGS.min_lr)

    def line(optimizer):
        return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, SETTINGS.min_lr / SETTINGS.lr, 12)

    for name, make in (("cosine", cosine), ("linear", line)):
        rates.clear()
        result = train_potential(potential(), *data(), SETTINGS.changed(schedule=name, **length), tmp_path / name)
        assert rates == pytest.approx(by_torch(make, 12))
        assert [row["lr"] for row in result.history] == rates[2::3]


@pytest.mark.parametrize("schedule", ["constant", "plateau", "cosine"])
def test_the_rate_rises_at_the_start(tmp_path, rates, schedule):
    settings = SETTINGS.changed(schedule=schedule, scheduler_patience=0, scheduler_threshold=0.999)
    train_potential(potential(), *data(), settings, tmp_path / "plain")
    plain = list(rates)
    rates.clear()
    train_potential(potential(), *data(), settings.changed(warmup_steps=5), tmp_path / "warm")
    assert rates == pytest.approx([min(1, (n + 1) / 5) * rate for n, rate in enumerate(plain)])
    assert schedule == "constant" or plain[-1] < plain[0]
    assert schedule != "constant" or plain == [SETTINGS.lr] * 12


def test_a_training_has_as_many_steps_as_it_is_told(tmp_path):
    settings = SETTINGS.changed(max_steps=7, max_epochs=1)
    result = train_potential(potential(), *data(), settings, tmp_path)
    assert (result.steps, result.epochs, result.stopped_by) == (7, 3, "max_steps")
    assert [row["steps"] for row in result.history] == [3, 3, 1]
    assert result.structures == 12 + 12 + 4
    again = train_potential(potential(), *data(), settings, tmp_path)
    assert again.history == result.history
    longer = train_potential(potential(), *data(), settings.changed(max_steps=9), tmp_path)
    assert [row["steps"] for row in longer.history] == [3, 3, 1, 2]
    assert epochs_expected([], 3, settings) == 3 and epochs_expected(result.history[:2], 3, settings) == 3
    assert epochs_expected([], 3, SETTINGS) == 4


def test_early_stopping_counts_validations_in_a_training_by_steps(tmp_path):
    train, _ = data()
    against = GraphDataset(labelled(cells(6, seed=1), scale=-1.0), CUTOFF)
    settings = SETTINGS.changed(max_steps=200, early_stopping_patience=3)
    result = train_potential(potential(), train, against, settings, tmp_path)
    assert result.stopped_by == "early stopping" and result.epochs == result.best_epoch + 4


class Interrupted(TinyPotential):
    left = math.inf

    def atomic_energies(self, graph):
        self.left -= self.training
        if self.left < 0:
            raise KeyboardInterrupt
        return super().atomic_energies(graph)


def test_interrupted_it_goes_on_at_the_rate_of_its_step(tmp_path, rates):
    settings = SETTINGS.changed(schedule="cosine", warmup_steps=4, max_steps=11, ema_decay=0.9)
    expected = train_potential(potential(), *data(), settings, tmp_path / "whole")
    whole = list(rates)
    rates.clear()
    for left in (5, 4):
        torch.manual_seed(0)
        broken = Interrupted()
        broken.left = left
        with pytest.raises(KeyboardInterrupt):
            train_potential(broken, *data(), settings, tmp_path / "broken")
    assert rates == [*whole[:5], *whole[3:7]]
    result = train_potential(potential(), *data(), settings, tmp_path / "broken")
    assert without_times(result.history) == without_times(expected.history)


def test_a_schedule_over_the_whole_length_is_not_prolonged(tmp_path):
    settings = SETTINGS.changed(schedule="cosine", max_epochs=2)
    train_potential(potential(), *data(), settings, tmp_path)
    with pytest.raises(CheckpointError, match=r"max_epochs: 2 → 3"):
        train_potential(potential(), *data(), settings.changed(max_epochs=3), tmp_path)
    steps = settings.changed(max_steps=4)
    train_potential(potential(), *data(), steps, tmp_path / "steps")
    assert train_potential(potential(), *data(), steps.changed(max_epochs=9), tmp_path / "steps").steps == 4
    with pytest.raises(CheckpointError, match=r"max_steps: 4 → 5"):
        train_potential(potential(), *data(), steps.changed(max_steps=5), tmp_path / "steps")


def test_batches_are_filled_with_atoms(tmp_path):
    made = [cells(1, seed=k, n_atoms=1 + k % 4)[0] for k in range(23)]
    dataset = GraphDataset(labelled(made), CUTOFF)
    settings = TrainingSettings(batch_atoms=9, seed=3)
    batches = epoch_batches(dataset, settings, epoch=2)
    assert sorted(k for batch in batches for k in batch) == list(range(23))
    assert [k for batch in batches for k in batch] == np.random.default_rng([3, 2]).permutation(23).tolist()
    atoms = [dataset.n_atoms[batch].sum() for batch in batches]
    assert all(6 <= n <= 9 for n in atoms[:-1]) and atoms[-1] <= 9, "no structure is larger than 4"
    assert [len(b) for b in batch_indices(np.ones(4), 2, filled=(np.array([3, 30, 3, 3]), 6))] == [1, 1, 2]
    result = train_potential(potential(), dataset, dataset, settings.changed(max_epochs=1), tmp_path)
    assert result.steps == len(epoch_batches(dataset, settings, 0)) and result.structures == 23


def test_pretraining_has_the_keys_of_optim_unless_it_has_its_own():
    optim = SETTINGS.changed(max_steps=100, batch_atoms=300, schedule="cosine", warmup_steps=10)
    assert Pretrain.Settings().settings(optim) == optim
    own = Pretrain.Settings(max_epochs=20, batch_size=8, warmup_steps=0).settings(optim)
    assert (own.max_epochs, own.max_steps, own.batch_size, own.batch_atoms) == (20, None, 8, None)
    assert (own.schedule, own.warmup_steps) == ("cosine", 0)
    assert Pretrain.Settings(max_epochs=20, max_steps=50).settings(optim).max_steps == 50
    assert Pretrain.Settings(schedule="linear").settings(optim).schedule == "linear"


def test_stages_of_before_are_known_without_these_keys():
    later = {"schedule", "warmup_steps", "max_steps", "batch_atoms", "ema_decay"}
    assert not later & set(decisive(SETTINGS)) and not later & set(Pretrain.Settings().asked())
    assert decisive(SETTINGS.changed(max_steps=5))["max_steps"] == 5
    with pytest.raises(ConfigError, match="schedule: found 'cosin'; expected 'plateau', 'cosine'"):
        TrainingSettings(schedule="cosin")

"""The moving average of the weights against its formula written out, in the training that users run."""

from __future__ import annotations

import copy

import pytest
import torch

from mdl_physpre.errors import CheckpointError, ConfigError
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.runs.stage import decisive
from mdl_physpre.training.parts import Pretrain
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.training.train import train_potential
from tests.helpers.tiny_potential import data, potential
from tests.helpers.without_times import without_times

SETTINGS = TrainingSettings(max_epochs=5, lr=3e-2, batch_size=4)


@pytest.fixture
def weights(monkeypatch):
    """The weights after every step of the optimiser."""
    seen = []
    step = torch.optim.AdamW.step

    def watched(self, *args, **options):
        found = step(self, *args, **options)
        seen.append([p.detach().clone() for group in self.param_groups for p in group["params"]])
        return found

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    return seen


def test_the_average_is_validated_and_kept_and_training_goes_on_from_the_weights(tmp_path, weights):
    train, val = data()
    model = potential()
    averages = [p.detach().clone() for p in model.parameters()]
    decay = 0.6
    result = train_potential(model, train, val, SETTINGS.changed(ema_decay=decay), tmp_path)
    after_epochs = []
    for n, now in enumerate(weights):
        d = min(decay, (1 + n) / (10 + n))
        averages = [d * a + (1 - d) * w for a, w in zip(averages, now)]
        if n % 3 == 2:
            after_epochs.append(averages)
    assert len(after_epochs) == 5
    graph = val.batch()
    for row, expected in zip(result.history, after_epochs, strict=True):
        other = copy.deepcopy(model)
        for parameter, value in zip(other.parameters(), expected):
            parameter.data.copy_(value)
        error = (evaluate(other, graph).forces - graph.forces).abs().double().mean()
        assert row["validation_forces_mae"] == pytest.approx(float(error), rel=1e-4)
    for stored in (model, load_potential(result.best_checkpoint)):
        for parameter, value in zip(stored.parameters(), after_epochs[result.best_epoch]):
            torch.testing.assert_close(parameter.detach(), value)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    raw = [state["state_dict"][f"potential.{name}"] for name, _ in model.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(raw, weights[-1]))
    plain = train_potential(potential(), train, val, SETTINGS, tmp_path / "plain")
    assert [row["train_loss"] for row in plain.history] == [row["train_loss"] for row in result.history]
    assert [row["validation_loss"] for row in plain.history] != [row["validation_loss"] for row in result.history]


def test_a_decay_of_zero_is_the_weights_themselves(tmp_path):
    train, val = data()
    found = [
        train_potential(potential(), train, val, SETTINGS.changed(ema_decay=decay), tmp_path / str(decay))
        for decay in (None, 0.0)
    ]
    assert without_times(found[0].history) == without_times(found[1].history)


def test_prolonged_it_goes_on_with_both_and_does_not_begin_in_between(tmp_path):
    train, val = data()
    settings = SETTINGS.changed(ema_decay=0.9)
    train_potential(potential(), train, val, settings.changed(max_epochs=2), tmp_path / "a")
    longer = train_potential(potential(), train, val, settings, tmp_path / "a")
    whole = train_potential(potential(), train, val, settings, tmp_path / "b")
    assert without_times(longer.history) == without_times(whole.history)
    with pytest.raises(CheckpointError, match=r"ema_decay: 0\.9 → None"):
        train_potential(potential(), train, val, SETTINGS, tmp_path / "a")


def test_checkpoints_and_stages_of_before_are_known_without_it(tmp_path):
    train, val = data()
    train_potential(potential(), train, val, SETTINGS, tmp_path)
    state = torch.load(tmp_path / "last.ckpt", weights_only=False)
    del state["physpre"]["settings"]["ema_decay"], state["physpre"]["average"]
    torch.save(state, tmp_path / "last.ckpt")
    assert train_potential(potential(), train, val, SETTINGS.changed(max_epochs=6), tmp_path).epochs == 6
    with pytest.raises(CheckpointError, match=r"ema_decay: None → 0\.9"):
        train_potential(potential(), train, val, SETTINGS.changed(ema_decay=0.9), tmp_path)
    assert "ema_decay" not in decisive(SETTINGS) and decisive(SETTINGS.changed(ema_decay=0.9))["ema_decay"] == 0.9
    assert "ema_decay" not in Pretrain.Settings().asked()
    stage = Pretrain.Settings(ema_decay=0.5).settings(SETTINGS.changed(ema_decay=0.9))
    assert stage.ema_decay == 0.5 and Pretrain.Settings().settings(stage).ema_decay == 0.5


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ConfigError, match=r"ema_decay: found .*(less than 1|at least 0|below 1)"):
        TrainingSettings(ema_decay=decay)

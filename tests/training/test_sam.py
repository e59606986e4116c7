"""Sharpness-aware minimisation against a plain reimplementation, and in the training that users run."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.training.data import batch_indices
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.training.train import train_potential
from tests.helpers import tiny_potential

data = partial(tiny_potential.data, dtype=torch.float64)


def potential(seed=0):
    return tiny_potential.potential(seed).double()


def reference_training(model, train, settings, epochs):
    """One parameter vector, gradients of the loss, perturbation, AdamW: written out, from the papers alone."""
    names = [n for n, _ in model.named_parameters()]
    w = [p.detach().clone() for p in model.parameters()]
    m, v = [torch.zeros_like(p) for p in w], [torch.zeros_like(p) for p in w]
    steps = 0

    def gradient(values, graph):
        with torch.no_grad():
            for name, value in zip(names, values):
                model.get_parameter(name).copy_(value)
        found = evaluate(model, graph, create_graph=True)
        loss = (
            0.01 * (found.energies - graph.energy).abs().mean()
            + 50 * (found.forces - graph.forces).abs().mean()
            + 50 * (found.stress - graph.stress).abs().mean()
        )
        g = torch.autograd.grad(loss, list(model.parameters()))
        norm = math.sqrt(sum(float(x.square().sum()) for x in g))
        clip = settings.clip_grad_norm
        return [x * min(1.0, clip / (norm + 1e-6)) for x in g] if clip else list(g)

    for epoch in range(epochs):
        for batch in batch_indices(train.n_edges, settings.batch_size, None, settings.seed, epoch):
            graph = train.batch(batch)
            g = gradient(w, graph)
            t = [x.abs() if settings.sam_adaptive else torch.ones_like(x) for x in w]
            norm = math.sqrt(sum(float((a * b).square().sum()) for a, b in zip(t, g)))
            nearby = [x + settings.sam_rho * a * a * b / norm for x, a, b in zip(w, t, g)]
            g = gradient(nearby, graph)
            steps += 1
            for k, x in enumerate(w):
                m[k] = 0.9 * m[k] + 0.1 * g[k]
                v[k] = 0.999 * v[k] + 0.001 * g[k] ** 2
                x.mul_(1 - settings.lr * settings.weight_decay)
                x.sub_(settings.lr * (m[k] / (1 - 0.9**steps)) / ((v[k] / (1 - 0.999**steps)).sqrt() + 1e-8))
    return dict(zip(names, w))


@pytest.mark.parametrize("clip", [None, 3.0])
@pytest.mark.parametrize("adaptive", [True, False])
def test_steps_are_those_of_the_papers(tmp_path, adaptive, clip):
    train, val = data()
    settings = TrainingSettings(
        max_epochs=2, lr=1e-2, batch_size=4, seed=3, sam_rho=0.2, sam_adaptive=adaptive, clip_grad_norm=clip
    )
    expected = reference_training(potential(), train, settings, epochs=2)
    model = potential()
    result = train_potential(model, train, val, settings, tmp_path)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in expected.items():
        torch.testing.assert_close(last[f"potential.{name}"], value, rtol=1e-9, atol=1e-11)
    assert (result.steps, result.gradients) == (6, 12)
    plain = train_potential(
        potential(), train, val, TrainingSettings(max_epochs=2, lr=1e-2, batch_size=4, seed=3), tmp_path / "plain"
    )
    assert (plain.steps, plain.gradients) == (6, 6)
    other = torch.load(tmp_path / "plain" / "last.ckpt", weights_only=True)["state_dict"]
    assert not torch.allclose(other["potential.layers.0.weight"], last["potential.layers.0.weight"], rtol=1e-4)


def test_the_second_gradient_is_clipped_too(tmp_path):
    """With a first gradient far below the bound and a second far above it, the step is as long as the bound."""
    train, val = data()
    start = potential()
    before = {k: v.clone() for k, v in start.state_dict().items()}

    class Plain(torch.optim.SGD):
        def __init__(self, parameters, lr, weight_decay, fused):
            super().__init__(parameters, lr=lr)

    adamw, torch.optim.AdamW = torch.optim.AdamW, Plain
    try:
        settings = TrainingSettings(max_epochs=1, lr=1e-3, batch_size=12, sam_rho=50.0, clip_grad_norm=25.0)
        result = train_potential(start, train, val, settings, tmp_path)
    finally:
        torch.optim.AdamW = adamw
    moved = math.sqrt(sum(float((v - before[k]).square().sum()) for k, v in start.state_dict().items()))
    assert result.history[0]["clipped_steps"] == 1
    assert moved == pytest.approx(1e-3 * 25.0, rel=1e-6)


def test_the_schedule_acts_on_the_rate_of_the_steps(tmp_path):
    train, val = data(n=4)
    settings = TrainingSettings(
        max_epochs=6, lr=1e-3, batch_size=4, sam_rho=0.05, scheduler_factor=0.1, scheduler_patience=0,
        scheduler_threshold=0.999, min_lr=1e-9,
    )  # fmt: skip
    result = train_potential(potential(), train, val, settings, tmp_path)
    rates = [row["lr"] for row in result.history]
    assert rates[0] == pytest.approx(1e-3) and rates[-1] < 1e-6
    losses = [row["train_loss"] for row in result.history]
    assert abs(losses[-1] - losses[-2]) < 1e-2 * abs(losses[1] - losses[0])  # the steps became that small


def test_interrupted_it_goes_on_as_if_it_had_not_been(tmp_path):
    train, val = data()
    settings = {"lr": 1e-2, "batch_size": 4, "sam_rho": 0.1}
    whole = train_potential(potential(), train, val, TrainingSettings(max_epochs=4, **settings), tmp_path / "whole")
    train_potential(potential(), train, val, TrainingSettings(max_epochs=2, **settings), tmp_path / "broken")
    model = potential(seed=1)
    again = train_potential(model, train, val, TrainingSettings(max_epochs=4, **settings), tmp_path / "broken")
    assert [r["train_loss"] for r in again.history] == [r["train_loss"] for r in whole.history]
    assert again.gradients == whole.gradients == 24


def test_weights_stay_when_the_worst_point_has_no_gradient(tmp_path):
    """A step so long that the loss overflows there is skipped and counted, and leaves the weights alone."""
    train, val = data(n=4)
    start = potential()
    before = {k: v.clone() for k, v in start.state_dict().items()}
    settings = TrainingSettings(max_epochs=1, lr=1e-2, batch_size=4, sam_rho=1e308, sam_adaptive=False)
    result = train_potential(start, train, val, settings, tmp_path)
    assert result.skipped_steps == 1
    assert all(torch.equal(v, before[k]) for k, v in start.state_dict().items())


@pytest.mark.parametrize("rho", [0, -1.0, math.nan, "large"])
def test_rho_out_of_range_is_named(rho):
    with pytest.raises(ConfigError, match="sam_rho"):
        TrainingSettings(sam_rho=rho)

"""Replay: which structures, what loss, and that it keeps what pretraining taught."""

from __future__ import annotations

import pytest
import torch

from mdl_physpre.analysis.errors import prediction_errors
from mdl_physpre.errors import CheckpointError, ConfigError, DataError
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.training.arms import Material, parse_arm
from mdl_physpre.training.data import GraphBatches
from mdl_physpre.training.replay import Replay, Steps
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.training.train import train_potential
from mdl_physpre.training.two_stage import initial_potential, train_arm
from tests.helpers.tiny_potential import CUTOFF, TinyPotential, cells, labelled, potential

SETTINGS = TrainingSettings(max_epochs=1, lr=1e-3, batch_size=6)


def graphs(n, seed, teacher=11, dtype=torch.float32):
    return GraphDataset(labelled(cells(n, seed=seed), seed=teacher), CUTOFF, dtype=dtype)


def test_shares_and_order_of_what_is_replayed():
    replay = Replay(graphs(7, 1), SETTINGS, share=0.25)
    batches = [[0] * 12, [0] * 12, [0] * 3, [0]]
    found = replay.indices(batches, seed=5, epoch=2)
    assert [len(part) for part in found] == [4, 4, 1, 1]
    drawn = [k for part in found for k in part]
    assert sorted(drawn[:7]) == list(range(7)), "none again before all were drawn"
    assert found == replay.indices(batches, seed=5, epoch=2)
    assert found != replay.indices(batches, seed=5, epoch=3)
    assert found != replay.indices(batches, seed=6, epoch=2)
    assert [len(p) for p in Replay(graphs(7, 1), SETTINGS, share=0.5).indices(batches, 0, 0)] == [12, 12, 3, 1]


@pytest.mark.parametrize(("n", "share"), [(2, 0.25), (12, 2 / 3)])
def test_the_step_is_that_of_the_weighted_sum(tmp_path, n, share):
    """One step written out: gradient of L_DFT + w L_teacher, each with its own weights and tail; then plain AdamW."""
    dft, teacher = graphs(6, 1, dtype=torch.float64), graphs(n, 2, teacher=5, dtype=torch.float64)
    first = TrainingSettings(weight_energy=0.5, weight_stress=0.0, force_tail=0.3)
    limit = int(dft.n_edges.sum())  # twelve replayed structures are cut in two
    settings = TrainingSettings(max_epochs=1, lr=1e-2, batch_size=6, clip_grad_norm=None, max_edges=limit)
    model = potential().double()
    written_out = potential().double()
    replay = Replay(teacher, first, share=share, weight=0.7)
    result = train_potential(model, dft, dft, settings, tmp_path, replay=replay)

    graph, other = dft.batch(), teacher.batch()
    found, again = (evaluate(written_out, g, create_graph=True) for g in (graph, other))
    tail = 1 / (1 + other.forces.norm(dim=1, keepdim=True) / 0.3)
    loss = (
        0.01 * (found.energies - graph.energy).abs().mean()
        + 50 * (found.forces - graph.forces).abs().mean()
        + 50 * (found.stress - graph.stress).abs().mean()
        + 0.7 * 0.5 * (again.energies - other.energy).abs().mean()
        + 0.7 * 50 * ((again.forces - other.forces).abs() * tail).mean()
    )
    optimizer = torch.optim.AdamW(written_out.parameters(), lr=1e-2, weight_decay=0.01)
    loss.backward()
    norm = float(torch.cat([p.grad.flatten() for p in written_out.parameters()]).norm())
    optimizer.step()
    assert result.history[0]["gradient_norm"] == pytest.approx(norm, rel=1e-9)
    assert result.structures == 6 + n
    assert result.history[0]["replay_forces_mae"] == pytest.approx(
        float((again.forces - other.forces).abs().mean().detach()), rel=1e-9
    )
    for name, value in written_out.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-10, atol=1e-12)


def test_a_cut_batch_has_the_loss_of_the_whole():
    replay = Replay(graphs(6, 2), SETTINGS, weight=0.6, share=0.5)
    dft = graphs(8, 1)
    settings = TrainingSettings(max_edges=int(replay.dataset.n_edges.max()) * 2, seed=4)
    batches = GraphBatches(dft, [[0, 1, 2, 3], [4, 5, 6, 7]])
    steps = Steps(batches, replay, settings, epoch=1)
    drawn = replay.indices(batches.batches, seed=4, epoch=1)
    assert len(steps) == 2 and steps.structures == [8, 8]
    for (graph, replayed), own, indices in zip(steps, batches.batches, drawn):
        assert torch.equal(graph.energy, dft.batch(own).energy)
        assert len(replayed) > 1
        assert sum(weight for _, weight in replayed) == pytest.approx(0.6)
        assert torch.equal(torch.cat([g.energy for g, _ in replayed]), replay.dataset.batch(indices).energy)


def test_it_keeps_what_pretraining_taught(tmp_path):
    """Finetuned on labels of another potential, far from those of the first: with replay, more of the first is left."""
    teacher = graphs(24, 1, teacher=5), graphs(8, 2, teacher=5)
    dft = graphs(8, 3, teacher=11), graphs(4, 4, teacher=11)
    sections = {"pretrain": {"max_epochs": 20, "lr": 3e-2, "batch_size": 8}, "replay": {"share": 0.5, "weight": 1.0}}
    finetune = TrainingSettings(max_epochs=15, lr=1e-2, batch_size=4)
    material = Material(*(d.structures for d in dft), pretraining_set=lambda: tuple(d.structures for d in teacher))
    errors = {}
    for name, words in (("without", "pretrain"), ("with", "pretrain+replay")):
        arm = parse_arm(words, sections)
        start = initial_potential(TinyPotential, arm, material, seed=1)
        result = train_arm(arm, start, material, finetune, tmp_path / name)
        errors[name] = prediction_errors(result.potential, teacher[1]).forces_mae
        steps = result.stages["finetune"]
        assert (steps.steps, steps.structures) == (30, 30 * (4 if name == "without" else 8))
    assert errors["with"] < 0.8 * errors["without"]


def test_interrupted_it_goes_on_as_if_it_had_not_been(tmp_path):
    dft, teacher = graphs(8, 1), graphs(20, 2, teacher=5)

    def train(epochs, out, replay):
        settings = TrainingSettings(max_epochs=epochs, lr=1e-2, batch_size=4)
        return train_potential(potential(), dft, dft, settings, tmp_path / out, replay=replay)

    replay = Replay(teacher, SETTINGS)
    whole = train(4, "whole", replay)
    train(2, "broken", replay)
    again = train(4, "broken", replay)
    for key in ("train_loss", "replay_loss"):
        assert [row[key] for row in again.history] == [row[key] for row in whole.history]
    with pytest.raises(CheckpointError, match="another training"):
        train(6, "broken", Replay(teacher, SETTINGS, weight=0.5))


def test_what_cannot_be_replayed_is_an_error(tmp_path):
    dft = graphs(4, 1)
    for settings, message in (
        ({"share": 0.0}, "share is 0"),
        ({"share": 1.0}, "share is 1"),
        ({"weight": 0}, "weight"),
    ):
        with pytest.raises(ConfigError, match=message):
            Replay(dft, SETTINGS, **settings)
    with pytest.raises(DataError, match="replayed set is in torch.float64"):
        train_potential(
            potential(), dft, dft, SETTINGS, tmp_path, replay=Replay(graphs(2, 2, dtype=torch.float64), SETTINGS)
        )
    bare = GraphDataset([a.copy() for a in dft.structures], CUTOFF)
    with pytest.raises(ConfigError, match="replayed set"):
        train_potential(potential(), dft, dft, SETTINGS, tmp_path, replay=Replay(bare, SETTINGS))
    assert not list(tmp_path.iterdir())


def test_where_and_in_what_parts_it_is_computed_does_not_matter_for_resuming():
    """Trainings begun before these settings existed go on, too."""
    first = Replay(graphs(7, 1), SETTINGS, share=0.25)
    other = SETTINGS.changed(device="cpu", devices=2, compile=True, recompute_edges=100)
    assert Replay(first.dataset, other, share=0.25).identity() == first.identity()
    assert not any(name in first.identity() for name in ("devices", "compile", "recompute_edges"))
    assert Replay(first.dataset, SETTINGS.changed(huber_force=0.5), share=0.25).identity() != first.identity()

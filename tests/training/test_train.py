"""Training: learns, keeps the best state, steers the learning rate, and is not disturbed by an interruption."""

from __future__ import annotations

import copy
import csv
import json
import logging
import math
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch

from mdl_physpre.errors import CheckpointError, ConfigError, DataError, TrainingError
from mdl_physpre.potentials import CGCNN, EAMInteraction, HybridPotential, M3GNet, TorchMDET
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.compiled import CompiledPotential
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.training import epoch_progress, gradient
from mdl_physpre.training.checks import check_precision
from mdl_physpre.training.ranks import Ranks
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.training.train import train_potential
from tests.helpers.processes import environment
from tests.helpers.tiny_potential import CUTOFF, TinyPotential, cells, data, labelled, potential
from tests.helpers.without_times import without_times

QUICK = {"lr": 1e-2, "batch_size": 4}


def log_rows(out):
    with open(out / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def same_weights(a, b):
    return all(torch.equal(a[k], b[k]) for k in a) and a.keys() == b.keys()


def test_overfits_a_tiny_set(tmp_path):
    train, _ = data(4)
    settings = TrainingSettings(max_epochs=120, lr=5e-2, batch_size=4, scheduler_patience=8)
    result = train_potential(potential(), train, train, settings, tmp_path)
    assert result.best_loss < 0.1 * result.history[0]["validation_loss"]
    assert result.epochs == 120
    assert result.stopped_by == "max_epochs"
    assert result.steps == 120
    assert result.structures == 480
    assert result.skipped_steps == 0


def test_best_state_is_that_of_the_lowest_validation_loss(tmp_path):
    train, val = data()
    model = potential()
    # a learning rate so high that the loss goes up and down
    result = train_potential(model, train, val, TrainingSettings(max_epochs=10, lr=0.3, batch_size=4), tmp_path)
    losses = [row["validation_loss"] for row in result.history]
    assert result.best_loss == min(losses)
    assert result.best_epoch == losses.index(min(losses))
    assert result.best_epoch != len(losses) - 1, "the last epoch is the best: this test shows nothing"
    loaded = load_potential(result.best_checkpoint)
    assert same_weights(loaded.state_dict(), model.state_dict())
    graph = val.batch()
    found = evaluate(loaded, graph)
    loss = (
        0.01 * (found.energies - graph.energy).abs().mean()
        + 50 * (found.forces - graph.forces).abs().double().mean()
        + 50 * (found.stress - graph.stress).abs().double().mean()
    )
    assert float(loss) == pytest.approx(result.best_loss, rel=1e-5)


@pytest.mark.parametrize("name", ["CGCNN", "ET", "M3GNet", "hybrid"])
def test_validation_is_of_the_parameters_of_its_epoch(tmp_path, name):
    """Some networks keep what follows from their parameters alone between predictions."""
    torch.manual_seed(0)
    elements = ["Si", "O"]
    network = {
        "CGCNN": lambda: CGCNN(elements, CUTOFF, dim1=8, dim2=8, gc_count=1),
        "ET": lambda: TorchMDET(elements, CUTOFF, hidden_channels=8, num_layers=2, num_heads=2, num_rbf=6),
        "M3GNet": lambda: M3GNet(elements=elements, cutoff=CUTOFF, threebody_cutoff=2.5, num_blocks=1, units=8),
        "hybrid": lambda: HybridPotential(CGCNN(elements, CUTOFF, dim1=8), EAMInteraction(elements, CUTOFF, n_basis=3)),
    }[name]().float()
    train, val = data()
    result = train_potential(network, train, val, TrainingSettings(max_epochs=3, lr=3e-2, batch_size=4), tmp_path)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    fresh = copy.deepcopy(network)
    fresh.load_state_dict({key.removeprefix("potential."): value for key, value in state.items()})
    graph = val.batch()
    error = (evaluate(fresh, graph).forces - graph.forces).abs().double().mean()
    assert result.history[-1]["validation_forces_mae"] == pytest.approx(float(error), rel=1e-4)
    assert result.history[-1]["validation_forces_mae"] != result.history[0]["validation_forces_mae"]


def test_log_and_history_agree_and_nothing_else_is_left(tmp_path, capfd):
    train, val = data()
    result = train_potential(potential(), train, val, TrainingSettings(max_epochs=3, **QUICK), tmp_path)
    rows = log_rows(tmp_path)
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2]
    assert [float(row["train_loss"]) for row in rows] == [row["train_loss"] for row in result.history]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "last.ckpt", "log.csv"]
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "Tip" not in captured.err
    assert "GPU" not in captured.err


def test_learning_rate_falls_when_the_loss_does_not(tmp_path):
    train, val = data(4, 2)
    settings = TrainingSettings(
        max_epochs=8,
        lr=1e-3,
        batch_size=4,
        scheduler_factor=0.5,
        scheduler_patience=1,
        min_lr=3e-4,
        scheduler_threshold=0.999,  # no epoch improves that much
    )
    rates = [row["lr"] for row in train_potential(potential(), train, val, settings, tmp_path).history]
    # the first epoch is the best; after 2 that are not, the rate is halved, down to the limit
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 5e-4, 5e-4, 3e-4, 3e-4, 3e-4])


def test_clipping_bounds_the_step(tmp_path):
    train, val = data(4, 2)
    start = potential()
    before = {k: v.clone() for k, v in start.state_dict().items()}

    class Plain(torch.optim.SGD):
        def __init__(self, parameters, lr, weight_decay, fused):
            super().__init__(parameters, lr=lr)

    adamw, torch.optim.AdamW = torch.optim.AdamW, Plain
    try:
        settings = TrainingSettings(max_epochs=1, lr=0.01, batch_size=4, clip_grad_norm=0.5)
        result = train_potential(start, train, val, settings, tmp_path)
    finally:
        torch.optim.AdamW = adamw
    moved = math.sqrt(sum(float((v - before[k]).square().sum()) for k, v in start.state_dict().items()))
    assert result.history[0]["gradient_norm"] > 0.5
    assert result.history[0]["clipped_steps"] == 1
    assert moved == pytest.approx(0.01 * 0.5, rel=1e-3)


def test_early_stopping(tmp_path):
    train, _ = data(8)
    # opposite labels: whatever helps training harms validation
    against = GraphDataset(labelled(cells(6, seed=1), scale=-1.0), CUTOFF)
    settings = TrainingSettings(max_epochs=60, early_stopping_patience=3, **QUICK)
    result = train_potential(potential(), train, against, settings, tmp_path)
    assert result.stopped_by == "early stopping"
    assert result.epochs == result.best_epoch + 1 + 3 < 60
    again = train_potential(potential(1), train, against, settings, tmp_path)
    assert again.epochs == result.epochs
    assert again.best_loss == result.best_loss


def test_time_budget(tmp_path):
    train, val = data(4, 2)
    result = train_potential(potential(), train, val, TrainingSettings(max_seconds=1e-6, **QUICK), tmp_path)
    assert result.epochs == 1
    assert result.stopped_by == "max_seconds"
    assert result.seconds == pytest.approx(result.history[0]["seconds"])


class Interrupted(TinyPotential):
    """Raises after a number of training steps."""

    def __init__(self, after, error):
        super().__init__()
        self.after, self.error, self.calls = after, error, 0

    def atomic_energies(self, graph):
        self.calls += self.training
        if self.calls > self.after:
            raise self.error
        return super().atomic_energies(graph)


@pytest.mark.parametrize(("error", "decay"), [(KeyboardInterrupt, None), (RuntimeError, 0.9)])
def test_interrupted_training_ends_as_if_it_had_not_been(tmp_path, error, decay):
    train, val = data()
    settings = TrainingSettings(
        max_epochs=9,
        lr=0.05,
        batch_size=4,
        scheduler_patience=1,
        early_stopping_patience=6,
        ema_decay=decay,
        max_edges=int(3.5 * train.n_edges.mean()),
    )
    whole = potential()
    expected = train_potential(whole, train, val, settings, tmp_path / "whole")
    steps = expected.history[0]["steps"]
    assert steps > 3, "max_edges cuts no batch: this test shows less than it should"
    handler = signal.getsignal(signal.SIGINT)
    for after in (0, steps + 1, 4 * steps, 2):  # in the first epoch, in the second, at the end of the sixth
        torch.manual_seed(0)
        broken = Interrupted(after, error)
        torch.manual_seed(99)
        with pytest.raises(error):
            train_potential(broken, train, val, settings, tmp_path / "broken")
    assert signal.getsignal(signal.SIGINT) is handler
    mended = potential()
    result = train_potential(mended, train, val, settings, tmp_path / "broken")
    assert without_times(result.history) == without_times(expected.history)
    assert [int(row["epoch"]) for row in log_rows(tmp_path / "broken")] == list(range(expected.epochs))
    assert same_weights(mended.state_dict(), whole.state_dict())
    last = [torch.load(tmp_path / k / "last.ckpt", weights_only=True) for k in ("whole", "broken")]
    assert same_weights(last[0]["state_dict"], last[1]["state_dict"])
    moments = [ckpt["optimizer_states"][0]["state"] for ckpt in last]
    assert all(torch.equal(moments[0][k]["exp_avg_sq"], moments[1][k]["exp_avg_sq"]) for k in moments[0])


KILLED = """
import os, signal, torch
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.training.train import train_potential
from tests.helpers.tiny_potential import *

class Killed(TinyPotential):
    calls = 0
    def atomic_energies(self, graph):
        Killed.calls += self.training
        if Killed.calls > 10:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().atomic_energies(graph)

torch.manual_seed(0)
train = GraphDataset(labelled(cells(12)), CUTOFF)
val = GraphDataset(labelled(cells(6, seed=1)), CUTOFF)
train_potential(Killed(), train, val, TrainingSettings(max_epochs=6, lr=1e-2, batch_size=4), {out!r})
"""


def test_killed_training_ends_as_if_it_had_not_been(tmp_path):
    train, val = data()
    settings = TrainingSettings(max_epochs=6, **QUICK)
    out = tmp_path / "killed"
    script = KILLED.format(out=str(out))
    done = subprocess.run([sys.executable, "-c", script], env=environment(OMP_NUM_THREADS="1"), check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(log_rows(out)) == 3  # 3 steps an epoch, killed in the fourth
    mended, whole = potential(), potential()
    result = train_potential(mended, train, val, settings, out)
    expected = train_potential(whole, train, val, settings, tmp_path / "whole")
    assert without_times(result.history) == without_times(expected.history)
    assert same_weights(mended.state_dict(), whole.state_dict())


def test_finished_training_is_not_repeated_and_can_be_prolonged(tmp_path):
    train, val = data()
    first = train_potential(potential(), train, val, TrainingSettings(max_epochs=3, **QUICK), tmp_path)
    model = potential(7)
    again = train_potential(model, train, val, TrainingSettings(max_epochs=3, **QUICK), tmp_path)
    assert json.dumps(again.history) == json.dumps(first.history)
    assert same_weights(model.state_dict(), load_potential(first.best_checkpoint).state_dict())
    longer = train_potential(potential(), train, val, TrainingSettings(max_epochs=5, **QUICK), tmp_path)
    whole = train_potential(potential(), train, val, TrainingSettings(max_epochs=5, **QUICK), tmp_path / "whole")
    assert without_times(longer.history) == without_times(whole.history)


def test_checkpoint_of_another_training_is_refused(tmp_path):
    train, val = data()
    settings = TrainingSettings(max_epochs=1, **QUICK)
    train_potential(potential(), train, val, settings, tmp_path)
    with pytest.raises(CheckpointError, match=r"last\.ckpt.*lr: 0\.01 → 0\.02"):
        train_potential(potential(), train, val, TrainingSettings(max_epochs=1, lr=0.02, batch_size=4), tmp_path)
    other, _ = data(5)
    with pytest.raises(CheckpointError, match="training or validation set"):
        train_potential(potential(), other, val, settings, tmp_path)
    assert train_potential(potential(), other, val, settings, tmp_path, resume=False).epochs == 1
    (tmp_path / "last.ckpt").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(CheckpointError, match="cannot be read"):
        train_potential(potential(), other, val, settings, tmp_path)


def test_missing_label_names_the_split(tmp_path):
    train, val = data()
    without = labelled(cells(3, seed=2))
    for atoms in without:
        del atoms.calc.results["forces"]
    with pytest.raises(ConfigError, match="weight_force.*validation set.*'forces'"):
        train_potential(potential(), train, GraphDataset(without, CUTOFF), TrainingSettings(), tmp_path / "a")
    with pytest.raises(ConfigError, match="weight_force.*training set.*'forces'"):
        train_potential(potential(), GraphDataset(without, CUTOFF), val, TrainingSettings(), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_some_missing_labels_are_left_out(tmp_path):
    structures = labelled(cells(8))
    for atoms in structures[:3]:
        del atoms.calc.results["stress"], atoms.calc.results["energy"]
    train, (_, val) = GraphDataset(structures, CUTOFF), data()
    result = train_potential(potential(), train, val, TrainingSettings(max_epochs=2, lr=1e-2, batch_size=1), tmp_path)
    assert all(math.isfinite(row["train_loss"]) for row in result.history)
    assert result.skipped_steps == 0


@pytest.mark.parametrize("scale", [float("inf"), 1e30])
def test_loss_that_is_not_a_number_stops_with_epoch_and_batch(tmp_path, scale):
    structures = labelled(cells(8))
    structures[5].calc.results["forces"][:] *= scale
    structures[5].calc.results["energy"] *= scale
    train, (_, val) = GraphDataset(structures, CUTOFF), data()
    if math.isinf(scale):
        with pytest.raises(TrainingError, match=r"epoch 2: the loss of batch \d \(structures 5 of"):
            train_potential(potential(), train, val, TrainingSettings(batch_size=1), tmp_path)
        rows = log_rows(tmp_path)
        assert [int(row["skipped_steps"]) for row in rows] == [1, 1]
        assert all(math.isfinite(float(row["validation_loss"])) for row in rows)
    else:
        result = train_potential(potential(), train, val, TrainingSettings(batch_size=1, max_epochs=1), tmp_path)
        assert math.isfinite(result.best_loss)


class NotFinite(TinyPotential):
    """The gradient of every third step is infinite."""

    def __init__(self):
        super().__init__()
        self.step = 0
        self.layers[0].weight.register_hook(self.spoil)

    def spoil(self, gradient):
        self.step += 1
        return gradient * math.inf if self.step % 3 == 0 else gradient


def test_steps_with_an_infinite_gradient_are_skipped_and_counted(tmp_path, monkeypatch):
    train, val = data()
    monkeypatch.setattr("mdl_physpre.training.module.save_potential", lambda path, *a, **k: path.touch())
    model = NotFinite()
    result = train_potential(model, train, val, TrainingSettings(max_epochs=4, **QUICK), tmp_path)
    assert result.skipped_steps == 4
    assert result.steps == 12
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_online_set_of_each_epoch(tmp_path):
    train, val = data()
    asked = []

    def online(epoch):
        asked.append(epoch)
        return GraphDataset(labelled(cells(4 + epoch, seed=100 + epoch)), CUTOFF)

    settings = TrainingSettings(max_epochs=3, lr=1e-2, batch_size=2)
    whole = train_potential(potential(), train, val, settings, tmp_path / "a", online=online)
    assert asked == [0, 1, 2]
    assert [row["structures"] for row in whole.history] == [4, 5, 6]
    assert [row["steps"] for row in whole.history] == [2, 3, 3]
    train_potential(
        potential(), train, val, TrainingSettings(max_epochs=2, lr=1e-2, batch_size=2), tmp_path / "b", online=online
    )
    resumed = train_potential(potential(), train, val, settings, tmp_path / "b", online=online)
    assert asked == [0, 1, 2, 0, 1, 2]
    assert without_times(resumed.history) == without_times(whole.history)


def test_data_that_do_not_fit_the_potential(tmp_path):
    train, val = data()
    with pytest.raises(DataError, match="float64"):
        train_potential(potential().double(), train, val, TrainingSettings(), tmp_path)
    with pytest.raises(DataError, match="4.0 Å and the potential needs 6.0 Å"):
        train_potential(TinyPotential(cutoff=6.0), train, val, TrainingSettings(), tmp_path)
    with pytest.raises(DataError, match="validation set is empty"):
        train_potential(potential(), train, GraphDataset([], CUTOFF), TrainingSettings(), tmp_path)
    with pytest.raises(TrainingError, match="no parameter"):
        train_potential(potential().requires_grad_(False), train, val, TrainingSettings(), tmp_path)
    with pytest.raises(ConfigError, match="device"):
        train_potential(potential(), train, val, TrainingSettings(device="gpu0"), tmp_path)


def test_compiled_it_trains_alike(tmp_path, monkeypatch):
    """Resumed without: where and how a training runs may change. What the compiler makes of it is tested elsewhere."""
    monkeypatch.setattr(gradient, "CompiledPotential", partial(CompiledPotential, backend="aot_eager"))
    train, val = data()
    plain, other = potential(), potential()
    first = train_potential(plain, train, val, TrainingSettings(max_epochs=3, **QUICK), tmp_path / "plain")
    train_potential(other, train, val, TrainingSettings(max_epochs=2, compile=True, **QUICK), tmp_path / "other")
    second = train_potential(other, train, val, TrainingSettings(max_epochs=3, **QUICK), tmp_path / "other")
    for row, again in zip(first.history, second.history, strict=True):
        assert row["train_loss"] == pytest.approx(again["train_loss"], rel=1e-4)
        assert row["gradient_norm"] == pytest.approx(again["gradient_norm"], rel=1e-4)
    assert torch.load(tmp_path / "other" / "last.ckpt", weights_only=True)["state_dict"].keys() == {
        f"potential.{key}" for key in plain.state_dict()
    }


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_a_precision_that_does_nothing_on_the_cpu_is_refused(tmp_path, precision):
    train, val = data()
    with pytest.raises(ConfigError, match=f"precision is '{precision}'.*runs on cpu; set precision to float32"):
        train_potential(potential(), train, val, TrainingSettings(precision=precision, device="cpu"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_precision_that_a_gpu_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(ConfigError, match="needs compute capability 8.0, and cuda:0 has 7.5"):
        check_precision("bf16", torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    check_precision("tf32", torch.device("cuda:0"))


def test_tf32_is_for_gradients_alone(tmp_path):
    """Seen from inside the potential: forward and backward in training, but not validation, nor afterwards."""
    seen = []

    class Watching(TinyPotential):
        def atomic_energies(self, graph):
            seen.append(("training" if self.training else "validation", torch.get_float32_matmul_precision()))
            return super().atomic_energies(graph)

    train, val = data()
    model = Watching()
    model.layers[0].weight.register_hook(lambda g: seen.append(("backward", torch.get_float32_matmul_precision())))
    settings = TrainingSettings(precision="tf32")
    made = gradient.LossGradient(model, settings, settings, Ranks())
    made(train.batch(), [])
    model.eval()
    made.validation_errors(train.batch())
    assert set(seen) == {("training", "high"), ("backward", "high"), ("validation", "highest")}
    assert torch.get_float32_matmul_precision() == "highest"


def test_mixed_precision_covers_training_and_spares_validation(tmp_path):
    """On the CPU, which runs the same autocast regions, through the module itself."""
    train, val = data()
    model = potential()
    graph = train.batch()
    settings = TrainingSettings(precision="bf16")
    made = gradient.LossGradient(model, settings, settings, Ranks())
    full, half = (made.evaluate(graph, settings, create_graph=create_graph) for create_graph in (False, True))
    assert torch.equal(full.energies, evaluate(model, graph).energies)
    assert half.energies.dtype == torch.float64
    assert half.forces.dtype == torch.float32
    difference = (half.forces - full.forces).norm() / full.forces.norm()
    assert 1e-5 < difference < 0.15  # bfloat16 keeps three digits, and the distance itself passes a product
    half.forces.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_random_numbers_of_the_caller_are_left_alone(tmp_path):
    train, val = data()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    model = TinyPotential.__new__(TinyPotential)
    model.__dict__.update(potential_without_draw().__dict__)
    train_potential(model, train, val, TrainingSettings(max_epochs=1, **QUICK), tmp_path)
    assert torch.equal(torch.rand(1), expected)


def potential_without_draw():
    with torch.random.fork_rng():
        return potential()


def test_progress_is_told_in_lines(tmp_path, caplog, monkeypatch):
    train, val = data()
    monkeypatch.setattr(epoch_progress, "LINE_EVERY", 0.0)
    with caplog.at_level(logging.INFO, logger="mdl_physpre"):
        train_potential(potential(), train, val, TrainingSettings(max_epochs=2, **QUICK), tmp_path)
    lines = [record.getMessage() for record in caplog.records if "epoch" in record.getMessage()]
    assert [line[:12] for line in lines] == ["epoch 1 of 2", "epoch 2 of 2"]


def test_bar_on_a_terminal_counts_the_epochs_and_is_closed(tmp_path, monkeypatch):
    train, val = data()
    told = []

    def bar(items, total, description):
        for item in items:
            told.append(item)
            yield item

    monkeypatch.setattr(epoch_progress, "progress", bar)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    train_potential(potential(), train, val, TrainingSettings(max_epochs=2, **QUICK), tmp_path)
    assert told == [0, 1, 2]


def test_missing_logger_package(tmp_path, monkeypatch):
    train, val = data()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        train_potential(potential(), train, val, TrainingSettings(loggers=("wandb",)), tmp_path / "x")


def test_recomputed_parts_train_the_same(tmp_path):
    """Parts of a batch that are computed again for their gradient: the same steps, to rounding."""
    train, val = data()
    settings = TrainingSettings(max_epochs=3, lr=0.05, batch_size=5)
    found = []
    for name, edges in (("whole", None), ("parts", int(1.5 * train.n_edges.mean()))):
        trained = potential()
        result = train_potential(trained, train, val, settings.changed(recompute_edges=edges), tmp_path / name)
        found.append((result.history, trained.state_dict()))
    (history, weights), (again, others) = found
    for one, other in zip(history, again, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], rtol=1e-4, atol=1e-5)

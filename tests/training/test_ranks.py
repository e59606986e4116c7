"""Two processes that train one network, over gloo on the CPU, against one with the same batches."""

from __future__ import annotations

import math
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mdl_physpre.errors import ConfigError, PhyspreError, TrainingError
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.training.ranks import Ranks
from mdl_physpre.training.replay import Replay
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.training.train import train_potential
from mdl_physpre.utils.processes import Piece, run_in_processes
from tests.helpers.processes import environment
from tests.helpers.tiny_potential import CUTOFF, TinyPotential, cells, labelled

SETTINGS = TrainingSettings(
    max_epochs=4, lr=2e-2, batch_size=5, device="cpu", scheduler_patience=0, scheduler_threshold=0.9,
    clip_grad_norm=20.0,
)  # fmt: skip
CASES = ("plain", "skipped", "unused", "sam", "replay", "online")
EXACT = ("epoch", "lr", "skipped_steps", "clipped_steps", "steps", "gradients", "structures")


class Spoilt(TinyPotential):
    """The gradient is not finite for the batch that holds a structure of one atom: on one rank only."""

    spoiling = None

    def atomic_energies(self, graph):
        if self.spoiling is not None:
            self.spoiling.remove()
            self.spoiling = None
        if self.training and bool((graph.n_atoms == 1).any()):
            self.spoiling = self.layers[0].weight.register_hook(lambda gradient: gradient * math.inf)
        return super().atomic_energies(graph)


class Unused(TinyPotential):
    """One parameter that the loss never reaches: weight decay must leave it alone, as in one process."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.ones(3))


class Fragile(TinyPotential):
    """Fails in the process that did not start the others."""

    def atomic_energies(self, graph):
        if self.training and torch.distributed.get_rank() == 1:
            raise RuntimeError("out of something")
        return super().atomic_energies(graph)


def structures(n, seed=0):
    """Cells of 2 to 4 atoms, so that shares differ in size, some labels missing."""
    found = [cells(1, seed=100 * seed + k, n_atoms=2 + k % 3)[0] for k in range(n)]
    labelled(found)
    for k, atoms in enumerate(found):
        if k % 4 == 1:
            del atoms.calc.results["stress"]
        if k % 5 == 2:
            del atoms.calc.results["energy"], atoms.calc.results["forces"]
    return found


def data(n=11, seed=0, dtype=torch.float64):
    # 11 structures in batches of 5: the last batch has one, and one rank nothing
    return GraphDataset(structures(n, seed), CUTOFF, dtype=dtype)


def model(kind=TinyPotential):
    torch.manual_seed(0)
    return kind().double()


def with_one_atom():
    found = structures(11)
    found[4] = labelled(cells(1, n_atoms=1))[0]
    return GraphDataset(found, CUTOFF, dtype=torch.float64)


def online(epoch):
    assert not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    return data(7 + epoch, seed=2 + epoch)


def cases():
    """Name → potential, training set, settings, options."""
    short = SETTINGS.changed(max_epochs=2)
    teacher = TrainingSettings(weight_energy=0.5, weight_stress=0.0, force_tail=0.3)
    few_edges = int(3.0 * data().n_edges.mean())
    found = {
        "plain": (TinyPotential, data(), SETTINGS, {}),
        "skipped": (Spoilt, with_one_atom(), SETTINGS.changed(ema_decay=0.8), {}),
        "unused": (Unused, data(), short.changed(weight_decay=0.5), {}),
        "sam": (TinyPotential, data(), short.changed(sam_rho=0.05, ema_decay=0.9, max_edges=few_edges), {}),
        "replay": (
            TinyPotential, data(), short.changed(max_edges=few_edges, ema_decay=0.7),
            {"replay": Replay(data(9, seed=3), teacher, share=0.4, weight=0.7)},
        ),
        "online": (TinyPotential, data(), short, {"online": online}),
    }  # fmt: skip
    assert tuple(found) == CASES
    return found


def trained(folder, devices):
    """Result, weights and last state of each case."""
    found = {}
    for name, (kind, train, settings, options) in cases().items():
        made = model(kind)
        result = train_potential(made, train, data(5, 1), settings.changed(devices=devices), folder / name, **options)
        found[name] = (result, made.state_dict(), torch.load(folder / name / "last.ckpt", weights_only=True))
    return found


def as_rank(rank, port, folder):
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save(trained(Path(folder) / "two", 2), Path(folder) / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Each case in one process, and in two, which both call the training."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_in_processes(as_rank, [Piece(f"rank {k}", (k, port, str(folder))) for k in range(2)], 2)
    first, second = (torch.load(folder / f"rank-{k}.pt", weights_only=False) for k in range(2))
    for name in first:  # all ranks have the same
        assert all(torch.equal(value, second[name][1][key]) for key, value in first[name][1].items())
        assert first[name][0].history == second[name][0].history
    one = trained(folder / "one", 1)
    return {name: (one[name], first[name]) for name in one}


def assert_same(one, two, rtol=1e-6):
    for row, other in zip(one[0].history, two[0].history, strict=True):
        for key in row:
            if key in EXACT:
                assert row[key] == other[key], key
            elif key != "seconds":
                assert row[key] == pytest.approx(other[key], rel=rtol, nan_ok=True), key
    for key, value in one[1].items():
        torch.testing.assert_close(two[1][key], value, rtol=rtol, atol=1e-12)
    first, second = (last["optimizer_states"][0]["state"] for _, _, last in (one, two))
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(second[key]["exp_avg"], first[key]["exp_avg"], rtol=1e-4, atol=1e-12)
    assert one[0].best_epoch == two[0].best_epoch and one[0].stopped_by == two[0].stopped_by


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(pairs, name):
    one, two = pairs[name]
    assert_same(one, two)
    if name == "plain":
        assert one[0].steps == 12 and len({row["lr"] for row in one[0].history}) > 1
        assert any(row["clipped_steps"] for row in one[0].history)
    if name == "skipped":
        assert one[0].skipped_steps == 4
        taken = [last["physpre"]["average"]["steps"] for _, _, last in (one, two)]
        assert taken == [one[0].steps - 4] * 2
    if name == "unused":
        assert torch.equal(two[1]["unused"], torch.ones(3, dtype=torch.float64))


def test_the_first_process_starts_the_others_and_writes_the_files(pairs, tmp_path):
    made = model()
    result = train_potential(made, data(), data(5, 1), SETTINGS.changed(devices=2), tmp_path)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert_same(pairs["plain"][0], (result, made.state_dict(), last))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "last.ckpt", "log.csv"]
    stored = load_potential(result.best_checkpoint).state_dict()
    assert all(torch.equal(stored[key], value) for key, value in made.state_dict().items())
    assert not torch.distributed.is_initialized()


KILLED = """
import os, signal, torch
from tests.training.test_ranks import *

class Killed(TinyPotential):
    calls = 0
    def atomic_energies(self, graph):
        Killed.calls += self.training
        if Killed.calls > {after} and torch.distributed.get_rank() == {rank}:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().atomic_energies(graph)

if __name__ == "__main__":
    train_potential(model(Killed), data(), data(5, 1), SETTINGS.changed(devices=2), {out!r})
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_on_two_devices_it_goes_on_on_one_or_three(pairs, tmp_path, rank):
    expected, whole, _ = pairs["plain"][0]
    out, script = tmp_path / "killed", tmp_path / "killed.py"
    script.write_text(KILLED.format(out=str(out), rank=rank, after=(10, 7)[rank]))
    done = subprocess.run(
        [sys.executable, str(script)], env=environment(OMP_NUM_THREADS="1"), check=False, capture_output=True
    )
    assert done.returncode == (-signal.SIGKILL if rank == 0 else 1), done.stderr.decode()
    if rank == 1:
        assert b"rank 1: its process died (exit code -9" in done.stderr
    rows = (out / "log.csv").read_text().splitlines()[1:]
    assert 0 < len(rows) < SETTINGS.max_epochs
    mended = model()
    result = train_potential(mended, data(), data(5, 1), SETTINGS.changed(devices=(1, 3)[rank]), out)
    for row, other in zip(expected.history, result.history, strict=True):
        assert row["lr"] == other["lr"]
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-6)
    for key, value in whole.items():
        torch.testing.assert_close(mended.state_dict()[key], value, rtol=1e-6, atol=1e-12)


def test_an_error_of_another_process_is_told(tmp_path):
    with pytest.raises(PhyspreError, match="rank 1: RuntimeError: out of something"):
        train_potential(model(Fragile), data(), data(5, 1), SETTINGS.changed(devices=2), tmp_path)


def test_an_error_of_all_processes_is_raised_as_in_one(tmp_path):
    broken = structures(6)
    broken[0].calc.results["forces"][:] = np.inf
    settings = SETTINGS.changed(batch_size=2, devices=2)
    with pytest.raises(TrainingError, match=r"the loss of batch \d"):
        train_potential(model(), GraphDataset(broken, CUTOFF, dtype=torch.float64), data(5, 1), settings, tmp_path)


def test_shares_are_even_and_complete():
    ranks = Ranks()
    ranks.size = 3
    n_edges = np.array([50, 10, 10, 10, 10, 10, 48, 2])
    parts = []
    for ranks.rank in range(3):
        parts.append(ranks.shares([7, 6, 5, 4, 3, 2, 1, 0], n_edges))
    assert sorted(k for part in parts for k in part) == list(range(8))
    assert [int(n_edges[part].sum()) for part in parts] == [50, 50, 50]
    parts = []
    for ranks.rank in range(3):
        parts.append(ranks.shares([2, 1], n_edges))
    assert parts == [[2], [1], []]


def test_what_cannot_train_together_is_refused(tmp_path, monkeypatch):
    class Normed(TinyPotential):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(2)

    def refused(words, kind=TinyPotential, **changed):
        with pytest.raises(ConfigError, match=words):
            train_potential(model(kind), data(), data(5, 1), SETTINGS.changed(**{"devices": 2, **changed}), tmp_path)

    refused("devices is 2, and Normed has a BatchNorm1d", kind=Normed)
    refused("has 0 of the 2 GPUs", device="auto")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    refused("devices is 2, and Slurm started 3 processes")

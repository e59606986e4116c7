"""``physpre bench``: it measures what it says, chooses the best size, keeps to its time, and goes on after errors."""

from __future__ import annotations

import json
import time

import pytest
import torch
from typer.testing import CliRunner

from mdl_physpre.cli.main import app
from mdl_physpre.errors import ConfigError, PhyspreError
from mdl_physpre.potentials.base import AtomicPotential
from mdl_physpre.utils.memory import PeakMemory
from mdl_physpre.workflow import benchmark as module
from mdl_physpre.workflow import throughput

CPU = torch.device("cpu")
SMALL = {
    "cgcnn": {"dim1": 8, "dim2": 8, "gc_count": 1, "post_fc_count": 1, "edge_dim": 8},
    "torchmd_et": {"hidden_channels": 8, "post_hidden_channels": 8, "num_layers": 1, "num_rbf": 8, "num_heads": 2},
    "m3gnet": {"units": 8, "num_blocks": 1, "threebody_cutoff": 2.5},
}


class Sleeper(AtomicPotential):
    """Takes 20 ms for each evaluation, however many structures."""

    cutoff, elements = 3.0, None

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def atomic_energies(self, graph):
        time.sleep(0.02)
        return 1e-6 * self.weight * graph.pos.square().sum(1)


def test_every_backbone_in_small():
    result = module.benchmark(["cpu"], 2.0, cutoffs=[3.0, 4.0], hyperparameters=SMALL, show_progress=False)
    rows = json.loads(json.dumps(result))["rows"]
    assert [(r["backbone"], r["cutoff"]) for r in rows] == [
        ("cgcnn", 3.0), ("cgcnn", 4.0), ("torchmd_et", 3.0), ("torchmd_et", 4.0), ("m3gnet", 3.0)
    ]  # fmt: skip
    for row in rows:
        assert row["mode"] == "eager" and "error" not in row, row
        assert row["training_structures_per_s"] > 0 and row["dynamics_atom_steps_per_s"] > 0
        assert row["batch_size"] >= 1 and row["structures"] >= 1
    text = module.format_benchmark(result)
    assert text.count("torchmd_et") == 2 and "72 atoms" in text and "training, structures/s" in text


def test_rates_are_what_the_clock_says():
    assert throughput.seconds_of(lambda: time.sleep(0.02), CPU) == pytest.approx(0.02, rel=0.5)
    training = throughput.training_rate(Sleeper(), CPU, 2.0, sizes=(2, 4))
    assert training.at_once == 4 and 60 < training.per_second < 200
    dynamics = throughput.dynamics_rate(Sleeper(), CPU, 2.0, sizes=(1,))
    assert dynamics.at_once == 1 and 720 < dynamics.per_second < 3600


class Breaking(Sleeper):
    def atomic_energies(self, graph):
        return super().atomic_energies(graph) * torch.nan


def test_dynamics_that_break_are_no_rate():
    with pytest.raises(PhyspreError, match="no structure is left"):
        throughput.dynamics_rate(Breaking(), CPU, 1.0)


@pytest.mark.parametrize(
    ("rates", "best"),
    [({1: 1.0, 4: 3.0, 16: 3.1, 64: 99.0}, 16), ({1: 2.0, 4: 1.0, 16: 9.0}, 1), ({1: 1.0, 4: None}, 1)],
)
def test_the_best_size_is_taken(rates, best):
    def measure(n, seconds):
        if rates[n] is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rates[n]

    found = throughput._best(measure, CPU, 10.0, tuple(rates))
    assert (found.at_once, found.per_second) == (best, rates[best])


def test_no_larger_size_is_begun_without_time_for_it():
    tried = []

    def measure(n, seconds):
        tried.append(n)
        time.sleep(0.05 * n)
        return float(n)

    assert throughput._best(measure, CPU, 0.3, (1, 4, 16)).at_once == 4 and tried == [1, 4]


def test_memory_at_the_peak():
    memory = PeakMemory(trim=True)
    if memory.of_process() is None:
        pytest.skip("this system does not tell the memory of a process")
    torch.ones(50_000_000).add_(1)
    assert memory.on(CPU) == pytest.approx(200e6, rel=0.2)
    assert PeakMemory(trim=True).on(CPU) < 50e6


def test_what_fails_is_told_and_the_rest_goes_on():
    broken = {**SMALL, "cgcnn": {"edge_dim": 0}}
    result = module.benchmark(["cpu"], 1.0, ["cgcnn", "m3gnet"], [3.0], hyperparameters=broken, show_progress=False)
    first, second = result["rows"]
    assert "error" in first and "training_structures_per_s" not in first and "error" not in second
    assert first["error"] in module.format_benchmark(result)


def test_compiled_cases_come_last_and_are_left_out_without_time(monkeypatch):
    used = []
    monkeypatch.setattr(module, "compiles_on", lambda device: True)
    monkeypatch.setattr(module, "compiled", lambda potential: used.append(potential) or potential)
    options = {"cutoffs": [3.0], "hyperparameters": SMALL, "show_progress": False}
    rows = module.benchmark(["cpu"], 4.0, ["cgcnn"], **{**options, "cutoffs": [3.0, 3.5]})["rows"]
    assert [r["mode"] for r in rows] == ["eager", "eager", "compiled", "compiled"] and len(used) == 2
    rows = module.benchmark(["cpu"], 1e-3, ["cgcnn"], **options)["rows"]
    assert "no time left" in rows[1]["error"] and len(used) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"devices": ["cuda:9"]}, "cuda:9"),
        ({"backbones": ["cgcn"]}, "did you mean 'cgcnn'"),
        ({"seconds": 0.0}, "above 0"),
        ({"cutoffs": [-1.0]}, "cutoff is -1.0"),
    ],
)
def test_errors(arguments, words):
    with pytest.raises(ConfigError, match=words):
        module.benchmark(**arguments)


def test_the_command(tmp_path):
    arguments = ["bench", "--device", "cpu", "--backbone", "cgcnn", "--cutoff", "3", "--seconds", "1"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "bench.json")])
    assert result.exit_code == 0, (result.output, result.exception)
    (row,) = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert row["backbone"] == "cgcnn" and row["training_structures_per_s"] > 0 and "cgcnn" in result.output

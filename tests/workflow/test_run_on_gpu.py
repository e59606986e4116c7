"""A whole small run on a stand-in for a GPU: fit, labels, training, tests, dynamics, report, without a clash."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import mdl_physpre
from mdl_physpre.workflow.run import run
from tests.helpers.gpu_for_runs import make_it_the_gpu
from tests.helpers.gpu_stand_in import counting

DEMO = Path(mdl_physpre.__file__).parent / "configs" / "demo.yml"
TINY = [
    "optim.max_steps=6", "physpre.pretrain.max_steps=4", "physpre.perturbation.n_aug=1", "physpre.dynamics.steps=12",
    "physpre.dynamics.n_structures=2", "physpre.n_networks=1", "dataset.fraction=0.1",
    "physpre.dynamics.trajectory_interval=5", "physpre.report.formats=[html]", "task.processes=1",
    "dataset.split.test=8",
]  # fmt: skip
EAM = ["recipe=paper", "physpre.eam.epochs=2", "physpre.arms=[baseline, pretrain]"]
NETWORKS = {
    "cgcnn": [*EAM, "model={name: CGCNN, dim1: 8, dim2: 8, gc_count: 1}"],
    "m3gnet": [*EAM, "model={name: M3GNet, units: 8, num_blocks: 1}"],
    "torchmd_et": [
        "model={name: torchmd_et, hidden_channels: 8, num_heads: 2, num_layers: 1, num_rbf: 8}",
        "physpre.arms=[hybrid, replay]", "physpre.hot_frames={n: 1, steps: 5}",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_a_run_on_the_device(name, tmp_path, monkeypatch):
    make_it_the_gpu(monkeypatch)
    with counting() as counts:
        there = run(DEMO, [*TINY, *NETWORKS[name], "task.device=cuda"], out=tmp_path / "gpu")
    assert counts.clashes == Counter()
    assert counts.kernels > 5_000  # labels, training, tests and dynamics were there, not here
    assert (tmp_path / "gpu" / "report.html").exists()
    arms = ("hybrid", "replay") if name == "torchmd_et" else ("baseline", "pretrain")
    assert all(there.arms[arm].dynamics.counts.n == 2 for arm in arms)
    if name == "cgcnn":
        on_cpu = run(DEMO, [*TINY, *NETWORKS[name], "task.device=cpu"], out=tmp_path / "cpu")
        for arm in ("baseline", "pretrain"):
            found, expected = (s.arms[arm].errors["test"].forces_mae for s in (there, on_cpu))
            assert found == pytest.approx(expected, rel=1e-3)

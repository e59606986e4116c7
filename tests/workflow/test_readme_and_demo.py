"""What the README shows runs as written; the demo's files travel in the package; every configuration runs."""

import os
import re
import shutil
from pathlib import Path

import pytest

from mdl_physpre import read_structures
from mdl_physpre.structures import get_labels
from mdl_physpre.workflow.config.file import load_config
from mdl_physpre.workflow.run import run

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "mdl_physpre" / "demo"
TINY_DYNAMICS = ["physpre.dynamics.steps=2", "physpre.dynamics.n_structures=2"]
TINY = [
    "optim.max_epochs=1", "physpre.pretrain.max_epochs=1", "physpre.perturbation.n_aug=1", "physpre.eam.epochs=2",
    "model.dim1=8", "model.dim2=8", "model.gc_count=1", *TINY_DYNAMICS,
]  # fmt: skip


def test_the_python_example(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    shutil.copy(DEMO / "silica.extxyz.gz", tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    assert "wall at 0.5 Å" in printed
    assert "O-Si" in printed


def test_the_demo_data_are_small_labelled_and_kept_apart():
    names = ("silica", "silica_strained", "silica_compressed")
    near, strained, compressed = (read_structures(DEMO / f"{n}.extxyz.gz") for n in names)
    assert sum(f.stat().st_size for f in DEMO.glob("*.gz")) < 2e6
    assert {a.info["origin"] for a in near} == {"hot_run"}
    assert {a.info["origin"] for a in strained} == {"strained_rattled"}
    assert {a.info["origin"] for a in compressed} == {"compressed"}
    for atoms in near + strained + compressed:
        labels = get_labels(atoms)
        assert labels.energy is not None
        assert labels.forces is not None
        assert labels.stress is not None


def test_the_demo_runs_in_miniature_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["optim.max_steps=2", "model.hidden_channels=8", "model.num_layers=1", "model.num_heads=2"]
    summary = run(ROOT / "configs" / "demo.yml", [*small, *TINY_DYNAMICS])
    assert set(summary.arms["baseline"].errors) == {"test", "strained", "compressed"}
    assert summary.teacher.name == "angular_eam" and [n.seed for n in summary.arms["hybrid"].networks] == [1, 2]
    assert len(summary.arms["hybrid"].dynamics.counts.failed.each) == 2
    assert (tmp_path / "runs" / "demo" / "report.html").exists()


@pytest.mark.parametrize("name", ["phosphorus_cgcnn", "silica_eam_pretrain"])
def test_the_configurations_run_on_real_data(name, tmp_path):
    if "PHYSPRE_DATA" not in os.environ:
        pytest.skip("PHYSPRE_DATA is not set: it names the folder of the real data")
    path = ROOT / "configs" / f"{name}.yml"
    assert load_config(path).physpre.arms == ["baseline", "pretrain"]
    summary = run(path, [*TINY, "dataset.fraction=0.01"], out=tmp_path / "run")
    assert summary.arms["pretrain"].errors["test"].stress_mae is None or name.startswith("phosphorus")

"""The example in the documentation runs, and names what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mdl_physpre.dynamics.engine.ensembles import ENSEMBLES
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts.judging import METRICS
from mdl_physpre.dynamics.verdicts.verdict import REASONS

TEXT = (Path(__file__).parents[2] / "docs" / "dynamics.md").read_text()


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(.*?)```", TEXT, re.S)
    assert example is not None
    exec(example.group(1), {})
    assert capsys.readouterr().out.startswith("stable ()")
    assert sorted(p.name for p in (tmp_path / "runs/argon").iterdir() if p.name != ".lock") == [
        "simulation.json",
        "speed.json",
        "trajectories",
        "verdicts.json",
    ]


def test_names_are_those_of_the_code() -> None:
    for name in (*ENSEMBLES.paths(), *REASONS):
        assert f"`{name}`" in TEXT, name
    explained = set(re.findall(r"`([a-z_]+)`", TEXT))
    for name in METRICS:
        assert name in explained or name.endswith(("_exceeded_step", "_bound")), name
    thresholds = ("max_temperature", "max_displacement", "min_volume_ratio", "max_volume_ratio", "max_neighbours")
    for name in (*thresholds, "overlap_ratio", "taut", "taup", "compressibility", "rdf_start", "pressure_interval"):
        assert name in DynamicsSettings.model_fields
        assert name in explained, name


def test_the_example_of_statistics_runs(capsys: pytest.CaptureFixture) -> None:
    examples = [code for code in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "compare_breaking" in code]
    exec(examples[0], {})
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("15 24") and second.startswith("pretrain 0.1 0.1 ")

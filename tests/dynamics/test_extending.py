"""Observers and ensembles from one file of a third party: the examples of the documentation, from start to verdict."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from mdl_physpre.dynamics import DynamicsSettings, judge_run, simulate, summarise
from mdl_physpre.dynamics.verdicts.built_in import Forces
from mdl_physpre.dynamics.verdicts.judging import METRICS, observer_classes
from mdl_physpre.dynamics.verdicts.verdict import REASONS
from mdl_physpre.errors import ConfigError
from tests.helpers.pair_potentials import Morse
from tests.helpers.small_structures import crystals, with_

PAGES = Path(__file__).parents[2] / "docs" / "extending"


@pytest.fixture(autouse=True)
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module with the classes of the documentation."""
    examples = [
        re.search(r"```python\n(.*?)```", (PAGES / f"{n}.md").read_text(), re.S) for n in ("observer", "ensemble")
    ]
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "third_party.py").write_text("\n".join(found.group(1) for found in examples if found))
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    monkeypatch.delitem(__import__("sys").modules, "third_party", raising=False)


class Stopped(Morse):
    """Is interrupted at one of its evaluations."""

    left = 10**9

    def atomic_energies(self, graph):
        Stopped.left -= 1
        if Stopped.left == 0:
            raise KeyboardInterrupt
        return super().atomic_energies(graph)


LOST = "third_party:LostNeighbours?cutoff=2.8&allowed=0"


def hot(**changes) -> DynamicsSettings:
    hot = {"temperature": 4000, "overlap_ratio": 0.2, "steps": 120, "checkpoint_steps": 10, "observers": (LOST,)}
    return with_(**hot | changes)


def test_an_observer_stops_structures_with_its_reason(tmp_path: Path) -> None:
    structures = crystals(4)
    verdicts = simulate(Morse(), structures, hot(trajectory_interval=1), tmp_path / "run")
    assert [v.checks["lost_neighbours"] for v in verdicts] == ["passed", "passed", "failed", "failed"]
    for verdict in verdicts[2:]:
        failure = verdict.failures[0]
        assert failure.reason == "lost_neighbours" and 0 < failure.step == verdict.steps_run < 120
        assert (
            failure.text
            == f"an atom has lost {verdict.metrics['most_lost_neighbours']:.0f} neighbours, at most 0 allowed"
        )
    assert summarise(verdicts).by_reason["lost_neighbours"].count == 2
    assert [v.failures for v in judge_run(tmp_path / "run")] == [v.failures for v in verdicts]
    calm = simulate(Morse(), structures, hot(temperature=10))
    assert {v.checks["lost_neighbours"] for v in calm} == {"passed"}
    far = simulate(Morse(), structures, hot(temperature=10, observers=("third_party:LostNeighbours?cutoff=0.5",)))
    assert far[0].checks["lost_neighbours"] == "n/a" and "no neighbours within 0.5 Å" in str(far[0].notes)


def test_an_observer_on_steps_that_are_judged_later(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = simulate(Morse(), crystals(4), hot())
    monkeypatch.setattr("mdl_physpre.dynamics.running.batch.steps_between_readings", lambda device: 7)
    assert simulate(Morse(), crystals(4), hot()) == at_once


@pytest.mark.parametrize("ensemble", ["nvt", "third_party:Andersen?rate=0.02"])
def test_a_stopped_run_goes_on_to_the_same_verdicts(tmp_path: Path, ensemble: str) -> None:
    settings = hot(ensemble=ensemble)
    Stopped.left = 10**9
    whole = simulate(Stopped(), crystals(4), settings, tmp_path / "whole")
    assert len({v.steps_run for v in whole}) > 1
    Stopped.left = max(v.steps_run for v in whole) - 3
    with pytest.raises(KeyboardInterrupt):
        simulate(Stopped(), crystals(4), settings, tmp_path / "cut")
    assert (tmp_path / "cut" / "state.npz").exists()
    Stopped.left = 10**9
    assert simulate(Stopped(), crystals(4), settings, tmp_path / "cut") == whole


def test_an_ensemble_holds_its_temperature() -> None:
    settings = DynamicsSettings(ensemble="third_party:Andersen?rate=0.05", temperature=300, steps=1000, seed=1)
    verdicts = simulate(Morse(), crystals(4), settings)
    assert np.mean([v.metrics["mean_temperature"] for v in verdicts]) == pytest.approx(300, rel=0.1)
    assert max(abs(v.metrics["energy_drift"]) for v in verdicts) < 1e-3
    alone = simulate(Morse(), crystals(4)[2:3], settings, indices=[2])
    assert alone[0].metrics["mean_temperature"] == pytest.approx(verdicts[2].metrics["mean_temperature"], rel=1e-6)


def test_what_cannot_be_used_is_named() -> None:
    for key, value, said in (
        ("observers", ("third_party:Andersen",), "is not a class derived from .*Observer"),
        ("observers", ("third_party:LostNeighbours?cut=3",), "unexpected keyword argument 'cut'"),
        ("observers", ("lost",), "unknown observer 'lost'"),
        ("ensemble", "third_party:Anderson", "did you mean 'Andersen'"),
        ("ensemble", "third_party:Andersen?rate", "expected key=value"),
    ):
        with pytest.raises(ConfigError, match=f"dynamics.{key}: found .*{said}"):
            DynamicsSettings(**{key: value})
    with pytest.raises(ConfigError, match="dynamics: temperature is 0; Andersen's thermostat"):
        DynamicsSettings(ensemble="third_party:Andersen", temperature=0)


def test_the_observers_of_every_run_bring_all_reasons_and_metrics() -> None:
    classes = observer_classes(DynamicsSettings())
    settings = DynamicsSettings()
    assert {reason for cls in classes for reason in cls.reasons_with(settings)} == set(REASONS)
    assert {metric for cls in classes for metric in cls.metrics} < set(METRICS)
    assert Forces in classes

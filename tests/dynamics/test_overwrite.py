"""Folders with results of another simulation or stress test are left as they are, and what differs is said."""

from __future__ import annotations

import json

import pytest
from ase.build import bulk
from ase.calculators.lj import LennardJones

from mdl_physpre import simulate
from mdl_physpre.dynamics import DynamicsSettings, simulate_parallel
from mdl_physpre.errors import WouldDelete
from mdl_physpre.potentials.adapters.from_ase import CalculatorPotential
from mdl_physpre.stress_tests.run import run_stress_tests
from mdl_physpre.utils.overwrite import differences

SETTINGS = DynamicsSettings(steps=4, trajectory_interval=2, checkpoint_steps=2)
STRUCTURES = [bulk("Ar", "fcc", a, cubic=True) for a in (5.3, 5.4)]


def argon():
    return LennardJones(sigma=3.4, epsilon=0.0104, rc=7.0, smooth=True)


def softer():
    return LennardJones(sigma=3.4, epsilon=0.009, rc=7.0, smooth=True)


POTENTIAL = CalculatorPotential(argon, name="argon")


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_simulation_is_not_deleted_by_another(tmp_path, processes):
    simulate_parallel(POTENTIAL, STRUCTURES, SETTINGS, tmp_path, processes=processes, progress=False)
    before = content(tmp_path)
    for args, said in (
        ((POTENTIAL, STRUCTURES, SETTINGS.changed(temperature=5.0)), "settings.temperature: 300.0 there, 5.0 here"),
        ((CalculatorPotential(softer, name="softer"), STRUCTURES, SETTINGS), "potential: argon, .* softer, "),
        ((POTENTIAL, STRUCTURES[:1], SETTINGS), "structures: 2, .* there, 1, .* here"),
    ):
        with pytest.raises(WouldDelete, match=f"holds a simulation of another run(.|\n)*{said}"):
            simulate(*args, tmp_path, progress=False)
        assert content(tmp_path) == before
    simulate(POTENTIAL, STRUCTURES, SETTINGS, tmp_path, progress=False)  # the same: it is read
    assert content(tmp_path) == before
    simulate(POTENTIAL, STRUCTURES[:1], SETTINGS, tmp_path, progress=False, overwrite=True)
    assert len(json.loads((tmp_path / "verdicts.json").read_text())["verdicts"]) == 1


def test_nor_is_an_unfinished_one(tmp_path):
    class Stopped(LennardJones):
        calls = 0

        def calculate(self, *args, **options):
            Stopped.calls += 1
            if Stopped.calls == 8:
                raise KeyboardInterrupt
            super().calculate(*args, **options)

    stopped = CalculatorPotential(lambda: Stopped(sigma=3.4, epsilon=0.0104, rc=7.0), name="argon")
    with pytest.raises(KeyboardInterrupt):
        simulate(stopped, STRUCTURES, SETTINGS, tmp_path, progress=False)
    assert (tmp_path / "state.npz").exists()
    with pytest.raises(WouldDelete, match="settings.timestep: 1.0 there, 2.0 here"):
        simulate(stopped, STRUCTURES, SETTINGS.changed(timestep=2.0), tmp_path, progress=False)
    assert (tmp_path / "state.npz").exists()


def test_a_stress_test_is_not_deleted_by_another(tmp_path):
    heating = {"heating": {"temperature_end": 400.0}}
    run_stress_tests(POTENTIAL, STRUCTURES, heating, tmp_path, progress=False)
    before = content(tmp_path)
    hotter = {"heating": {"temperature_end": 500.0}}
    with pytest.raises(WouldDelete, match="stress test of another run(.|\n)*temperature_end: 400.0 there, 500.0 here"):
        run_stress_tests(POTENTIAL, STRUCTURES, hotter, tmp_path, progress=False)
    assert content(tmp_path) == before
    found = run_stress_tests(POTENTIAL, STRUCTURES, hotter, tmp_path, progress=False, overwrite=True)
    assert found["heating"].settings["temperature_end"] == 500.0


def test_differences_are_named_by_their_keys():
    before, now = {"a": {"b": 1, "c": [1, 2]}, "d": None}, {"a": {"b": 2, "c": (1, 2)}, "e": "x"}
    assert differences(before, now) == ["a.b: 1 there, 2 here", "e: nothing there, x here"]

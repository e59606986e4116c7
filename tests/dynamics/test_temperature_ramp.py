"""A thermostat whose temperature rises: what atoms make of it, restarts, and that it costs nothing where it rests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import units
from ase.build import bulk

from mdl_physpre.dynamics.engine.ensembles import ensemble_of
from mdl_physpre.dynamics.engine.moving_atoms import MovingAtoms
from mdl_physpre.dynamics.running.batch import BatchRun
from mdl_physpre.dynamics.running.reanalysis import judge_run
from mdl_physpre.dynamics.running.run_state import begin_or_resume
from mdl_physpre.dynamics.running.simulate import simulate
from mdl_physpre.dynamics.settings import DynamicsSettings, settings_of_each
from mdl_physpre.errors import ConfigError
from mdl_physpre.runs.stage import decisive
from tests.helpers.gpu_stand_in import DEVICE, counting
from tests.helpers.pair_potentials import Killed, Morse
from tests.helpers.small_structures import crystals, with_

THERMOSTATS = ("nvt", "nvt_bussi", "nvt_nose_hoover", "npt")


def run_of(settings: DynamicsSettings, structures, per_structure=None) -> BatchRun:
    n = len(structures)
    each = settings_of_each(settings, n, per_structure)
    return begin_or_resume(Morse(), structures, [str(k) for k in range(n)], list(range(n)), settings, each)


@pytest.mark.parametrize("ensemble", THERMOSTATS)
def test_a_harmonic_crystal_follows_the_thermostat_at_its_lag(ensemble: str) -> None:
    """Its energy 3NkT takes heat at the rate (3NkT₀ − E)/τ, so that T = T₀ − rτ once exp(−t/τ) is gone.

    τ is 1/γ of Langevin's thermostat, and twice the time constant of those that rescale velocities, because half of the
    energy is potential. A chain of Nosé and Hoover has no lag on average.
    """
    structures = [bulk("Cu", "fcc", a=3.55).repeat((2, 2, 2)) for _ in range(24)]
    settings = DynamicsSettings(
        ensemble=ensemble, temperature=20, temperature_end=140, timestep=3.0, steps=400, seed=7, friction=0.02,
        taut=25.0, taup=1e6, pressure=0.0, skin=1.5, pressure_interval=0,
    )  # fmt: skip
    run = run_of(settings, structures)
    lag = 0.0 if ensemble == "nvt_nose_hoover" else 120 / 1200 * 50
    beyond = []
    for step in range(1, 400):
        run.advance()
        bath = run.integrator.temperature.numpy()
        np.testing.assert_allclose(bath, settings.temperature_at(step), rtol=1e-12)
        np.testing.assert_allclose(run.integrator.kT.numpy(), bath * units.kB, rtol=1e-12)
        if step * 3 > 300:
            beyond.append(run.atoms.temperatures().numpy() - (bath - lag))
    each = np.mean(beyond, axis=0)  # 24 independent means
    assert abs(each.mean()) < max(4 * each.std(ddof=1) / np.sqrt(len(each)), 1.0)


@pytest.mark.parametrize("ensemble", THERMOSTATS)
def test_equal_ends_are_a_constant_temperature_to_the_last_bit(ensemble: str) -> None:
    settings = with_(ensemble=ensemble, temperature=700, steps=40, taut=40, taup=200)
    runs = [run_of(settings.changed(temperature_end=end), crystals(3)) for end in (None, 700.0)]
    for _ in range(39):
        for run in runs:
            run.advance()
    for name in ("positions", "velocities", "cells"):
        assert torch.equal(*(getattr(run.atoms, name) for run in runs)), name
    torch.testing.assert_close(*(run.integrator.heat for run in runs), rtol=1e-9, atol=1e-9)


def test_a_constant_temperature_beside_a_rising_one_stays_to_the_last_bit() -> None:
    settings = with_(temperature=700, steps=30)
    alone, beside = run_of(settings, crystals(2)), run_of(settings, crystals(2), {"temperature_end": [None, 2000.0]})
    for run in (alone, beside):
        for _ in range(29):
            run.advance()
    first = alone.atoms.batch == 0
    assert torch.equal(alone.atoms.positions[first], beside.atoms.positions[first])
    assert not torch.equal(alone.atoms.positions[~first], beside.atoms.positions[~first])


@pytest.mark.parametrize("ensemble", THERMOSTATS)
def test_the_conserved_energy_is_that_beyond_the_heat(ensemble: str) -> None:
    settings = DynamicsSettings(
        ensemble=ensemble, temperature=300, temperature_end=900, timestep=1.0, steps=301, seed=2, taut=50
    )
    run = run_of(settings, crystals(2))
    start, spread = run.observers.conserved_start.clone(), torch.zeros(2, dtype=torch.float64)
    for _ in range(300):
        run.advance()
        spread = torch.maximum(spread, (run.observers.conserved_last - start).abs())
    kinetic = 1.5 * units.kB * 600 * run.atoms.counts
    assert float((spread / kinetic).max()) < (1.5e-2 if ensemble == "nvt" else 3e-3)
    moved = (run.observers.energy_last - run.observers.energy_start).abs() / kinetic
    assert float(moved.max()) > 0.3, "heat must have been exchanged for the test to say much"


def test_temperatures_may_fall_to_nothing() -> None:
    settings = with_(temperature=600, temperature_end=0.0, steps=60, friction=0.05)
    verdicts = simulate(Morse(), crystals(2), settings, progress=False)
    assert all(not v.failed and v.conditions["temperature_end"] == 0 for v in verdicts)
    assert all(v.metrics["temperature_bound"] > 10_000 for v in verdicts)


@pytest.mark.parametrize("ensemble", THERMOSTATS)
def test_killed_in_the_middle_it_goes_on_to_the_same_verdicts_and_bytes(tmp_path: Path, ensemble: str) -> None:
    settings = with_(ensemble=ensemble, steps=30, checkpoint_steps=4, trajectory_interval=1, taut=50, taup=200)
    own = {"temperature_end": [4000.0, None, 900.0], "steps": [30, 17, 25]}
    whole = simulate(Morse(), crystals(3), settings, tmp_path / "whole", per_structure=own)
    assert [v.conditions.get("temperature_end") for v in whole] == own["temperature_end"]
    evaluations = 60 if ensemble == "npt" else 30
    for at in (evaluations // 3, evaluations * 2 // 3, evaluations - 3):
        cut = tmp_path / f"cut{at}"
        with pytest.raises(KeyboardInterrupt):
            simulate(Killed(at), crystals(3), settings, cut, per_structure=own)
        assert simulate(Killed(10**9), crystals(3), settings, cut, per_structure=own) == whole
        for path in (tmp_path / "whole" / "trajectories").iterdir():
            assert path.read_bytes() == (cut / "trajectories" / path.name).read_bytes()


def test_stored_trajectories_give_the_same_verdicts(tmp_path: Path) -> None:
    settings = with_(temperature=100, temperature_end=9000.0, trajectory_interval=1, overlap_ratio=0.8)
    verdicts = simulate(Morse(), crystals(3), settings, tmp_path, per_structure={"temperature_end": [9e3, 5e3, None]})
    assert {v.status for v in verdicts} == {"stable", "failed"}
    for one, other in zip(judge_run(tmp_path), verdicts, strict=True):
        assert (one.reasons, one.first_failing_step, one.conditions) == (
            other.reasons,
            other.first_failing_step,
            other.conditions,
        )
        assert one.metrics["temperature_bound"] == other.metrics["temperature_bound"]


def test_where_it_cannot_be_it_says_so() -> None:
    with pytest.raises(ConfigError, match=r"temperature_end is 900, and ensemble 'nve' has no thermostat"):
        DynamicsSettings(ensemble="nve", temperature_end=900)
    with pytest.raises(ConfigError, match="temperature_end is 0; the Nosé–Hoover thermostat"):
        DynamicsSettings(ensemble="nvt_nose_hoover", temperature_end=0)
    with pytest.raises(ConfigError, match=r"per_structure\['temperature_end'\]\[1\] is -1"):
        simulate(Morse(), crystals(2), with_(), per_structure={"temperature_end": [900, -1]})
    settings = DynamicsSettings(temperature=300, temperature_end=6000)
    assert settings.temperature_bound(10**9) == pytest.approx(60_000, rel=1e-3)


def test_results_of_before_are_known_again() -> None:
    """That stored runs keep their keys is in ``test_restart.py``."""
    assert "temperature_end" not in decisive(DynamicsSettings())
    assert decisive(DynamicsSettings(temperature_end=600.0))["temperature_end"] == 600


@pytest.mark.parametrize("ensemble", THERMOSTATS)
def test_a_constant_temperature_takes_no_kernel_and_a_rising_one_few(ensemble: str) -> None:
    structures = crystals(4)
    for end, most in ((None, 0), (900.0, 45)):
        each = [DynamicsSettings(ensemble=ensemble, temperature_end=end)] * 4
        atoms = MovingAtoms.of(structures, DEVICE)
        integrator = ensemble_of(ensemble).make(atoms, each)
        with counting() as counts:
            integrator.begin_step(atoms, 3)
        assert counts.kernels <= most
        assert not counts.syncs and not counts.clashes

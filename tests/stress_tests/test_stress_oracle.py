"""Errors along a stress test, by a reference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read, write
from typer.testing import CliRunner

from mdl_physpre import PotentialCalculator
from mdl_physpre.cli.main import app
from mdl_physpre.dynamics import OracleSettings
from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials import Committee
from mdl_physpre.report.tables.oracle import format_oracle_errors
from mdl_physpre.stress_tests import StressResult, run_stress_tests
from mdl_physpre.stress_tests.heating import HeatingSettings
from mdl_physpre.stress_tests.oracle import with_frames, with_oracle
from mdl_physpre.utils.settings import Settings
from tests.helpers.pair_potentials import Morse
from tests.stress_tests.test_ladders import HOLES, SCALES, Hollow, Walled, crystals

ALONG = OracleSettings(oracle="a name", oracle_frames=8)


def test_errors_along_the_ramp(tmp_path: Path) -> None:
    crystal = bulk("Cu", "fcc", a=3.5, cubic=True).repeat((2, 2, 2))
    settings = with_frames(HeatingSettings(temperature_end=2300.0, rate=10_000.0, timestep=2.0), ALONG)
    assert settings.frames == 8 and with_frames(settings.changed(frames=3), ALONG).frames == 3
    result = run_stress_tests(Morse(), [crystal], {"heating": settings}, tmp_path, progress=False)["heating"]
    assert result.oracle is None
    found = with_oracle(result, tmp_path / "heating", Morse(), ALONG)
    rows = found.oracle.rows
    assert [row.step for row in rows] == list(range(0, 97, 12))
    assert [row.thermostat for row in rows] == pytest.approx([300 + 20 * row.step for row in rows])
    assert found.oracle.means.forces_rmse < 1e-7 and found.oracle.wrong.count == 0
    assert StressResult.model_validate(found.plain()) == found


def test_tests_without_frames_stay_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Bare(Settings):
        """Nothing to set."""

    assert with_frames(Bare(), ALONG) == Bare()
    assert with_frames(HeatingSettings(), OracleSettings()) == HeatingSettings()
    result = StressResult(test="squeezing", quantity="pressure", unit="GPa", points=())
    assert with_oracle(result, tmp_path, Morse(), ALONG) == result
    assert "squeezing: no comparison with an oracle: it stores no frames" in caplog.text


FALSE = {
    "heating": {"temperature_end": 3000.0, "rate": 15_000.0, "timestep": 2.0},
    **{name: {**scale, "min_width": 0} if name != "compression" else scale for name, scale in SCALES.items()},
}
ENDS = {"heating": 3000.0, "compression": 200.0, "collisions": 100.0, "random_starts": 90.0}


@pytest.mark.parametrize("name", FALSE)
def test_errors_along_every_scale_and_where_it_breaks(name: str, tmp_path: Path) -> None:
    """Of a potential that is right but for a hole behind its wall; errors are those of plain evaluations."""
    potential, truth = Hollow(*HOLES.get(name, (1.75, 20.0, 0.15))), Walled()
    structures = crystals(2) if name != "heating" else [atoms.repeat((2, 2, 2)) for atoms in crystals(2)]
    alone = run_stress_tests(potential, structures, {name: FALSE[name]}, progress=False)[name]
    found = run_stress_tests(potential, structures, {name: FALSE[name]}, tmp_path, False, oracle=truth, along=ALONG)
    result, told = found[name], found[name].oracle
    assert result.points == alone.points and (told.quantity, told.unit) == (result.quantity, result.unit)
    assert told.means.frames > 8 and told.means.energy_mae is not None and told.means.forces_rmse is not None
    for point, one in zip(result.points, told.structures, strict=True):
        rows = [row for row in told.rows if row.index == point.index]
        assert [row.value for row in rows] == sorted(row.value for row in rows) and rows[0].energy_error == 0
        assert rows[-1].value <= point.value <= ENDS[name] and one.failed == point.broken
        assert (one.break_forces_rmse is not None) == point.broken == any(row.at_break for row in rows)
        assert rows[0].relative_error < 0.01  # right at the start
        if point.broken:
            assert one.wrong_step is not None and rows[-1].at_break and max(row.relative_error for row in rows) > 0.5
    assert "Against a name" in format_oracle_errors(told) and told.unit in format_oracle_errors(told)
    again = run_stress_tests(potential, structures, {name: FALSE[name]}, tmp_path, False, oracle=truth, along=ALONG)
    assert again[name].oracle == told


def test_the_rows_are_those_of_plain_evaluations(tmp_path: Path) -> None:
    """Of each rung that was stored, with ASE and this potential alone."""
    settings = {"compression": {**SCALES["compression"], "end_pressure": 40.0}}
    found = run_stress_tests(Walled(), crystals(1), settings, tmp_path, False, oracle=Morse(), along=ALONG)
    rows = found["compression"].oracle.rows
    frames = [read(path) for path in sorted((tmp_path / "compression" / "frames").iterdir())]
    assert len(rows) == len(frames) > 3
    for row, frame in zip(rows, frames, strict=True):
        mine, theirs = (PotentialCalculator(potential) for potential in (Walled(), Morse()))
        difference = mine.get_forces(frame) - theirs.get_forces(frame)
        assert row.forces_rmse == pytest.approx(np.sqrt((difference**2).mean()), rel=1e-4, abs=1e-6)
        assert row.value == frame.info["value"] and row.at_rest and row.step == frame.info["step"]
    last = [calculator.get_potential_energy(frames[-1]) - calculator.get_potential_energy(frames[0])
            for calculator in (PotentialCalculator(Walled()), PotentialCalculator(Morse()))]  # fmt: skip
    assert rows[-1].energy_error == pytest.approx(250 * (last[0] - last[1]), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("stops", [True, False])
@pytest.mark.parametrize("name", SCALES)
def test_where_a_committee_becomes_uncertain(name: str, stops: bool) -> None:
    committee = Committee([Hollow(*HOLES[name]), Walled()])
    settings = {**FALSE[name], "dynamics": {"max_force_spread": 0.05, "stop_on_uncertain": stops}}
    result = run_stress_tests(committee, crystals(2), {name: settings}, progress=False)[name]
    for point in result.points:
        at, spreads = point.metrics["uncertain_value"], point.metrics["force_spreads"]
        assert 0 < at <= point.value and point.metrics["max_force_spread"] == max(spreads) > 0.05
        assert not stops or (point.broken and point.reason == "uncertain" and point.value == at)
        assert stops or point.reason != "uncertain"
        assert len(spreads) == point.step + 1 and spreads[0] < 0.05
    assert [o.value for o in result.uncertain_observations()] == [p.metrics["uncertain_value"] for p in result.points]


def test_settings_that_a_ladder_sets_itself_are_refused() -> None:
    for given, words in (({"steps": 5}, "steps is not among them"), ({"overlap": 1}, "overlap: unknown key")):
        with pytest.raises(ConfigError, match=words):
            run_stress_tests(Walled(), crystals(1), {"collisions": {"dynamics": given}})
    with pytest.raises(ConfigError, match="collisions.frames is set, but there is no folder"):
        run_stress_tests(Walled(), crystals(1), {"collisions": {"frames": 5}})


def test_on_the_command_line(tmp_path: Path) -> None:
    crystal = bulk("Cu", cubic=True).repeat((2, 2, 2))
    crystal.rattle(0.02, seed=0)
    write(tmp_path / "copper.extxyz", crystal)
    emt = "calculator:ase.calculators.emt.EMT"
    words = [
        "stress",
        emt,
        str(tmp_path / "copper.extxyz"),
        "--tests",
        "heating",
        "--oracle",
        emt,
        "--oracle-frames",
        "4",
    ]
    words += [
        "--set",
        "heating.temperature_end=500",
        "--set",
        "heating.rate=10000",
        "--json",
        str(tmp_path / "all.json"),
    ]
    said = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "run")], catch_exceptions=False).output
    assert f"heating: Against {emt}" in said and "0 of 1" in said
    assert (tmp_path / "run" / "heating" / "oracle-errors.png").exists()
    stored = json.loads((tmp_path / "all.json").read_text())["heating"]["oracle"]
    assert [row["thermostat"] for row in stored["rows"]] == [300.0, 350.0, 400.0, 450.0, 500.0]
    said = CliRunner().invoke(app, words, catch_exceptions=False).output  # without a folder
    assert "heating: Against" in said and "figure" not in said

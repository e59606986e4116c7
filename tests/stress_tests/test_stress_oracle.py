"""Errors along a stress test, by a reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ase.build import bulk
from ase.io import write
from typer.testing import CliRunner

from mdl_physpre.cli.main import app
from mdl_physpre.dynamics import OracleSettings
from mdl_physpre.stress_tests import StressResult, run_stress_tests
from mdl_physpre.stress_tests.heating import HeatingSettings
from mdl_physpre.stress_tests.oracle import with_frames, with_oracle
from mdl_physpre.utils.settings import Settings
from tests.helpers.pair_potentials import Morse

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

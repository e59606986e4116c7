"""Frames of a simulation evaluated by a reference: errors along it, and what is whole and wrong."""

import json
import re
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from typer.testing import CliRunner

from mdl_physpre import simulate
from mdl_physpre.cli.main import app
from mdl_physpre.dynamics import DynamicsSettings, OracleSettings, compare_with_oracle
from mdl_physpre.dynamics.oracle import open_oracle
from mdl_physpre.dynamics.oracle_errors import pooled_oracle_errors
from mdl_physpre.errors import DataError
from mdl_physpre.potentials import CalculatorPotential
from mdl_physpre.report.tables.oracle import format_oracle_errors
from tests.helpers.pair_potentials import Attraction, Morse

ALONG = OracleSettings(oracle="a name", oracle_frames=10)
SETTINGS = DynamicsSettings(temperature=300, timestep=2.0, steps=100, overlap_ratio=0.5)
EMT_NAME = "calculator:ase.calculators.emt:EMT"


class WrongWell(Morse):
    """Morse with a well at 1.9 Å that is not there in Morse."""

    def pair(self, r):
        return super().pair(r) - 3.0 * torch.exp(-(((r - 1.9) / 0.16) ** 2))


def copper(n=2, spread=0.05):
    made = []
    for k in range(n):
        atoms = bulk("Cu", cubic=True, a=3.65) * (2, 2, 2)
        atoms.rattle(spread, seed=k)
        atoms.info["structure_id"] = f"copper {k}"
        made.append(atoms)
    return made


def test_a_potential_against_itself_has_no_error_along_the_run(tmp_path):
    simulate(Morse(), copper(), ALONG.with_frames(SETTINGS), tmp_path, progress=False)
    found = compare_with_oracle(tmp_path, Morse(), ALONG)
    assert found.means.frames == len(found.rows) == 2 * 11
    assert [row.step for row in found.rows[:11]] == list(range(0, 101, 10))
    assert max(row.forces_rmse for row in found.rows) < 1e-7  # the stored forces have eight decimals
    assert max(abs(row.energy_error) for row in found.rows) < 1e-4
    assert min(row.forces_cosine for row in found.rows) > 1 - 1e-9
    assert found.wrong.count == 0 and found.wrong.n == 2
    assert all(one.wrong_step is None and one.frames == 11 for one in found.structures)
    assert sum(one.frames for one in found.bins) == 22 and found.bins[-1].end == 200.0


def test_numbers_are_those_of_the_calculator_on_each_frame(tmp_path):
    simulate(Morse(), copper(1), ALONG.with_frames(SETTINGS), tmp_path, progress=False)
    found = compare_with_oracle(tmp_path, EMT_NAME, ALONG)
    frames = ase.io.read(tmp_path / "trajectories" / "00000.extxyz", index=":")
    zero = None
    for row, frame in zip(found.rows, frames, strict=True):
        mine, energy = frame.get_forces(), frame.get_potential_energy()
        frame.calc = EMT()
        theirs, difference = frame.get_forces(), energy - frame.get_potential_energy()
        zero = difference if zero is None else zero
        assert row.energy_error == pytest.approx(1000 * (difference - zero) / len(frame), abs=1e-6)
        assert row.forces_mae == pytest.approx(np.abs(mine - theirs).mean())
        assert row.forces_rmse == pytest.approx(np.sqrt(((mine - theirs) ** 2).mean()))
        assert row.oracle_forces_rms == pytest.approx(np.sqrt((theirs**2).mean()))
        cosine = (mine * theirs).sum() / np.linalg.norm(mine) / np.linalg.norm(theirs)
        assert row.forces_cosine == pytest.approx(cosine)
        distances = frame.get_all_distances(mic=True)
        assert row.min_distance == pytest.approx(distances[distances > 0].min())
        assert row.temperature == pytest.approx(frame.get_temperature()) and row.thermostat == 300
        assert row.time_fs == 2.0 * row.step == frame.info["time_fs"]
    assert found.rows[0].energy_error == 0.0
    assert found.means.forces_mae == pytest.approx(np.mean([row.forces_mae for row in found.rows]))
    assert found.means.forces_rmse == pytest.approx(np.sqrt(np.mean([row.forces_rmse**2 for row in found.rows])))


def test_a_well_that_is_not_there_is_found_wrong_though_all_stay_whole(tmp_path):
    settings = ALONG.with_frames(SETTINGS.changed(temperature=900, steps=400))
    verdicts = simulate(WrongWell(), copper(), settings, tmp_path, progress=False)
    assert not any("overlap" in v.reasons or v.stopped for v in verdicts)
    found = compare_with_oracle(tmp_path, Morse(), ALONG)
    assert found.wrong.count == 2
    for one in found.structures:  # right at the start, wrong from some frame on
        assert 0 < one.wrong_step <= 400 and one.wrong_value == 2.0 * one.wrong_step
    assert found.rows[0].forces_cosine > 0.99
    assert found.bins[-1].energy_error < -100  # deeper than the oracle says
    whole = [one for one in found.structures if not one.failed]
    assert found.whole_and_wrong.count == found.whole_and_wrong.n == len(whole)


def test_the_frame_at_which_a_structure_broke_stands_apart(tmp_path):
    settings = ALONG.with_frames(SETTINGS.changed(steps=1000))
    verdicts = simulate(Attraction(), copper(1), settings, tmp_path, progress=False)
    assert verdicts[0].stopped
    found = compare_with_oracle(tmp_path, EMT_NAME, ALONG)
    last, one = found.rows[-1], found.structures[0]
    assert last.at_break and last.step == verdicts[0].steps_run and not any(row.at_break for row in found.rows[:-1])
    assert one.failed and one.break_forces_rmse == last.forces_rmse and one.frames == len(found.rows) - 1
    assert found.wrong.count == 1 and found.whole_and_wrong.n == 0
    # without trajectories the failing frames are what there is
    simulate(Attraction(), copper(1), SETTINGS.changed(steps=1000), tmp_path / "bare", progress=False)
    bare = compare_with_oracle(tmp_path / "bare", EMT_NAME, ALONG)
    assert [row.step for row in bare.rows] == [verdicts[0].steps_run] and "step 0" in bare.left_out[
        0
    ]  # no forces there
    assert bare.rows[-1].forces_rmse == pytest.approx(last.forces_rmse)


class Moody(Calculator):
    """EMT that raises where the first atom has moved far enough from the origin."""

    implemented_properties = ("energy", "forces")

    def __init__(self, bound=0.12):
        super().__init__()
        self.bound, self.emt = bound, EMT()

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if np.linalg.norm(atoms.positions[0]) > self.bound:
            raise RuntimeError("no more")
        copy = atoms.copy()
        copy.calc = self.emt
        self.results = {"energy": copy.get_potential_energy(), "forces": copy.get_forces()}


def test_a_frame_for_which_the_oracle_raises_is_named_and_left_out(tmp_path):
    simulate(Morse(), copper(1), ALONG.with_frames(SETTINGS), tmp_path, progress=False)
    found = compare_with_oracle(tmp_path, CalculatorPotential(Moody(), name="moody"), ALONG)
    assert len(found.rows) + len(found.left_out) == 11 and found.rows and found.left_out
    assert all("copper 0, step " in text and "RuntimeError: no more" in text for text in found.left_out)
    assert "Left out" in format_oracle_errors(found)
    none = compare_with_oracle(tmp_path, CalculatorPotential(Moody(-1.0), name="never"), ALONG)
    assert len(none.left_out) == 11 and none.means.frames == 0 and none.wrong.n == 0
    assert none.means.forces_mae is None and "0 of 0" in format_oracle_errors(none)


def test_an_oracle_that_raises_for_every_structure_is_said_at_once():
    with pytest.raises(DataError, match="raises for every structure at the start, first NotImplementedError"):
        open_oracle(EMT_NAME, [bulk("Si")])


def test_a_result_is_read_where_nothing_changed(tmp_path):
    simulate(Morse(), copper(1), ALONG.with_frames(SETTINGS), tmp_path, progress=False)
    first = compare_with_oracle(tmp_path, EMT_NAME, ALONG)
    path = tmp_path / "oracle_errors.json"
    before = path.stat().st_mtime_ns
    assert compare_with_oracle(tmp_path, EMT_NAME, ALONG) == first and path.stat().st_mtime_ns == before
    assert compare_with_oracle(tmp_path, EMT_NAME, ALONG.changed(oracle_bound=5.0)).wrong.count == 0
    path.write_text("{")
    assert compare_with_oracle(tmp_path, EMT_NAME, ALONG) == first
    fewer = compare_with_oracle(tmp_path, EMT_NAME, ALONG.changed(oracle_frames=5))
    assert [row.step for row in fewer.rows] == [0, 20, 40, 60, 80, 100]


def test_a_run_without_frames(tmp_path):
    simulate(Morse(), copper(1), SETTINGS, tmp_path, progress=False)
    with pytest.raises(DataError, match="holds no frames for an oracle; simulate again"):
        compare_with_oracle(tmp_path, EMT_NAME, ALONG)


def test_networks_together(tmp_path):
    found = []
    for seed in (0, 1):
        place = tmp_path / str(seed)
        simulate(Morse(), copper(2), ALONG.with_frames(SETTINGS.changed(seed=seed)), place, progress=False)
        found.append(compare_with_oracle(place, EMT_NAME, ALONG))
    both = pooled_oracle_errors(found)
    rows = [row for one in found for row in one.rows]
    assert both.means.frames == 44 and both.rows == () and len(both.structures) == 4
    assert both.means.energy_mae == pytest.approx(np.mean([abs(row.energy_error) for row in rows]))
    assert both.means.forces_rmse == pytest.approx(np.sqrt(np.mean([row.forces_rmse**2 for row in rows])))
    assert both.wrong.each == tuple(one.wrong.count for one in found) and both.wrong.n == 4
    late = [row for row in rows if row.time_fs >= 180]
    assert both.bins[-1].frames == len(late)
    assert both.bins[-1].forces_mae == pytest.approx(np.mean([row.forces_mae for row in late]))
    assert pooled_oracle_errors([]) is None and pooled_oracle_errors(found[:1]) == found[0].summary()


@pytest.mark.parametrize("other", ["kumagai", "stillinger_weber"])
def test_silicon_by_matscipy_on_the_command_line(other, tmp_path):
    """Kumagai's potential by itself, and by Stillinger and Weber's."""
    pytest.importorskip("matscipy")
    structures = []
    for k in range(2):
        structures.append(bulk("Si", cubic=True))
        structures[-1].rattle(0.1, seed=k)
    ase.io.write(tmp_path / "silicon.extxyz", structures)
    model, oracle = (f"calculator:tests.helpers.silicon:{name}_silicon" for name in ("kumagai", other))
    words = ["md", model, str(tmp_path / "silicon.extxyz"), "--steps", "40", "--temperature", "1500"]
    words += ["--oracle", oracle, "--oracle-frames", "4"]
    said = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "run")], catch_exceptions=False).output
    assert (
        f"Against calculator:tests.helpers.silicon:{other}_silicon" in said and "0 of 2" in said
    )  # close enough to each other
    stored = json.loads((tmp_path / "run" / "oracle_errors.json").read_text())
    assert len(stored["rows"]) == 10 and stored["wrong"]["count"] == 0
    error = stored["means"]["forces_rmse"]
    assert error < 1e-7 if other == "kumagai" else 0.1 < error < 1.0
    assert (tmp_path / "run" / "oracle-errors.png").exists() and "oracle-errors.png" in said
    said = CliRunner().invoke(app, words, catch_exceptions=False).output
    assert "Against " in said and "figure" not in said


def test_the_page_is_right(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[2] / "docs" / "oracle.md").read_text()
    first, second = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    exec(first, {})
    assert capsys.readouterr().out == "0 11 True\n"
    pytest.importorskip("matscipy")
    (tmp_path / "silicon.py").write_text(second)
    monkeypatch.syspath_prepend(tmp_path)
    open_oracle("calculator:silicon:kumagai_silicon", [bulk("Si")])
    open_oracle("calculator:silicon:stillinger_weber_silicon", [bulk("Si")])
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.S).group(1))["physpre"]["dynamics"]
    assert OracleSettings(**settings) == OracleSettings(oracle=settings["oracle"])  # the defaults


def test_chgnet_by_its_name():
    pytest.importorskip("chgnet")
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05)
    open_oracle("calculator:chgnet.model.dynamics:CHGNetCalculator?use_device=cpu", [atoms])

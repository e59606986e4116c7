"""Mean square displacements and vibrations against a reference that starts at the same place."""

import ase.io
import pytest
from ase.build import bulk
from scipy.integrate import trapezoid
from typer.testing import CliRunner

from mdl_physpre import simulate
from mdl_physpre.cli.main import app
from mdl_physpre.dynamics import DynamicsSettings, compare_motion
from mdl_physpre.dynamics.compare_motion import format_motion
from mdl_physpre.dynamics.compare_rdf import compare_with_reference
from mdl_physpre.errors import DataError
from tests.helpers.pair_potentials import Attraction, Morse

SETTINGS = DynamicsSettings(temperature=200, timestep=2.0, steps=800, trajectory_interval=2, friction=0.002)


def copper(n=2):
    made = [bulk("Cu", cubic=True, a=3.5) * (2, 2, 2) for _ in range(n)]
    for k, atoms in enumerate(made):
        atoms.info["structure_id"] = f"copper {k}"
    return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Simulations with a stiff and with a soft potential."""
    folder = tmp_path_factory.mktemp("runs")
    for name, potential in (("stiff", Morse()), ("again", Morse()), ("soft", Morse(a=1.2, depth=0.3))):
        simulate(potential, copper(), SETTINGS, folder / name, progress=False)
    return folder


def test_against_itself(runs):
    found = compare_motion(runs / "stiff", runs / "again")
    assert found.structures == ("copper 0", "copper 1") and not found.notes
    assert found.msd_ratio == {"Cu": pytest.approx(1.0)} and found.dos_overlap == {"Cu": pytest.approx(1.0)}
    assert found.motion.time_fs[-1] == pytest.approx(800, abs=5)
    assert found.motion.diffusion["Cu"] < 0.1  # Å²/ps: a crystal
    area = trapezoid(found.motion.dos["Cu"], found.motion.frequency)
    assert area == pytest.approx(2 * 93, rel=1e-6)


def test_a_softer_crystal_moves_farther_and_vibrates_slower(runs):
    found = compare_motion(runs / "soft", runs / "stiff")
    assert found.msd_ratio["Cu"] > 1.5
    assert found.dos_overlap["Cu"] < 0.7
    f, mine, other = found.motion.frequency, found.motion.dos["Cu"], found.reference.dos["Cu"]
    assert (f * mine).sum() / mine.sum() < 0.8 * (f * other).sum() / other.sum()
    assert "Cu: mean square displacement" in format_motion(found)
    assert type(found).model_validate(found.plain()).msd_ratio == found.msd_ratio


def test_what_is_not_compared_is_said(runs, tmp_path):
    sparse = SETTINGS.changed(trajectory_interval=20)
    for name in ("one", "two"):
        simulate(Morse(), copper(1), sparse, tmp_path / name, progress=False)
    found = compare_motion(tmp_path / "one", tmp_path / "two")
    assert not found.dos_overlap and found.msd_ratio and "frames are more than 10 fs apart" in found.notes[0]
    simulate(Attraction(), copper(1), SETTINGS, tmp_path / "broken", progress=False)
    found = compare_motion(tmp_path / "broken", runs / "stiff")
    assert not found.structures and "no structure ran to the end in both" in format_motion(found)
    with pytest.raises(DataError, match="holds no verdicts.json"):
        compare_motion(tmp_path, runs / "stiff")


def test_with_a_reference_and_on_the_command_line(runs, tmp_path):
    short = SETTINGS.changed(steps=100)
    found = compare_with_reference(Morse(), copper(1), Morse(a=1.2), short, tmp_path / "python", progress=False)
    assert found["motion"].structures == ("copper 0",)
    assert "motion" not in compare_with_reference(
        Morse(), copper(1), Morse(), short.changed(trajectory_interval=0), progress=False
    )
    ase.io.write(tmp_path / "copper.extxyz", copper(1))
    emt = "calculator:ase.calculators.emt.EMT"
    words = ["md", emt, str(tmp_path / "copper.extxyz"), "--steps", "60", "--trajectory-interval", "2"]
    words += ["--reference", emt, "--out", str(tmp_path / "run")]
    said = CliRunner().invoke(app, words, catch_exceptions=False).output
    assert "mean square displacement 1.00 times" in said and "overlap by 1.000" in said
    assert {"motion.json", "motion.png", "rdf.png"} <= {path.name for path in (tmp_path / "run").iterdir()}

"""Radial distribution functions of a simulation against those of a reference."""

import json

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.io import write
from typer.testing import CliRunner

from mdl_physpre import simulate
from mdl_physpre.cli.main import app
from mdl_physpre.dynamics import DynamicsSettings
from mdl_physpre.dynamics.compare_rdf import compare_with_reference, format_rdf_errors
from mdl_physpre.errors import DataError
from mdl_physpre.potentials import CalculatorPotential, EAMInteraction

SETTINGS = DynamicsSettings(temperature=600, timestep=1.0, steps=60, rdf_r_max=4.0, rdf_bins=40, trajectory_interval=10)


@pytest.fixture(scope="module")
def eam():
    torch.manual_seed(0)
    return EAMInteraction(elements=["Mg", "O"], cutoff=5.0, n_basis=2)


@pytest.fixture(scope="module")
def structures():
    rng = np.random.default_rng(0)
    made = []
    for k in range(3):
        atoms = bulk("MgO", "rocksalt", 4.3, cubic=True)
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        atoms.info["structure_id"] = f"rock salt {k}"
        made.append(atoms)
    return made


def test_against_its_own_trajectory_and_itself_there_is_no_error(eam, structures, tmp_path):
    simulate(eam, structures, SETTINGS, tmp_path / "own", progress=False)
    for reference in (tmp_path / "own" / "trajectories", eam):
        found = compare_with_reference(eam, structures, reference, SETTINGS, tmp_path / "again", progress=False)
        assert found["structures"] == 3 and len(found["verdicts"]) == 3
        assert set(found["errors"]) == {"Mg-Mg", "O-Mg", "O-O"}
        for error in found["errors"].values():  # the stored positions have eight decimals
            assert error.mae < 0.02 and error.wasserstein < 1e-3
    assert (tmp_path / "again" / "reference" / "verdicts.json").exists()
    text = format_rdf_errors(found)
    assert "3 structures" in text and "O-Mg: mean absolute error 0.000" in text


def test_a_calculator_from_the_same_start(eam, structures):
    found = compare_with_reference(
        eam, structures[:1], "calculator:ase.calculators.lj.LennardJones?sigma=1.8&epsilon=0.05&rc=4.0", SETTINGS,
        progress=False,
    )  # fmt: skip
    assert len(found["reference_verdicts"]) == 1
    assert found["errors"]["O-Mg"].mae > 0.05
    assert found["structure_errors"].keys() == {"rock salt 0"}


def test_what_shares_no_elements_is_no_reference(eam, structures, tmp_path):
    simulate(eam, structures[:1], SETTINGS, tmp_path / "own", progress=False)
    argon = CalculatorPotential(LennardJones(sigma=3.4, epsilon=0.01, rc=4.0), name="argon")
    atoms = bulk("Ar", cubic=True)
    with pytest.raises(DataError, match=r"no pair of elements in common .*Ar-Ar against O-O"):
        compare_with_reference(argon, [atoms], tmp_path / "own" / "trajectories", SETTINGS, progress=False)


def test_a_reference_that_the_run_would_replace(eam, structures, tmp_path):
    simulate(eam, structures[:1], SETTINGS, tmp_path, progress=False)
    with pytest.raises(DataError, match="whose contents the run replaces"):
        compare_with_reference(eam, structures[:1], tmp_path / "trajectories", SETTINGS, tmp_path, progress=False)


def test_late_frames_only(eam, structures, tmp_path):
    late = SETTINGS.changed(rdf_start=30)
    simulate(eam, structures[:1], late, tmp_path / "own", progress=False)
    found = compare_with_reference(eam, structures[:1], tmp_path / "own" / "trajectories", late, progress=False)
    assert found["rdf"].frames == found["reference_rdf"].frames == 4  # 30, 40, 50, 60
    assert found["errors"]["O-Mg"].mae < 0.02


def test_other_structures(eam, structures, tmp_path):
    simulate(eam, structures[:2], SETTINGS, tmp_path / "own", progress=False)
    renamed = [a.copy() for a in structures]
    for atoms in renamed:
        atoms.info["structure_id"] += " renamed"
    with pytest.raises(DataError, match="none is in both"):
        compare_with_reference(eam, renamed, tmp_path / "own" / "trajectories", SETTINGS, progress=False)
    with pytest.raises(DataError, match="no reference trajectory"):
        compare_with_reference(eam, renamed, tmp_path / "nothing", SETTINGS, progress=False)


def test_the_command_takes_broken_starts_as_verdicts_and_writes_the_errors(tmp_path):
    """A cell of no size and a position that is no number fail at step 0; the others are simulated and compared."""
    copper = bulk("Cu", cubic=True).repeat(2)
    tiny, lost = copper.copy(), copper.copy()
    tiny.set_cell([0.007] * 3, scale_atoms=True)
    lost.positions[0, 0] = np.nan
    write(tmp_path / "starts.extxyz", [copper, tiny, lost])
    emt = "calculator:ase.calculators.emt.EMT"
    arguments = ["md", emt, str(tmp_path / "starts.extxyz"), "rdf_r_max=3.0", "--steps", "20", "--reference", emt]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "cell_collapsed" in result.output and "not_finite" in result.output and "broken 2 of 3" in result.output
    errors = json.loads((tmp_path / "out" / "rdf_errors.json").read_text())
    assert errors["errors"]["Cu-Cu"]["mae"] < 1e-6 and len(errors["reference_verdicts"]) == 3

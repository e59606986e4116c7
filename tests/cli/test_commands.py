"""Commands on potentials, each as a user calls it."""

import json
import re

import numpy as np
import pytest
import torch
from ase.build import bulk
from typer.testing import CliRunner

from mdl_physpre import save_potential, write_structures
from mdl_physpre.cli.main import app
from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials import EAMInteraction
from tests.helpers.small_runs import called


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    save_potential(folder / "eam.pt", EAMInteraction(elements=["Mg", "O"], cutoff=5.0, n_basis=2))
    rng = np.random.default_rng(0)
    structures = []
    for _ in range(3):
        atoms = bulk("MgO", "rocksalt", 4.2, cubic=True)
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        structures.append(atoms)
    write_structures(folder / "mgo.extxyz", structures)
    write_structures(folder / "copper.extxyz", [bulk("Cu", cubic=True)])
    return folder


def test_doctor(files, tmp_path):
    told = called("doctor", files / "eam.pt", "--json", tmp_path / "checks.json")
    counts = json.loads((tmp_path / "checks.json").read_text())["counts"]
    assert counts["passed"] > 30 and "failed" not in counts and f"{counts['passed']} passed" in told
    ill = "calculator:ase.calculators.lj.LennardJones?sigma=3.0&rc=4.0"  # cut off with a jump
    told = called("doctor", ill, files / "copper.extxyz", "--cutoff", 4.0, code=1)
    assert re.search(r"failed +smooth at the cutoff, .*: forces", told)


def test_md_judge_compare(files, tmp_path):
    start = (files / "eam.pt", files / "mgo.extxyz")
    options = ("--temperature", 300, "--steps", 30, "--trajectory-interval", 1)
    hot = called("md", *start, "lindemann_interval=1", *options, "--out", tmp_path / "nvt")
    assert hot.endswith(called("judge", tmp_path / "nvt"))
    called("md", *start, *options, "--ensemble", "npt", "--processes", 2, "--out", tmp_path / "npt")
    told = called("compare", tmp_path / "nvt", tmp_path / "npt")
    assert "They differ in ensemble: nvt, npt" in told and "Of 3 structures simulated by both" in told
    wrong = CliRunner().invoke(app, ["md", *map(str, start), "lindeman_interval=1"])
    assert isinstance(wrong.exception, ConfigError) and "lindemann_interval" in str(wrong.exception)


def test_md_of_a_calculator_in_larger_cells(files):
    emt = "calculator:ase.calculators.emt.EMT"
    told = called("md", emt, files / "copper.extxyz", "--steps", 5, "--min-atoms", 16)
    assert "Cu16" in told and "0 of 1" in told
    assert told.count("does not say what energies it was trained on: no structure is judged too_deep") == 1


def test_md_against_a_reference(files, tmp_path):
    start = (files / "eam.pt", files / "mgo.extxyz", "rdf_r_max=4.0")
    told = called("md", *start, "--steps", 20, "--reference", files / "eam.pt", "--out", tmp_path / "same")
    assert "O-Mg: mean absolute error 0.000" in told
    assert (tmp_path / "same" / "rdf.png").stat().st_size > 10_000

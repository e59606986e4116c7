"""Steps whose electrons did not converge: marked, counted, said, and left out on request."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from mdl_physpre import read_structures
from mdl_physpre.errors import DataError
from mdl_physpre.structures import get_labels
from mdl_physpre.structures.inspect import format_inspection, inspect_structures
from tests.helpers.vasp_files import PLACES, outcar, vasprun

STEPS, ENERGIES = [3, 4, 2, 4], [-7.0, -7.1, -7.2, -7.3]
FILES = {
    "OUTCAR": outcar(STEPS, ENERGIES),
    "old.OUTCAR": outcar(STEPS, ENERGIES, version=5),
    "OUTCAR_run1": outcar(STEPS[:2], ENERGIES[:2]) + outcar(STEPS[2:], ENERGIES[2:]),
    "vasprun.xml": vasprun(STEPS, ENERGIES),
    "vasprun.run2.xml": vasprun(STEPS, ENERGIES)[:-200],
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("zipped", [False, True])
def test_steps_of_vasp(tmp_path, name, zipped, caplog):
    path = tmp_path / (name + ".gz" * zipped)
    path.write_bytes(gzip.compress(FILES[name].encode()) if zipped else FILES[name].encode())
    n = 3 if name == "vasprun.run2.xml" else 4
    everything = read_structures(path)
    assert [get_labels(a).energy for a in everything] == ENERGIES[:n]
    np.testing.assert_allclose(everything[0].positions, PLACES, atol=1e-6)
    assert [bool(a.info.get("unconverged")) for a in everything] == [False, True, False, True][:n]
    assert f"in {n - 2} of {n} structures the electrons did not converge (1" in caplog.text
    assert f"{n - 2} with electrons" in format_inspection(inspect_structures(everything))
    kept = read_structures(path, drop_unconverged=True)
    assert [(a.info["structure_id"], get_labels(a).energy) for a in kept] == [("0", -7.0), ("2", -7.2)]
    assert "they are left out" in caplog.text


def test_a_step_that_converges_with_the_last_iteration_is_whole(tmp_path):
    (tmp_path / "vasprun.xml").write_text(vasprun([4], [-7.0], last_change=1e-7))
    assert "unconverged" not in read_structures(tmp_path / "vasprun.xml")[0].info


@pytest.mark.parametrize("flag", [{"converged": False}, {"SCF_converged": "F"}, {"unconverged": True}])
def test_flags_of_other_files(tmp_path, flag):
    frames = [bulk("Cu"), bulk("Cu", a=3.7)]
    frames[1].info |= flag
    write(tmp_path / "a.extxyz", frames)
    assert len(read_structures(tmp_path / "a.extxyz")) == 2
    (kept,) = read_structures(tmp_path / "a.extxyz", drop_unconverged=True)
    assert kept.info["structure_id"] == "0"
    write(tmp_path / "a.extxyz", frames[1])
    with pytest.raises(DataError, match="no structure whose electrons converged"):
        read_structures(tmp_path / "a.extxyz", drop_unconverged=True)

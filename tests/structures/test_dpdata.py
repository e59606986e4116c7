"""Outputs of ABACUS, CP2K and SIESTA: units and signs by hand, what cannot be read is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from mdl_physpre.errors import DataError
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.structures.read import read_structures
from tests.helpers.outputs_of_codes import ATOMS, ENERGY, FORCES, STRESS, abacus, cp2k, siesta


def test_units_and_signs(tmp_path):
    pytest.importorskip("dpdata", reason="outputs of ABACUS, CP2K and SIESTA are read by dpdata")
    (tmp_path / "siesta.out").write_text(siesta(1))
    (tmp_path / "md.out").write_text(siesta(3))
    (tmp_path / "cp2k.out").write_text(cp2k().replace("Atomic kind: Si ", "Atomic kind: Si1 "))
    abacus(tmp_path / "abacus")
    for name in ("siesta.out", "md.out", "cp2k.out", "abacus"):
        found = read_structures(tmp_path / name)
        assert len(found) == (3 if name == "md.out" else 1), name
        for k, atoms in enumerate(found):
            labels = get_labels(atoms)
            assert str(atoms.symbols) == "SiO" and atoms.pbc.all()
            np.testing.assert_allclose(atoms.positions, ATOMS.positions + 0.01 * k, atol=1e-6)
            np.testing.assert_allclose(atoms.cell[:], ATOMS.cell[:], atol=1e-6)
            assert labels.energy == pytest.approx(ENERGY - k, abs=1e-4)
            np.testing.assert_allclose(labels.forces, FORCES, atol=1e-5)
            np.testing.assert_allclose(labels.stress, STRESS, atol=1e-6, err_msg=name)


def test_forces_that_would_be_misread_are_refused(tmp_path):
    pytest.importorskip("dpdata", reason="outputs of ABACUS, CP2K and SIESTA are read by dpdata")
    (tmp_path / "a.out").write_text(
        siesta(1).replace("     1    0.3", "siesta:  1    0.3").replace("     2   -0.3", "siesta:  2   -0.3")
    )
    with pytest.raises(DataError, match="WriteForces"):
        read_structures(tmp_path / "a.out")


@pytest.mark.parametrize("text", [siesta(1)[:900], siesta(3)[:1100], cp2k()[:1000], cp2k().replace("converged", "")])
def test_what_is_cut_short_is_refused(tmp_path, text):
    pytest.importorskip("dpdata", reason="outputs of ABACUS, CP2K and SIESTA are read by dpdata")
    (tmp_path / "a.out").write_text(text)
    with pytest.raises(DataError, match="a.out: .*(came|come) to its end"):
        read_structures(tmp_path / "a.out")


def test_without_dpdata_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dpdata", None)
    abacus(tmp_path / "abacus")
    (tmp_path / "siesta.out").write_text(siesta(1))
    (tmp_path / "cp2k.log").write_text(cp2k())
    for name in ("abacus", "siesta.out", "cp2k.log"):
        with pytest.raises(DataError, match=f"{name}: a result of .*pip install.*dpdata"):
            read_structures(tmp_path / name)
    with pytest.raises(DataError, match="give the folder of the calculation"):
        read_structures(tmp_path / "abacus/OUT.one/running_scf.log")

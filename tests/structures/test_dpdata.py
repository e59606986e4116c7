"""Outputs of ABACUS, CP2K and SIESTA: units and signs by hand, what cannot be read is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units

from mdl_physpre.errors import DataError
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.structures.read import read_structures

STRESS = np.array([[0.03, 0.004, 0.0], [0.004, 0.02, -0.001], [0.0, -0.001, 0.01]])  # eV/Å³, tension positive
FORCES = np.array([[0.3, -0.2, 0.1], [-0.3, 0.2, -0.1]])
ATOMS = Atoms("SiO", positions=[[0.1, 0.2, 0.3], [1.5, 1.6, 1.7]], cell=[4.0, 4.5, 5.0], pbc=True)
ENERGY = -123.456


def rows(array: np.ndarray, before: str = "") -> str:
    return "".join(before + "".join(f"{x:16.9f}" for x in row) + "\n" for row in array)


def siesta_step(k: int, moving: bool) -> str:
    text = "outcoor: Atomic coordinates (Ang): \n"
    for n, p in enumerate(ATOMS.positions + 0.01 * k):
        text += "".join(f"{x:14.8f}" for x in p) + f"  {n + 1}       {n + 1}  {ATOMS.symbols[n]}\n"
    text += "\noutcell: Unit cell vectors (Ang):\n" + rows(ATOMS.cell[:]) + "\n"
    text += f"siesta: E_KS(eV) = {ENERGY - k:20.4f}\n\nsiesta: Atomic forces (eV/Ang):\n"
    text += "".join(f"{n + 1:6d}{''.join(f'{x:12.6f}' for x in f)}\n" for n, f in enumerate(FORCES))
    text += "----------------------------------------\n   Tot    0.0  0.0  0.0\n"
    text += "\nsiesta: Stress tensor (static) (eV/Ang**3):\n" + rows(STRESS, "     " if moving else "siesta:") + "\n"
    return text + f"siesta: Pressure (static): {-np.trace(STRESS) / 3 / units.bar / 1e3:20.8f}  kBar\n\n"


def siesta(steps: int) -> str:
    text = "Siesta Version  : v4.0.2\n\n Species number:  1  Label: Si Atomic number:  14\n"
    text += " Species number:  2  Label: O Atomic number:  8\n"
    text += "initatomlists: Number of atoms, orbitals, and projectors:      2    33    52\n"
    text += "redata: Number of Atomic Species         =        2\n"
    return text + "".join(siesta_step(k, steps > 1) for k in range(steps)) + ">> End of run\n"


def cp2k() -> str:
    """As version 7 prints it; its stress is compression positive, GPa."""
    text = " DBCSR| Multiplication driver  BLAS\n CP2K| version string:   CP2K version 7.1\n"
    names = zip("abc", ATOMS.cell[:])
    text += "".join(f" CELL| Vector {n} [angstrom]:  {' '.join(f'{x:.6f}' for x in v)} |{n}| = 4\n" for n, v in names)
    text += "".join(f"  {n}. Atomic kind: {s}  Number of atoms: 1\n" for n, s in ((1, "Si"), (2, "O")))
    text += "\n  Atom  Kind  Element       X           Y           Z          Z(eff)       Mass\n\n"
    for n, (s, p) in enumerate(zip(ATOMS.symbols, ATOMS.positions)):
        text += f"  {n + 1}  {n + 1} {s}  {8 if s == 'O' else 14} {' '.join(f'{x:.8f}' for x in p)}  4.00  28.0\n"
    text += "\n  *** SCF run converged in    12 steps ***\n\n ENERGY| Total FORCE_EVAL ( QS ) energy (a.u.):  "
    text += f"{ENERGY / units.Hartree:.12f}\n\n ATOMIC FORCES in [a.u.]\n\n # Atom   Kind   Element   X   Y   Z\n"
    for n, f in enumerate(FORCES / (units.Hartree / units.Bohr)):
        text += f"  {n + 1}  {n + 1}  {ATOMS.symbols[n]}  {' '.join(f'{x:.10f}' for x in f)}\n"
    text += " SUM OF ATOMIC FORCES  0.0 0.0 0.0 0.0\n\n STRESS TENSOR [GPa]\n\n            X     Y      Z\n"
    lines = zip("XYZ", -STRESS / units.GPa)
    return text + "".join(f"  {n}  {' '.join(f'{x:.8f}' for x in row)}\n" for n, row in lines) + "\n"


def abacus(folder: Path) -> None:
    """A single point; its stress is compression positive, kbar."""
    (folder / "OUT.one").mkdir(parents=True)
    (folder / "INPUT").write_text("INPUT_PARAMETERS\nsuffix one\ncalculation scf # a single point\n")
    cell, positions = ATOMS.cell[:] / units.Bohr, ATOMS.positions / units.Bohr
    text = "ATOMIC_SPECIES\nSi 28.0 Si.upf\nO 16.0 O.upf\n\nLATTICE_CONSTANT\n1.0\n\nLATTICE_VECTORS\n" + rows(cell)
    text += "\nATOMIC_POSITIONS\nCartesian\n\n"
    text += "".join(f"{s}\n0.0\n1\n{rows([p]).strip()} 1 1 1\n\n" for s, p in zip(ATOMS.symbols, positions))
    (folder / "STRU").write_text(text)
    text = "                              ABACUS v3.5\n\n TOTAL-FORCE (eV/Angstrom)\n" + "-" * 60 + "\n"
    text += "".join(rows([f], f" {s}1 ") for s, f in zip(ATOMS.symbols, FORCES)) + "-" * 60 + "\n\n"
    text += " TOTAL-STRESS (KBAR)\n" + "-" * 60 + "\n" + rows(-STRESS / units.bar / 1e3) + "-" * 60 + "\n\n"
    text += f" --------------------------------------------\n !FINAL_ETOT_IS {ENERGY} eV\n final etot is {ENERGY} eV\n"
    (folder / "OUT.one" / "running_scf.log").write_text(text)


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

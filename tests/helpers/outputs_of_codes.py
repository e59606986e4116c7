"""Small outputs of SIESTA, CP2K and ABACUS, made by hand: two atoms with known energy, forces and stress."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms, units

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

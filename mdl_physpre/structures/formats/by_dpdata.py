"""Outputs of ABACUS, CP2K and SIESTA, by the readers of dpdata (extra ``dpdata``), which gives eV, Å and virials."""

from __future__ import annotations

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mdl_physpre.errors import DataError
from mdl_physpre.structures.formats.base import Format
from mdl_physpre.structures.formats.deepmd import frames_of
from mdl_physpre.structures.state import UNCONVERGED

CODES = {"ABACUS": r"\bABACUS v\d|WELCOME TO ABACUS|ABACUS \d", "CP2K": r"^ CP2K\|", "SIESTA": r"^Siesta Version"}
BEGINNING = 20_000  # bytes in which a code names itself
NOT_CONVERGED = ("SCF run NOT converged", "SCF_NOT_CONV", "SCF not converged")
SIESTA_FRAME = "outcoor: Atomic coordinates (Ang):"
SIESTA_FORCE = re.compile(r"siesta: Atomic forces \(eV/Ang\):\s+1\s")
SIESTA_STRESS = re.compile(r"Stress tensor \(static\) \(eV/Ang\*\*3\):((?:\s*(?:siesta:)?(?:\s+[-+.\dEe]+){3}\n){3})")


class ABACUS(Format):
    """The folder of a calculation, with ``INPUT``, ``STRU`` and ``OUT.*``."""

    title = "a calculation of ABACUS"

    def fits(self, path: Path) -> bool:
        """A folder with ``INPUT`` and ``STRU``."""
        return (path / "INPUT").is_file() and (path / "STRU").is_file()

    def read(self, path: Path) -> list[Atoms]:
        """Raises DataError where dpdata is not installed, or finds no structure with an energy."""
        settings = re.sub(r"[#/].*", "", (path / "INPUT").read_text(errors="replace"))
        found = re.search(r"^\s*calculation\s+(\S+)", settings, re.MULTILINE)
        kind = found[1].replace("cell-", "") if found else "scf"
        return _structures(path, _read(path, f"abacus/{kind}"))


def read_output(path: Path) -> list[Atoms] | None:
    """The structures of an output of CP2K or SIESTA; ``None`` for any other file.

    Raises
    ------
    DataError : dpdata is not installed, or finds no structure with an energy; a log of ABACUS instead of its folder.
    """
    with open(path, "rb") as file:
        beginning = file.read(BEGINNING).decode(errors="replace")
    code = next((code for code, words in CODES.items() if re.search(words, beginning, re.MULTILINE)), None)
    if code is None:
        return None
    if code == "ABACUS":
        raise DataError(f"{path}: a log of ABACUS; give the folder of the calculation, with INPUT, STRU and OUT.*")
    text = path.read_text(errors="replace")
    several = code == "SIESTA" and text.count(SIESTA_FRAME) > 1
    data = _read(path, f"{code.lower()}/{'aimd_' if several else ''}output")
    if code == "SIESTA":
        _mend_siesta(path, text, data)
    structures = _structures(path, data)
    for atoms in structures if any(word in text for word in NOT_CONVERGED) else ():
        atoms.info[UNCONVERGED] = True
    return structures


def _read(path: Path, name: str) -> dict[str, Any]:
    """What dpdata finds in a file or folder; ``name`` is that of its format."""
    try:
        import dpdata
    except ImportError:
        code = name.split("/")[0].upper()
        raise DataError(f'{path}: a result of {code}, which dpdata reads: pip install "mdl-physpre[dpdata]"') from None
    try:
        with redirect_stdout(StringIO()):
            return dict(dpdata.LabeledSystem(str(path), fmt=name).data)
    except Exception as error:  # its readers raise errors of many kinds
        raise DataError(
            f"{path}: dpdata cannot read it as {name} ({type(error).__name__}: {str(error)[:200]}); expected a "
            "calculation that came to its end, with energy and forces"
        ) from error


def _mend_siesta(path: Path, text: str, data: dict[str, Any]) -> None:
    """Refuse forces that dpdata (1.1.0) reads from the wrong columns; virials are −V σ, where it gives V σ."""
    if not SIESTA_FORCE.search(text):
        raise DataError(f"{path}: forces are printed in a way that dpdata misreads; calculate with WriteForces true")
    if (printed := SIESTA_STRESS.search(text)) and "virials" in data:  # σ, tension positive
        stress = np.array(printed[1].replace("siesta:", "").split(), dtype=float)
        data["virials"] = -np.sign(stress @ np.ravel(data["virials"][0])) * data["virials"]


def _structures(path: Path, data: dict[str, Any]) -> list[Atoms]:
    """The same shapes as in a folder of DeePMD-kit; raises DataError where they are others, or there is nothing."""
    names = {"coord": "coords", "box": "cells", "energy": "energies", "force": "forces", "virial": "virials"}
    found = {ours: np.asarray(data[name]) for ours, name in names.items() if np.size(data.get(name, ()))}
    if "energy" not in found:
        raise DataError(f"{path}: no structure is found in it; did its electrons converge, and did it come to its end?")
    names_of_elements = [re.sub(r"[\d_].*", "", str(name)) for name in data["atom_names"]]  # a kind of CP2K: Fe1
    try:
        return frames_of([names_of_elements[k] for k in data["atom_types"]], found, not data.get("nopbc", False))
    except (KeyError, IndexError, ValueError) as error:  # KeyError: a name that is no element
        shapes = ", ".join(f"{name} {values.shape}" for name, values in found.items())
        raise DataError(f"{path}: dpdata finds {shapes}, which do not fit ({type(error).__name__}: {error})") from error

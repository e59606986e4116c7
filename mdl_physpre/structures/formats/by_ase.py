"""Files that ASE reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms
from ase.io.formats import UnknownFileTypeError

from mdl_physpre.errors import DataError
from mdl_physpre.structures.formats.base import known_formats, unknown
from mdl_physpre.utils.files import existing_file

CODES = {"ABACUS": "abacus/scf", "CP2K": "cp2k/output", "SIESTA": "siesta/output"}
"""Codes by a word at the beginning of their output, and what dpdata calls it."""


def of_dpdata(path: Path) -> str | None:
    """What to do with an output of a code that dpdata reads; ``None`` for any other file."""
    with open(path, "rb") as file:
        beginning = file.read(20_000).decode(errors="replace").upper()
    found = next((code for code in CODES if code in beginning), None)
    return found and (
        f"{path}: an output of {found}, in which no structures are found here. dpdata reads it: "
        f'dpdata.LabeledSystem("{path.name}", fmt="{CODES[found]}").to("deepmd/npy", "FOLDER") writes a folder of '
        "DeePMD-kit; give that"
    )


def read_by_ase(path: Path, format: str | None = None, **options: Any) -> list[Atoms]:
    """All structures of a file: trajectories, CIF, POSCAR, results of DFT codes, …

    Parameters
    ----------
    format : ASE's name of it; by the file's name and content where ``None``.
    options : of ASE's reader.

    Raises
    ------
    DataError : a file that is not there, is not known to ASE, cannot be read, or holds no structure.
    """
    existing_file(path)
    try:
        found = ase.io.read(path, index=":", format=format, **options)
    except UnknownFileTypeError:
        raise DataError(of_dpdata(path) or f"{unknown(path)}; nor does ASE know it") from None
    except Exception as error:  # ASE's readers raise errors of many kinds
        if told := of_dpdata(path):
            raise DataError(told) from error
        raise DataError(f"{path}: ASE cannot read it ({type(error).__name__}: {error}); {known_formats()}") from error
    structures = found if isinstance(found, list) else [found]
    if not structures or not all(isinstance(one, Atoms) for one in structures):
        text = f"{path}: ASE finds no structure in it; did the calculation end, and is this its output?"
        raise DataError(of_dpdata(path) or text)
    return structures

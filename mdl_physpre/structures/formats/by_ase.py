"""Files that ASE reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms
from ase.io.formats import UnknownFileTypeError

from mdl_physpre.errors import DataError
from mdl_physpre.structures.formats.base import known_formats, unknown
from mdl_physpre.structures.formats.by_dpdata import read_output
from mdl_physpre.utils.files import existing_file


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
    structures: list[Atoms] | None = []
    try:
        found = ase.io.read(path, index=":", format=format, **options)
        structures, cause = found if isinstance(found, list) else [found], None
        why = "ASE finds no structure in it; did the calculation end, and is this its output?"
    except UnknownFileTypeError:
        why, cause = unknown(path).partition(": ")[2] + "; nor does ASE know it", None
    except Exception as error:  # ASE's readers raise errors of many kinds
        why, cause = f"ASE cannot read it ({type(error).__name__}: {error}); {known_formats()}", error
    if not structures or not all(isinstance(one, Atoms) for one in structures):
        structures = read_output(path)
    if structures is None:
        raise DataError(f"{path}: {why}") from cause
    return structures

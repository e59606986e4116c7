"""Writing structures to any format that is known here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ase import Atoms

from mdl_physpre.errors import DataError
from mdl_physpre.structures.formats.ase_database import write_ase_database
from mdl_physpre.structures.formats.extxyz import write_extxyz
from mdl_physpre.structures.formats.matdeeplearn_json import write_matdeeplearn_json
from mdl_physpre.structures.read import format_of

WRITERS = {"extxyz": write_extxyz, "db": write_ase_database, "json": write_matdeeplearn_json}


def write_structures(path: str | Path, structures: Iterable[Atoms] | Atoms) -> None:
    """Write structures with their labels, whole or not at all: an older file stays until the new one is complete.

    Parameters
    ----------
    path : .extxyz or .xyz (also .gz), .db (ASE database), .json (MatDeepLearn's list; also .gz).
    structures : labels are taken from finished calculator results (``set_labels``).

    Raises
    ------
    DataError : nothing to write, an unknown suffix, a structure that the format cannot hold, a full disk, a folder
        that cannot be written.
    """
    path = Path(path).expanduser()
    writer = WRITERS[format_of(path)]
    structures = [structures] if isinstance(structures, Atoms) else list(structures)
    if not structures:
        raise DataError(f"{path}: there is no structure to write")
    writer(path, structures)

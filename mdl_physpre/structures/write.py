"""Writing structures to any format that is known here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ase import Atoms

from mdl_physpre.errors import DataError
from mdl_physpre.structures.formats.base import format_to_write


def write_structures(path: str | Path, structures: Iterable[Atoms] | Atoms, format: str | None = None) -> None:
    """Write structures with their labels, whole or not at all: an older file stays until the new one is complete.

    Parameters
    ----------
    path : .extxyz or .xyz (also .gz), .db (ASE database), .json (MatDeepLearn's list; also .gz).
    structures : labels are taken from finished calculator results (``set_labels``).
    format : its format by name instead, or by import path, as in ``read_structures``.

    Raises
    ------
    DataError : nothing to write, an unknown ending, a structure that the format cannot hold, a full disk, a folder
        that cannot be written.
    """
    path = Path(path).expanduser()
    chosen = format_to_write(path, format)
    structures = [structures] if isinstance(structures, Atoms) else list(structures)
    if not structures:
        raise DataError(f"{path}: there is no structure to write")
    chosen.write(path, structures)

"""Data sets of the load-atoms collection, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ase import Atoms

from mdl_physpre.errors import DataError

PREFIX = "load-atoms:"


def read_load_atoms(name: str, root: str | Path | None = None) -> list[Atoms]:
    """The structures of a data set that load-atoms knows, downloaded on first use.

    Parameters
    ----------
    name : the data set, e.g. "C-GAP-17".
    root : folder for downloads; load-atoms' own default where not given.

    Raises
    ------
    DataError : load-atoms is not installed, the name is unknown to it, or the download failed.
    """
    source = f"{PREFIX}{name}"
    if not name:
        raise DataError(f"{source}: no name given; write {PREFIX}NAME, e.g. {PREFIX}C-GAP-17")
    try:
        from load_atoms import load_dataset
    except ImportError as error:
        raise DataError(
            f"{source}: the package load-atoms is not installed ({error}); pip install 'mdl-physpre[load-atoms]'"
        ) from error
    options: dict[str, Any] = {} if root is None else {"root": str(root)}
    try:
        structures = [_copy(atoms) for atoms in load_dataset(name, **options)]
    except Exception as error:  # a download can fail in many ways
        raise DataError(f"{source}: cannot be loaded: {type(error).__name__}: {error}") from error
    if not structures:
        raise DataError(f"{source}: the data set holds no structure")
    return structures


def _copy(atoms: Any) -> Atoms:
    copy = atoms.copy()  # the data set may keep its own for a second call
    copy.calc = atoms.calc
    return copy

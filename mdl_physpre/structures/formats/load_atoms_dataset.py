"""Data sets of the load-atoms collection, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ase import Atoms

from mdl_physpre.errors import DataError
from mdl_physpre.structures.formats.base import Format

PREFIX = "load-atoms:"


class LoadAtoms(Format):
    """``load-atoms:NAME``: a data set that load-atoms knows, e.g. C-GAP-17, downloaded on first use."""

    title = f"{PREFIX}NAME"
    options = ("root",)

    def fits(self, path: Path) -> bool:
        """Names that begin with ``load-atoms:``."""
        return str(path).startswith(PREFIX)

    def read(self, path: Path, *, root: str | Path | None = None) -> list[Atoms]:
        """``root``: folder for downloads; load-atoms' own default where not given.

        Raises DataError where load-atoms is not installed, the name is unknown to it, or the download failed.
        """
        name = str(path)[len(PREFIX) :].strip()
        if not name:
            raise DataError(f"{path}: no name given; write {PREFIX}NAME, e.g. {PREFIX}C-GAP-17")
        try:
            from load_atoms import load_dataset
        except ImportError as error:
            raise DataError(
                f"{path}: the package load-atoms is not installed ({error}); pip install 'mdl-physpre[load-atoms]'"
            ) from error
        try:
            return [_copy(atoms) for atoms in load_dataset(name, **({} if root is None else {"root": str(root)}))]
        except Exception as error:  # a download can fail in many ways
            raise DataError(f"{path}: cannot be loaded: {type(error).__name__}: {error}") from error


def _copy(atoms: Any) -> Atoms:
    copy: Atoms = atoms.copy()  # the data set may keep its own for a second call
    copy.calc = atoms.calc
    return copy

"""ASE databases (SQLite ``.db``, or ASE's JSON)."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mdl_physpre.errors import DataError
from mdl_physpre.structures.check import describe
from mdl_physpre.utils.files import existing_file, replacing
from mdl_physpre.utils.progress import progress


def read_ase_database(path: Path, kind: str = "db") -> list[Atoms]:
    """All rows of an ASE database; key-value pairs and data become ``info``, extra per-atom data ``arrays``.

    Raises
    ------
    DataError : missing, empty or damaged database; file and row are named.
    """
    from ase.db import connect

    existing_file(path)
    structures: list[Atoms] = []
    try:
        with connect(str(path), type=kind, use_lock_file=False) as database:
            for row in progress(database.select(), total=database.count(), description=f"reading {path.name}"):
                structures.append(_from_row(row))
    except (sqlite3.Error, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: structure {len(structures)}: not a readable ASE database ({error})") from error
    if not structures:
        raise DataError(f"{path}: the database holds no structure")
    return structures


def _from_row(row: Any) -> Atoms:
    atoms = row.toatoms()
    data = dict(row.data)
    arrays = data.pop("arrays", {})
    info = data.pop("info", {})
    atoms.info = {**row.key_value_pairs, **data, **(info if isinstance(info, dict) else {"info": info})}
    for name, values in (arrays if isinstance(arrays, dict) else {}).items():
        atoms.set_array(name, np.asarray(values))
    return atoms


def write_ase_database(path: Path, structures: Sequence[Atoms]) -> None:
    """Write an ASE database (SQLite), whole or not at all; one that stands there is replaced.

    ``info`` is kept exactly; entries that ASE can select by become key-value pairs as well.

    Raises
    ------
    DataError : a structure that the database cannot hold, a full disk, a folder that cannot be written.
    """
    from ase.db import connect

    own = {"numbers", "positions", "tags", "momenta", "masses", "initial_magmoms", "initial_charges"}
    with replacing(path) as temporary:
        temporary.touch()
        try:
            with connect(str(temporary), type="db", append=False, use_lock_file=False) as database:
                for index, atoms in enumerate(progress(structures, description=f"writing {path.name}")):
                    info = _plain(atoms.info)
                    data: dict[str, Any] = {"info": info}
                    arrays = {k: v for k, v in atoms.arrays.items() if k not in own}
                    if arrays:
                        data["arrays"] = arrays
                    try:
                        database.write(atoms, key_value_pairs=_selectable(info), data=data)
                    except (ValueError, TypeError, AttributeError, AssertionError) as error:
                        raise DataError(
                            f"{path}: structure {describe(atoms, index)} cannot be written to an ASE database: {error}"
                        ) from error
        except sqlite3.Error as error:
            raise OSError(None, str(error)) from error


def _plain(value: Any) -> Any:
    """``value`` without NumPy scalars, which ASE's binary form does not take."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


def _selectable(info: dict[str, Any]) -> dict[str, Any]:
    from ase.db.core import check
    from ase.formula import Formula

    pairs = {}
    for key, value in info.items():
        try:
            check({key: value})
        except (ValueError, TypeError):
            continue
        try:
            Formula(key, strict=True)  # ASE warns of keys that look like formulas
        except ValueError:
            pairs[key] = value
    return pairs

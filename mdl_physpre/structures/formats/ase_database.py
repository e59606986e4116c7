"""ASE databases (SQLite ``.db``, or ASE's JSON)."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.structures.check import describe
from mdl_physpre.structures.formats.base import Format
from mdl_physpre.structures.formats.json_stream import first_item
from mdl_physpre.structures.units import factor
from mdl_physpre.utils.files import existing_file, replacing
from mdl_physpre.utils.progress import progress

OWN_ARRAYS = {"numbers", "positions", "tags", "momenta", "masses", "initial_magmoms", "initial_charges"}


class ASEDatabase(Format):
    """SQLite: key-value pairs and data become ``info``, extra per-atom data ``arrays``.

    ``info`` is kept exactly when written; entries that ASE can select by become key-value pairs as well.
    """

    title = "ASE database"
    endings = (".db",)
    kind = "db"

    def read(self, path: Path) -> list[Atoms]:
        """All rows. Raises DataError for a missing, empty or damaged database; names file and row."""
        from ase.db import connect

        existing_file(path)
        structures: list[Atoms] = []
        try:
            with connect(str(path), type=self.kind, use_lock_file=False) as database:
                factors = _stated_units(database.metadata, path)
                for row in progress(database.select(), total=database.count(), description=f"reading {path.name}"):
                    structures.append(_in_our_units(_from_row(row), factors))
        except DataError:
            raise
        except Exception as error:  # of SQLite, of ASE, of JSON with numbers that no array can have
            raise DataError(f"{path}: structure {len(structures)}: not a readable ASE database ({error})") from error
        return structures

    def write(self, path: Path, structures: Sequence[Atoms]) -> None:
        """Replaces a database that stands there."""
        from ase.db import connect

        with replacing(path) as temporary:
            temporary.touch()
            try:
                with connect(str(temporary), type="db", append=False, use_lock_file=False) as database:
                    for index, atoms in enumerate(progress(structures, description=f"writing {path.name}")):
                        info = _plain(atoms.info)
                        data: dict[str, Any] = {"info": info}
                        arrays = {k: v for k, v in atoms.arrays.items() if k not in OWN_ARRAYS}
                        if arrays:
                            data["arrays"] = arrays
                        try:
                            database.write(atoms, key_value_pairs=_selectable(info), data=data)
                        except (ValueError, TypeError, AttributeError, AssertionError) as error:
                            raise DataError(
                                f"{path}: structure {describe(atoms, index)} cannot be written to an ASE database: "
                                f"{error}"
                            ) from error
            except sqlite3.Error as error:
                raise OSError(None, str(error)) from error


class ASEJSON(ASEDatabase):
    """The same as JSON, which is read only: written JSON is MatDeepLearn's."""

    title = "an ASE database as JSON"
    endings = (".json",)
    zipped = True
    kind = "json"
    write = Format.write

    def recognises(self, path: Path) -> bool:
        """By its first entry."""
        key, value = first_item(path) or (0, None)
        return key in ("ids", "nextid") or (isinstance(key, str) and isinstance(value, dict) and "numbers" in value)


def _from_row(row: Any) -> Atoms:
    atoms: Atoms = row.toatoms()
    data = dict(row.data)
    arrays = data.pop("arrays", {})
    info = data.pop("info", {})
    atoms.info = {**row.key_value_pairs, **data, **(info if isinstance(info, dict) else {"info": info})}
    for name, values in (arrays if isinstance(arrays, dict) else {}).items():
        atoms.set_array(name, np.asarray(values))
    return atoms


def _stated_units(metadata: Any, path: Path) -> dict[str, float]:
    """Factors of the properties of a database of SchNetPack, which states its units; empty for others.

    Raises DataError for a unit that is not known.
    """
    stated = metadata.get("_property_unit_dict") if isinstance(metadata, dict) else None
    if not isinstance(stated, dict):
        return {}
    units = {**stated, "positions": metadata.get("_distance_unit") or "Ang"}
    try:
        return {name: factor(str(unit)) if unit else 1.0 for name, unit in units.items()}
    except ConfigError as error:
        raise DataError(f"{path}: the database states its units; {error}") from None


def _in_our_units(atoms: Atoms, factors: dict[str, float]) -> Atoms:
    """A row of SchNetPack in eV and Å."""
    if not factors:
        return atoms
    atoms.positions *= factors["positions"]
    atoms.cell *= factors["positions"]
    for name in factors.keys() & atoms.info.keys():
        value = factors[name] * np.asarray(atoms.info.pop(name), dtype=float)
        if value.shape == (len(atoms), 3):
            atoms.set_array(name, value)
        else:
            atoms.info[name] = float(value.reshape(-1)[0]) if value.size == 1 else value.squeeze()
    return atoms


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

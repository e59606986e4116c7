"""Text dumps of LAMMPS, by ASE's reader, which takes types of atoms for atomic numbers where there are no elements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols

from mdl_physpre.errors import ConfigError, DataError, nearest
from mdl_physpre.structures.formats.base import Format
from mdl_physpre.utils.files import open_text


class LAMMPSDump(Format):
    """Option ``types``: the element of each type, in order, such as ``[Cu, Au]``; needed where the dump names none."""

    title = "a text dump of LAMMPS"
    endings = (".lammpstrj", ".dump", ".lammpsdump")
    options = ("types",)

    def read(self, path: Path, types: Any = None) -> list[Atoms]:
        """Raises DataError where elements cannot be known, or the file is damaged."""
        symbols = types.split(",") if isinstance(types, str) else list(types or ())
        for symbol in symbols:
            if symbol not in atomic_numbers:
                raise ConfigError(f"types: {symbol!r} is no element; {nearest(str(symbol), chemical_symbols[1:])}")
        with open_text(path) as file:
            columns = next((line.split()[2:] for line in file if line.startswith("ITEM: ATOMS")), None)
        if columns is None:
            raise DataError(f"{path}: no line begins with ITEM: ATOMS; it is not {self.title}, or truncated")
        if "element" not in columns and not symbols:
            raise DataError(
                f"{path}: has types of atoms and no elements (columns {' '.join(columns)}); name them in the order of "
                "the types, dataset.options={types: [Cu, Au]} (--types Cu,Au in convert and inspect), or write the "
                "dump with a column element"
            )
        try:
            found = ase.io.read(path, index=":", format="lammps-dump-text", specorder=symbols or None)
        except IndexError:
            raise DataError(
                f"{path}: holds more types than the {len(symbols)} elements of types, {', '.join(symbols)}"
            ) from None
        except Exception as error:  # ASE's readers raise errors of many kinds
            raise DataError(f"{path}: ASE cannot read it ({type(error).__name__}: {error})") from error
        return found if isinstance(found, list) else [found]

"""One file, several, a pattern, or a folder: the files that structures are read from."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from mdl_physpre.errors import DataError
from mdl_physpre.structures.formats.base import formats, known_formats

Source = str | Path | Sequence[str | Path]


def files_of(source: Source) -> list[str]:
    """The files of a path, a pattern (``data/*.xyz``, ``data/**/OUTCAR``), a folder, or a list of these, in order.

    A folder stands for the files in it whose names are of a known format; one that is itself a data set (of
    DeePMD-kit) for itself. Patterns and folders are sorted by name.

    Raises
    ------
    DataError : a pattern that no file has, a folder without a file of a known format, an empty list.
    """
    if not isinstance(source, str | Path):
        found = [file for one in source for file in files_of(one)]
        if not found:
            raise DataError("an empty list of files; name at least one")
        return found
    text = str(source)
    path = Path(text).expanduser()
    if any(letter in text for letter in "*?[") and not path.exists():
        found = sorted(glob.glob(str(path), recursive=True))
        if not found:
            raise DataError(f"{text}: no file has a name of this pattern")
        return found
    known = list(formats())
    if path.is_dir() and not any(one.fits(path) for one in known):
        found = [str(file) for file in sorted(path.iterdir()) if any(one.fits(file) for one in known)]
        if not found:
            raise DataError(f"{text}: a folder without a file of a known format; {known_formats()}")
        return found
    return [text]

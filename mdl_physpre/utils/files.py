"""Files read whole and written whole: gzip by content on reading, temporary file and rename on writing."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from mdl_physpre.errors import DataError, PhyspreError, nearest

GZIP_MAGIC = b"\x1f\x8b"


def existing_file(path: Path) -> Path:
    """``path``, once it is known to be a file with something in it.

    Raises
    ------
    DataError : no such file (the nearest name in its folder is given), a folder, or an empty file.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give a file of structures")
    if not path.exists():
        hint = ""
        if path.parent.is_dir():
            beside = sorted(p.name for p in path.parent.iterdir() if p.is_file())[:200]
            guess = nearest(path.name, beside)
            hint = f"; {guess}" if guess.startswith("did") else ""
        raise DataError(f"{path}: no such file{hint}")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes); expected structures")
    return path


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """A text file, decompressed where it is gzip.

    Raises
    ------
    DataError : missing, empty, truncated or corrupt file, or one that is not text.
    """
    existing_file(path)
    try:
        with open(path, "rb") as raw:
            zipped = raw.read(2) == GZIP_MAGIC
        if path.suffix == ".gz" and not zipped:
            raise DataError(f"{path}: named .gz, but its content is not gzip; rename it, or copy the file again")
        with gzip.open(path, "rt", encoding="utf-8-sig") if zipped else open(path, encoding="utf-8-sig") as file:
            yield cast(IO[str], file)
    except EOFError as error:
        raise DataError(f"{path}: the gzip file ends too early (truncated); copy or download it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: the gzip file is corrupt ({error}); copy or download it again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file (byte {error.start} is not UTF-8)") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_text(path: Path) -> str:
    """The text of a file, decompressed where it is gzip. Raises as :func:`open_text`, and for blanks alone."""
    with open_text(path) as file:
        text = file.read()
    if not text.strip():
        raise DataError(f"{path}: the file holds nothing but blanks; expected structures")
    return text


@contextmanager
def replacing(path: Path, error: type[PhyspreError] = DataError) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well, and is removed when it does not.

    Raises
    ------
    error : the disk is full, or the folder cannot be written; nothing is left behind, an older file stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as reason:
        raise error(
            f"{path}: cannot be written: {reason.strerror or reason}; free space, or write to another folder. "
            "Nothing was written"
        ) from reason
    finally:
        for leftover in path.parent.glob(f"{temporary.name}*") if path.parent.is_dir() else ():
            leftover.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, error: type[PhyspreError] = DataError) -> None:
    """Write a file whole or not at all. Raises as :func:`replacing`."""
    with replacing(path, error) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str, error: type[PhyspreError] = DataError) -> None:
    """Write a text (UTF-8; gzip where the name ends in ``.gz``) whole or not at all. Raises as :func:`replacing`."""
    content = text.encode()
    if path.suffix == ".gz":  # without name and time, so that equal texts give equal files
        content = gzip.compress(content, compresslevel=6, mtime=0)
    write_bytes(path, content, error)

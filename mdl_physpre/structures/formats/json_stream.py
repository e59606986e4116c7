"""JSON files larger than memory, read item by item, with NaN as Python writes it (which ijson refuses)."""

from __future__ import annotations

from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import IO, Any

from mdl_physpre.errors import DataError
from mdl_physpre.utils.files import open_text

CHUNK = 1 << 22  # characters


class _Source:
    """Text of a file, of which only the part not yet parsed is kept."""

    def __init__(self, file: IO[str]) -> None:
        self.file, self.text, self.at, self.ended = file, "", 0, False
        self.decoder = JSONDecoder()

    def more(self) -> bool:
        if self.ended:
            return False
        # Doubling keeps the number of attempts at one large value small.
        chunk = self.file.read(max(CHUNK, len(self.text) - self.at))
        self.ended = not chunk
        self.text, self.at = self.text[self.at :] + chunk, 0
        return not self.ended

    def character(self) -> str:
        """The next character that is not blank, "" at the end; it stays unread."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n\ufeff":
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def value(self) -> Any:
        if not self.character():
            raise EOFError
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except JSONDecodeError:
                if not self.more():
                    raise
                continue
            # A number may go on in the next chunk: "12", "12." and "12e-" all begin "12.5" or "12e-3".
            if isinstance(value, (int, float)) and not self.text[end:].strip("0123456789.eE+-") and self.more():
                continue
            self.at = end
            return value

    def expect(self, allowed: str) -> str:
        found = self.character()
        if not found:
            raise EOFError
        if found not in allowed:
            raise JSONDecodeError(f"expected {' or '.join(allowed)}", self.text, self.at)
        self.at += 1
        return found


def iterate_json(path: Path) -> Iterator[tuple[str | int, Any]]:
    """Items (key or index, value) of the outermost object or list of a JSON file, plain or gzip, one at a time.

    Raises
    ------
    DataError : missing, empty, truncated or damaged file, or one whose outermost value is neither object nor list.
    """
    count = 0
    with open_text(path) as file:
        try:
            source = _Source(file)
            opening = source.expect("[{")
            closing = "]" if opening == "[" else "}"
            if source.character() == closing:
                source.expect(closing)
            else:
                while True:
                    key: str | int = count
                    if opening == "{":
                        key = source.value()
                        source.expect(":")
                    yield key, source.value()
                    count += 1
                    if source.expect("," + closing) == closing:
                        break
            if source.character():
                raise JSONDecodeError("text after the end", source.text, source.at)
        except EOFError as error:
            raise DataError(f"{path}: the file ends too early, after item {count}; it is truncated") from error
        except JSONDecodeError as error:
            raise DataError(
                f"{path}: item {count}: not valid JSON ({error.msg}); the file is truncated or damaged"
            ) from error


def first_item(path: Path) -> tuple[str | int, Any] | None:
    """The first item, by which formats know their files; None where there is none. Raises as :func:`iterate_json`."""
    return next(iterate_json(path), None)

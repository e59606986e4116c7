"""Patches for the hosts: new files and inserted lines, put into an installed checkout and taken out again.

A patch is a git diff without context (``git diff -U0 --full-index``): it holds no line of the host. What it fits is
known by content: git's hashes of each file before and after stand in its ``index`` lines. A file with another hash is
somebody else's, and is left alone.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mdl_physpre.errors import DataError

FOLDER = Path(__file__).parent / "patches"
_HUNK = re.compile(r"@@ -(\d+),0 \+(\d+)(?:,(\d+))? @@")
_INDEX = re.compile(r"index ([0-9a-f]{40})\.\.([0-9a-f]{40})")
NONE = "0" * 40
"""Git's hash of a file that does not exist."""


@dataclass(frozen=True)
class FilePatch:
    """What a patch does to one file: git's hashes before and after, and lines inserted after a line (0: at the top)."""

    path: str
    before: str
    after: str
    insertions: tuple[tuple[int, str], ...]

    def apply(self, content: bytes) -> bytes:
        """The content with the lines put in."""
        lines = content.splitlines(keepends=True)
        for line, text in reversed(self.insertions):
            lines[line:line] = text.encode().splitlines(keepends=True)
        return b"".join(lines)

    def revert(self, content: bytes) -> bytes:
        """The content with the lines taken out."""
        lines = content.splitlines(keepends=True)
        for line, text in self.insertions:  # those before it are out already, so the line number holds again
            del lines[line : line + len(text.encode().splitlines())]
        return b"".join(lines)


@dataclass(frozen=True)
class Patch:
    """A patch by its name, with what it does to each file."""

    name: str
    files: tuple[FilePatch, ...]

    def states(self, root: Path) -> dict[str, str]:
        """Of each file below ``root``: ``applied``, ``open`` (the patch fits) or ``unknown``."""
        found = {}
        for file in self.files:
            now = git_hash(root / file.path)
            found[file.path] = "applied" if now == file.after else "open" if now == file.before else "unknown"
        return found


def git_hash(path: Path) -> str:
    """Git's hash of a file's content, or forty zeros where there is no such file."""
    return _hash(path.read_bytes()) if path.is_file() else NONE


def read_patch(path: Path) -> Patch:
    """Read a patch file.

    Raises
    ------
    DataError : a line that does anything but insert lines or make a file, or a file without its full hashes.
    """
    files: list[FilePatch] = []
    for section in re.split(r"^diff --git ", path.read_text(), flags=re.MULTILINE)[1:]:
        header, *lines = section.splitlines(keepends=True)
        target = header.rstrip("\n").split(" b/")[-1]
        hashes, insertions, text = None, [], ""
        for line in lines:
            hunk, index = _HUNK.match(line), _INDEX.match(line)
            if hunk:
                insertions.append((int(hunk[1]), ""))
            elif index:
                hashes = index[1], index[2]
            elif line.startswith("+") and insertions:
                text = insertions[-1][1] + line[1:]
                insertions[-1] = (insertions[-1][0], text)
            elif not line.startswith(("---", "+++", "new file mode ")):
                raise DataError(f"{path}: found {line.strip()!r}; a patch for a host only inserts lines and adds files")
        if hashes is None or not insertions:
            raise DataError(f"{path}: {target} has no full hashes or no lines; make it with git diff -U0 --full-index")
        files.append(FilePatch(target, *hashes, tuple(insertions)))
    if not files:
        raise DataError(f"{path}: holds no patch")
    return Patch(path.stem, tuple(files))


def patches_for(host: str) -> list[Patch]:
    """All patches for a host, one for each content of its files that is known."""
    return [read_patch(path) for path in sorted((FOLDER / host).glob("*.patch"))]


@dataclass(frozen=True)
class Patched:
    """What a checkout looks like to the patches: ``patched``, ``unpatched``, ``partly`` or ``unknown``."""

    state: str
    patch: Patch | None
    strange: tuple[str, ...] = ()


def inspect(root: Path, patches: list[Patch]) -> Patched:
    """Which patch fits the files below ``root``, and whether it is in.

    Parameters
    ----------
    root : folder that holds the host's package.
    patches : those for the host.
    """
    unknown: list[tuple[str, ...]] = []
    for patch in patches:
        states = patch.states(root)
        strange = tuple(path for path, state in states.items() if state == "unknown")
        if not strange:
            kinds = set(states.values())
            state = "partly" if len(kinds) > 1 else "patched" if kinds == {"applied"} else "unpatched"
            return Patched(state, patch)
        unknown.append(strange)
    return Patched("unknown", None, min(unknown, key=len, default=()))


def change(host: str, root: Path, patches: list[Patch], *, revert: bool = False, check: bool = False) -> str:
    """Put the patch that fits into the files below ``root``, or take it out; all of it or nothing.

    Parameters
    ----------
    host : its name, for messages.
    root : folder that holds the host's package.
    patches : those for the host.
    revert : take the patch out.
    check : say what would be done, and do nothing.

    Returns
    -------
    A sentence that says what was done.

    Raises
    ------
    DataError : files that no patch knows, or that cannot be written. Nothing has been changed then.
    """
    found = inspect(root, patches)
    if found.patch is None:
        raise DataError(_refusal(host, root, patches, found))
    wanted = "unpatched" if revert else "patched"
    if found.state == wanted:
        return f"{host} in {root} is {wanted} already ({found.patch.name}); nothing to do"
    contents: dict[Path, bytes | None] = {}
    for file in found.patch.files:
        path = root / file.path
        now = git_hash(path)
        if now == (file.before if revert else file.after):
            continue
        if revert and file.before == NONE:
            contents[path] = None
            continue
        old = b"" if now == NONE else path.read_bytes()
        contents[path] = new = file.revert(old) if revert else file.apply(old)
        if _hash(new) != (file.before if revert else file.after):
            raise DataError(f"{found.patch.name}.patch does not give the {file.path} that it states; nothing was done")
    names = ", ".join(str(path.relative_to(root)) for path in contents)
    if check:
        return f"{host} in {root} is {found.state}; {found.patch.name} {'comes out of' if revert else 'fits'} {names}"
    try:
        _replace_all(contents)
    except OSError as error:
        raise DataError(
            f"{error.filename or root}: {error.strerror or error}; nothing was changed. Make the folder writable, or "
            "install the host from a checkout of your own"
        ) from error
    return f"{host} in {root} is {wanted} now: {names}"


def _refusal(host: str, root: Path, patches: list[Patch], found: Patched) -> str:
    if not patches:
        return f"there is no patch for {host}"
    return (
        f"{host} in {root} is of a version that no patch here knows, by the content of {', '.join(found.strange)}. "
        f"Nothing was changed. Take a known version ({', '.join(p.name for p in patches)}), or undo your own "
        "changes to these files"
    )


def _hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _replace_all(contents: Mapping[Path, bytes | None]) -> None:
    """Write (or, for None, delete) all files; where one fails, those before it get their old content back."""
    with _written_beside(contents) as parts:
        old = {path: path.read_bytes() if path.exists() else None for path in contents}
        done: list[Path] = []
        try:
            for path, content in contents.items():
                if content is None:
                    path.unlink()
                else:
                    os.replace(parts[path], path)
                done.append(path)
        except OSError:
            for path in done:
                before = old[path]
                if before is None:
                    path.unlink(missing_ok=True)
                else:
                    path.write_bytes(before)
            raise


@contextmanager
def _written_beside(contents: Mapping[Path, bytes | None]) -> Iterator[dict[Path, Path]]:
    """Temporary files with the new contents, beside the old ones and with their permissions; removed in the end."""
    parts: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            if content is not None:
                parts[path] = path.with_name(f".{path.name}.{os.getpid()}.part")
                parts[path].write_bytes(content)
                if path.exists():
                    os.chmod(parts[path], path.stat().st_mode)
        yield parts
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)

"""Patches for the hosts: new files and inserted lines, put into an installed checkout and taken out again by git.

A patch is a git diff without context (``git diff -U0 --full-index``): it holds no line of the host. What it fits is
known by content: git's hashes of each file before and after stand in its ``index`` lines. A file with another hash is
somebody else's, and is left alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mdl_physpre.errors import DataError

FOLDER = Path(__file__).parent / "patches"
NONE = "0" * 40
"""Git's hash of a file that does not exist."""
_HEADER = re.compile(r"diff --git a/(\S+) b/\1$")
_INDEX = re.compile(r"index ([0-9a-f]{40})\.\.([0-9a-f]{40})")
_INSERTION = re.compile(r"@@ -\d+,0 \+|\+|--- |new file mode ")
"""How the other lines of a patch begin that only inserts."""


@dataclass(frozen=True)
class Patch:
    """A patch file, with git's hashes of each file before and after it."""

    path: Path
    before: Mapping[str, str]
    after: Mapping[str, str]

    @property
    def name(self) -> str:
        """Its name in messages."""
        return self.path.stem


@dataclass(frozen=True)
class Patched:
    """What a checkout looks like to the patches: ``patched``, ``unpatched``, ``partly`` or ``unknown``."""

    state: str
    patch: Patch | None
    strange: tuple[str, ...] = ()


def git_hash(path: Path) -> str:
    """Git's hash of a file's content, or forty zeros where there is no such file."""
    if not path.is_file():
        return NONE
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def read_patch(path: Path) -> Patch:
    """Read a patch file.

    Raises
    ------
    DataError : a line that does anything but insert lines or make a file, or a file without its full hashes.
    """
    before, after, name = {}, {}, ""
    for line in path.read_text().splitlines():
        header, index = _HEADER.match(line), _INDEX.match(line)
        if header:
            name = header[1]
            before[name] = after[name] = ""
        elif index and name:
            before[name], after[name] = index[1], index[2]
        elif not (name and _INSERTION.match(line)):
            raise DataError(f"{path}: found {line.strip()!r}; a patch for a host only inserts lines and adds files")
    bare = [name for name, known in after.items() if not known]
    if bare:
        raise DataError(f"{path}: {bare[0]} has no full hashes; make it with git diff -U0 --full-index")
    if not after:
        raise DataError(f"{path}: holds no patch")
    return Patch(path, before, after)


def patches_for(host: str, parallel: bool = False) -> list[Patch]:
    """All patches that let a host find plugins, or mend its training on several devices (``parallel``).

    There is one for each content of its files that is known.
    """
    folder = FOLDER / (f"{host}-parallel" if parallel else host)
    return [read_patch(path) for path in sorted(folder.glob("*.patch"))]


def inspect(root: Path, patches: list[Patch]) -> Patched:
    """Which of the patches fits the files below ``root`` (the folder of the host's package), and whether it is in."""
    unknown: list[tuple[str, ...]] = []
    for patch in patches:
        now = {file: git_hash(root / file) for file in patch.after}
        strange = tuple(file for file in now if now[file] not in (patch.before[file], patch.after[file]))
        if not strange:
            state = "patched" if now == patch.after else "unpatched" if now == patch.before else "partly"
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
    DataError : files that no patch knows, or that cannot be written; git is missing. Nothing has been changed then.
    """
    found = inspect(root, patches)
    patch = found.patch
    if patch is None:
        raise DataError(_refusal(host, root, patches, found))
    wanted = "unpatched" if revert else "patched"
    if found.state == wanted:
        return f"{host} in {root} is {wanted} already ({patch.name}); nothing to do"
    goal = patch.before if revert else patch.after
    files = [file for file in goal if git_hash(root / file) != goal[file]]
    _apply(patch, root, files, revert, check)
    names = ", ".join(files)
    if check:
        return f"{host} in {root} is {found.state}; {patch.name} {'comes out of' if revert else 'fits'} {names}"
    return f"{host} in {root} is {wanted} now: {names}"


def _apply(patch: Patch, root: Path, files: list[str], revert: bool, check: bool) -> None:
    """Let git apply a patch to some of its files; where it fails on the way, they get their old content back."""
    options = ["--unidiff-zero", "--whitespace=nowarn", *(f"--include={file}" for file in files)]
    options += [*(["--reverse"] if revert else []), *(["--check"] if check else [])]
    command = ["git", "-c", "core.autocrlf=false", "-C", str(root), "apply", *options, str(patch.path)]
    old = {path: path.read_bytes() if path.is_file() else None for path in (root / file for file in files)}
    # in a folder of another repository git would take the paths as of there
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(root.resolve().parent)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    except FileNotFoundError:
        raise DataError("git is not installed, and it applies the patches; install it. Nothing was changed") from None
    if done.returncode:
        for path, content in old.items():
            if content is not None:
                path.write_bytes(content)
            elif path.is_file():
                path.unlink()
        reason = " ".join(done.stderr.split())
        raise DataError(
            f"{reason}; nothing was changed. Make the folder writable, or install the host from a checkout of your own"
        )


def _refusal(host: str, root: Path, patches: list[Patch], found: Patched) -> str:
    if not patches:
        return f"there is no patch for {host}"
    return (
        f"{host} in {root} is of a version that no patch here knows, by the content of {', '.join(found.strange)}. "
        f"Nothing was changed. Take a known version ({', '.join(p.name for p in patches)}), or undo your own "
        "changes to these files"
    )

"""Patches for hosts: only insertions, all or nothing, known by content."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mdl_physpre.errors import DataError
from mdl_physpre.hosts.locate import HOSTS
from mdl_physpre.hosts.patching import FOLDER, change, git_hash, inspect, patches_for, read_patch

OLD = "one\ntwo\nthree\nfour\n"
NEW = "zero\none\ntwo\nadded\nalso\nthree\nfour\nlast\n"


def git(*arguments: str, folder: Path) -> str:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    return subprocess.run(
        ["git", *who, *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A host of one file, with a patch that git made: insertions at three places, and a new file."""
    root = tmp_path / "host"
    (root / "package").mkdir(parents=True)
    (root / "package" / "code.py").write_text(OLD)
    git("init", "-q", folder=root)
    git("add", ".", folder=root)
    git("commit", "-qm", "as it is", folder=root)
    (root / "package" / "code.py").write_text(NEW)
    (root / "package" / "new.py").write_text("fresh\n")
    git("add", "-N", "package/new.py", folder=root)
    (tmp_path / "some.patch").write_text(git("diff", "-U0", "--full-index", folder=root))
    (root / "package" / "code.py").write_text(OLD)
    (root / "package" / "new.py").unlink()
    return root


def test_put_in_and_taken_out(checkout: Path) -> None:
    patches = [read_patch(checkout.parent / "some.patch")]
    code, new = checkout / "package" / "code.py", checkout / "package" / "new.py"
    assert inspect(checkout, patches).state == "unpatched"
    assert "fits" in change("Host", checkout, patches, check=True) and code.read_text() == OLD
    assert "patched now" in change("Host", checkout, patches)
    assert (code.read_text(), new.read_text()) == (NEW, "fresh\n")
    assert "nothing to do" in change("Host", checkout, patches)
    new.unlink()
    assert inspect(checkout, patches).state == "partly"
    change("Host", checkout, patches)
    assert new.read_text() == "fresh\n"
    change("Host", checkout, patches, revert=True)
    assert code.read_text() == OLD and not new.exists()
    assert sorted(p.name for p in code.parent.iterdir()) == ["code.py"]


def test_what_is_unknown_is_left_alone(checkout: Path) -> None:
    patches = [read_patch(checkout.parent / "some.patch")]
    code = checkout / "package" / "code.py"
    code.write_text(OLD + "mine\n")
    for revert in (False, True):
        with pytest.raises(DataError, match=r"no patch here knows.*package/code.py"):
            change("Host", checkout, patches, revert=revert)
    assert code.read_text() == OLD + "mine\n" and not (code.parent / "new.py").exists()
    code.write_text(OLD)
    (code.parent / "new.py").write_text("somebody else's\n")
    with pytest.raises(DataError, match=r"package/new.py"):
        change("Host", checkout, patches)
    assert code.read_text() == OLD


def test_nothing_is_half_applied(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = [read_patch(checkout.parent / "some.patch")]
    blocked = checkout / "package" / "new.py"
    blocked.mkdir()
    (blocked / "mine").touch()
    with pytest.raises(DataError, match="new.py.*nothing was changed"):
        change("Host", checkout, patches)
    (blocked / "mine").unlink()
    blocked.rmdir()
    assert inspect(checkout, patches).state == "unpatched"
    monkeypatch.setenv("PATH", str(checkout))
    with pytest.raises(DataError, match="git is not installed"):
        change("Host", checkout, patches)
    assert [p.name for p in (checkout / "package").iterdir()] == ["code.py"]


def test_a_host_inside_another_repository(checkout: Path) -> None:
    """As in a virtual environment in the folder of a project under git, which ignores it."""
    outer = checkout.parent
    for path in [*(checkout / ".git").rglob("*")][::-1]:
        path.rmdir() if path.is_dir() else path.unlink()
    (checkout / ".git").rmdir()
    git("init", "-q", folder=outer)
    (outer / ".gitignore").write_text("host\n")
    patches = [read_patch(outer / "some.patch")]
    assert "patched now" in change("Host", checkout, patches)
    assert (checkout / "package" / "code.py").read_text() == NEW
    change("Host", checkout, patches, revert=True)
    assert inspect(checkout, patches).state == "unpatched"


def test_a_patch_that_removes_or_quotes_lines_is_refused(checkout: Path) -> None:
    (checkout / "package" / "code.py").write_text("one\nthree\nfour\n")
    for options in (("-U0", "--full-index"), ("-U1", "--full-index"), ("-U0",)):
        (checkout.parent / "bad.patch").write_text(git("diff", *options, folder=checkout))
        with pytest.raises(DataError, match="bad.patch"):
            read_patch(checkout.parent / "bad.patch")
    with pytest.raises(DataError, match="no patch"):
        (checkout.parent / "bad.patch").write_text("")
        read_patch(checkout.parent / "bad.patch")


@pytest.mark.parametrize("host", HOSTS)
def test_our_patches_hold_no_line_of_a_host(host: str) -> None:
    assert patches_for(host), f"no patch for {host} in {FOLDER}"
    patches = [*patches_for(host), *patches_for(host, parallel=True)]
    for patch in patches:
        for file, after in patch.after.items():
            assert file.startswith(host) or file == "main.py"
            assert patch.before[file] != after
    for path in (patch.path for patch in patches):
        for line in path.read_text().splitlines():
            assert line.startswith(("+", "diff --git ", "index ", "--- ", "new file mode ")) or (
                line.startswith("@@") and line.endswith("@@")
            )


def test_hashes_are_gits(checkout: Path) -> None:
    assert git_hash(checkout / "package" / "code.py") == git("hash-object", "package/code.py", folder=checkout).strip()

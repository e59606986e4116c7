"""Pages of the documentation whose examples are run as a reader would run them."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

from tests.helpers.processes import ROOT, environment


def run_page(name: str, folder: Path) -> None:
    """Run the examples of a page of ``docs/`` in ``folder``.

    Blocks that begin with ``# NAME.py`` become modules; entry points of a block of TOML are those of an installed
    package; the other blocks of Python are run, in order, as one program.
    """
    text = (ROOT / "docs" / name).read_text()
    program = []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        module = re.match(r"# (\w+\.py)\n", block)
        if language == "python" and module:
            (folder / module[1]).write_text(block)
        elif language == "python":
            program.append(block)
        elif language == "toml":
            register(block, folder)
    assert program, f"{name} has no example that runs"
    (folder / "program.py").write_text("\n".join(program))
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=folder, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def register(toml: str, folder: Path) -> None:
    """A package with the entry points of ``pyproject.toml``, as the installer leaves it."""
    parser = configparser.ConfigParser()
    parser.read_string(toml)
    lines = []
    for section in parser.sections():
        lines.append(f"[{section.removeprefix('project.entry-points.').strip(chr(34))}]")
        lines += [f"{key} = {value.strip(chr(34))}" for key, value in parser[section].items()]
    installed = folder / "example-1.0.dist-info"
    installed.mkdir(exist_ok=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("\n".join(lines) + "\n")

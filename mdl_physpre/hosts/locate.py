"""Where a host is installed, and in which version. Nothing of the host is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from mdl_physpre.errors import ConfigError, PhyspreError, nearest


class HostError(PhyspreError):
    """A host that is missing, incomplete or of a version that lacks what is used here."""


@dataclass(frozen=True)
class Host:
    """A host: its name, its package, the variable that may name its checkout, and how one gets it.

    remark : what is to be known beside ``pip install``.
    """

    name: str
    package: str
    variable: str
    source: str
    remark: str = ""


HOSTS = {
    "matdeeplearn": Host(
        "MatDeepLearn", "matdeeplearn", "MATDEEPLEARN_HOME", "https://github.com/Fung-Lab/MatDeepLearn_dev"
    ),
    "mattertune": Host(
        "MatterTune",
        "mattertune",
        "MATTERTUNE_HOME",
        "https://github.com/Fung-Lab/MatterTune",
        " (as docs/mattertune.md says)",
    ),
}


def host_named(name: str) -> Host:
    """A host by its name in any case. Raises ConfigError for another name."""
    host = HOSTS.get(name.lower())
    if host is None:
        raise ConfigError(f"{name!r} is no host; {nearest(name.lower(), HOSTS)}")
    return host


def root_of(host: Host) -> Path | None:
    """The folder that holds the host's package, or None where it is not installed.

    A checkout that the host's variable names comes first, then what Python would import.

    Raises
    ------
    ConfigError : the variable names a folder without the package.
    """
    home = os.environ.get(host.variable)
    if home:
        for folder in (Path(home).expanduser(), Path(home).expanduser() / "src"):
            if (folder / host.package / "__init__.py").is_file():
                return folder.resolve()
        raise ConfigError(
            f"{host.variable} is {home}, which holds no package {host.package}; set it to a checkout of {host.name}"
        )
    spec = find_spec(host.package)  # a top-level package is found without being imported
    return Path(spec.origin).resolve().parents[1] if spec and spec.origin else None


def put_on_path(host: Host) -> Path | None:
    """:func:`root_of`, with that folder first on Python's path where the host's variable names it."""
    root = root_of(host)
    if root is not None and os.environ.get(host.variable) and str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return root


def require_installed(host: Host) -> Path:
    """:func:`put_on_path`, which is quick. Raises HostError where the host is not installed, with how one gets it."""
    root = put_on_path(host)
    if root is None:
        raise HostError(
            f"{host.name} is not installed: git clone {host.source}, then pip install -e the checkout"
            f"{host.remark}, or set {host.variable} to it"
        )
    return root


def version_of(host: Host, root: Path) -> str:
    """Version of the package where it is installed as one, and the commit of a checkout with its date."""
    parts = []
    with suppress(PackageNotFoundError):
        parts.append(version(host.package))
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(root), "log", "-1", "--format=commit %h of %cs"]
        parts.append(subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip())
    return ", ".join(parts) or "no version found"

"""The commands ``physpre hosts`` and ``physpre hosts patch``."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from mdl_physpre.errors import DataError, PhyspreError
from mdl_physpre.hosts.locate import HOSTS, HostError, host_named, require_installed, version_of
from mdl_physpre.hosts.patching import change, inspect, patches_for

app = typer.Typer(help="MatDeepLearn and MatterTune: what is installed, and what works with it.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def hosts(context: typer.Context) -> None:
    """Say which hosts are installed, in which versions, what is registered in them, and what would not work."""
    if context.invoked_subcommand is None:
        print("\n\n".join(describe(key) for key in HOSTS))


@app.command()
def patch(
    name: Annotated[str, typer.Argument(metavar="HOST", help="matdeeplearn or mattertune.")],
    check: Annotated[bool, typer.Option("--check", help="Say what would be done, and do nothing.")] = False,
    revert: Annotated[bool, typer.Option("--revert", help="Take the patch out again.")] = False,
    parallel: Annotated[
        bool, typer.Option("--parallel", help="Not the plugin's: what mends training on several devices.")
    ] = False,
) -> None:
    """Add a few lines to an installed host, so that it finds this package by itself.

    Lines and files are only added. A version that is not known by its content is refused.
    """
    host = host_named(name)
    root, patches = require_installed(host), patches_for(host.package, parallel)
    if not (revert or parallel):
        change(host.name, root, patches, check=True)
        names = import_module(f"mdl_physpre.hosts.{host.package}.names")
        lacking = [line for line in names.missing_names() if "lacks" in line or "there since" in line]
        if lacking:
            raise DataError(f"{lacking[0]}. Nothing was changed: patched, it would find a plugin that it cannot load")
    print(change(host.name, root, patches, revert=revert, check=check))


def describe(key: str) -> str:
    """What is known of a host, in a few lines."""
    host = HOSTS[key]
    try:
        root = require_installed(host)
    except HostError as error:
        return str(error)
    except PhyspreError as error:
        return f"{host.name}: {error}"
    lines = [f"{host.name}: {version_of(host, root)}, in {root}"]
    lines += [f"  patch: {patch_state(key, root, False)}"]
    if patches_for(host.package, parallel=True):
        lines.append(f"  patch for training on several devices: {patch_state(key, root, True)}")
    ours = [p.value for p in entry_points(group=f"{host.package}.plugins") if p.value.startswith("mdl_physpre.")]
    lines.append(f"  entry point: {', '.join(ours) or 'missing; reinstall mdl-physpre'}")
    status = import_module(f"mdl_physpre.hosts.{key}.status")
    lines += [f"  would not work: {problem}" for problem in status.problems(root)]
    try:
        lines.append(f"  registers: {', '.join(status.registered())}")
    except Exception as error:  # whatever a host of another version raises is what the user wants to know
        lines.append(f"  registers nothing: {' '.join(str(error).split()) or type(error).__name__}")
    return "\n".join(lines)


def patch_state(key: str, root: Path, parallel: bool) -> str:
    """Whether a patch is in, and what adds it."""
    found = inspect(root, patches_for(HOSTS[key].package, parallel))
    command = f"physpre hosts patch {key}{' --parallel' if parallel else ''}"
    return {
        "patched": "in",
        "unpatched": f"not in; {command} adds it",
        "partly": f"half in; {command} completes it",
        "unknown": f"none for this version: {', '.join(found.strange)} differ from what is known",
    }[found.state]

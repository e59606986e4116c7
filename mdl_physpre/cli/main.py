"""The command ``physpre``. Heavy modules are imported by the commands that need them, so that help is quick."""

from __future__ import annotations

import logging
import sys
from importlib.metadata import entry_points
from typing import Annotated

import typer

from mdl_physpre import __version__
from mdl_physpre.cli.bench import bench
from mdl_physpre.cli.potentials import compare, convert_checkpoint, doctor, evaluate, export, judge, md
from mdl_physpre.cli.report import report, status
from mdl_physpre.cli.runs import demo, fit, run
from mdl_physpre.cli.structures import convert, inspect, label, perturb
from mdl_physpre.errors import PhyspreError

app = typer.Typer(
    help="Physics-informed pretraining of machine-learned interatomic potentials.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Entry point: errors that a user can act on are printed without a traceback."""
    try:
        app()
    except SystemExit as end:
        if end.code == 130:
            print("stopped; physpre run, and physpre md --out, go on where they were", file=sys.stderr)
        raise
    except PhyspreError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("mdl_physpre")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)


for function in (
    run, demo, fit, perturb, label, evaluate, doctor, md, judge, report, status, compare, convert, inspect, export,
    convert_checkpoint, bench,
):  # fmt: skip
    app.command()(function)
for point in entry_points(group="mdl_physpre.commands"):
    app.add_typer(point.load(), name=point.name)


if __name__ == "__main__":
    main()

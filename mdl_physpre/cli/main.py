"""The command ``physpre``. Heavy modules are imported by the commands that need them, so that help is quick."""

from __future__ import annotations

import logging
from importlib.metadata import entry_points
from typing import Annotated

import typer

from mdl_physpre.cli.bench import bench
from mdl_physpre.cli.potentials import compare, convert_checkpoint, doctor, evaluate, export, judge, md
from mdl_physpre.cli.program import log_to_terminal, print_version, program, run_program
from mdl_physpre.cli.report import report, status
from mdl_physpre.cli.runs import config, demo, fit, init, pretraining_set, run
from mdl_physpre.cli.stress import stress
from mdl_physpre.cli.structures import convert, inspect, label, perturb

app = program("Physics-informed pretraining of machine-learned interatomic potentials.")


def main() -> None:
    """Entry point."""
    run_program(app, "physpre", "stopped; physpre run, and physpre md and stress with --out, go on where they were")


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""
    log_to_terminal(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)


for function in (
    run, demo, init, config, fit, pretraining_set, perturb, label, evaluate, doctor, md, stress, judge, report, status,
    compare, convert, inspect, export, convert_checkpoint, bench,
):  # fmt: skip
    app.command()(function)
for point in entry_points(group="mdl_physpre.commands"):
    app.add_typer(point.load(), name=point.name)


if __name__ == "__main__":
    main()

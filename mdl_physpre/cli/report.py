"""Commands on finished and unfinished runs: ``physpre report`` and ``physpre status``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mdl_physpre.cli.program import Overwrite


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of physpre run, finished or not.")],
    formats: Annotated[
        str,
        typer.Option("--format", help="html, pdf, png (figures, with SVG), csv (tables); several with commas between."),
    ] = "html,png,csv",
    reference: Annotated[
        Path | None,
        typer.Option(help="Trajectory, or folder of them, for the radial distribution functions; kept in the run."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write the report of runs: report.html, and figures and tables beside it."""
    from mdl_physpre.utils.overwrite import overwriting
    from mdl_physpre.workflow.reports import report_run

    wanted = [one.strip() for one in formats.split(",") if one.strip()]
    with overwriting(overwrite):
        for folder in runs:
            for path in report_run(folder, wanted, reference):
                print(path)


def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of physpre run.")],
) -> None:
    """Say what of a run is done, what runs, and how long it will still take."""
    from mdl_physpre.report.status import format_status, run_status

    print(format_status(run_status(run)))

"""Commands on potentials: ``physpre evaluate``, ``md``, ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[Path, typer.Argument(help="Checkpoint of a potential.")],
    data: Annotated[Path, typer.Argument(help="Labelled structures.")],
    by: Annotated[str | None, typer.Option(help="Also by the values of this info key.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write all figures to this file.")] = None,
) -> None:
    """Errors of a potential on labelled structures.

    Energy, forces and stress, in the paper's units and per atom.
    """
    from mdl_physpre.analysis.errors import format_errors, prediction_errors
    from mdl_physpre.potentials.checkpoints import load_potential
    from mdl_physpre.structures.read import read_structures
    from mdl_physpre.workflow.stages import write_json

    errors = prediction_errors(load_potential(model), read_structures(data), by=by)
    print(format_errors({model.name: errors}))
    if json:
        write_json(json, errors)


def md(
    model: Annotated[Path, typer.Argument(help="Checkpoint of a potential.")],
    structures: Annotated[Path, typer.Argument(help="Start structures.")],
    ensemble: Annotated[str, typer.Option(help="nvt (Langevin) or nve.")] = "nvt",
    temperature: Annotated[float, typer.Option(help="K.")] = 300.0,
    timestep: Annotated[float, typer.Option(help="fs.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Steps of each structure.")] = 5000,
    n_structures: Annotated[int | None, typer.Option(help="The first so many structures; all if not given.")] = None,
    trajectory_interval: Annotated[int, typer.Option(help="Steps between stored frames; 0 stores none.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the random numbers.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for verdicts, and the state to go on from.")] = None,
) -> None:
    """Simulate structures and judge each while it runs."""
    from mdl_physpre.dynamics.settings import DynamicsSettings
    from mdl_physpre.dynamics.simulation import simulate, summarise
    from mdl_physpre.potentials.checkpoints import load_potential
    from mdl_physpre.report.tables import format_verdicts
    from mdl_physpre.structures.read import read_structures

    settings = DynamicsSettings(
        ensemble=ensemble,
        temperature=temperature,
        timestep=timestep,
        steps=steps,
        seed=seed,
        trajectory_interval=trajectory_interval,
    )
    found = read_structures(structures)[:n_structures]
    verdicts = simulate(load_potential(model), found, settings, out=out)
    print(format_verdicts(verdicts, summarise(verdicts)))


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of physpre run or physpre md --out.")],
    json: Annotated[Path | None, typer.Option(help="Write all figures to this file.")] = None,
) -> None:
    """Put the verdicts of several simulations side by side.

    Counts with intervals, and which of the structures that they share broke in one alone.
    """
    from mdl_physpre.report.comparison import compare as compare_runs
    from mdl_physpre.report.comparison import format_comparison
    from mdl_physpre.workflow.stages import write_json

    found = compare_runs(runs)
    print(format_comparison(found))
    if json:
        write_json(json, found)

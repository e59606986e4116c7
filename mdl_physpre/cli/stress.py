"""The command ``physpre stress``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mdl_physpre.cli.potentials import Json, Model
from mdl_physpre.cli.program import Modules


def stress(
    model: Model,
    structures: Annotated[str, typer.Argument(help="Start structures.")],
    tests: Annotated[
        str | None,
        typer.Option(help="Names or import paths of tests, joined by commas; all of this package if not given."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="TEST.KEY=VALUE", help="A setting of a test: heating.temperature_end=6000."),
    ] = None,
    n_structures: Annotated[int | None, typer.Option(min=1, help="The first so many; all if not given.")] = None,
    min_atoms: Annotated[int, typer.Option(help="Smaller structures are doubled until they have so many.")] = 1,
    device: Annotated[
        str, typer.Option(help="auto (a GPU where there is one), cpu, cuda or cuda:1; a calculator has one of its own.")
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for results, and the state to go on from.")] = None,
    json: Json = None,
    modules: Modules = None,
) -> None:
    """Find out where structures break: heat them, compress them, …

    Each test raises a scale until a structure breaks. With --out the same command goes on where it stopped.
    """
    from mdl_physpre.potentials.open import open_potential
    from mdl_physpre.report.tables.stress import format_stress
    from mdl_physpre.runs.stage import write_json
    from mdl_physpre.stress_tests.kinds import STRESS_TESTS
    from mdl_physpre.stress_tests.run import run_stress_tests
    from mdl_physpre.structures.read import read_structures
    from mdl_physpre.structures.supercell import enlarge
    from mdl_physpre.workflow.config.file import stress_settings

    chosen = stress_settings(tests.split(",") if tests else [*STRESS_TESTS.built_in], settings or ())
    potential = open_potential(model, modules=modules or (), map_location=device)
    # unchecked, as in physpre md: a start from which no step can be taken stops no other structure
    found = [enlarge(atoms, min_atoms) for atoms in read_structures(structures, check=False)[:n_structures]]
    results = run_stress_tests(potential, found, chosen, out)
    print(format_stress(results))
    if json:
        write_json(json, results)

"""The command ``physpre stress``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mdl_physpre.cli.potentials import Device, Json, Model, Oracle, OracleFrames
from mdl_physpre.cli.program import Modules, Overwrite
from mdl_physpre.cli.simulations import say_unjudged


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
    device: Device = "auto",
    oracle: Oracle = None,
    oracle_frames: OracleFrames = 20,
    out: Annotated[Path | None, typer.Option(help="Folder for results, and the state to go on from.")] = None,
    overwrite: Overwrite = False,
    json: Json = None,
    modules: Modules = None,
) -> None:
    """Find out where structures break: heat them, compress them, …

    Each test raises a scale until a structure breaks. With --out the same command goes on where it stopped.
    """
    from mdl_physpre.dynamics.oracle import OracleSettings, open_oracle
    from mdl_physpre.potentials.open import open_potential
    from mdl_physpre.report.tables.stress import format_stress
    from mdl_physpre.runs.stage import write_json
    from mdl_physpre.stress_tests.kinds import STRESS_TESTS
    from mdl_physpre.stress_tests.run import run_stress_tests
    from mdl_physpre.structures.read import read_structures
    from mdl_physpre.structures.supercell import enlarge
    from mdl_physpre.utils.devices import device_of_parameters
    from mdl_physpre.workflow.config.file import stress_settings

    chosen = stress_settings(tests.split(",") if tests else [*STRESS_TESTS.built_in], settings or ())
    potential = open_potential(model, modules=modules or (), map_location=device)
    say_unjudged(potential)
    # unchecked, as in physpre md: a start from which no step can be taken stops no other structure
    found = [enlarge(atoms, min_atoms) for atoms in read_structures(structures, check=False)[:n_structures]]
    along = OracleSettings(oracle=oracle, oracle_frames=oracle_frames)
    judge = None
    if oracle is not None:
        judge = open_oracle(oracle, found, modules=modules or (), device=device_of_parameters(potential))
    results = run_stress_tests(potential, found, chosen, out, overwrite=overwrite, oracle=judge, along=along)
    print(format_stress(results))
    show_oracles(results, Path(model).name, out)
    if json:
        write_json(json, results)


def show_oracles(results: dict[str, Any], name: str, out: Path | None) -> None:
    """Print what an oracle says along each test; the figures go into the folders of the tests."""
    from mdl_physpre.report.figures.oracle import draw_oracle_errors
    from mdl_physpre.report.tables.oracle import format_oracle_errors
    from mdl_physpre.stress_tests.run import folder_of

    for test, result in results.items():
        if result.oracle is None:
            continue
        print(f"{test}: {format_oracle_errors(result.oracle)}")
        if out is not None and result.oracle.means.frames:
            print(f"figure: {draw_oracle_errors({name: result.oracle}, out / folder_of(test)).png}")

"""The command ``physpre``. Heavy modules are imported by the commands that need them, so that help is quick."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from mdl_physpre import __version__
from mdl_physpre.errors import ConfigError, PhyspreError

app = typer.Typer(
    help="Physics-informed pretraining of machine-learned interatomic potentials.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run; runs/NAME if not given.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Configuration keys to change.")]
Seed = Annotated[int, typer.Option(help="Seed of the random numbers.")]


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


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="Configuration file (YAML).")],
    overrides: Overrides = None,
    out: Out = None,
) -> None:
    """Fit, perturb, label, pretrain, finetune, simulate, report. Goes on where it stopped."""
    from mdl_physpre.workflow.run import run as run_config

    run_config(config, overrides or (), out)


@app.command()
def demo(overrides: Overrides = None, out: Out = None) -> None:
    """Run the whole method on the silica data in the package (minutes on two cores)."""
    from mdl_physpre.workflow.run import run as run_config

    run_config(Path(__file__).parent.parent / "demo" / "demo.yml", overrides or (), out)


@app.command()
def fit(
    config: Annotated[Path, typer.Argument(help="Configuration file (YAML).")],
    overrides: Overrides = None,
    out: Out = None,
) -> None:
    """Fit the embedded-atom potential of a configuration, as the first stage of its run, and say what it is."""
    from mdl_physpre.workflow.run import fit_only

    fit_only(config, overrides or (), out)


@app.command()
def perturb(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Structures.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Perturbed structures.")],
    n_aug: Annotated[int, typer.Option(help="Perturbed copies of each structure.")] = 5,
    n_pairs: Annotated[int, typer.Option(help="Close pairs pulled together.")] = 2,
    pull: Annotated[tuple[float, float], typer.Option(help="Largest pull (Å), first and end (excluded).")] = (1.0, 0.0),
    n_sites: Annotated[int, typer.Option(help="Sites displaced at random.")] = 5,
    displace: Annotated[
        tuple[float, float], typer.Option("--perturb", help="Largest displacement (Å), first and end (excluded).")
    ] = (1.0, 0.0),
    pull_share: Annotated[float, typer.Option(help="Part of the pull that each atom moves.")] = 0.5,
    min_distance: Annotated[
        float, typer.Option(help="Closest that a pair may come, as a part of the sum of covalent radii.")
    ] = 0.4,
    max_force: Annotated[float, typer.Option(help="Largest force (eV/Å) of the teacher on any atom.")] = 200.0,
    teacher: Annotated[
        str | None, typer.Option(help="Label with this checkpoint or calculator and filter by force.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Perturb structures: close pairs pulled together, random sites displaced (Algorithm 1)."""
    from mdl_physpre.pretraining.perturbation import PerturbationSettings
    from mdl_physpre.pretraining.pretraining_set import format_report, make_pretraining_set
    from mdl_physpre.structures.read import read_structures
    from mdl_physpre.structures.write import write_structures

    settings = PerturbationSettings(
        n_aug=n_aug,
        n_pairs=n_pairs,
        pull=pull,
        n_sites=n_sites,
        perturb=displace,
        pull_share=pull_share,
        min_distance=min_distance,
        max_force=max_force,
    )
    made = make_pretraining_set(read_structures(source), settings, _teacher(teacher) if teacher else None, seed)
    write_structures(target, made.structures)
    print(format_report(made.report))
    print(f"{target}: {len(made.structures)} structures")


@app.command()
def label(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Structures.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Labelled structures.")],
    teacher: Annotated[str, typer.Option(help="A checkpoint, or the import path of an ASE calculator.")],
) -> None:
    """Label structures with the energies, forces and stress of a teacher."""
    from mdl_physpre.pretraining.teacher import label as label_structures
    from mdl_physpre.structures.read import read_structures
    from mdl_physpre.structures.write import write_structures

    labelled = label_structures(read_structures(source), _teacher(teacher))
    write_structures(target, labelled)
    print(f"{target}: {len(labelled)} structures")


def _teacher(name: str):
    from mdl_physpre.potentials.checkpoints import load_potential

    if Path(name).exists() or name.endswith((".pt", ".pth", ".ckpt")):
        return load_potential(name)
    return name


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Checkpoint of a potential.")],
    data: Annotated[Path, typer.Argument(help="Labelled structures.")],
    by: Annotated[str | None, typer.Option(help="Also by the values of this info key.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write all figures to this file.")] = None,
) -> None:
    """Energy, force and stress errors of a potential, in the paper's units and per atom."""
    from mdl_physpre.analysis.errors import format_errors, prediction_errors
    from mdl_physpre.potentials.checkpoints import load_potential
    from mdl_physpre.structures.read import read_structures
    from mdl_physpre.workflow.stages import write_json

    errors = prediction_errors(load_potential(model), read_structures(data), by=by)
    print(format_errors({model.name: errors}))
    if json:
        write_json(json, errors)


@app.command()
def md(
    model: Annotated[Path, typer.Argument(help="Checkpoint of a potential.")],
    structures: Annotated[Path, typer.Argument(help="Start structures.")],
    ensemble: Annotated[str, typer.Option(help="nvt (Langevin) or nve.")] = "nvt",
    temperature: Annotated[float, typer.Option(help="K.")] = 300.0,
    timestep: Annotated[float, typer.Option(help="fs.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Steps of each structure.")] = 5000,
    n_structures: Annotated[int | None, typer.Option(help="The first so many structures; all if not given.")] = None,
    trajectory_interval: Annotated[int, typer.Option(help="Steps between stored frames; 0 stores none.")] = 0,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for verdicts, and the state to go on from.")] = None,
) -> None:
    """Molecular dynamics of all structures at once, each judged while it runs."""
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


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="Structures, or load-atoms:NAME.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help=".extxyz[.gz], .db, or .json (MatDeepLearn).")],
    key: Annotated[
        list[str] | None, typer.Option(help="Where a label is: energy=my_energy, forces=…, stress=…; repeat for each.")
    ] = None,
    elements: Annotated[
        str | None, typer.Option(help="Only structures of these elements, such as Li,Mn,O,P (MPtrj).")
    ] = None,
    energy: Annotated[str, typer.Option(help="corrected or uncorrected energies (MPtrj).")] = "corrected",
) -> None:
    """Convert structures with their labels between formats."""
    from mdl_physpre.structures.convert import convert as convert_structures

    keys = dict(k.split("=", 1) for k in key or () if "=" in k)
    if len(keys) != len(key or ()):
        raise ConfigError(f"--key takes energy=NAME, forces=NAME or stress=NAME; found {', '.join(key or ())}")
    options = {"elements": elements.split(",")} if elements else {}
    done = convert_structures(source, target, keys or None, energy=energy, **options)
    labels = ", ".join(f"{name} on {done['labels'][name]}" for name in ("energy", "forces", "stress"))
    print(f"{target}: {done['structures']} structures; {labels}")


@app.command()
def inspect(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Structures; several files are compared.")],
) -> None:
    """Counts, elements, label ranges, closest pairs, and suspected duplicates across files."""
    from mdl_physpre.structures.inspect import format_inspection, inspect_structures
    from mdl_physpre.structures.read import read_structures

    print(format_inspection(inspect_structures({f: read_structures(f) for f in files})))


if __name__ == "__main__":
    main()

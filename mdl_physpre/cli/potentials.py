"""Commands on potentials: ``physpre evaluate``, ``doctor``, ``md``, ``judge``, ``compare``, ``export``,
``convert-checkpoint``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mdl_physpre.cli.program import Modules, Overwrite
from mdl_physpre.cli.simulations import open_for_workers, simulate_and_show

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A checkpoint, RUN/ARM (its networks as a committee), committee:a.pt,b.pt, "
        "calculator:package.module.Class?key=value, or torchsim:…",
    ),
]
Device = Annotated[
    str, typer.Option(help="auto (a GPU where there is one), cpu, cuda or cuda:1; a calculator has one of its own.")
]
Oracle = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Evaluate frames along each run by this reference, to see errors.")
]
OracleFrames = Annotated[int, typer.Option(min=1, help="Frames of each structure, evenly in time, for the oracle.")]
Json = Annotated[Path | None, typer.Option(help="Write all figures to this file.")]


def evaluate(
    model: Model,
    data: Annotated[str, typer.Argument(help="Labelled structures.")],
    by: Annotated[str | None, typer.Option(help="Also by the values of this info key.")] = None,
    device: Device = "auto",
    json: Json = None,
    modules: Modules = None,
) -> None:
    """Errors of a potential on labelled structures.

    Energy, forces and stress, in the paper's units and per atom. Of a committee the errors of its mean, and what its
    spread says of them.
    """
    from mdl_physpre.analysis.calibration import committee_errors, format_calibration
    from mdl_physpre.analysis.errors import format_errors, prediction_errors
    from mdl_physpre.potentials.open import open_potential
    from mdl_physpre.runs.stage import write_json
    from mdl_physpre.structures.read import read_structures

    potential = open_potential(model, modules=modules or (), map_location=device)
    name, structures = Path(model).name, read_structures(data)
    if potential.gives_spread:
        found = committee_errors(potential, structures, by=by)
        print(format_errors({name: found.errors}), format_calibration({name: found}), sep="\n\n")
        written: Any = found
    else:
        written = prediction_errors(potential, structures, by=by)
        print(format_errors({name: written}))
    if json:
        write_json(json, written)


def doctor(
    model: Model,
    structures: Annotated[str | None, typer.Argument(help="Structures; crystals of its elements if not given.")] = None,
    cutoff: Annotated[float | None, typer.Option(help="Å; of a calculator, which does not say.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of rotations and displacements.")] = 0,
    device: Device = "auto",
    json: Json = None,
    modules: Modules = None,
) -> None:
    """Check a potential before molecular dynamics.

    Invariances, forces and stress against finite differences, smoothness at the cutoff, extensivity, smallest systems,
    two-atom curves, determinism. Ends with status 1 if a check fails.
    """
    from mdl_physpre.potential_checks.run import any_failed, checks_as_dict, examine, format_checks
    from mdl_physpre.potentials.open import open_potential
    from mdl_physpre.runs.stage import write_json
    from mdl_physpre.structures.read import read_structures

    potential = open_potential(model, modules=modules or (), map_location=device)
    known = potential.training_energies
    print(f"energies trained on: {'unknown' if known is None else known.text()}")
    checks = examine(potential, read_structures(structures) if structures else None, cutoff=cutoff, seed=seed)
    print(format_checks(checks))
    if json:
        write_json(json, checks_as_dict(checks))
    if any_failed(checks):
        raise typer.Exit(1)


def md(
    model: Model,
    structures: Annotated[str, typer.Argument(help="Start structures.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Any other setting of physpre.dynamics.")
    ] = None,
    ensemble: Annotated[
        str, typer.Option(help="nvt (Langevin), nvt_bussi, nvt_nose_hoover, npt (Berendsen) or nve.")
    ] = "nvt",
    temperature: Annotated[float, typer.Option(help="K.")] = 300.0,
    pressure: Annotated[float, typer.Option(help="bar; npt only.")] = 1.01325,
    timestep: Annotated[float, typer.Option(help="fs.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Steps of each structure.")] = 5000,
    n_structures: Annotated[int | None, typer.Option(min=1, help="The first so many; all if not given.")] = None,
    min_atoms: Annotated[int, typer.Option(help="Smaller structures are doubled until they have so many.")] = 1,
    trajectory_interval: Annotated[int, typer.Option(help="Steps between stored frames; 0 stores none.")] = 0,
    oracle: Oracle = None,
    oracle_frames: OracleFrames = 20,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Compare radial distribution functions with a trajectory, a folder of them, or a MODEL; with a MODEL "
            "and --trajectory-interval also mean square displacements and vibrations."
        ),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Share the structures among so many processes.")] = 1,
    device: Annotated[
        list[str], typer.Option(help="auto, cpu, cuda or cuda:1; repeat to share the structures among several.")
    ] = ["auto"],  # noqa: B006 - read, never changed
    seed: Annotated[int, typer.Option(help="Seed of velocities and noise.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for verdicts, and the state to go on from.")] = None,
    overwrite: Overwrite = False,
    modules: Modules = None,
) -> None:
    """Simulate structures and judge each while it runs.

    All structures take their steps together. With --out the same command goes on where it stopped.
    """
    from mdl_physpre.dynamics.oracle import OracleSettings
    from mdl_physpre.structures.read import read_structures
    from mdl_physpre.structures.supercell import enlarge
    from mdl_physpre.workflow.config.file import dynamics_settings

    named: dict[str, Any] = {"ensemble": ensemble, "temperature": temperature, "pressure": pressure}
    named |= {"timestep": timestep, "steps": steps, "trajectory_interval": trajectory_interval, "seed": seed}
    chosen = dynamics_settings(named, settings or ())
    potential, workers = open_for_workers(model, device, processes, modules or ())
    # unchecked: a start from which no step can be taken is a verdict, and stops no other structure
    found = [enlarge(atoms, min_atoms) for atoms in read_structures(structures, check=False)[:n_structures]]
    along = OracleSettings(oracle=oracle, oracle_frames=oracle_frames)
    workers["overwrite"] = overwrite
    simulate_and_show(potential, found, chosen, along, reference, Path(model).name, out, modules or (), workers)


def judge(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of physpre md --out with trajectories.")],
) -> None:
    """Judge stored trajectories again.

    Trajectories of every step give the verdicts that the simulation gave.
    """
    from mdl_physpre.dynamics.running.reanalysis import judge_run
    from mdl_physpre.dynamics.verdicts.verdict import summarise
    from mdl_physpre.report.tables.text import format_verdicts

    verdicts = judge_run(folder)
    print(format_verdicts(verdicts, summarise(verdicts)))


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of physpre run, md --out or stress --out.")
    ],
    json: Json = None,
) -> None:
    """Put the verdicts of several simulations, and stress tests, side by side.

    Counts with intervals, which of the structures that they share broke in one alone, and which broke later.
    """
    from mdl_physpre.report.comparison import compare as compare_runs
    from mdl_physpre.report.comparison import format_comparison
    from mdl_physpre.runs.stage import write_json

    found = compare_runs(runs)
    print(format_comparison(found))
    if json:
        write_json(json, found)


def export(
    model: Annotated[Path, typer.Argument(metavar="EAM", help="Checkpoint of an embedded-atom potential.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The table, usually NAME.eam.fs.")],
    structures: Annotated[
        str | None, typer.Option(help="What is to be simulated: the grid of densities covers it, or says where not.")
    ] = None,
    rho_max: Annotated[float | None, typer.Option(help="End of the grid of densities.")] = None,
    n_r: Annotated[int, typer.Option(help="Points of the grid of distances.")] = 10_000,
    n_rho: Annotated[int, typer.Option(help="Points of the grid of densities.")] = 20_000,
    isolated_atoms_zero: Annotated[
        bool, typer.Option(help="Isolated atoms have no energy; otherwise total energies are those of the potential.")
    ] = False,
) -> None:
    """Write an embedded-atom potential as a table for LAMMPS.

    Finnis-Sinclair setfl, for pair_style eam/fs; ASE reads it, too. Pair terms include the short-range repulsion.
    Prints the lines of input for LAMMPS.
    """
    from mdl_physpre.potentials.eam.lammps import write_setfl
    from mdl_physpre.potentials.open import open_potential
    from mdl_physpre.structures.read import read_structures

    made = write_setfl(
        target,
        open_potential(model),
        structures=read_structures(structures) if structures else None,
        rho_max=rho_max,
        n_r=n_r,
        n_rho=n_rho,
        isolated_atoms_zero=isolated_atoms_zero,
    )
    print(f"{', '.join(map(str, made.files))}\nIn LAMMPS, with atom types in this order:")
    print("\n".join(f"  {line}" for line in made.lammps_commands()))


def convert_checkpoint(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="A checkpoint of this package, MatDeepLearn, MatterSim, MatterTune, MACE or graph-pes.",
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The checkpoint to write.")],
    format: Annotated[
        str | None,
        typer.Option(
            help="mdl_physpre, matdeeplearn, mattersim, mace or graph-pes; by default mattersim for .pth, mace for "
            ".model, else mdl_physpre."
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML of a checkpoint of MatDeepLearn.")] = None,
) -> None:
    """Convert a checkpoint between this package, MatDeepLearn, MatterSim, MACE and graph-pes.

    What the format cannot carry is said.
    """
    from mdl_physpre.potentials.convert import convert_checkpoint as convert

    lost = convert(source, target, format, config)
    print(f"{target}: written" + ("; see above what it does not carry" if lost else "; nothing is lost"))

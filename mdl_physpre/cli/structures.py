"""Commands on structures: ``physpre convert``, ``inspect``, ``perturb``, ``label``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdl_physpre.cli.program import Modules
from mdl_physpre.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ase import Atoms

    from mdl_physpre.potentials.base import Potential

ShortRange = Annotated[str | None, typer.Option(help="zbl adds the repulsion of nuclei to the teacher.")]
ShortRangeRadius = Annotated[
    list[str] | None,
    typer.Option(
        help="Where it has vanished: Si-O=0.9 (Å); repeat. Otherwise the shortest distance of the pair in the "
        "structures of --zero-from, or those that are perturbed; the covalent distance where they do not meet."
    ),
]
ZeroFrom = Annotated[
    Path | None, typer.Option(help="Shift the teacher's energies of the elements to the energies of these structures.")
]
Device = Annotated[
    str, typer.Option(help="Of a network as teacher: auto (a GPU where there is one), cpu, cuda or cuda:1.")
]
Processes = Annotated[int | None, typer.Option(min=1, help="Worker processes; as many as cores if not given.")]


Key = Annotated[
    list[str] | None, typer.Option(help="Where a label is: energy=my_energy, forces=…, stress=…, virial=…; repeat.")
]
Unit = Annotated[
    list[str] | None,
    typer.Option(help="Unit of a label that is not in eV and Å: stress=kbar, energy=Hartree, stress=-GPa; repeat."),
]
DropUnconverged = Annotated[
    bool, typer.Option("--drop-unconverged", help="Leave out structures whose electrons did not converge.")
]
Types = Annotated[str | None, typer.Option(help="Elements of the types of a LAMMPS dump, in order, such as Cu,Au.")]


def convert(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="Structures: a file, a folder, a pattern in quotes, or load-atoms:NAME.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help=".extxyz[.gz], .db, or .json (MatDeepLearn).")],
    key: Key = None,
    unit: Unit = None,
    types: Types = None,
    drop_unconverged: DropUnconverged = False,
    elements: Annotated[
        str | None, typer.Option(help="Only structures of these elements, such as Li,Mn,O,P (MPtrj).")
    ] = None,
    energy: Annotated[str, typer.Option(help="corrected or uncorrected energies (MPtrj).")] = "corrected",
) -> None:
    """Convert structures and labels between formats."""
    from mdl_physpre.structures.conversion import convert as convert_structures

    options: dict[str, Any] = {"elements": elements.split(",")} if elements else {}
    options |= {"types": types} if types else {}
    keys, units = _pairs("--key", key, "energy=NAME"), _pairs("--unit", unit, "stress=kbar")
    options |= {"energy": energy, "drop_unconverged": drop_unconverged}
    done = convert_structures(source, target, keys, units=units, **options)
    labels = ", ".join(f"{name} on {done['labels'][name]}" for name in ("energy", "forces", "stress"))
    print(f"{target}: {done['structures']} structures; {labels}")


def inspect(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Structures; several files are compared.")],
    key: Key = None,
    unit: Unit = None,
    types: Types = None,
) -> None:
    """Describe structures and find suspected duplicates.

    Counts, elements, ranges of labels, closest pairs, and structures that several files share.
    """
    from mdl_physpre.structures.inspect import format_inspection, inspect_structures
    from mdl_physpre.structures.read import read_structures

    keys, units = _pairs("--key", key, "energy=NAME"), _pairs("--unit", unit, "stress=kbar")
    options: dict[str, Any] = {"types": types} if types else {}
    read = {f: read_structures(f, keys, units=units, **options) for f in files}
    print(format_inspection(inspect_structures(read)))


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
    strain: Annotated[
        tuple[float, float], typer.Option(help="Largest strain of the cell, first and end (excluded).")
    ] = (0.0, 0.0),
    min_distance: Annotated[
        float, typer.Option(help="Closest that a pair may come, as a part of the sum of covalent radii.")
    ] = 0.4,
    max_force: Annotated[float, typer.Option(help="Largest force (eV/Å) of the teacher on any atom.")] = 200.0,
    teacher: Annotated[
        str | None, typer.Option(help="Label with this checkpoint or calculator and filter by force.")
    ] = None,
    short_range: ShortRange = None,
    short_range_radius: ShortRangeRadius = None,
    zero_from: ZeroFrom = None,
    device: Device = "auto",
    processes: Processes = None,
    modules: Modules = None,
    seed: Annotated[int, typer.Option(help="Seed of the random numbers.")] = 0,
) -> None:
    """Pull close pairs together and displace random sites.

    This is the paper's Algorithm 1.
    """
    from mdl_physpre.pretraining.perturbation import PerturbationSettings
    from mdl_physpre.pretraining.pretraining_set import make_pretraining_set
    from mdl_physpre.structures.read import read_structures
    from mdl_physpre.structures.write import write_structures

    _check_target(target)
    settings = PerturbationSettings(
        n_aug=n_aug,
        n_pairs=n_pairs,
        pull=pull,
        n_sites=n_sites,
        perturb=displace,
        pull_share=pull_share,
        strain=strain,
        min_distance=min_distance,
        max_force=max_force,
    )
    options = (short_range, short_range_radius, zero_from)
    if not teacher and any(options):
        raise ConfigError("--short-range, --short-range-radius and --zero-from belong to a teacher; give --teacher")
    structures = read_structures(source)
    labels_by = _teacher(teacher, *options, device, processes, modules, structures) if teacher else None
    made = make_pretraining_set(structures, settings, labels_by, seed, workers=processes)
    write_structures(target, made.structures)
    print(f"{target}: {len(made.structures)} structures")


def label(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Structures.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Labelled structures.")],
    teacher: Annotated[
        str, typer.Option(help="A checkpoint, RUN/ARM, calculator:package.module.Class?key=value, or an import path.")
    ],
    short_range: ShortRange = None,
    short_range_radius: ShortRangeRadius = None,
    zero_from: ZeroFrom = None,
    skip_failed: Annotated[
        bool, typer.Option("--skip-failed", help="Leave out what the teacher cannot label, and say which.")
    ] = False,
    device: Device = "auto",
    processes: Processes = None,
    modules: Modules = None,
) -> None:
    """Label structures by a potential or ASE calculator."""
    from mdl_physpre.pretraining.labelling import label as label_structures
    from mdl_physpre.structures.check import describe
    from mdl_physpre.structures.read import read_structures
    from mdl_physpre.structures.write import write_structures

    _check_target(target)
    structures = read_structures(source)
    made = _teacher(teacher, short_range, short_range_radius, zero_from, device, processes, modules)
    labelled = label_structures(structures, made, workers=processes, on_error="skip" if skip_failed else "raise")
    write_structures(target, labelled)
    kept = {atoms.info["structure_id"] for atoms in labelled}  # unique since they were read
    left = [describe(atoms, k) for k, atoms in enumerate(structures) if atoms.info["structure_id"] not in kept]
    told = f"; {len(left)} of {len(structures)} left out: {', '.join(left)}" if left else ""
    print(f"{target}: {len(labelled)} structures{told}")


def _pairs(option: str, given: Sequence[str] | None, example: str) -> dict[str, str]:
    """NAME=VALUE of an option that is repeated."""
    pairs = dict(text.split("=", 1) for text in given or () if "=" in text)
    if len(pairs) != len(given or ()):
        raise ConfigError(
            f"{option} takes LABEL=VALUE, such as {example}, each label once; found {', '.join(given or ())}"
        )
    return pairs


def _check_target(target: Path) -> None:
    """Raise DataError where ``target`` cannot be written: better known before hours of labelling than after."""
    from mdl_physpre.structures.formats.base import format_to_write

    path = target.expanduser()
    format_to_write(path)
    if path.is_dir():
        raise DataError(f"{target}: is a folder; give the name of a file")
    folder = next(parent for parent in path.absolute().parents if parent.exists())  # those below it will be made
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise DataError(f"{target}: cannot be written: {folder} is no folder that may be written; give another OUT")


def _radii(given: Sequence[str]) -> dict[str, float]:
    radii = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            radii[name] = float(value)
        except ValueError:
            raise ConfigError(f"--short-range-radius takes PAIR=DISTANCE, such as Si-O=0.9; found {text!r}") from None
    return radii


def _teacher(
    name: str,
    short_range: str | None,
    short_range_radius: Sequence[str] | None,
    zero_from: Path | None,
    device: str,
    processes: int | None,
    modules: Sequence[str] | None,
    structures: Sequence[Atoms] | None = None,
) -> Potential:
    """The teacher that the options describe; a repulsion ends where --zero-from, or else ``structures``, begin."""
    from mdl_physpre.pretraining.teacher import make_teacher
    from mdl_physpre.pretraining.teacher_energy_zero import fit_teacher_zero
    from mdl_physpre.structures.read import read_structures
    from mdl_physpre.utils.import_paths import import_named_module

    for module in modules or ():  # they define what the name stands for
        import_named_module(module)
    radii = _radii(short_range_radius or ())
    known = read_structures(zero_from) if zero_from else structures
    made = make_teacher(name, short_range=short_range, short_range_radii=radii, structures=known, device=device)
    if zero_from and known:
        fit_teacher_zero(made, known, workers=processes)
    return made

"""Reading structures from any format that is known here."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from ase.io.formats import UnknownFileTypeError

from mdl_physpre.errors import ConfigError, DataError, nearest
from mdl_physpre.structures.check import check_structures
from mdl_physpre.structures.formats.ase_database import read_ase_database
from mdl_physpre.structures.formats.extxyz import read_extxyz
from mdl_physpre.structures.formats.json_stream import iterate_json
from mdl_physpre.structures.formats.load_atoms_dataset import PREFIX, read_load_atoms
from mdl_physpre.structures.formats.matdeeplearn_json import atoms_from_item, is_matdeeplearn_item
from mdl_physpre.structures.formats.mptrj_json import ENERGIES, frames_of, is_mptrj_entry
from mdl_physpre.structures.label_sources import assign_labels
from mdl_physpre.utils.files import existing_file
from mdl_physpre.utils.progress import progress

logger = logging.getLogger(__name__)

OPTIONS = ("elements", "energy", "root", "check")
FORMATS = (
    ".extxyz and .xyz (extended XYZ), .db (ASE database), .json (MatDeepLearn, MPtrj or ASE), each but .db also as .gz"
)


def format_of(path: Path) -> str:
    """ "extxyz", "db" or "json", from the name.

    Raises
    ------
    DataError : a suffix that stands for no known format.
    """
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    if suffix in (".extxyz", ".xyz"):
        return "extxyz"
    if suffix == ".json":
        return "json"
    if suffix == ".db" and path.suffix != ".gz":
        return "db"
    raise DataError(f"{path}: {suffix or 'no suffix'} stands for no known format; known: {FORMATS}, and {PREFIX}NAME")


def read_structures(path: str | Path, keys: Mapping[str, str] | None = None, **options: Any) -> list[Atoms]:
    """Read structures with their labels.

    Parameters
    ----------
    path : a file, its format taken from its name: .extxyz/.xyz (also .gz), .db (ASE), .json (also .gz; MatDeepLearn,
        MPtrj or ASE, told apart by content); any other that ASE reads (.traj, .cif, POSCAR, …); or "load-atoms:NAME".
    keys : where labels stand, {"energy": …, "forces": …, "stress": …}, any of them; names of entries of ``info``,
        ``arrays`` or calculator results. Then ``REF_energy``, ``REF_forces``, ``REF_stress`` count, then calculator
        results. Energies are totals in eV, forces eV/Å, stress eV/Å³ with tension positive, as (6,) in Voigt order,
        (3, 3) or (1, 3, 3).
    elements : only structures that hold nothing but these elements (symbols).
    energy : "corrected" (default) or "uncorrected"; MPtrj only.
    root : download folder; load-atoms only.
    check : whether to check the structures (``check_structures``); True by default.

    Returns
    -------
    Structures with labels as calculator results (``get_labels``), and ``info["structure_id"]``, a string that is
    unique in the file: the file's own where it has one, else the index.

    Raises
    ------
    DataError : whatever is wrong with the file or a structure; file and index or key are named.
    ConfigError : an unknown option or label, or a value that an option does not take.
    """
    for name in options:
        if name not in OPTIONS:
            raise ConfigError(f"read_structures: unknown option {name!r}; {nearest(name, OPTIONS)}")
    energy = options.get("energy", "corrected")
    if energy not in ENERGIES:
        raise ConfigError(f"read_structures: energy is {energy!r}; expected 'corrected' or 'uncorrected'")
    elements = _symbols(options.get("elements"))
    source = str(path)
    if source.startswith(PREFIX):
        structures = read_load_atoms(source[len(PREFIX) :].strip(), options.get("root"))
    else:
        structures = _read_file(Path(path).expanduser(), energy, elements)
    if not structures:
        only = f" that holds nothing but {', '.join(sorted(elements))}" if elements else ""
        raise DataError(f"{source}: holds no structure{only}")
    assign_labels(structures, keys, source)
    _assign_ids(structures, source)
    indices: Sequence[int] = range(len(structures))
    if elements:
        indices = [k for k, atoms in enumerate(structures) if elements.issuperset(atoms.symbols)]
        structures = [structures[k] for k in indices]
        if not structures:
            raise DataError(f"{source}: holds no structure that holds nothing but {', '.join(sorted(elements))}")
    if options.get("check", True):
        check_structures(list(progress(structures, description="checking")), source, indices=indices)
    logger.info("%s: %d structures, %d atoms", source, len(structures), sum(len(a) for a in structures))
    return structures


def _symbols(elements: Iterable[str] | None) -> frozenset[str] | None:
    if elements is None:
        return None
    names = [elements] if isinstance(elements, str) else list(elements)
    for name in names:
        if name not in atomic_numbers:
            raise ConfigError(f"elements: {name!r} is no element; {nearest(str(name), chemical_symbols[1:])}")
    return frozenset(names) or None


def _read_file(path: Path, energy: str, elements: frozenset[str] | None) -> list[Atoms]:
    try:
        kind = format_of(path)
    except DataError as unknown:
        return _read_by_ase(path, unknown)
    if kind == "extxyz":
        return read_extxyz(path)
    if kind == "db":
        return read_ase_database(path)
    return _read_json(path, energy, elements)


def _read_by_ase(path: Path, unknown: DataError) -> list[Atoms]:
    """Whatever else ASE reads: trajectories, CIF, POSCAR, results of DFT codes, …"""
    existing_file(path)
    try:
        found = ase.io.read(path, index=":")
    except UnknownFileTypeError:
        raise DataError(f"{unknown}; nor does ASE know it") from None
    except Exception as error:  # ASE's readers raise errors of many kinds
        raise DataError(f"{path}: ASE cannot read it ({type(error).__name__}: {error}); known: {FORMATS}") from error
    return found if isinstance(found, list) else [found]


def _read_json(path: Path, energy: str, elements: frozenset[str] | None) -> list[Atoms]:
    structures: list[Atoms] = []
    kind = ""
    for key, value in progress(iterate_json(path), description=f"reading {path.name}"):
        if not kind:
            kind = _json_kind(key, value, path)
        if kind == "ase":
            return read_ase_database(path, kind="json")
        if kind == "mptrj":
            structures.extend(frames_of(str(key), value, str(path), energy=energy, elements=elements))
        else:
            structures.append(atoms_from_item(value, f"{path}: structure {key}"))
    return structures


def _json_kind(key: str | int, value: Any, path: Path) -> str:
    if isinstance(key, int) and is_matdeeplearn_item(value):
        return "matdeeplearn"
    if isinstance(key, str) and is_mptrj_entry(value):
        return "mptrj"
    if isinstance(key, str) and (key in ("ids", "nextid") or (isinstance(value, dict) and "numbers" in value)):
        return "ase"
    found = f"a {type(value).__name__}" + (
        f" with keys {', '.join(map(repr, list(value)[:6]))}" if isinstance(value, dict) else ""
    )
    raise DataError(
        f"{path}: item {key!r} is {found}; expected MatDeepLearn's list of dictionaries with 'atomic_numbers' and "
        "'positions', MPtrj's {mp-id: {frame-id: {'structure': …}}}, or an ASE database"
    )


def _assign_ids(structures: Sequence[Atoms], source: str) -> None:
    """``info["structure_id"]``: what the file gave, else the index, made unique where it is not."""
    given = [a.info.get("structure_id") for a in structures]
    names = [str(index) if name is None else str(name) for index, name in enumerate(given)]
    counts = Counter(names)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        logger.warning(
            "%s: structure_id %s is carried by %d structures%s; ids are made unique with the index",
            source,
            repr(repeated[0]),
            counts[repeated[0]],
            f" (and {len(repeated) - 1} more repeat)" if len(repeated) > 1 else "",
        )
        taken = set(names)
        for index, name in enumerate(names):
            if counts[name] > 1:
                fresh = f"{name}#{index}"
                while fresh in taken:
                    fresh += "#"
                taken.add(fresh)
                names[index] = fresh
    for atoms, name in zip(structures, names):
        atoms.info["structure_id"] = name

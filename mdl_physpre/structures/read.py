"""Reading structures from any format that is known here."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols

from mdl_physpre.errors import ConfigError, DataError, nearest
from mdl_physpre.structures.check import check_structures
from mdl_physpre.structures.formats.base import format_to_read, formats
from mdl_physpre.structures.formats.by_ase import read_by_ase
from mdl_physpre.structures.label_sources import assign_labels
from mdl_physpre.structures.plausibility import check_units_of_labels
from mdl_physpre.structures.sources import Source, files_of
from mdl_physpre.structures.state import is_unconverged
from mdl_physpre.structures.units import check_units, convert_labels
from mdl_physpre.utils.progress import progress

logger = logging.getLogger(__name__)


def read_structures(
    path: Source,
    keys: Mapping[str, str] | None = None,
    *,
    units: Mapping[str, str] | None = None,
    format: str | None = None,
    elements: Iterable[str] | None = None,
    check: bool = True,
    drop_unconverged: bool = False,
    **options: Any,
) -> list[Atoms]:
    """Read structures with their labels.

    Parameters
    ----------
    path : a file, its format taken from its name: .extxyz/.xyz (also .gz), .db (ASE, SchNetPack in the units that it
        states), .json (also .gz; MatDeepLearn, MPtrj, ASE or FitSNAP, told apart by content), .lammpstrj (LAMMPS); any
        other that ASE reads (.traj, .cif, POSCAR, …); a folder of DeePMD-kit; or "load-atoms:NAME". Several of them as
        a list, a pattern ("data/*.xyz") or a folder, one after another.
    format : its format by name instead, or by the import path of a class of ``structures.formats.base.Format``.
    keys : where labels stand, {"energy": …, "forces": …, "stress": …, "virial": …}, any of them; names of entries of
        ``info``, ``arrays`` or calculator results. Then ``REF_energy``, ``REF_forces``, ``REF_stress`` count, then
        calculator results. Energies are totals in eV, forces eV/Å, stress eV/Å³ with tension positive, as (6,) in Voigt
        order, (3, 3) or (1, 3, 3); a virial, eV, counts where there is no stress. Of two energies that a code gives,
        ``energy`` counts (ASE: extrapolated to zero smearing); for the other, {"energy": "free_energy"}.
    units : of labels that are in others, {"energy": "Hartree", "forces": "Hartree/Bohr", "stress": "kbar"}; with a
        minus sign before it of the other sign.
    elements : only structures that hold nothing but these elements (symbols).
    check : whether to check the structures (``check_structures``), and units of labels (``check_units_of_labels``).
    drop_unconverged : leave out structures whose electrons did not converge: VASP without EDIFF, converged=F.
    options : of some formats, left out by others: ``energy``, "corrected" (default) or "uncorrected", MPtrj; ``root``,
        download folder, load-atoms; ``types``, elements in the order of the types, LAMMPS.

    Returns
    -------
    Structures with labels as calculator results, and ``info["structure_id"]``, unique text: the file's, or the index.

    Raises
    ------
    DataError : whatever is wrong with the file or a structure; file and index or key are named.
    ConfigError : an unknown option or label, or a value that an option does not take.
    """
    wanted, files, factors = _symbols(elements), files_of(path), check_units(units or {})
    source = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    structures = _read_all(files, format, {"elements": wanted, **options})
    assign_labels(structures, keys, source)
    convert_labels(structures, factors)
    _assign_ids(structures, source)
    indices = [k for k, atoms in enumerate(structures) if not wanted or wanted.issuperset(atoms.symbols)]
    indices = _without_unconverged(structures, indices, source, drop_unconverged)
    structures = [structures[k] for k in indices]
    if not structures:
        only = f" that holds nothing but {', '.join(sorted(wanted))}" if wanted else ""
        only += " whose electrons converged" if drop_unconverged else ""
        raise DataError(f"{source}: holds no structure{only}")
    if check:
        check_structures(list(progress(structures, description="checking")), source, indices=indices)
        check_units_of_labels(structures, source)
    logger.debug("%s: %d structures, %d atoms", source, len(structures), sum(len(a) for a in structures))
    return structures


def _read_all(files: Sequence[str], format: str | None, options: dict[str, Any]) -> list[Atoms]:
    """The structures of all files; of several, each has the name of its file, where it has none of its own."""
    structures: list[Atoms] = []
    for file in files:
        part = _read(Path(file).expanduser(), format, options)
        for k, atoms in enumerate(part if len(files) > 1 else ()):
            atoms.info.setdefault("structure_id", f"{Path(file).name}-{k}")
        structures += part
    return structures


def _read(path: Path, format: str | None, options: dict[str, Any]) -> list[Atoms]:
    if len(options) > 1:  # beside the elements
        known = {"format", "elements", "check", "units", "drop_unconverged"}.union(*(one.options for one in formats()))
        for name in options:
            if name not in known:
                raise ConfigError(f"read_structures: unknown option {name!r}; {nearest(name, known)}")
    chosen = format_to_read(path, format)
    if chosen is None:
        return read_by_ase(path)
    read: Any = chosen.read
    return list(read(path, **{name: value for name, value in options.items() if name in chosen.options}))


def _symbols(elements: Iterable[str] | None) -> frozenset[str] | None:
    if elements is None:
        return None
    names = [elements] if isinstance(elements, str) else list(elements)
    for name in names:
        if name not in atomic_numbers:
            raise ConfigError(f"elements: {name!r} is no element; {nearest(str(name), chemical_symbols[1:])}")
    return frozenset(names) or None


def _without_unconverged(structures: Sequence[Atoms], indices: list[int], source: str, drop: bool) -> list[int]:
    """Say which structures are marked as unconverged; ``indices`` without them where they are to be left out."""
    marked = [k for k in indices if is_unconverged(structures[k])]
    if not marked:
        return indices
    names = ", ".join(str(structures[k].info["structure_id"]) for k in marked[:5])
    logger.warning(
        "%s: in %d of %d structures the electrons did not converge (%s%s); %s",
        source,
        len(marked),
        len(indices),
        names,
        ", …" if len(marked) > 5 else "",
        "they are left out" if drop else "dataset.drop_unconverged: true (--drop-unconverged) leaves them out",
    )
    return sorted(set(indices) - set(marked)) if drop else indices


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

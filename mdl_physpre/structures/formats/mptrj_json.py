"""MPtrj JSON: ``{mp-id: {frame-id: {"structure": pymatgen dictionary, "force": …, "stress": …, …}}}``.

Source of the format: B. Deng et al., Nat. Mach. Intell. 5, 1031 (2023), Materials Project Trajectory data set.
Energies are totals in eV, forces eV/Å, stress kBar with VASP's sign (compression positive).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.structures.formats.base import Format
from mdl_physpre.structures.formats.json_stream import first_item, iterate_json
from mdl_physpre.utils.progress import progress

ENERGIES = {"corrected": "corrected_total_energy", "uncorrected": "uncorrected_total_energy"}
KBAR = 0.1 * units.GPa  # eV/Å³


class MPtrjJSON(Format):
    """The Materials Project trajectories, plain or gzip, read material by material."""

    title = "MPtrj's {mp-id: {frame-id: {'structure': …}}}"
    endings = (".json",)
    zipped = True
    options = ("energy", "elements")

    def recognises(self, path: Path) -> bool:
        """By its first material."""
        key, value = first_item(path) or (0, None)
        frames = value.values() if isinstance(key, str) and isinstance(value, dict) else ()
        return any(isinstance(frame, dict) and "structure" in frame for frame in frames)

    def read(self, path: Path, *, energy: str = "corrected", elements: frozenset[str] | None = None) -> list[Atoms]:
        """``energy``: "corrected" or "uncorrected"; ``elements``: as in :func:`frames_of`, which it raises as.

        Raises ConfigError for another ``energy``.
        """
        if energy not in ENERGIES:
            raise ConfigError(f"energy: found {energy!r}, expected 'corrected' or 'uncorrected'")
        structures: list[Atoms] = []
        for key, value in progress(iterate_json(path), description=f"reading {path.name}"):
            structures.extend(frames_of(str(key), value, str(path), energy=energy, elements=elements))
        return structures


def frames_of(
    material: str, frames: Any, source: str, *, energy: str = "corrected", elements: frozenset[str] | None = None
) -> Iterator[Atoms]:
    """The structures of one material, labels in ``info``: those that hold nothing but ``elements``, if given.

    σ = −0.1 GPa/kBar · σ_VASP. ``energy`` is "corrected" (with the MP2020 scheme, which puts GGA and GGA+U on one
    scale) or "uncorrected" (as VASP printed it). A value that is null is a missing label. ``info`` gets ``mp_id``,
    ``frame_id`` and ``structure_id`` = "mp-id/frame-id"; magnetic moments become the array ``dft_magmoms``.

    Raises
    ------
    DataError : a key that is missing or holds something else; source, mp-id, frame-id and key are named.
    """
    if not isinstance(frames, dict):
        raise DataError(f"{source}: {material}: found {type(frames).__name__}; expected a dictionary of frames")
    for name, frame in frames.items():
        where = f"{source}: {material}/{name}"
        if not isinstance(frame, dict) or "structure" not in frame:
            raise DataError(f"{where}: key 'structure' is missing")
        symbols = _symbols(frame["structure"], where)
        if elements is not None and not elements.issuperset(symbols):
            continue
        atoms = _atoms(frame["structure"], where)
        atoms.info.update(mp_id=material, frame_id=name, structure_id=f"{material}/{name}")
        _add_labels(atoms, frame, energy, where)
        yield atoms


def _symbols(structure: Any, where: str) -> set[str]:
    try:
        return {s["element"] for site in structure["sites"] for s in site["species"]}
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{where}: 'structure' is not a pymatgen structure (sites with species expected): {error}"
        ) from error


def _atoms(structure: dict[str, Any], where: str) -> Atoms:
    from pymatgen.core.structure import Structure

    try:
        crystal = Structure.from_dict(structure)
        if not crystal.is_ordered:
            raise DataError(
                f"{where}: the structure is disordered (partial occupancies); expected one element per site"
            )
        return Atoms(
            numbers=[site.specie.Z for site in crystal],
            positions=crystal.cart_coords,
            cell=crystal.lattice.matrix,
            pbc=True,
        )
    except DataError:
        raise
    except Exception as error:  # pymatgen raises errors of many kinds
        raise DataError(f"{where}: 'structure' is not a pymatgen structure: {type(error).__name__}: {error}") from error


def _add_labels(atoms: Atoms, frame: dict[str, Any], energy: str, where: str) -> None:
    total = frame.get(ENERGIES[energy])
    if total is None and energy == "corrected" and frame.get("energy_per_atom") is not None:
        total = len(atoms) * _numbers(frame["energy_per_atom"], "energy_per_atom", where)
    if total is not None:
        atoms.info["energy"] = _numbers(total, ENERGIES[energy], where)
    if frame.get("force") is not None:
        atoms.info["forces"] = _numbers(frame["force"], "force", where)
    if frame.get("stress") is not None:
        stress = _numbers(frame["stress"], "stress", where)
        if stress.size not in (6, 9):
            raise DataError(f"{where}: stress has shape {stress.shape}; expected (3, 3), kBar")
        atoms.info["stress"] = -KBAR * stress
    magmoms = frame.get("magmom")
    if isinstance(magmoms, list) and len(magmoms) == len(atoms) and None not in magmoms:
        atoms.set_array("dft_magmoms", _numbers(magmoms, "magmom", where))
    for key in ("bandgap", "ef_per_atom"):
        if isinstance(frame.get(key), (int, float)):
            atoms.info[key] = float(frame[key])


def _numbers(value: Any, key: str, where: str) -> Any:
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise DataError(f"{where}: {key} is {repr(value)[:60]}; expected numbers") from None
    return float(array) if array.ndim == 0 else array

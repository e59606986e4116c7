"""Folders of DeePMD-kit: ``type.raw``, ``type_map.raw`` and ``set.*/{coord,box,energy,force,virial}.npy``.

Energies are eV, lengths Å, the virial eV with the sign of QUIP (−V σ).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols

from mdl_physpre.errors import DataError
from mdl_physpre.structures.check import describe
from mdl_physpre.structures.formats.base import Format
from mdl_physpre.structures.labels import LABELS, get_labels


class DeepMD(Format):
    """A folder, by its name, with structures of one composition. Written is a folder of such folders."""

    title = "a folder of DeePMD-kit"

    def fits(self, path: Path) -> bool:
        """A folder with ``type.raw``."""
        return (path / "type.raw").is_file()

    def read(self, path: Path) -> list[Atoms]:
        """Raises DataError for a missing or damaged file, or a type without an element."""
        try:
            types = [int(word) for word in (path / "type.raw").read_text().split()]
            names = (path / "type_map.raw").read_text().split()
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: {error}; type.raw and type_map.raw (elements in order) are needed") from None
        unknown = [name for name in names if name not in atomic_numbers]
        if unknown or not types or not 0 <= min(types) <= max(types) < len(names):
            told = f"type.raw holds the types {sorted(set(types))[:5]}, type_map.raw {' '.join(names)[:60]!r}"
            raise DataError(f"{path}: {told}; expected an element for each type")
        symbols = [names[t] for t in types]
        periodic = not (path / "nopbc").exists()
        folders = sorted(path.glob("set.*"))
        if not folders:
            raise DataError(f"{path}: holds no set.*; expected set.000 with coord.npy")
        return [atoms for folder in folders for atoms in self._set(folder, symbols, periodic)]

    def _set(self, folder: Path, symbols: list[str], periodic: bool) -> list[Atoms]:
        n = len(symbols)
        shapes = {"coord": (n, 3), "box": (3, 3), "energy": (), "force": (n, 3), "virial": (3, 3)}
        found: dict[str, np.ndarray] = {}
        for name, shape in shapes.items():
            file = folder / f"{name}.npy"
            if not file.exists():
                continue
            try:
                values = np.load(file, allow_pickle=False)
                found[name] = values.reshape(len(values), *shape).astype(float)
            except Exception as error:  # numpy reads headers as Python, and raises what that raises
                raise DataError(f"{file}: {error}; expected rows of {n} atoms") from None
        if "coord" not in found or ("box" not in found and periodic):
            raise DataError(f"{folder}: coord.npy{' and box.npy' if periodic else ''} must be there")
        if len({len(values) for values in found.values()}) > 1:
            raise DataError(
                f"{folder}: files hold { ({k: len(v) for k, v in found.items()}) } frames; expected as many each"
            )
        return frames_of(symbols, found, periodic)

    def write(self, path: Path, structures: Sequence[Atoms]) -> None:
        """A new folder, and in it one for each list of elements that structures share: ``000-O4Si2``, ``001-O8Si4``, ….

        ``type_map.raw`` of each holds all elements, by atomic number. A label is written where all structures of a
        folder have it.

        Raises
        ------
        DataError : ``path`` exists; a structure that is periodic in one direction or two; it cannot be written.
        """
        if path.exists():
            raise DataError(f"{path}: exists already; give a new folder, or remove it")
        groups: dict[tuple[bool, bytes], list[Atoms]] = {}
        for index, atoms in enumerate(structures):
            if atoms.pbc.any() and not atoms.pbc.all():
                raise DataError(
                    f"{path}: structure {describe(atoms, index)} is periodic in some directions; {self.title} holds "
                    "structures that are periodic in three, or none; leave it out"
                )
            groups.setdefault((bool(atoms.pbc.all()), atoms.numbers.tobytes()), []).append(atoms)
        elements = sorted({int(z) for atoms in structures for z in atoms.numbers})
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            for number, ((periodic, _), group) in enumerate(groups.items()):
                folder = temporary / f"{number:03d}-{group[0].get_chemical_formula()}"
                _write_folder(folder, group, elements, periodic)
            os.replace(temporary, path)
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error.strerror or error}. Nothing was written") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def frames_of(symbols: Sequence[str], found: Mapping[str, np.ndarray], periodic: bool) -> list[Atoms]:
    """Structures from rows of coord, (n, 3); where there are any box, force, energy and virial, (3, 3), eV."""
    structures = []
    for k, positions in enumerate(found["coord"]):
        atoms = Atoms(symbols, positions=positions, cell=found["box"][k] if periodic else None, pbc=periodic)
        if "force" in found:
            atoms.arrays["forces"] = found["force"][k]
        for name, label in (("energy", "energy"), ("virial", "virial")):
            if name in found and (periodic or name == "energy"):
                atoms.info[label] = float(found[name][k]) if name == "energy" else found[name][k]
        structures.append(atoms)
    return structures


def _write_folder(folder: Path, structures: Sequence[Atoms], elements: Sequence[int], periodic: bool) -> None:
    """Structures with the same elements in the same order; the virial is −V σ."""
    (folder / "set.000").mkdir(parents=True)
    np.savetxt(folder / "type.raw", [elements.index(z) for z in structures[0].numbers], fmt="%d")
    (folder / "type_map.raw").write_text("".join(f"{chemical_symbols[z]}\n" for z in elements))
    found = {"coord": np.stack([atoms.positions for atoms in structures])}
    if periodic:
        found["box"] = np.stack([atoms.cell.array for atoms in structures])
    else:
        (folder / "nopbc").touch()
    labels = [get_labels(atoms) for atoms in structures]
    for label, name in zip(LABELS, ("energy", "force", "virial")):
        values = [getattr(one, label) for one in labels]
        if all(value is not None for value in values):
            found[name] = np.stack(values)
    if "virial" in found:
        found["virial"] *= -np.array([atoms.cell.volume for atoms in structures])[:, None, None]
    for name, array in found.items():
        np.save(folder / "set.000" / f"{name}.npy", array.reshape(len(structures), -1))

"""Folders of DeePMD-kit: ``type.raw``, ``type_map.raw`` and ``set.*/{coord,box,energy,force,virial}.npy``.

Energies are eV, lengths Å, the virial eV with the sign of QUIP (−V σ).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from mdl_physpre.errors import DataError
from mdl_physpre.structures.formats.base import Format


class DeepMD(Format):
    """A folder, by its name: structures of one composition."""

    title = "a folder of DeePMD-kit"

    def fits(self, path: Path) -> bool:
        """A folder with ``type.raw``."""
        return (path / "type.raw").is_file()

    def read(self, path: Path) -> list[Atoms]:
        """Raises DataError for a missing or damaged file, or a type without an element."""
        try:
            types = np.loadtxt(path / "type.raw", dtype=int, ndmin=1)
            names = (path / "type_map.raw").read_text().split()
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: {error}; type.raw and type_map.raw (elements in order) are needed") from None
        unknown = [name for name in names if name not in atomic_numbers]
        if unknown or types.max(initial=-1) >= len(names):
            raise DataError(f"{path}: type_map.raw holds {' '.join(names)}; expected an element for each type")
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
            except (OSError, ValueError, EOFError, MemoryError) as error:
                raise DataError(f"{file}: {error}; expected rows of {n} atoms") from None
        if "coord" not in found or ("box" not in found and periodic):
            raise DataError(f"{folder}: coord.npy{' and box.npy' if periodic else ''} must be there")
        if len({len(values) for values in found.values()}) > 1:
            raise DataError(
                f"{folder}: files hold { ({k: len(v) for k, v in found.items()}) } frames; expected as many each"
            )
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

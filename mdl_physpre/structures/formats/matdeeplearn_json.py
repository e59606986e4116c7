"""MatDeepLearn's data set JSON: a list of dictionaries, one for each structure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mdl_physpre.errors import DataError
from mdl_physpre.structures.check import describe
from mdl_physpre.structures.formats.base import Format
from mdl_physpre.structures.formats.json_stream import first_item, iterate_json
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.utils.files import write_text
from mdl_physpre.utils.progress import progress

REQUIRED = ("atomic_numbers", "positions")
LABEL_KEYS = {"y": "energy", "forces": "forces", "stress": "stress"}


class MatDeepLearnJSON(Format):
    """A list of dictionaries, one for each structure, plain or gzip."""

    title = "MatDeepLearn's list of dictionaries with 'atomic_numbers' and 'positions'"
    endings = (".json",)
    zipped = True

    def recognises(self, path: Path) -> bool:
        """By its first item; an empty list counts."""
        key, item = first_item(path) or (0, {"atomic_numbers": []})
        return isinstance(key, int) and isinstance(item, dict) and "atomic_numbers" in item

    def read(self, path: Path) -> list[Atoms]:
        """Raises DataError as :func:`atoms_from_item`; the structure is named."""
        items = progress(iterate_json(path), description=f"reading {path.name}")
        return [atoms_from_item(item, f"{path}: structure {key}") for key, item in items]

    def write(self, path: Path, structures: Sequence[Atoms]) -> None:
        """Raises DataError also for labels or positions that are not finite."""
        items = []
        for index, atoms in enumerate(structures):
            try:
                items.append(json.dumps(item_from_atoms(atoms, index), allow_nan=False))
            except ValueError as error:
                raise DataError(
                    f"{path}: structure {describe(atoms, index)} holds numbers that are not finite: {error}"
                ) from error
        write_text(path, "[" + ",\n".join(items) + "]\n")

    def losses(self, structures: Sequence[Atoms]) -> list[str]:
        """What MatDeepLearn will drop or misread of these structures."""
        found: list[str] = []

        def note(indices: Sequence[int], text: str) -> None:
            if indices:
                named = ", ".join(describe(structures[k], k) for k in indices[:5]) + (
                    ", ..." if len(indices) > 5 else ""
                )
                found.append(f"{len(indices)} of {len(structures)} structures {text}: {named}")

        labels = [get_labels(a) for a in structures]
        note(
            [k for k, a in enumerate(structures) if len(a) == 1],
            "have one atom, which MatDeepLearn drops without a word",
        )
        note([k for k, x in enumerate(labels) if x.energy is None], "have no energy, which MatDeepLearn needs (y)")
        for name in ("forces", "stress"):
            missing = [k for k, x in enumerate(labels) if getattr(x, name) is None]
            if 0 < len(missing) < len(structures):
                note(missing, f"have no {name}; MatDeepLearn batches {name} only where all structures have it")
        partly = [k for k, a in enumerate(structures) if a.pbc.any() and not a.pbc.all()]
        note(partly, "are periodic in some directions only; MatDeepLearn takes them as periodic in all")
        for what, names in (
            ("entries", [k for a in structures for k in a.info if k != "structure_id"]),
            ("columns of atoms", [k for a in structures for k in a.arrays if k not in ("numbers", "positions")]),
        ):
            if names:
                first = ", ".join(list(dict.fromkeys(names))[:10])
                found.append(f"{what} that the format has no place for are left out: {first}")
        return found


def atoms_from_item(item: Any, where: str) -> Atoms:
    """One structure; labels go to ``info`` and ``arrays``, from where they are gathered.

    ``cell`` may be (3, 3), (1, 3, 3) or missing, ``y`` a number or a list of one. Without ``pbc`` a structure with a
    cell is periodic and one without is not, as in MatDeepLearn. Unknown keys go to ``info``.

    Raises
    ------
    DataError : a key that is missing or holds something of the wrong shape; ``where`` and the key are named.
    """
    if not isinstance(item, dict):
        raise DataError(f"{where}: found {type(item).__name__}; expected a dictionary with {', '.join(REQUIRED)}")
    for key in REQUIRED:
        if item.get(key) is None:
            raise DataError(f"{where}: key {key!r} is missing")
    numbers = _array(item["atomic_numbers"], "atomic_numbers", where)
    if numbers.ndim != 1 or not len(numbers) or (numbers != np.rint(numbers)).any():
        raise DataError(f"{where}: atomic_numbers has shape {numbers.shape}; expected a list of integers, one per atom")
    positions = _array(item["positions"], "positions", where)
    if positions.shape != (len(numbers), 3):
        raise DataError(f"{where}: positions has shape {positions.shape}; expected ({len(numbers)}, 3)")
    cell = np.zeros((3, 3)) if item.get("cell") is None else _array(item["cell"], "cell", where)
    if cell.shape not in ((3, 3), (1, 3, 3)):
        raise DataError(f"{where}: cell has shape {cell.shape}; expected (3, 3)")
    cell = cell.reshape(3, 3)
    pbc = item.get("pbc")
    atoms = Atoms(
        numbers=numbers.astype(int),
        positions=positions,
        cell=cell,
        pbc=bool(cell.any()) if pbc is None else np.broadcast_to(np.asarray(pbc, dtype=bool).reshape(-1), 3),
    )
    for key, label in LABEL_KEYS.items():
        if item.get(key) is not None:
            atoms.info[label] = _array(item[key], key, where) if key != "y" else _energy(item[key], where)
    known = {*REQUIRED, "cell", "pbc", *LABEL_KEYS}
    atoms.info.update({k: v for k, v in item.items() if k not in known and v is not None})
    return atoms


def _array(value: Any, key: str, where: str) -> np.ndarray:
    try:
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise DataError(f"{where}: {key} is {repr(value)[:60]}; expected numbers in rows of equal length") from None


def _energy(value: Any, where: str) -> float:
    array = _array(value, "y", where)
    if array.size != 1:
        raise DataError(f"{where}: y has {array.size} numbers; expected one, the total energy in eV")
    return float(array.reshape(-1)[0])


def item_from_atoms(atoms: Atoms, index: int) -> dict[str, Any]:
    """One structure under MatDeepLearn's keys; ``stress`` is (1, 3, 3), all else as in ``REQUIRED`` and ``LABEL_KEYS``.

    Labels that the structure lacks are left out. MatDeepLearn takes any cell for periodic in all directions, so a
    structure without periodic directions gets a cell of zeros; ``pbc`` is added only where some directions are
    periodic and others are not (MatDeepLearn does not read it).
    """
    labels = get_labels(atoms)
    periodic = bool(atoms.pbc.any())
    item: dict[str, Any] = {
        "structure_id": str(atoms.info.get("structure_id", index)),
        "atomic_numbers": [int(z) for z in atoms.numbers],
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell[:].tolist() if periodic else np.zeros((3, 3)).tolist(),
    }
    if labels.energy is not None:
        item["y"] = labels.energy
    if labels.forces is not None:
        item["forces"] = labels.forces.tolist()
    if labels.stress is not None:
        item["stress"] = [labels.stress.tolist()]
    if periodic and not atoms.pbc.all():
        item["pbc"] = [bool(p) for p in atoms.pbc]
    return item

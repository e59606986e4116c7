"""Where labels come from: the user's key map first, then ``REF_*``, then the results of a calculator."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from mdl_physpre.errors import ConfigError, DataError, nearest
from mdl_physpre.structures.labels import LABELS, as_stress_matrix, get_labels, set_labels

logger = logging.getLogger(__name__)

NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][-+]?\d+)?|nan|inf", re.IGNORECASE)

ASYMMETRIC = "physpre_asymmetric_stress"
"""Mark in ``info`` of a structure whose file gave nine numbers that are not symmetric, for readers that take a half."""


def assign_labels(structures: Sequence[Atoms], keys: Mapping[str, str] | None, source: str) -> None:
    """Gather the labels of each structure into its calculator results, in place.

    For each label (energy, forces, stress) and each structure the first of these counts: the key that ``keys`` gives,
    ``REF_<label>``, the calculator result, a plain ``info`` or ``arrays`` entry called like the label. A virial (eV;
    ``keys["virial"]``, ``REF_virial``, ``virial``, or an entry with virial in its name that ``keys["stress"]`` names)
    counts where there is no stress: σ = −virial/V. Entries that were used, or overruled, are removed, so that a label
    stands in one place only. A structure that is not periodic in three directions has no stress; how many lose one is
    said. Other calculator results (charges, magnetic moments) stay.

    Raises
    ------
    ConfigError : ``keys`` holds something that is no label.
    DataError : a key that no structure has; a label of the wrong shape or type, named by structure.
    """
    keys = {label: name for label, name in (keys or {}).items() if name is not None}
    for label in keys:
        if label not in (*LABELS, "virial"):
            raise ConfigError(f"keys: unknown label {label!r}; {nearest(label, [*LABELS, 'virial'])}")
    origins: dict[str, Counter[str]] = {label: Counter() for label in LABELS}
    partly, asymmetric = 0, 0
    for index, atoms in enumerate(structures):
        try:
            found, tensor = _assign(atoms, keys)
            for label, origin in found.items():
                origins[label][origin] += 1
            partly += tensor is not None and bool(atoms.pbc.any()) and not atoms.pbc.all()
            asymmetric += atoms.info.pop(ASYMMETRIC, False) or (tensor is not None and is_asymmetric(tensor))
        except (DataError, TypeError, ValueError) as error:
            raise DataError(f"{source}: structure {index}: {error}") from error
    for label, name in keys.items():
        if structures and not origins["stress" if label == "virial" else label][name]:
            raise DataError(
                f"{source}: no structure has {name!r}, which keys.{label} names; "
                f"{nearest(name, label_names(structures))}"
            )
    if partly:
        logger.warning(
            "%s: the stress of %d structures that are periodic in one or two directions is left out: they have no "
            "volume that it could belong to",
            source,
            partly,
        )
    if asymmetric:
        logger.warning(
            "%s: the stress of %d structures is not symmetric; its symmetric part is taken", source, asymmetric
        )
    for name, count in origins["stress"].items():
        if "virial" in name.lower():
            logger.info("%s: stress = -virial/V from %r (eV) in %d structures", source, name, count)
    for label, counts in origins.items():
        if len(counts) > 1:
            logger.warning(
                "%s: %s comes from %s; make sure that they are of one kind",
                source,
                label,
                " and ".join(f"{name!r} in {count} structures" for name, count in counts.items()),
            )


def label_names(structures: Sequence[Atoms]) -> list[str]:
    """Names of numeric entries of the structures that could be labels."""
    names: set[str] = set()
    for atoms in structures[:100]:
        names.update(k for k, v in atoms.info.items() if not isinstance(v, (str, bool, dict)) and isinstance(k, str))
        names.update(k for k in atoms.arrays if k not in ("numbers", "positions"))
        if isinstance(atoms.calc, SinglePointCalculator):
            names.update(atoms.calc.results)
    return sorted(names)


def look_like_labels(structures: Sequence[Atoms]) -> dict[str, str]:
    """Entries of structures without a label that are called like it: name -> label, such as dft_force -> forces."""
    found: dict[str, str] = {}
    words = {"force": "forces", "stress": "stress", "virial": "virial", "energy": "energy"}
    for word, label in words.items():
        target = "stress" if label == "virial" else label
        without = [a for a in structures if getattr(get_labels(a), target) is None]
        for name in label_names(without):
            if name not in LABELS and word in name.lower():
                found.setdefault(name, label)
    return found


def _assign(atoms: Atoms, keys: Mapping[str, str]) -> tuple[dict[str, str], Any]:
    """Where each label came from, and the stress or virial as it stood there."""
    results = atoms.calc.results if isinstance(atoms.calc, SinglePointCalculator) else {}
    labels: dict[str, Any] = {}
    origins: dict[str, str] = {}
    used: set[str] = set()
    tensor: Any = None
    for label in LABELS:
        names = [keys.get(label), f"REF_{label}", label]
        if label == "stress":
            names = [keys.get("virial"), *names, "REF_virial", "virial"]
        for name in names:
            if name is None:
                continue
            value = next((place[name] for place in (results, atoms.arrays, atoms.info) if name in place), None)
            if value is None:
                continue
            used.add(name)
            if label not in labels:
                is_virial = label == "stress" and (name == keys.get("virial") or "virial" in name.lower())
                labels[label] = (_virial if is_virial else CONVERT[label])(atoms, value, name)
                origins[label] = name
                tensor = value if label == "stress" else None
    others = {name: value for name, value in results.items() if name not in used and name not in LABELS}
    for name in used:
        atoms.info.pop(name, None)
        if name not in ("numbers", "positions"):
            atoms.arrays.pop(name, None)
    if not atoms.pbc.all():
        labels.pop("stress", None)
        origins.pop("stress", None)
    set_labels(atoms, **labels)
    if others:
        if atoms.calc is None:
            atoms.calc = SinglePointCalculator(atoms)
        atoms.calc.results.update(others)
    return origins, tensor


def is_asymmetric(tensor: Any) -> bool:
    """Whether nine numbers differ from their transpose by more than rounding."""
    try:
        array = np.asarray(numbers_in(tensor) if isinstance(tensor, str) else tensor, dtype=float)
    except (TypeError, ValueError):
        return False
    if array.size != 9:
        return False
    array = array.reshape(3, 3)
    return float(np.abs(array - array.T).max()) > 1e-3 * float(np.abs(array).max())


def _energy(atoms: Atoms, value: Any, name: str) -> float:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "fiu":
        raise DataError(f"{name} is {repr(value)[:60]}; expected one number, the total energy in eV")
    return float(array.reshape(-1)[0])


def _forces(atoms: Atoms, value: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise DataError(f"{name} is {repr(value)[:60]}; expected ({len(atoms)}, 3) numbers, eV/Å") from None
    if array.shape != (len(atoms), 3):
        raise DataError(f"{name} has shape {array.shape}; expected ({len(atoms)}, 3), forces in eV/Å")
    return array


def _stress(atoms: Atoms, value: Any, name: str) -> np.ndarray:
    return as_stress_matrix(numbers_in(value) if isinstance(value, str) else value, name)


def _virial(atoms: Atoms, value: Any, name: str) -> np.ndarray:
    """σ = −virial/V, the sign of QUIP, CP2K and DeePMD: positive where atoms press outwards."""
    volume = atoms.cell.volume
    if volume == 0:
        return np.zeros((3, 3))  # has no meaning, and is left out
    return -_stress(atoms, value, name) / volume


CONVERT = {"energy": _energy, "forces": _forces, "stress": _stress}


def numbers_in(text: str) -> Any:
    """The numbers of a string such as ``"[[[1, 0, 0], …]]"`` or ``"1 2 3 4 5 6"``; else the string itself."""
    text = text.removeprefix("_JSON ").strip()
    try:
        return json.loads(text)
    except ValueError:
        words = re.split(r"[\s,\[\]()]+", text.strip("[]() \t"))
        if words and all(NUMBER.fullmatch(word) for word in words):
            return [float(word.replace("d", "e").replace("D", "e")) for word in words]
        return text

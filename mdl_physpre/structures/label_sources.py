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
from mdl_physpre.structures.labels import LABELS, as_stress_matrix, set_labels

logger = logging.getLogger(__name__)

NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][-+]?\d+)?|nan|inf", re.IGNORECASE)


def assign_labels(structures: Sequence[Atoms], keys: Mapping[str, str] | None, source: str) -> None:
    """Gather the labels of each structure into its calculator results, in place.

    For each label (energy, forces, stress) and each structure the first of these counts: the key that ``keys`` gives,
    ``REF_<label>``, the calculator result, a plain ``info`` or ``arrays`` entry called like the label. Entries that
    were used, or overruled, are removed, so that a label stands in one place only. A structure without any periodic
    direction has no stress. Other calculator results (charges, magnetic moments) stay.

    Raises
    ------
    ConfigError : ``keys`` holds something that is no label.
    DataError : a key that no structure has; a label of the wrong shape or type, named by structure.
    """
    keys = {label: name for label, name in (keys or {}).items() if name is not None}
    for label in keys:
        if label not in LABELS:
            raise ConfigError(f"keys: unknown label {label!r}; {nearest(label, LABELS)}")
    origins: dict[str, Counter[str]] = {label: Counter() for label in LABELS}
    for index, atoms in enumerate(structures):
        try:
            for label, origin in _assign(atoms, keys).items():
                origins[label][origin] += 1
        except (DataError, TypeError, ValueError) as error:
            raise DataError(f"{source}: structure {index}: {error}") from error
    for label, name in keys.items():
        if structures and not origins[label][name]:
            raise DataError(
                f"{source}: no structure has {name!r}, which keys.{label} names; "
                f"{nearest(name, label_names(structures))}"
            )
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


def _assign(atoms: Atoms, keys: Mapping[str, str]) -> dict[str, str]:
    results = atoms.calc.results if isinstance(atoms.calc, SinglePointCalculator) else {}
    labels: dict[str, Any] = {}
    origins: dict[str, str] = {}
    used: set[str] = set()
    for label in LABELS:
        for name in (keys.get(label), f"REF_{label}", label):
            if name is None:
                continue
            value = next((place[name] for place in (results, atoms.arrays, atoms.info) if name in place), None)
            if value is None:
                continue
            used.add(name)
            if label not in labels:
                labels[label], origins[label] = CONVERT[label](atoms, value, name), name
    others = {name: value for name, value in results.items() if name not in used and name not in LABELS}
    for name in used:
        atoms.info.pop(name, None)
        if name not in ("numbers", "positions"):
            atoms.arrays.pop(name, None)
    if not atoms.pbc.any():
        labels.pop("stress", None)
        origins.pop("stress", None)
    set_labels(atoms, **labels)
    if others:
        if atoms.calc is None:
            atoms.calc = SinglePointCalculator(atoms)
        atoms.calc.results.update(others)
    return origins


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

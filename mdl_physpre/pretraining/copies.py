"""Copies of a structure with other positions, and a cell that is strained at random."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from mdl_physpre.structures.state import electronic_state, is_label


def inherited_info(atoms: Atoms) -> dict[str, Any]:
    """Names, groups (strings, whole numbers) and the electronic state of a parent, which a displaced copy keeps.

    Labels stay behind.
    """
    kept, _ = electronic_state(atoms)
    for key, value in atoms.info.items():
        if isinstance(value, (str, bool, int, np.integer)) and not is_label(key):
            kept[key] = value
    return kept


def random_strain(rng: np.random.Generator, largest: float) -> NDArray[np.float64]:
    """1 + ε, (3, 3), with a symmetric strain ε, each of its six components uniform in [-largest, largest].

    Vectors of rows follow as v (1 + ε). No distance falls below 1 - 3 largest of what it was: no row of |ε| has a
    larger sum than 3 largest, which bounds every eigenvalue.
    """
    upper = np.zeros((3, 3))
    upper[np.triu_indices(3)] = rng.uniform(-largest, largest, 6)
    return np.eye(3) + upper + np.triu(upper, 1).T


def displaced_copy(
    atoms: Atoms, positions: NDArray[np.float64], info: dict[str, Any], strain: NDArray[np.float64] | None = None
) -> Atoms:
    """A structure with the elements, cell, periodicity, masses, charges, moments and tags of `atoms`, no labels.

    With ``strain``, 1 + ε as of :func:`random_strain`, the cell and the positions given follow it.
    """
    copy = Atoms(numbers=atoms.numbers, positions=positions, cell=atoms.cell, pbc=atoms.pbc, info=info)
    if strain is not None:
        copy.set_cell(copy.cell.array @ strain)
        copy.positions = positions @ strain
    if atoms.has("masses"):
        copy.set_masses(atoms.get_masses())
    for key, values in electronic_state(atoms)[1].items():
        copy.set_array(key, values)
    return copy

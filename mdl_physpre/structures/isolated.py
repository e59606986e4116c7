"""Isolated atoms among labelled structures: their energies are the zero from which bonds are counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.geometry import minkowski_reduce

from mdl_physpre.structures.labels import get_labels

NAMES = ("isolatedatom", "isolated_atom", "isolated atom")  # of config_type, in any case
ALONE = 8.0  # Å; a single atom whose images are farther than this is isolated


def is_isolated(atoms: Atoms) -> bool:
    """Whether a structure is one atom that its ``config_type`` calls isolated, or whose images are 8 Å away or more."""
    if len(atoms) != 1:
        return False
    if str(atoms.info.get("config_type", "")).lower() in NAMES or not atoms.pbc.any():
        return True
    reduced, _ = minkowski_reduce(atoms.cell.complete(), atoms.pbc)
    return bool(np.linalg.norm(reduced[atoms.pbc], axis=1).min() >= ALONE)


def take_isolated(structures: Sequence[Atoms]) -> tuple[list[Atoms], dict[str, float]]:
    """The structures without isolated atoms that carry an energy, and these energies, eV, by symbol.

    Of several for one element the lowest counts: the others are not its ground state.
    """
    rest: list[Atoms] = []
    energies: dict[str, float] = {}
    for atoms in structures:
        energy = get_labels(atoms).energy if is_isolated(atoms) else None
        if energy is None:
            rest.append(atoms)
        else:
            symbol = atoms.symbols[0]
            energies[symbol] = min(energy, energies.get(symbol, energy))
    return rest, energies

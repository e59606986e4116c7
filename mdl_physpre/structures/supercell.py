"""Supercells: cells of few atoms leave them little room to move."""

from __future__ import annotations

import numpy as np
from ase import Atoms

from mdl_physpre.structures.state import electronic_state, repeated


def enlarge(atoms: Atoms, min_atoms: int) -> Atoms:
    """Double a structure along its shortest periodic vector until it holds at least ``min_atoms`` atoms.

    Labels are left out; masses, charges, moments, tags and ``info`` are kept. A structure that is not periodic, or
    large enough, is returned as a copy.
    """
    made = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, masses=atoms.arrays.get("masses"))
    made.info = dict(atoms.info)
    for key, values in electronic_state(atoms)[1].items():
        made.set_array(key, values)
    while 0 < len(made) < min_atoms and made.pbc.any():
        lengths = np.where(made.pbc, made.cell.lengths(), np.inf)
        times = [1, 1, 1]
        times[int(lengths.argmin())] = 2
        made = repeated(made, times)
    if len(made) == len(atoms):  # most cannot be repeated
        made.set_constraint(atoms.constraints)
    return made

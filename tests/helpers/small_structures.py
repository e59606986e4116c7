"""Structures and settings that several tests of molecular dynamics use."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk

from mdl_physpre.dynamics.settings import DynamicsSettings


def crystals(n: int = 4) -> list[Atoms]:
    """Crystals of different sizes and cells that Morse keeps together."""
    made = [
        bulk("Cu", "fcc", a=3.5).repeat((2, 2, 2)),
        bulk("Cu", "fcc", a=3.5, cubic=True),
        bulk("Cu", "hcp", a=2.5).repeat((2, 2, 1)),
        bulk("Cu", "bcc", a=2.85).repeat((3, 2, 2)),
    ]
    structures = [made[k % 4].copy() for k in range(n)]
    for k, atoms in enumerate(structures):
        atoms.rattle(0.03, seed=k)
        atoms.info["structure_id"] = f"copper-{k}"
    return structures


def clusters(n: int = 4) -> list[Atoms]:
    """The same pieces in empty space."""
    pieces = crystals(n)
    for atoms in pieces:
        atoms.set_cell(np.zeros((3, 3)))
        atoms.pbc = False
    return pieces


SHORT = DynamicsSettings(temperature=300, timestep=2.0, steps=120, seed=3, skin=0.5, lindemann_check_interval=20)


def with_(settings: DynamicsSettings = SHORT, **changes) -> DynamicsSettings:
    return settings.changed(**changes)

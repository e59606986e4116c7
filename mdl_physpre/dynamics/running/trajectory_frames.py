"""Frames of stored trajectories."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress


def make_frame(
    whole: Atoms,
    positions: np.ndarray,
    cell: np.ndarray,
    momenta: np.ndarray,
    forces: np.ndarray,
    energy: float,
    stress: np.ndarray,
) -> Atoms:
    """The structure ``whole`` at one step. Stress (3, 3), eV/Å³, is left out where it is not finite."""
    frame = Atoms(whole.numbers, positions, cell=cell, pbc=whole.pbc, momenta=momenta)
    frame.arrays["forces"] = forces
    results = {"energy": energy}
    if np.isfinite(stress).all():
        results["stress"] = full_3x3_to_voigt_6_stress(stress)
    frame.calc = SinglePointCalculator(frame, **results)
    return frame

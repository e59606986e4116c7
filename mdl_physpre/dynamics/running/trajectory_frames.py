"""Frames of stored trajectories."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import XYZError, read_xyz
from ase.stress import full_3x3_to_voigt_6_stress

from mdl_physpre.errors import DataError

logger = logging.getLogger(__name__)


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


def read_frames(path: Path) -> Iterator[Atoms]:
    """Frames of an extended XYZ file; one that was cut short at the end is left out.

    Raises DataError where the file cannot be opened.
    """
    try:
        with open(path, encoding="utf-8") as file:
            yield from read_xyz(file, slice(None))
    except (XYZError, ValueError, KeyError, IndexError) as error:
        logger.warning("%s: what follows the last whole frame is left out (%s)", path, error)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None

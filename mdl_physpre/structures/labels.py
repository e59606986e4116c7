"""Labels of a structure: energy, forces and stress, kept as calculator results on ``ase.Atoms``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from mdl_physpre.errors import DataError

LABELS = ("energy", "forces", "stress")


@dataclass(frozen=True)
class Labels:
    """Labels of one structure; ``None`` where there is none.

    energy : total energy, eV.
    forces : (n_atoms, 3), eV/Å.
    stress : (3, 3), eV/Å³, +(1/V) dE/dstrain, tension positive.
    """

    energy: float | None = None
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None


def as_stress_matrix(stress: Any, name: str = "stress") -> np.ndarray:
    """A symmetric (3, 3) tensor, from Voigt order (xx, yy, zz, yz, xz, xy), nine numbers, (3, 3) or (1, 3, 3).

    Of nine numbers the symmetric part counts, (σ + σᵀ)/2. Raises DataError, with its name, for anything else.
    """
    try:
        array = np.asarray(stress, dtype=float)
    except (TypeError, ValueError):
        raise DataError(f"{name} is {repr(stress)[:60]}; expected 6 or 9 numbers, eV/Å³") from None
    if array.shape in ((6,), (1, 6)):
        return np.asarray(voigt_6_to_full_3x3_stress(array.reshape(6)))
    if array.shape in ((9,), (1, 9), (3, 3), (1, 3, 3)):
        array = array.reshape(3, 3)
        return 0.5 * (array + array.T)
    raise DataError(
        f"{name} has shape {array.shape}; expected (3, 3), (1, 3, 3) or 6 numbers in Voigt order xx, yy, zz, yz, xz, xy"
    )


def get_labels(atoms: Atoms) -> Labels:
    """The labels that ``atoms`` carries as results of a finished calculation; nothing is computed.

    There is no stress where the structure is not periodic in three directions, and so has no volume.
    """
    calculator = atoms.calc
    if not isinstance(calculator, SinglePointCalculator):
        return Labels()
    results = calculator.results
    energy, forces, stress = (results.get(name) for name in LABELS)
    return Labels(
        energy=None if energy is None else float(energy),
        forces=None if forces is None else np.asarray(forces, dtype=float),
        stress=None if stress is None or not atoms.pbc.all() else as_stress_matrix(stress),
    )


def set_labels(atoms: Atoms, energy: float | None = None, forces: Any = None, stress: Any = None) -> Atoms:
    """Put labels on ``atoms`` in place of those it has, and return it.

    Parameters
    ----------
    energy : total energy, eV.
    forces : (n_atoms, 3), eV/Å.
    stress : Voigt (6,), (3, 3), (1, 3, 3) or nine numbers, eV/Å³, tension positive.

    Raises
    ------
    DataError : forces or stress of another shape.
    """
    results: dict[str, Any] = {}
    if energy is not None:
        results["energy"] = float(energy)
    if forces is not None:
        forces = np.asarray(forces, dtype=float)
        if forces.shape != (len(atoms), 3):
            raise DataError(f"forces have shape {forces.shape}; expected ({len(atoms)}, 3)")
        results["forces"] = forces
    if stress is not None:
        results["stress"] = full_3x3_to_voigt_6_stress(as_stress_matrix(stress))
    atoms.calc = SinglePointCalculator(atoms, **results) if results else None
    return atoms


def largest_force(labels: Labels) -> float:
    """Largest norm of a force in a structure, eV/Å; 0 without forces."""
    if labels.forces is None or not len(labels.forces):
        return 0.0
    return float(np.sqrt(np.einsum("ij,ij->i", labels.forces, labels.forces).max()))


def label_counts(structures: Sequence[Atoms]) -> dict[str, int]:
    """How many structures there are, and how many carry an energy, forces, a stress."""
    counts = {"structures": len(structures), **dict.fromkeys(LABELS, 0)}
    for atoms in structures:
        labels = get_labels(atoms)
        for name in LABELS:
            counts[name] += getattr(labels, name) is not None
    return counts

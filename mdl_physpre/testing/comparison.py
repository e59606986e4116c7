"""Predictions in double precision, and how the checks of a potential compare numbers."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from mdl_physpre.potential_checks.derivatives import STENCIL, slopes
from mdl_physpre.potential_checks.run import RATTLE, default_structures
from mdl_physpre.potentials.base import Potential, Predictions
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import build_graph
from mdl_physpre.utils.devices import precision_and_device

Structures = Sequence[Atoms]
Values = Tensor | np.ndarray | float | None
STEP = 1e-3  # Å and strain, of finite differences of fourth order


def chosen_structures(potential: Potential, structures: Structures | None) -> list[Atoms]:
    """Those given, or rattled crystals of the potential's elements and a cluster."""
    if structures is not None:
        return list(structures)
    rng = np.random.default_rng(0)
    made = default_structures(potential)
    for atoms in made:
        atoms.rattle(RATTLE, rng=rng)
    return made


def in_double(potential: Potential) -> Potential:
    """The potential, or a copy of it in double precision, ready to predict."""
    tensors = [t for t in (*potential.parameters(), *potential.buffers()) if t.is_floating_point()]
    if potential.training or any(t.dtype != torch.float64 for t in tensors):
        return copy.deepcopy(potential).double().eval()
    return potential


def predict(potential: Potential, structures: Structures, training: bool = False) -> Predictions:
    """Energies, forces and stress, without their history, in the precision of the potential."""
    graph = build_graph(structures, potential.cutoff, dtype=precision_and_device(potential)[0])
    found = evaluate(potential, graph, stress=potential.gives_stress, create_graph=training)
    forces, stress = (None if v is None else v.detach() for v in (found.forces, found.stress))
    return Predictions(found.energies.detach(), forces, stress)


def one_by_one(potential: Potential, structures: Structures, training: bool) -> list[Predictions]:
    """Predictions of each structure by itself."""
    return [predict(potential, [atoms], training) for atoms in structures]


def energy_slopes(potential: Potential, moves: Structures, training: bool) -> np.ndarray:
    """dE/dx, (n,), from structures at the steps of the stencil, (4 n,)."""
    graph = build_graph(moves, potential.cutoff)
    found = evaluate(potential, graph, forces=False, stress=False, create_graph=training)
    return slopes(numbers_of(found.energies).reshape(-1, len(STENCIL)), STEP)


def numbers_of(values: Values) -> np.ndarray:
    """As float64 on the CPU. Raises AssertionError for ``None``."""
    assert values is not None, "found None where numbers were asked for"
    return values.detach().double().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values, dtype=float)


def size_of(values: Values) -> float:
    """The largest finite number."""
    numbers = np.abs(numbers_of(values))
    return float(numbers[np.isfinite(numbers)].max(initial=0.0))


def force_scale(found: Predictions) -> float:
    """The largest force component, or 1 eV/Å where that is more."""
    return max(1.0, size_of(numbers_of(found.forces)))


def told(atoms: Atoms) -> str:
    """A structure in a message."""
    return str(atoms.get_chemical_formula())


def hold_slope(what: str, found: Tensor | None, expected: np.ndarray, of: Predictions, volume: float = 1.0) -> None:
    """Raise AssertionError where numbers are not the slopes that are expected, but for rounding of the energy."""
    noise = 1e-14 * size_of(of.energies) / STEP / volume
    hold(what, found, expected, 2e-6 * np.abs(expected).max() + noise)


def hold(what: str, found: Values, expected: Values, bound: float) -> None:
    """Raise AssertionError where a number is further than ``bound`` from what is expected, or one alone is NaN."""
    one, other = numbers_of(found), numbers_of(expected)
    assert one.shape == other.shape, f"{what}: shape {one.shape}, expected {other.shape}"
    differences = np.where(np.isnan(one) & np.isnan(other), 0.0, np.abs(one - other))
    wrong = ~(differences <= bound)
    if wrong.any():
        place = np.unravel_index(int(np.argmax(np.where(np.isnan(differences), np.inf, differences))), one.shape)
        where = f" at {[int(k) for k in place]}" if place else ""
        raise AssertionError(
            f"{what}{where}: found {one[place]:.12g}, expected {other[place]:.12g}; "
            f"{int(wrong.sum())} of {wrong.size} numbers differ by more than {bound:.2g}"
        )

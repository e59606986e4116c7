"""A pair potential fitted to forces by linear least squares: good enough to tell energies and stress by their size.

For each pair of elements φ(r) = Σ_k c_k φ_k(r), with φ_k(r) = exp(−(r − r_k)²/2w²) (1 − r²/r_c²)². Forces, energies
and stress are linear in c:

    F_i = Σ_j φ'(r_ij) r_ij/r_ij,      E = ½ Σ_ij φ(r_ij) + Σ_i e(Z_i),      σ = 1/(2V) Σ_ij φ'(r_ij) r_ij r_ijᵀ / r_ij.

c is fitted to forces alone, so that energies and stress of the fit say what those labels should be. On sets of metals,
silicon, phosphorus and oxides the fitted stress is right to a factor of two, and so is the energy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from ase import Atoms

from mdl_physpre.structures.labels import get_labels
from mdl_physpre.structures.neighbours import neighbour_list

CUTOFF, WIDTH = 5.0, 0.6  # Å
CENTRES = np.linspace(1.0, 4.7, 8)  # Å
MOST_STRUCTURES, MOST_ATOMS = 60, 6000
RIDGE = 1e-3  # of the mean diagonal


@dataclass(frozen=True)
class PairFit:
    """What a pair potential that was fitted to the forces of ``structures`` says of them.

    force_share : of the variance of the forces that it explains. energies : (n,) eV per atom, without those of the
    elements. stress : (n, 3, 3) eV/Å³; zero where there is no volume. composition : (n, n_elements), parts of atoms.
    """

    structures: list[Atoms]
    force_share: float
    energies: np.ndarray
    stress: np.ndarray
    composition: np.ndarray


def fit_pairs(structures: Sequence[Atoms], seed: int = 0) -> PairFit | None:
    """The fit to at most 60 of the structures with forces, drawn at random; ``None`` where there are fewer than ten."""
    usable = [a for a in structures if len(a) > 1 and get_labels(a).forces is not None]
    if len(usable) < 10:
        return None
    order = np.random.default_rng(seed).permutation(len(usable))[:MOST_STRUCTURES]
    chosen: list[Atoms] = []
    atoms = 0
    for k in sorted(order):
        if atoms + len(usable[k]) <= MOST_ATOMS or len(chosen) < 10:
            chosen.append(usable[k])
            atoms += len(usable[k])
    elements = sorted({int(z) for a in chosen for z in a.numbers})
    kinds = {pair: k for k, pair in enumerate(combinations_with_replacement(elements, 2))}
    rows = [_features(a, kinds) for a in chosen]
    forces = np.concatenate([get_labels(a).forces.ravel() for a in chosen])  # type: ignore[union-attr]
    design = np.concatenate([row[0] for row in rows])
    normal = design.T @ design
    normal += RIDGE * (np.trace(normal) / len(normal) or 1.0) * np.eye(len(normal))
    coefficients = np.linalg.solve(normal, design.T @ forces)
    left = float(((design @ coefficients - forces) ** 2).sum())
    return PairFit(
        chosen,
        1 - left / (float((forces**2).sum()) or 1.0),
        np.array([row[1] @ coefficients / len(a) for row, a in zip(rows, chosen)]),
        np.array([row[2] @ coefficients for row in rows]),
        np.array([[np.mean(a.numbers == z) for z in elements] for a in chosen]),
    )


def _features(atoms: Atoms, kinds: dict[tuple[int, int], int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What c is multiplied by in forces (3n, K), energy (K,) and stress (3, 3, K)."""
    i, j, shifts = neighbour_list(atoms.positions, atoms.cell[:], atoms.pbc, CUTOFF)
    vectors = atoms.positions[j] - atoms.positions[i] + shifts @ atoms.cell[:]
    r = np.linalg.norm(vectors, axis=1)[:, None]
    q, slope_of_q = 1 - (r / CUTOFF) ** 2, -2 * r / CUTOFF**2
    gauss = np.exp(-(((r - CENTRES) / WIDTH) ** 2) / 2)
    phi, slope = gauss * q**2, gauss * (2 * q * slope_of_q - (r - CENTRES) / WIDTH**2 * q**2)
    low, high = np.minimum(atoms.numbers[i], atoms.numbers[j]), np.maximum(atoms.numbers[i], atoms.numbers[j])
    kind = np.array([kinds[int(a), int(b)] for a, b in zip(low, high)], dtype=np.int64)
    n, m, unit = len(atoms), len(CENTRES), vectors / r
    forces, energy = np.zeros((n, 3, len(kinds), m)), np.zeros((len(kinds), m))
    stress = np.zeros((3, 3, len(kinds), m))
    for one in np.unique(kind):
        mine = kind == one
        along = slope[mine][:, None, :] * unit[mine][:, :, None]
        np.add.at(forces[:, :, one], i[mine], along)
        energy[one] = 0.5 * phi[mine].sum(0)
        stress[:, :, one] = 0.5 * np.einsum("eak,eb->abk", along, vectors[mine])
    volume = atoms.cell.volume if atoms.pbc.all() else np.inf
    return forces.reshape(3 * n, -1), energy.reshape(-1), stress.reshape(3, 3, -1) / volume

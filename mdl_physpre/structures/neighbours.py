"""Complete neighbour lists.

pymatgen's ``find_points_in_spheres`` does the search: on cells of tens of atoms it takes half the time of vesin and a
fifth of matscipy's (``benchmarks/neighbours.py``), and it is a dependency already. It returns all periodic images in
any cell, but its work grows with the extent of the coordinates, so positions are wrapped into the cell first and the
shifts are put back afterwards.
"""

from __future__ import annotations

import math

import numpy as np
from ase import Atoms

from mdl_physpre.errors import DataError


def complete_cell(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """``cell`` with missing vectors of non-periodic directions replaced by unit vectors normal to the others.

    Raises DataError where a periodic direction has no vector, or the cell has no volume.
    """
    cell = np.array(cell, dtype=float).reshape(3, 3)
    pbc = np.asarray(pbc, dtype=bool)
    missing = np.flatnonzero(np.linalg.norm(cell, axis=1) < 1e-10)
    if pbc[missing].any():
        raise DataError(f"cell {cell.tolist()} has no vector along a periodic direction (pbc {pbc.tolist()})")
    if len(missing) == 3 or not pbc.any():
        return np.eye(3)
    if len(missing):
        present = [k for k in range(3) if k not in missing]
        basis = np.linalg.svd(cell[present])[2]
        cell[missing] = basis[len(present) :]
    if abs(np.linalg.det(cell)) < 1e-8 * max(1.0, np.linalg.norm(cell, axis=1).prod()):
        raise DataError(
            f"cell {cell.tolist()} has no volume, but pbc is {pbc.tolist()}; give three independent vectors"
        )
    return cell


def _close_gaps(positions: np.ndarray, lattice: np.ndarray, pbc: np.ndarray, cutoff: float) -> np.ndarray:
    """Positions with gaps along non-periodic directions narrowed to twice the cutoff.

    The pairs within the cutoff and their vectors stay as they are, and the work and memory of the search no longer
    grow with the cube of the distance of an atom that has flown off.
    """
    # the directions at right angles to every periodic one
    directions = np.linalg.svd(lattice[pbc])[2][int(pbc.sum()) :] if pbc.any() else np.eye(3)
    for direction in directions:
        along = positions @ direction
        order = np.argsort(along, kind="stable")
        excess = np.diff(along[order]) - 2 * cutoff
        if (excess > 0).any():
            moved = np.zeros(len(positions))
            moved[order[1:]] = np.cumsum(excess.clip(min=0))
            positions = positions - moved[:, None] * direction
    return positions


MAX_BOXES = 3e7  # boxes of the cutoff's length that the search sorts atoms into; each takes memory


def neighbour_list(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs (i, j, image) with 0 < |r_j + S·cell − r_i| < cutoff, both directions, own images included.

    Parameters
    ----------
    positions : (n, 3), Å; may lie outside the cell.
    cell : (3, 3), Å, rows are vectors; rows of non-periodic directions may be zero.
    pbc : (3,) bool.
    cutoff : Å.

    Returns
    -------
    i, j : (n_edges,) int64, sorted by i.
    shifts : (n_edges, 3) int32, S above.

    Raises
    ------
    DataError : a cell without volume, or positions that are not finite.
    """
    from pymatgen.optimization.neighbors import find_points_in_spheres

    positions = np.ascontiguousarray(positions, dtype=float)
    pbc = np.asarray(pbc, dtype=bool)
    if not np.isfinite(positions).all():
        raise DataError("positions are not finite; no neighbours can be found")
    if len(positions) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.int32)
    lattice = complete_cell(cell, pbc)
    if not pbc.all():
        positions = _close_gaps(positions, lattice, pbc, cutoff)
    wrapped, whole = positions, None
    if pbc.any():
        cells = np.floor(positions @ np.linalg.inv(lattice))
        cells[:, ~pbc] = 0.0
        if cells.any():
            whole = cells.astype(np.int32)
            wrapped = np.ascontiguousarray(positions - cells @ lattice)
    _refuse_absurd(wrapped, cutoff)
    i, j, images, distances = find_points_in_spheres(
        all_coords=wrapped, center_coords=wrapped, r=float(cutoff), pbc=pbc.astype(np.int64), lattice=lattice, tol=1e-8
    )
    shifts = images.astype(np.int32)
    kept = _edges(i, j, shifts, distances, cutoff)
    i, j, shifts = i.take(kept), j.take(kept), shifts.take(kept, axis=0)
    if (i[1:] < i[:-1]).any():
        order = np.argsort(i, kind="stable")
        i, j, shifts = i[order], j[order], shifts[order]
    if whole is not None:
        shifts += whole.take(i, axis=0)
        shifts -= whole.take(j, axis=0)
    return i, j, shifts


def _edges(i: np.ndarray, j: np.ndarray, shifts: np.ndarray, distances: np.ndarray, cutoff: float) -> np.ndarray:
    """Which of the pairs found are edges.

    Few can be none: an atom itself, and what rounding put on the sphere. Only those are looked at closely, because
    every pass over all edges costs a fifth of the search.
    """
    doubtful = np.flatnonzero((distances < 1e-6) | (distances >= cutoff))
    itself = (i[doubtful] == j[doubtful]) & ~shifts[doubtful].any(axis=1)
    keep = np.ones(len(i), dtype=bool)
    keep[doubtful[itself | (distances[doubtful] >= cutoff)]] = False
    return np.flatnonzero(keep)


def _refuse_absurd(positions: np.ndarray, cutoff: float) -> None:
    """Raise DataError for atoms so far apart that the boxes of a search between them take all memory."""
    spans = np.ptp(positions, axis=0)
    if cutoff > 0 and not np.prod(spans / cutoff + 3) < MAX_BOXES:
        told = " x ".join(f"{length:.3g}" for length in spans)
        raise DataError(f"{len(positions)} atoms span {told} Å; expected a cell and positions that they can fill")


def pairs_within(atoms: Atoms, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs i, j (n_edges,) of :func:`neighbour_list` and their distances (n_edges,) in Å."""
    i, j, shifts = neighbour_list(atoms.positions, atoms.cell[:], atoms.pbc, cutoff)
    vectors = atoms.positions[j] - atoms.positions[i] + shifts @ atoms.cell[:]
    return i, j, np.sqrt(np.einsum("ij,ij->i", vectors, vectors))


def closest_by_elements(
    numbers: np.ndarray, i: np.ndarray, j: np.ndarray, distances: np.ndarray
) -> dict[tuple[int, int], float]:
    """Smallest distance of each pair of elements (lower atomic number first), in Å, of pairs of atoms."""
    code = np.minimum(numbers[i], numbers[j]).astype(np.int64) * 1000 + np.maximum(numbers[i], numbers[j])
    found, place = np.unique(code, return_inverse=True)
    least = np.full(len(found), np.inf)
    np.minimum.at(least, place, distances)
    return {(int(c) // 1000, int(c) % 1000): float(d) for c, d in zip(found, least)}


def expected_neighbours(n_atoms: int, cell: np.ndarray, pbc: np.ndarray, radius: float) -> float:
    """How many neighbours an atom has on average if the atoms fill the cell evenly along its periodic directions.

    For fewer than three of these only images of the atom itself are counted: the other atoms may be out of reach.
    """
    vectors = np.asarray(cell, dtype=float)[np.asarray(pbc, dtype=bool)]
    p = len(vectors)
    if p == 0:
        return 0.0
    measure = math.sqrt(max(float(np.linalg.det(vectors @ vectors.T)), 0.0))
    ball = {1: 2 * radius, 2: math.pi * radius**2, 3: 4 / 3 * math.pi * radius**3}[p]
    with np.errstate(all="ignore"):
        return (n_atoms if p == 3 else 1) * ball / measure if measure > 0 else math.inf

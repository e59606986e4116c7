"""Overlapping atoms (paper, section 2.4.2): a distance that falls to half of the smallest distance at the start.

    overlap  <=>  min_{i≠j, images} r_ij(t)  <=  ratio · min_{i≠j, images} r_ij(0),   ratio = 0.5.

All periodic images count, in the cell of each frame, but an atom and its own images are no pair: in a fixed cell their
distance never changes, and a cell that shrinks is judged by its volume. A structure of fewer than two atoms has no
pairs, and no verdict.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from mdl_physpre.structures.neighbours import neighbour_list, pairs_within
from mdl_physpre.utils.record import Record


def minimum_distance(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, radius: float = 3.0) -> float:
    """Smallest distance between two different atoms, periodic images included.

    Parameters
    ----------
    positions : (n, 3), Å.
    cell : (3, 3), Å, rows are vectors.
    pbc : (3,) bool.
    radius : Å; where the search begins. It doubles until a pair is found.

    Returns
    -------
    The distance in Å, NaN for fewer than two atoms.

    Raises
    ------
    DataError : a periodic cell without volume, or positions that are not finite.
    """
    positions = np.asarray(positions, dtype=float)
    if len(positions) < 2:
        return float("nan")
    while True:
        i, j, shifts = neighbour_list(positions, cell, pbc, radius)
        pairs = i < j
        if pairs.any():
            i, j, shifts = i[pairs], j[pairs], shifts[pairs]
            vectors = positions[j] - positions[i] + shifts @ np.asarray(cell, dtype=float)
            return float(np.sqrt((vectors**2).sum(axis=1).min()))
        radius *= 2


def nearest_distances(atoms: Atoms, radius: float = 3.0, farthest: float = 12.0) -> np.ndarray:
    """Distance of the nearest other atom of each atom, periodic images included, (n,), Å.

    radius : Å; where the search begins. It doubles until every atom has one, or up to ``farthest``, which is then its
        distance.
    """
    nearest = np.full(len(atoms), np.inf)
    while len(atoms) and radius < 2 * farthest and not np.isfinite(nearest).all():
        i, j, distances = pairs_within(atoms, min(radius, farthest))
        other = i != j
        np.minimum.at(nearest, i[other], distances[other])
        radius *= 2
    return nearest.clip(max=farthest)


class OverlapAccumulator:
    """Running minimum of the smallest distance, and the first step of an overlap, for many structures.

    Parameters
    ----------
    start : (n_structures,), Å, the smallest distances at the start; NaN where there is no pair.
    ratio : see the module.
    """

    def __init__(self, start: Tensor, ratio: float = 0.5) -> None:
        self.start, self.threshold = start, ratio * start
        self.smallest = start.clone()
        self.smallest_step = torch.zeros_like(start, dtype=torch.int64)
        self.first_step = torch.full_like(self.smallest_step, -1)

    FIELDS = ("start", "threshold", "smallest", "smallest_step", "first_step")

    def add(self, step: int, distances: Tensor) -> Tensor:
        """Take the smallest distances of one frame; returns which structures overlap now, (n_structures,) bool."""
        closer = distances < self.smallest
        self.smallest = torch.where(closer, distances, self.smallest)
        self.smallest_step = self.smallest_step.masked_fill(closer, step)
        overlapping = distances <= self.threshold
        self.first_step = self.first_step.masked_fill(overlapping & (self.first_step < 0), step)
        return overlapping

    def keep(self, structures: Tensor) -> None:
        """Go on with the structures of these indices."""
        for name in self.FIELDS:
            setattr(self, name, getattr(self, name).index_select(0, structures))


class Overlap(Record):
    """Overlap in a trajectory: ``passed``, ``failed`` or ``n/a``; the frame of the first one; distances in Å."""

    verdict: str = "n/a"
    first_frame: int | None = None
    start_min_distance: float | None = None
    min_distance: float | None = None
    threshold: float | None = None


def overlap(frames: Iterable[Atoms], ratio: float = 0.5) -> Overlap:
    """Overlap in a stored trajectory; its first frame is the start."""
    accumulator: OverlapAccumulator | None = None
    for index, atoms in enumerate(frames):
        found = torch.tensor([minimum_distance(atoms.positions, atoms.cell[:], atoms.pbc)], dtype=torch.float64)
        accumulator = accumulator or OverlapAccumulator(found, ratio)
        accumulator.add(index, found)
    if accumulator is None or bool(accumulator.start.isnan()):
        return Overlap()
    first = int(accumulator.first_step)
    return Overlap(
        verdict="failed" if first >= 0 else "passed",
        first_frame=first if first >= 0 else None,
        start_min_distance=float(accumulator.start),
        min_distance=float(accumulator.smallest),
        threshold=float(accumulator.threshold),
    )

"""Frames of stored trajectories."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import XYZError, read_xyz
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from mdl_physpre.dynamics.engine.moving_atoms import MovingAtoms
from mdl_physpre.errors import DataError
from mdl_physpre.structures.state import electronic_state

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
    info, arrays = electronic_state(whole)
    frame = Atoms(whole.numbers, positions, cell=cell, pbc=whole.pbc, momenta=momenta, info=info)
    for key, values in arrays.items():
        frame.set_array(key, values)
    frame.arrays["forces"] = forces
    results = {"energy": energy}
    if np.isfinite(stress).all():
        results["stress"] = full_3x3_to_voigt_6_stress(stress)
    frame.calc = SinglePointCalculator(frame, **results)
    return frame


def present_frames(
    atoms: MovingAtoms, which: Sequence[int], wholes: Sequence[Atoms], left_at: Mapping[int, tuple[Tensor, Tensor]]
) -> Iterator[Atoms]:
    """The structures of these numbers as they are, of ``wholes``; positions and cells of some are those ``left_at``."""
    positions, momenta = atoms.positions.cpu().numpy(), (atoms.velocities * atoms.masses).cpu().numpy()
    forces, cells, stress = atoms.forces.cpu().numpy(), atoms.cells.cpu().numpy(), atoms.stress.cpu().numpy()
    spread = None if atoms.force_spread is None else atoms.force_spread.cpu().numpy()
    energies = atoms.energies.tolist()
    ends = np.concatenate([[0], np.cumsum(atoms.counts.cpu().numpy())])
    for k in which:
        mine = slice(ends[k], ends[k + 1])
        where, cell = positions[mine], cells[k]
        if k in left_at:
            where, cell = (part.cpu().numpy() for part in left_at[k])
        frame = make_frame(wholes[k], where, cell, momenta[mine], forces[mine], energies[k], stress[k])
        if spread is not None and atoms.energy_spread is not None:
            frame.arrays["force_spread"], frame.info["energy_spread"] = spread[mine], float(atoms.energy_spread[k])
        yield frame


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


def unwrapped(frames: Iterable[Atoms], name: str) -> Iterator[Atoms]:
    """Frames of one structure in which atoms that were wrapped back into the cell go on where they left it.

    A frame is taken for wrapped where its atoms lie within one cell, and one has come farther than half of it since the
    frame before: s = s(before) + n + d with |d| <= 1/2 in units of the cell, and n whole, is put back to s − n. How
    many atoms did is said at the end, with the name.
    """
    before: np.ndarray | None = None
    jumped = np.zeros(0, dtype=bool)
    for frame in frames:
        places = frame.cell.scaled_positions(frame.positions) if frame.cell.rank == 3 else None
        if before is not None and places is not None and before.shape == places.shape and len(places):
            within = bool((np.ptp(places, axis=0)[frame.pbc] <= 1).all())
            whole = np.where(frame.pbc & within, np.round(places - before), 0.0)
            if whole.any():
                jumped |= whole.any(axis=1)
                frame, places = _moved(frame, -whole @ frame.cell[:]), places - whole
        else:
            jumped = np.zeros(len(frame), dtype=bool)
        before = places
        yield frame
    if jumped.any():
        logger.warning(
            "%s: %d atoms were wrapped back into the cell; their jumps by lattice vectors are undone. Store unwrapped "
            "positions where an atom may cross half a cell from one frame to the next",
            name,
            np.count_nonzero(jumped),
        )


def _moved(frame: Atoms, by: np.ndarray) -> Atoms:
    """A copy, moved, with its results."""
    moved = frame.copy()
    moved.positions += by
    if frame.calc is not None:
        moved.calc = SinglePointCalculator(moved, **frame.calc.results)
    return moved

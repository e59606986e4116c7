"""Tests that go up a ladder: all structures that still stand take a rung together, and what became of them is stored.

A test that was stopped goes on with the rung that it was at.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io.extxyz import write_extxyz
from ase.neighborlist import neighbor_list

from mdl_physpre.errors import DataError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.eam.covalent_radii import covalent_radius
from mdl_physpre.stress_tests.kinds import StressTest
from mdl_physpre.stress_tests.result import BreakingPoint
from mdl_physpre.structures.state import PER_ATOM, put_state
from mdl_physpre.structures.state import repeated as repeat_with_state
from mdl_physpre.utils.files import write_text
from mdl_physpre.utils.progress import progress as show_progress
from mdl_physpre.utils.record import without_nan

logger = logging.getLogger(__name__)
STATE, FAILING = "ladder.json", "failing_frames"


@dataclass
class Climber:
    """One structure on the ladder.

    place : in the caller's list. name : of the structure. atoms : where it is now. notes : what was measured, as JSON
    has it. end : of its climb, fields of a :class:`BreakingPoint`; ``None`` while it stands. frames : how it broke.
    """

    place: int
    name: str
    atoms: Atoms
    notes: dict[str, Any]
    end: dict[str, Any] | None = None
    frames: tuple[Atoms, ...] = ()

    def breaks(self, value: float, reason: str, text: str, *frames: Atoms) -> None:
        """It broke at ``value``; ``frames`` show how."""
        self.end, self.frames = {"value": value, "broken": True, "reason": reason, "text": text}, frames

    def holds(self, value: float, text: str) -> None:
        """It has reached the end of the scale."""
        self.end = {"value": value, "broken": False, "text": text}


class Ladder(StressTest):
    """A test that goes up rung by rung; a subclass defines the methods that raise NotImplementedError."""

    def rungs(self) -> int:
        """How many rungs there are."""
        raise NotImplementedError

    def start(self, atoms: Atoms, name: str) -> Atoms:
        """What a structure begins with. Raises DataError for one that the test is not for."""
        raise NotImplementedError

    def climb(self, potential: Potential, rung: int, climbers: Sequence[Climber]) -> None:
        """Take these structures over the rung 0, 1, …; end the climb of those that break or are at the end."""
        raise NotImplementedError

    def at_top(self, climber: Climber) -> None:
        """Call ``holds`` for a structure that stands after the last rung."""
        raise NotImplementedError

    def check(self, structures: Sequence[Atoms]) -> None:
        """Raise what :meth:`start` raises."""
        self._starts(structures)

    def _starts(self, structures: Sequence[Atoms]) -> tuple[list[str], list[Atoms]]:
        names = [str(atoms.info.get("structure_id", k)) for k, atoms in enumerate(structures)]
        return names, [self.start(atoms, name) for atoms, name in zip(structures, names, strict=True)]

    def run(
        self, potential: Potential, structures: Sequence[Atoms], out: Path | None, progress: bool = True
    ) -> list[BreakingPoint]:
        names, starts = self._starts(structures)
        climbers = [Climber(k, name, atoms, {}) for k, (name, atoms) in enumerate(zip(names, starts, strict=True))]
        first = 0 if out is None else _restore(out / STATE, climbers)
        rungs: Any = range(first, self.rungs())
        if progress:
            rungs = show_progress(rungs, len(rungs), f"{type(self).__name__.lower()} of {len(starts)} structures")
        for rung in rungs:
            standing = [climber for climber in climbers if climber.end is None]
            if not standing:
                break
            self.climb(potential, rung, standing)
            for climber in standing:
                if climber.end is None and rung == self.rungs() - 1:
                    self.at_top(climber)
                if climber.end is not None:
                    climber.end["step"] = rung
                    _keep_frames(out, climber)
            if out is not None:
                _store(out / STATE, rung + 1, climbers)
        return [_point(climber, atoms) for climber, atoms in zip(climbers, structures, strict=True)]


def _point(climber: Climber, atoms: Atoms) -> BreakingPoint:
    assert climber.end is not None
    return BreakingPoint(
        structure_id=climber.name,
        index=climber.place,
        formula=atoms.get_chemical_formula(),
        n_atoms=len(atoms),
        metrics=without_nan(climber.notes),
        **climber.end,
    )


def _keep_frames(out: Path | None, climber: Climber) -> None:
    if out is None or not climber.frames:
        return
    text = io.StringIO()
    for frame in climber.frames:
        frame.info = {**frame.info, "structure_id": climber.name}
        columns = ["symbols", "positions", *(n for n in ("momenta", "forces", *PER_ATOM) if frame.has(n))]
        write_extxyz(text, [frame], columns=columns)
    (out / FAILING).mkdir(parents=True, exist_ok=True)
    write_text(out / FAILING / f"{climber.place:05d}.extxyz", text.getvalue())


def _store(path: Path, rung: int, climbers: Sequence[Climber]) -> None:
    rows = [
        {
            "positions": c.atoms.positions.tolist(),
            "cell": c.atoms.cell[:].tolist(),
            "momenta": c.atoms.get_momenta().tolist(),
            "notes": c.notes,
            "end": c.end,
        }
        for c in climbers
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"rung": rung, "climbers": rows}))


def _restore(path: Path, climbers: Sequence[Climber]) -> int:
    """Put the stored state into the structures; the next rung."""
    with contextlib.suppress(FileNotFoundError):
        stored = json.loads(path.read_text())
        for climber, row in zip(climbers, stored["climbers"], strict=True):
            atoms = climber.atoms
            climber.atoms = put_state(Atoms(atoms.numbers, row["positions"], cell=row["cell"], pbc=atoms.pbc), atoms)
            climber.atoms.set_masses(atoms.get_masses())
            climber.atoms.set_momenta(np.array(row["momenta"]))
            climber.notes, climber.end = row["notes"], row["end"]
        rung: int = stored["rung"]
        logger.info("%s continues at rung %d", path.parent, rung)
        return rung
    return 0


def plain_atoms(frame: Atoms, masses: Atoms) -> Atoms:
    """Positions, cell and momenta of a frame alone, with masses, charges and the like of another."""
    atoms = put_state(Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc), masses)
    atoms.set_masses(masses.get_masses())
    atoms.set_momenta(frame.get_momenta())
    return atoms


def needs_volume(atoms: Atoms, name: str, test: str, why: str) -> None:
    """Raise DataError for a structure that is not periodic in three directions."""
    if not atoms.pbc.all() or abs(atoms.cell.volume) < 1e-9:
        raise DataError(
            f"structure {name} is periodic along {atoms.pbc.tolist()}, with a volume of {atoms.cell.volume:g} Å³; "
            f"{test} needs three periodic directions, because {why}. Leave it out, or take heating or collisions for it"
        )


def repeated(atoms: Atoms, width: float) -> Atoms:
    """The structure, repeated along each periodic direction until opposite faces of its cell are ``width`` Å apart."""
    normals = np.linalg.norm(np.linalg.inv(atoms.cell.complete()[:]), axis=0)  # 1 / distances of opposite faces
    times = [max(1, math.ceil(width * n - 1e-9)) if p else 1 for n, p in zip(normals, atoms.pbc, strict=True)]
    return repeat_with_state(atoms, times)


def bonds(atoms: Atoms, reach: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of different atoms i < j closer than ``reach`` times the sum of their covalent radii.

    Returns i, j (n,), vectors from i to j (n, 3), Å, and distances over the sums of the radii (n,).
    """
    radii = np.array([covalent_radius(z) for z in atoms.numbers])
    i, j, vectors, distances = neighbor_list("ijDd", atoms, list(reach * radii))
    pairs = i < j
    i, j = i[pairs], j[pairs]
    return i, j, vectors[pairs], distances[pairs] / (radii[i] + radii[j])

"""Tests that go up a ladder: all structures that still stand take a rung together, and what became of them is stored.

A test that was stopped goes on with the rung that it was at. Where frames are asked for, those of a rung are written
before it counts as done.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list
from pydantic import field_validator

from mdl_physpre.dynamics.running.storage import frame_text
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts.verdict import Verdict
from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.eam.covalent_radii import covalent_radius
from mdl_physpre.stress_tests.kinds import StressTest
from mdl_physpre.stress_tests.result import UNCERTAIN, BreakingPoint
from mdl_physpre.structures.state import put_state
from mdl_physpre.structures.state import repeated as repeat_with_state
from mdl_physpre.utils.files import write_text
from mdl_physpre.utils.progress import progress as show_progress
from mdl_physpre.utils.record import without_nan
from mdl_physpre.utils.settings import Settings, setting

logger = logging.getLogger(__name__)
STATE, FAILING, FRAMES = "ladder.json", "failing_frames", "frames"
OWN = ("ensemble", "temperature", "temperature_end", "timestep", "steps", "start_velocities", "observers", "seed",
       "compile", "trajectory_interval", "rdf_interval")  # fmt: skip


class LadderSettings(Settings):
    """What all ladders have."""

    LATER: ClassVar[dict[str, Any]] = {"frames": 0, "dynamics": {}}

    frames: int = setting(0, "Frames of each structure that are stored along the scale, as for an oracle.", ge=0)
    dynamics: dict[str, Any] = setting({}, "Further settings of physpre.dynamics by name, such as max_force_spread.")

    @field_validator("dynamics")
    @classmethod
    def _dynamics_can_be(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name in OWN:
            if name in values:
                raise ValueError(f"{name} is not among them, because the test sets it itself")
        try:
            DynamicsSettings(**values)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return values

    def simulation(self, **own: Any) -> DynamicsSettings:
        """Settings of a simulation with those of the test itself; no Lindemann index, and no pressure if not asked."""
        least = {"lindemann_max_atoms": 0, "pressure_interval": 0, "compile": getattr(self, "compile", False)}
        return DynamicsSettings(**{**least, **own, **self.dynamics})


@dataclass
class Climber:
    """One structure on the ladder.

    place : in the caller's list. name : of the structure. atoms : where it is now. notes : what was measured, as JSON
    has it. end : of its climb, fields of a :class:`BreakingPoint`; ``None`` while it stands. frames : how it broke.
    seen, spread, uncertain : on this rung: frames with energy and forces; the largest force spread of a committee,
    eV/Å; where on the scale it passed its bound.
    """

    place: int
    name: str
    atoms: Atoms
    notes: dict[str, Any]
    end: dict[str, Any] | None = None
    frames: tuple[Atoms, ...] = ()
    seen: list[Atoms] = field(default_factory=list)
    spread: float | None = None
    uncertain: float | None = None

    def sees(self, value: float, verdict: Verdict, *frames: Atoms, at_rest: bool = False) -> None:
        """What one of its simulations was at a point of the scale; ``at_rest``: a relaxation."""
        for frame in frames:
            frame.info |= {"value": value, "at_rest": at_rest}
        self.seen += frames
        spread = verdict.metrics.get("max_force_spread")
        if spread is not None:
            self.spread = max(spread, self.spread or 0.0)
            if verdict.metrics.get("uncertain_step") is not None and self.uncertain is None:
                self.uncertain = value

    def breaks(self, value: float, reason: str, text: str, *frames: Atoms) -> None:
        """It broke at ``value``; ``frames`` show how, the last of them where."""
        self.end, self.frames = {"value": value, "broken": True, "reason": reason, "text": text}, frames

    def holds(self, value: float, text: str) -> None:
        """It has reached the end of the scale."""
        self.end = {"value": value, "broken": False, "text": text}


class Ladder(StressTest):
    """A test that goes up rung by rung; a subclass defines the methods that raise NotImplementedError."""

    settings: LadderSettings

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
            if out is not None and self.settings.frames:
                self._write_frames(out, rung, standing)
            for climber in standing:
                self._note_spread(climber)
                if climber.end is None and rung == self.rungs() - 1:
                    self.at_top(climber)
                if climber.end is not None:
                    climber.end["step"] = rung
                    _keep_frames(out, climber)
            if out is not None:
                _store(out / STATE, rung + 1, climbers)
        return [_point(climber, atoms) for climber, atoms in zip(climbers, structures, strict=True)]

    def _write_frames(self, out: Path, rung: int, climbers: Sequence[Climber]) -> None:
        """Some of the frames that were seen on a rung, evenly, and those where structures broke."""
        each, texts = max(1, round(self.settings.frames / self.rungs())), []
        for climber in climbers:
            broke = climber.frames[-1] if climber.frames else None
            whole = [frame for frame in climber.seen if frame is not broke]
            places = np.unique(np.linspace(0, len(whole) - 1, each).round().astype(int)) if whole else ()
            for frame in [*(whole[k] for k in places), *([] if broke is None else [broke])]:
                shown = frame.copy()
                shown.calc = frame.calc
                shown.info |= {"structure_id": climber.name, "index": climber.place, "step": rung}
                shown.info["at_break"] = frame is broke
                texts.append(frame_text(shown))
        (out / FRAMES).mkdir(parents=True, exist_ok=True)
        write_text(out / FRAMES / f"{rung:05d}.extxyz", "".join(texts))

    def _note_spread(self, climber: Climber) -> None:
        """How far the members of a committee were apart on this rung, and where they first passed the bound."""
        notes, spread = climber.notes, climber.spread
        if spread is not None:
            notes.setdefault("force_spreads", []).append(spread)
            notes["max_force_spread"] = max(notes["force_spreads"])
            if self.settings.dynamics.get("max_force_spread") is not None and notes.get(UNCERTAIN) is None:
                notes[UNCERTAIN] = climber.uncertain
        climber.seen, climber.spread, climber.uncertain = [], None, None


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
    for frame in climber.frames:
        frame.info = {**frame.info, "structure_id": climber.name}
    (out / FAILING).mkdir(parents=True, exist_ok=True)
    write_text(out / FAILING / f"{climber.place:05d}.extxyz", "".join(map(frame_text, climber.frames)))


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

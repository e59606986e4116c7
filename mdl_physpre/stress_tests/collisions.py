"""Collisions: neighbours are shot at each other with rising energy until a structure breaks.

The structure, repeated until its cell is ``min_width`` wide, is relaxed by FIRE. Then of some pairs of neighbours, by
seed, one of each pair of elements first, the two atoms approach each other, the others at rest: along the bond, and
past it by an impact parameter b, that is at the angle asin(b/d) to the bond of length d. With the reduced mass μ the
energy of the pair in its centre-of-mass frame is E = ½ μ v². NVE with time steps of ``fraction`` · d/v until ``passes``
· d/v has passed, in which they meet and part.

**A structure breaks** where one of its collisions does: where the dynamics says so, and by

- ``wall``: the pair comes closer than ``ratio`` · r, where the screened repulsion of the two nuclei alone (Ziegler,
  Biersack and Littmark, :func:`~mdl_physpre.potentials.zbl.nuclear_repulsion`) equals E: V(r) = E. Or any two atoms
  come closer than that of the pair of elements for which r is smallest;
- ``well``: the potential energy falls more than ``well`` eV below that of the relaxed structure;
- ``energy_drift``: the total energy is off by more than ``energy_error`` · E + 0.05 eV.

The value is the energy of the rung at which the first pair broke, the lowest that broke any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms, units
from ase.data import chemical_symbols
from scipy.optimize import brentq
from torch import Tensor

from mdl_physpre.dynamics.running.simulate import run_and_return
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts.observer import Moment, Observer
from mdl_physpre.dynamics.verdicts.verdict import Verdict
from mdl_physpre.errors import DataError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.zbl import nuclear_repulsion
from mdl_physpre.stress_tests.heating import breaks
from mdl_physpre.stress_tests.ladder import Climber, Ladder, LadderSettings, bonds, plain_atoms, repeated
from mdl_physpre.utils.settings import setting

PAIR = "collision"  # in info: i, j, and where j's image is beyond j, Å
SLACK = 0.05  # eV


class CollisionsSettings(LadderSettings):
    """Collisions: neighbours are shot at each other with rising energy until a structure breaks."""

    energy: float = setting(1.0, "Of the pair in its centre-of-mass frame, at the first rung.", "eV", gt=0)
    energy_end: float = setting(100.0, "At the last; those between are even in their logarithm.", "eV", gt=0)
    rungs: int = setting(7, "Energies.", ge=1)
    pairs: int = setting(3, "Pairs of neighbours in each structure.", ge=1)
    impact_parameters: tuple[float, ...] = setting(
        (0.0, 0.5), "Each pair is shot with each of these; 0: head-on.", "Å", min_length=1
    )
    min_width: float = setting(7.0, "Structures are repeated until their cells are so wide.", "Å", ge=0)
    relax_steps: int = setting(200, "Of the relaxation before; 0: none.", ge=0)
    fraction: float = setting(0.01, "Time step, of the time in which they would meet.", gt=0, le=0.1)
    passes: float = setting(2.5, "Length of a run, in times in which they would meet.", gt=0)
    ratio: float = setting(0.5, "Closest approach allowed, of that of the nuclear repulsion alone.", gt=0)
    well: float = setting(2.0, "By how much the potential energy may fall below the start.", "eV", gt=0)
    energy_error: float = setting(0.05, "Error of the total energy allowed, of the energy of the pair.", gt=0)
    seed: int = setting(0, "Of the pairs; in a run each network has its own.", ge=0)
    compile: bool = setting(False, "Compile the potential; a run takes this from task.compile.")

    def energies(self) -> list[float]:
        """The energy of each rung, eV."""
        if self.rungs == 1:
            return [self.energy_end]
        energies: list[float] = np.geomspace(self.energy, self.energy_end, self.rungs).tolist()
        return energies


class Approach(Observer):
    """How close the pair of each structure comes, how low its potential energy, and how far its total energy is off."""

    metrics = ("closest_approach", "lowest_energy_change", "largest_energy_error")
    BY_STRUCTURE = ("i", "j", "image", "closest", "first", "total", "lowest", "error")
    FOR_ALL = ("begun",)

    def __init__(self, watched: Any) -> None:
        super().__init__(watched)
        pairs = [a.info[PAIR] for a in watched.structures]
        device = watched.start.device
        self.i, self.j = (torch.tensor([p[k] for p in pairs], dtype=torch.int64, device=device) for k in (0, 1))
        image = np.array([p[2] for p in pairs], dtype=float).reshape(-1, 3)
        self.image = torch.from_numpy(image).to(device)
        self.closest = torch.full_like(watched.sizes, torch.inf)
        self.first, self.total, self.lowest, self.error = (torch.zeros_like(self.closest) for _ in range(4))
        self.begun = 0

    def count(self, moment: Moment, previous: int) -> None:
        atoms = moment.atoms
        before = torch.cumsum(atoms.counts, 0) - atoms.counts
        ends = atoms.positions.index_select(0, before + self.j) + self.image
        distance = torch.linalg.vector_norm(ends - atoms.positions.index_select(0, before + self.i), dim=1)
        self.closest = torch.minimum(self.closest, distance)
        total = atoms.energies + atoms.kinetic
        if not self.begun:
            self.begun, self.first, self.total, self.lowest = 1, atoms.energies, total, atoms.energies
        self.lowest = torch.minimum(self.lowest, atoms.energies)
        self.error = torch.maximum(self.error, (total - self.total).abs())

    def measured(self) -> dict[str, Tensor]:
        return {
            "closest_approach": self.closest,
            "lowest_energy_change": self.lowest - self.first,
            "largest_energy_error": self.error,
        }


class Collision(NamedTuple):
    """A structure whose atoms i and j are shot at each other; ``timestep`` in fs, d in Å."""

    atoms: Atoms
    i: int
    j: int
    impact: float
    timestep: float

    def named(self) -> str:
        a, b = (f"{self.atoms.symbols[k]}{k}" for k in (self.i, self.j))
        return f"{a}–{b}, {'head-on' if self.impact == 0 else f'passing by at {self.impact:g} Å'}"


def turning_point(zi: int, zj: int, energy: float) -> float:
    """r in Å at which the screened repulsion of two nuclei is ``energy`` eV."""

    def excess(r: float) -> float:
        return math.log(float(nuclear_repulsion(zi, zj, torch.tensor(r, dtype=torch.float64))) / energy)

    return float(brentq(excess, 1e-4, 30.0))


class Collisions(Ladder):
    """See the module."""

    quantity, unit = "energy", "eV"
    Settings = CollisionsSettings
    settings: CollisionsSettings

    def rungs(self) -> int:
        return self.settings.rungs + 1  # the first is the relaxation

    def start(self, atoms: Atoms, name: str) -> Atoms:
        large = repeated(plain_atoms(atoms, atoms), self.settings.min_width)
        if len(large) < 2:
            raise DataError(f"structure {name} has {len(large)} atoms; collisions need two. Leave it out")
        large.set_momenta(np.zeros((len(large), 3)))
        return large

    def climb(self, potential: Potential, rung: int, climbers: Sequence[Climber]) -> None:
        if rung == 0:
            self.relax(potential, climbers)
        else:
            self.collide(potential, self.settings.energies()[rung - 1], climbers)

    def relax(self, potential: Potential, climbers: Sequence[Climber]) -> None:
        """Relax the structures; those that break have broken at the lowest energy."""
        s = self.settings
        settings = s.simulation(ensemble="fire", temperature=0.0, steps=s.relax_steps)
        verdicts, last = run_and_return(potential, [c.atoms for c in climbers], settings, progress=False)
        for climber, verdict, frame in zip(climbers, verdicts, last, strict=True):
            climber.sees(s.energies()[0], verdict, frame, at_rest=True)
            failure = breaks(verdict, settings)
            if failure is not None:
                text = f"{failure.text} (relaxation before)"
                climber.breaks(s.energies()[0], failure.reason, text, climber.atoms, frame)
            climber.atoms = plain_atoms(frame, climber.atoms)

    def collide(self, potential: Potential, energy: float, climbers: Sequence[Climber]) -> None:
        """All collisions of an energy."""
        s = self.settings
        shots = [(climber, shot) for climber in climbers for shot in self.collisions(climber, energy)]
        settings = s.simulation(
            ensemble="nve", start_velocities="structures", steps=math.ceil(s.passes / s.fraction), max_temperature=1e12,
            overlap_ratio=1e-9, observers=(f"{__name__}:{Approach.__name__}",),
            trajectory_interval=math.ceil(1 / s.fraction),
        )  # fmt: skip
        frames: dict[int, list[Atoms]] = {}
        verdicts, last = run_and_return(
            potential,
            [shot.atoms for _, shot in shots],
            settings,
            progress=False,
            per_structure={"timestep": [shot.timestep for _, shot in shots]},
            raise_at_start=False,
            frames=frames,
        )
        for k, ((climber, shot), verdict, end) in enumerate(zip(shots, verdicts, last, strict=True)):
            meeting = [one for one in frames.get(k, []) if one.info["step"] == settings.trajectory_interval]
            frame = end if verdict.stopped or not meeting else meeting[0]
            climber.sees(energy, verdict, frame)
            self.note(climber.notes, verdict.metrics)
            found = self.judge(shot, verdict, energy, settings)
            if found is not None and climber.end is None:
                climber.breaks(
                    energy, found[0], f"{found[1]} ({shot.named()})", plain_atoms(shot.atoms, climber.atoms), frame
                )

    def collisions(self, climber: Climber, energy: float) -> list[Collision]:
        """The same pairs at every energy."""
        s, atoms = self.settings, climber.atoms
        rng = np.random.default_rng([s.seed, climber.place])
        reach = 1.2
        i, j, vectors, _ = bonds(atoms, reach)
        while not len(i):
            reach *= 1.5
            i, j, vectors, _ = bonds(atoms, reach)
        order = rng.permutation(len(i))
        kinds = [tuple(sorted((atoms.numbers[i[k]], atoms.numbers[j[k]]))) for k in order]
        firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
        chosen = [order[k] for k in [*firsts, *(k for k in range(len(order)) if k not in set(firsts))][: s.pairs]]
        return [
            self.shot(atoms, int(i[k]), int(j[k]), vectors[k], b, energy, rng)
            for k in chosen
            for b in s.impact_parameters
        ]

    def shot(
        self, atoms: Atoms, i: int, j: int, bond: np.ndarray, impact: float, energy: float, rng: np.random.Generator
    ) -> Collision:
        """The structure with the velocities of one collision."""
        atoms = atoms.copy()
        d = float(np.linalg.norm(bond))
        along, aside = bond / d, np.cross(bond, rng.standard_normal(3))
        sine = min(impact / d, 1.0)
        direction = math.sqrt(1 - sine**2) * along + sine * aside / np.linalg.norm(aside)
        masses = atoms.get_masses()
        reduced = masses[i] * masses[j] / (masses[i] + masses[j])
        speed = math.sqrt(2 * energy / reduced)
        momenta = np.zeros((len(atoms), 3))
        momenta[i], momenta[j] = reduced * speed * direction, -reduced * speed * direction
        atoms.set_momenta(momenta)
        atoms.info[PAIR] = (i, j, atoms.positions[i] + bond - atoms.positions[j])
        return Collision(atoms, i, j, impact, self.settings.fraction * d / speed / units.fs)

    def judge(
        self, shot: Collision, verdict: Verdict, energy: float, settings: DynamicsSettings
    ) -> tuple[str, str] | None:
        """Reason and sentence where a collision breaks its structure."""
        s, metrics, numbers = self.settings, verdict.metrics, shot.atoms.numbers
        closest, least = metrics["closest_approach"], s.ratio * turning_point(numbers[shot.i], numbers[shot.j], energy)
        if closest is not None and closest < least:
            return "wall", f"the pair comes as close as {closest:.3f} Å, at least {least:.3f} Å expected"
        elements = sorted(set(numbers.tolist()))
        least = s.ratio * min(turning_point(a, b, energy) for a, b in combinations_with_replacement(elements, 2))
        if metrics["min_distance"] is not None and metrics["min_distance"] < least:
            symbols = ", ".join(chemical_symbols[z] for z in elements)
            found = f"two atoms come as close as {metrics['min_distance']:.3f} Å"
            return "wall", f"{found}, at least {least:.3f} Å expected of any of {symbols}"
        failure = breaks(verdict, settings)
        if failure is not None:
            return failure.reason, failure.text
        fall = -metrics["lowest_energy_change"]
        if fall > s.well:
            return "well", f"the potential energy falls by {fall:.3g} eV, at most {s.well:g} allowed"
        error, allowed = metrics["largest_energy_error"], s.energy_error * energy + SLACK
        if error > allowed:
            return "energy_drift", f"the total energy is off by {error:.3g} eV, at most {allowed:.3g} allowed"
        return None

    def note(self, notes: dict[str, Any], metrics: dict[str, Any]) -> None:
        """Keep the extremes of all collisions of a structure."""
        for name, extreme in (("closest_approach", min), ("lowest_energy_change", min), ("largest_energy_error", max)):
            if metrics[name] is not None:
                notes[name] = extreme(metrics[name], notes.get(name, metrics[name]))

    def at_top(self, climber: Climber) -> None:
        end = self.settings.energies()[-1]
        climber.holds(end, f"it has reached the end, {end:g} eV")

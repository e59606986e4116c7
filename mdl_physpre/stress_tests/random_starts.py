"""Random starts: overlapping random structures are relaxed; does the potential get out of them?

From each structure, repeated until its cell is ``min_width`` wide, come random ones: the same atoms in the same cell
(its volume times ``volume``) at random places, none closer than (1 − c) (r_i + r_j) and the closest pair at that
distance, with the covalent radii r of Pyykkö and Atsumi (2009), as structures for random searches are made (C. J.
Pickard and R. J. Needs, J. Phys. Condens. Matter 23, 053201 (2011)). The compression of the closest pair c rises from
rung to rung. The structures are relaxed by FIRE, whose longest step is ``maxstep`` however large the forces.

**A structure breaks** where one of the starts from it does: where the dynamics says so, and by

- ``overlap``: after the relaxation a pair is closer than ``bound`` (r_i + r_j);
- ``well``: the energy falls more than ``well`` eV/atom below that of the given structure, relaxed.

The value is the lowest c that broke any. A start whose forces are still large at the end has not broken by that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from pydantic import model_validator
from typing_extensions import Self

from mdl_physpre.dynamics.running.simulate import run_and_return
from mdl_physpre.dynamics.verdicts.verdict import Verdict
from mdl_physpre.errors import DataError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.eam.covalent_radii import covalent_radius
from mdl_physpre.stress_tests.heating import breaks
from mdl_physpre.stress_tests.ladder import (
    Climber,
    Ladder,
    LadderSettings,
    bonds,
    needs_volume,
    plain_atoms,
    repeated,
)
from mdl_physpre.utils.settings import setting

ATTEMPTS = 500
CLOSE_ENOUGH = 1e-3


class RandomStartsSettings(LadderSettings):
    """Random starts: overlapping random structures are relaxed; does the potential get out of them?"""

    compression: float = setting(20.0, "Of the closest pair, 1 − d/(r_i + r_j), at the first rung.", "%", ge=0, lt=100)
    compression_end: float = setting(90.0, "At the last.", "%", gt=0, lt=100)
    compression_step: float = setting(10.0, "Between two.", "%", gt=0)
    starts: int = setting(3, "Random structures from each at each rung.", ge=1)
    volume: float = setting(1.0, "Their volume over that of the structure.", gt=0)
    min_width: float = setting(6.0, "Structures are repeated until their cells are so wide.", "Å", ge=0)
    steps: int = setting(300, "Of the relaxation, at most.", ge=1)
    fmax: float = setting(0.1, "A structure is relaxed when its largest force is smaller.", "eV/Å", gt=0)
    maxstep: float = setting(0.1, "No atom moves farther in a step.", "Å", gt=0)
    bound: float = setting(0.5, "Distance of a pair over the sum of its radii that the relaxation has to pass.", gt=0)
    well: float = setting(0.5, "By how much the energy may fall below that of the structure, relaxed.", "eV/atom", gt=0)
    seed: int = setting(0, "Of the places; in a run each network has its own.", ge=0)
    compile: bool = setting(False, "Compile the potential; a run takes this from task.compile.")

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.compression_end < self.compression:
            raise ValueError(
                f"compression_end is {self.compression_end:g} and compression is {self.compression:g}; the scale rises"
            )
        return self

    def compressions(self) -> list[float]:
        """That of each rung, %."""
        end = self.compression_end
        below: list[float] = np.arange(self.compression, end - 1e-9, self.compression_step).tolist()
        return [*below, end]


class RandomStarts(Ladder):
    """See the module."""

    quantity, unit = "compression of the closest pair", "%"
    Settings = RandomStartsSettings
    settings: RandomStartsSettings

    def rungs(self) -> int:
        return len(self.settings.compressions()) + 1  # the first is the relaxation of the given structures

    def start(self, atoms: Atoms, name: str) -> Atoms:
        needs_volume(atoms, name, "random_starts", "random structures have its volume")
        large = repeated(plain_atoms(atoms, atoms), self.settings.min_width)
        if len(large) < 2:
            raise DataError(f"structure {name} has one atom in a cell of {self.settings.min_width:g} Å; leave it out")
        return large

    def climb(self, potential: Potential, rung: int, climbers: Sequence[Climber]) -> None:
        s = self.settings
        often = max(1, s.steps // 4) if s.frames else 0
        settings = s.simulation(
            ensemble=f"fire?fmax={s.fmax}&maxstep={s.maxstep}", temperature=0.0, steps=s.steps,
            trajectory_interval=often,
        )  # fmt: skip
        frames: dict[int, list[Atoms]] = {}
        value = s.compressions()[max(rung - 1, 0)]
        tried = [(c, atoms) for c in climbers for atoms in (self.random(c, rung, value) if rung else [c.atoms])]
        verdicts, last = run_and_return(
            potential, [atoms for _, atoms in tried], settings, False, raise_at_start=rung == 0, frames=frames
        )
        for k, ((climber, atoms), verdict, frame) in enumerate(zip(tried, verdicts, last, strict=True)):
            before = [one for one in frames.get(k, []) if rung and one.info["step"] < verdict.steps_run]
            climber.sees(value, verdict, *before, frame, at_rest=True)
            failure = breaks(verdict, settings)
            found = None if failure is None else (failure.reason, failure.text)
            found = found or self.judge(climber, verdict, frame, rung)
            if found is not None and climber.end is None:
                climber.breaks(value, found[0], found[1] if rung else f"{found[1]} (the given structure)", atoms, frame)

    def random(self, climber: Climber, rung: int, compression: float) -> list[Atoms]:
        """Random structures whose closest pair is so compressed."""
        s = self.settings
        cell = climber.atoms.cell[:] * s.volume ** (1 / 3)
        made = []
        for k in range(s.starts):
            rng = np.random.default_rng([s.seed, climber.place, rung, k])
            atoms = climber.atoms.copy()
            atoms.set_cell(cell)
            atoms.set_scaled_positions(rng.random((len(atoms), 3)))
            made.append(with_closest(atoms, 1 - compression / 100, rng))
        return made

    def judge(self, climber: Climber, verdict: Verdict, frame: Atoms, rung: int) -> tuple[str, str] | None:
        """Reason and sentence where a relaxed structure has broken."""
        s, notes = self.settings, climber.notes
        energy = float(frame.get_potential_energy() / len(frame))
        i, j, _, ratios = bonds(frame, s.bound)
        if len(ratios):
            k = int(ratios.argmin())
            d = ratios[k] * sum(covalent_radius(frame.numbers[a]) for a in (i[k], j[k]))
            pair = f"{frame.symbols[i[k]]} and {frame.symbols[j[k]]}"
            found = f"after {verdict.steps_run} steps {pair} are {d:.3f} Å apart"
            return "overlap", f"{found}, {ratios[k]:.2f} of the sum of their radii, at least {s.bound:g} expected"
        if not rung:
            notes["energy"] = energy
            return None
        notes["lowest_energy"] = min(energy, notes.get("lowest_energy", energy))
        if notes["energy"] - energy > s.well:
            fall = notes["energy"] - energy
            return "well", f"the energy is {fall:.3g} eV/atom below that of the structure, at most {s.well:g} allowed"
        return None

    def at_top(self, climber: Climber) -> None:
        end = self.settings.compressions()[-1]
        climber.holds(end, f"it has reached the end, {end:g} %")


def with_closest(atoms: Atoms, fraction: float, rng: np.random.Generator) -> Atoms:
    """Move atoms until the closest pair has ``fraction`` of the sum of its covalent radii, others no less.

    In a cell too dense for it they come as near to that as they can.
    """
    reach = 1.5
    for _ in range(ATTEMPTS):
        i, j, vectors, ratios = bonds(atoms, reach)
        if not len(ratios):
            reach *= 1.5
            continue
        near = ratios < fraction * (1 - CLOSE_ENOUGH)
        if not near.any():
            if ratios.min() <= fraction * (1 + CLOSE_ENOUGH):
                break
            near = np.arange(len(ratios)) == ratios.argmin()
        push = (0.5 * (fraction / np.maximum(ratios[near], 1e-6) - 1))[:, None] * vectors[near]
        lengths = np.linalg.norm(push, axis=1, keepdims=True)
        push *= np.minimum(1.0, 0.5 / np.maximum(lengths, 1e-12))
        np.add.at(atoms.positions, j[near], push)
        np.add.at(atoms.positions, i[near], -push)
        atoms.positions[:] += 1e-6 * rng.standard_normal(atoms.positions.shape)  # out of dead ends
    return atoms

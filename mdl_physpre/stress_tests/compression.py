"""Compression: the volume falls step by step until a structure breaks.

At each volume the cell keeps its shape, and the positions follow in proportion. Then at ``temperature`` 0 the forces
are relaxed by FIRE, else ``steps`` of Langevin dynamics begin with the last velocities. No stress is needed:

- at 0 K the pressure is −(E₂ − E₁)/(V₂ − V₁) of the relaxed energies at neighbouring volumes;
- above, it is the mean pressure of the dynamics where the potential has a stress; else as before with mean potential
  energies of the second half of the steps. That is the static pressure, without the thermal part, some 3γNkT/V (γ:
  Grüneisen's parameter), a few GPa at 300 K.

**A structure breaks** where the dynamics says so, but for the Lindemann index; and by

- ``overlap``: the smallest distance d falls below ``overlap_ratio`` · d₀ (V/V₀)^⅓, d₀ that of the given structure: half
  of what an even compression leaves;
- ``well``: the potential energy falls more than ``well`` eV/atom below that at the first volume. A denser phase that
  the structure falls into releases less;
- ``soft``: twice in a row the pressure lies ``pressure_fall`` below the highest so far, and has not risen in between.
  A change of phase lowers the pressure, too, but then it rises again.

The value is the highest pressure that was reached in good order, at least 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ase import Atoms, units
from torch import Tensor

from mdl_physpre.dynamics.running.simulate import run_and_return
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts.observer import Moment, Observer
from mdl_physpre.dynamics.verdicts.verdict import Verdict
from mdl_physpre.potentials.base import Potential
from mdl_physpre.stress_tests.heating import breaks
from mdl_physpre.stress_tests.ladder import Climber, Ladder, LadderSettings, needs_volume, plain_atoms
from mdl_physpre.utils.settings import setting

BAR_IN_GPA = 1e-4


class CompressionSettings(LadderSettings):
    """Compression: the volume falls step by step until a structure breaks."""

    volume_step: float = setting(0.02, "By which part of itself the volume falls.", gt=0, lt=0.5)
    lowest_volume: float = setting(0.3, "Volume over that at the start at which the test ends.", gt=0, lt=1)
    end_pressure: float = setting(200.0, "Pressure at which it ends.", "GPa", gt=0)
    temperature: float = setting(0.0, "0: forces are relaxed at each volume; else of Langevin dynamics.", "K", ge=0)
    steps: int = setting(200, "Of the relaxation, at most, or of the dynamics, at each volume.", ge=1)
    start_steps: int = setting(1000, "The same at the first volume.", ge=1)
    fmax: float = setting(0.02, "A structure is relaxed when its largest force is smaller.", "eV/Å", gt=0)
    timestep: float = setting(1.0, "Of the dynamics.", "fs", gt=0)
    overlap_ratio: float = setting(
        0.5, "Smallest distance over that of an even compression at which atoms overlap.", gt=0
    )
    well: float = setting(0.5, "By how much the energy may fall below that at the start.", "eV/atom", gt=0)
    pressure_fall: float = setting(10.0, "By how much the pressure may fall below the highest so far.", "GPa", gt=0)
    seed: int = setting(0, "Of velocities and noise; in a run each network has its own.", ge=0)
    compile: bool = setting(False, "Compile the potential; a run takes this from task.compile.")


class MeanEnergy(Observer):
    """The mean potential energy of each structure from step ``first`` on."""

    metrics = ("mean_potential_energy",)
    BY_STRUCTURE = ("energy_sum",)
    FOR_ALL = ("samples",)

    def __init__(self, watched: Any, first: int = 0) -> None:
        super().__init__(watched)
        self.first, self.samples, self.energy_sum = first, 0, torch.zeros_like(watched.sizes)

    def count(self, moment: Moment, previous: int) -> None:
        if moment.step >= self.first:
            self.energy_sum, self.samples = self.energy_sum + moment.atoms.energies, self.samples + 1

    def measured(self) -> dict[str, Tensor]:
        return {"mean_potential_energy": self.energy_sum / self.samples}  # NaN where there is no sample


class Compression(Ladder):
    """See the module."""

    quantity, unit = "pressure", "GPa"
    Settings = CompressionSettings
    settings: CompressionSettings

    def ends(self) -> tuple[float, float]:
        return 0.0, self.settings.end_pressure

    def rungs(self) -> int:
        s, rungs = self.settings, 1
        while (1 - s.volume_step) ** rungs >= s.lowest_volume - 1e-12:
            rungs += 1
        return rungs

    def start(self, atoms: Atoms, name: str) -> Atoms:
        needs_volume(atoms, name, "compression", "its volume is what falls")
        return plain_atoms(atoms, atoms)

    def climb(self, potential: Potential, rung: int, climbers: Sequence[Climber]) -> None:
        s = self.settings
        shrink = (1 - s.volume_step) ** (1 / 3) if rung else 1.0
        dense = [c.atoms.copy() for c in climbers]
        for atoms in dense:
            atoms.set_cell(atoms.cell[:] * shrink, scale_atoms=True)
        places, dynamics = [c.place for c in climbers], self.dynamics(rung)
        verdicts, last = run_and_return(
            potential, dense, dynamics, progress=False, indices=places, raise_at_start=rung == 0
        )
        for climber, begun, verdict, frame in zip(climbers, dense, verdicts, last, strict=True):
            failure = breaks(verdict, dynamics)
            found = None if failure is None else (failure.reason, failure.text)
            found = found or self.judge(climber.notes, verdict, frame, rung, potential.gives_stress)
            highest = max([0.0, *climber.notes.get("pressures", [])])
            climber.sees(min(highest, s.end_pressure), verdict, frame, at_rest=s.temperature == 0)
            if found is not None:
                ratio = (1 - s.volume_step) ** rung
                climber.breaks(highest, found[0], f"{found[1]} (at {ratio:.3f} of the volume)", begun, frame)
            elif highest >= s.end_pressure:
                climber.holds(s.end_pressure, f"it has reached the end, {s.end_pressure:g} GPa")
            climber.atoms = plain_atoms(frame, begun)

    def dynamics(self, rung: int) -> DynamicsSettings:
        """What is done at the volume of a rung."""
        s, steps = self.settings, self.settings.steps if rung else self.settings.start_steps
        if s.temperature == 0:
            return s.simulation(ensemble=f"fire?fmax={s.fmax}", temperature=0.0, steps=steps)
        return s.simulation(
            steps=steps,
            temperature=s.temperature,
            timestep=s.timestep,
            friction=0.02,
            pressure_interval=max(1, min(25, steps // 10)),
            start_velocities="structures" if rung else "maxwell_boltzmann",
            observers=(f"{__name__}:{MeanEnergy.__name__}?first={steps // 2}",),
            seed=s.seed + 1_000_003 * rung,
        )

    def judge(
        self, notes: dict[str, Any], verdict: Verdict, frame: Atoms, rung: int, gives_stress: bool
    ) -> tuple[str, str] | None:
        """Note energy and pressure of a rung; reason and sentence where it breaks."""
        s, metrics = self.settings, verdict.metrics
        ratio, n = (1 - s.volume_step) ** rung, len(frame)
        relaxed = s.temperature == 0
        energy = float(frame.get_potential_energy()) if relaxed else metrics["mean_potential_energy"]
        start = notes.setdefault("start_min_distance", metrics["start_min_distance"])
        distance = metrics["min_distance"]
        for name, value in (("volume_ratios", ratio), ("energies", energy), ("min_distances", distance)):
            notes.setdefault(name, []).append(value)
        pressures = notes.setdefault("pressures", [])
        if distance is not None and distance < s.overlap_ratio * start * ratio ** (1 / 3):
            least = s.overlap_ratio * start * ratio ** (1 / 3)
            return "overlap", f"a distance of {distance:.3f} Å, at least {least:.3f} Å expected"
        fall = (notes["energies"][0] - energy) / n
        if fall > s.well:
            return "well", f"the energy is {fall:.3g} eV/atom below that at the start, at most {s.well:g} allowed"
        if not relaxed and gives_stress and metrics["mean_pressure"] is not None:
            pressures.append(metrics["mean_pressure"] * BAR_IN_GPA)
        elif rung:
            before = frame.get_volume() / (1 - s.volume_step)
            pressures.append(float((energy - notes["energies"][-2]) / (before - frame.get_volume()) / units.GPa))
        least = max(pressures, default=0.0) - s.pressure_fall
        if len(pressures) > 2 and pressures[-2] < least and pressures[-1] <= min(least, pressures[-2]):
            return "soft", f"the pressure falls to {pressures[-1]:.4g} GPa after {max(pressures):.4g} GPa"
        return None

    def at_top(self, climber: Climber) -> None:
        lowest = climber.notes["volume_ratios"][-1]
        text = f"it has reached the lowest volume, {lowest:.3f} of that at the start"
        climber.holds(max([0.0, *climber.notes["pressures"]]), text)

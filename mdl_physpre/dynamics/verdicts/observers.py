"""All observers of a run together, and the averages that belong to no reason for failure: energies, pressure.

The observers are those of :mod:`mdl_physpre.dynamics.verdicts.built_in` and ``distances``, and those that ``observers``
in the settings names. No trajectory is kept. The same objects take the frames of a stored trajectory, of which some
steps may be missing.

A structure that an observer stops leaves with its verdict; averages cover the steps before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase import units
from torch import Tensor

from mdl_physpre.dynamics.engine.broken import Broken
from mdl_physpre.dynamics.engine.moving_atoms import MovingAtoms
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts.built_in import Displacement, Forces, Temperature, TooDeep, Volume
from mdl_physpre.dynamics.verdicts.distances import Lindemann, Overlap
from mdl_physpre.dynamics.verdicts.melting import Diffusion
from mdl_physpre.dynamics.verdicts.observer import OBSERVERS, Moment, Observer, Watched
from mdl_physpre.dynamics.verdicts.uncertainty import Uncertainty

BUILT_IN: tuple[type[Observer], ...] = (
    Volume, Displacement, Forces, Temperature, TooDeep, Overlap, Lindemann, Diffusion, Uncertainty,
)  # fmt: skip
"""The observers of every run, in the order in which they look."""

FIRST_NUMBER = 6
"""Of others in stored states, however many observers of every run there are: states of before are read."""


class Observers(Watched):
    """All observers of the structures that are being simulated; parameters as :class:`Watched`."""

    # per structure and for all: what a stored state holds
    BY_STRUCTURE = (
        "energy_start", "energy_last", "conserved_start", "conserved_last", "conserved_sum", "conserved_moment",
        "pressure_sum", "pressure_samples",
    )  # fmt: skip
    FOR_ALL = ("counted", "step_sum", "step_square_sum", "last_step")

    energy_start: Tensor
    energy_last: Tensor
    conserved_start: Tensor
    conserved_last: Tensor
    conserved_sum: Tensor
    conserved_moment: Tensor
    pressure_sum: Tensor
    pressure_samples: Tensor

    def __init__(self, settings: DynamicsSettings, *others: Any) -> None:
        super().__init__(settings, *others)
        for name in self.BY_STRUCTURE:
            setattr(self, name, torch.zeros_like(self.sizes))
        self.step_sum, self.step_square_sum = 0, 0
        further = [OBSERVERS.find(name)(self, **options) for name, options in settings.further_observers()]
        self.all = [*(cls(self) for cls in BUILT_IN), *further]

    @property
    def parts(self) -> list[object]:
        """Objects whose attributes the steps change."""
        return [self, *(part for observer in self.all for part in observer.parts)]

    def check_cells(self, cells: Tensor, broken: Broken) -> None:
        """Structures that break by their cells."""
        for observer in self.all:
            observer.check_cells(cells, broken)

    def check_positions(
        self, positions: Tensor, broken: Broken, deformation: Tensor | None = None, step_done: bool = True
    ) -> None:
        """Structures that break by where their atoms are."""
        for observer in self.all:
            observer.check_positions(positions, broken, deformation, step_done)

    def check_forces(self, atoms: MovingAtoms, broken: Broken, stress: bool = False) -> None:
        """Structures that break by their forces and energies, or where ``stress`` is needed their stress."""
        for observer in self.all:
            observer.check_forces(atoms, broken, stress)

    def check_motion(self, moment: Moment, broken: Broken) -> None:
        """Structures that break by all else, at the end of a step."""
        for observer in self.all:
            observer.check(moment, broken)

    def count(self, moment: Moment, conserved: Tensor) -> None:
        """Take a step that the remaining structures have survived into the averages."""
        step, previous, first = moment.step, self.last_step, not self.counted
        self.energy_last, self.conserved_last = moment.atoms.energies + moment.atoms.kinetic, conserved
        if first:
            self.energy_start, self.conserved_start = self.energy_last.clone(), conserved.clone()
        change = conserved - self.conserved_start
        self.conserved_sum = self.conserved_sum + change
        self.conserved_moment = self.conserved_moment + step * change
        self.counted += 1
        self.step_sum, self.step_square_sum, self.last_step = self.step_sum + step, self.step_square_sum + step**2, step
        for observer in self.all:
            observer.count(moment, previous)

    def count_pressure(self, pressures: Tensor) -> None:
        """Take a sample of the pressures, eV/Å³; structures that have none are passed by."""
        known = pressures.isfinite() & self.periodic
        self.pressure_sum = self.pressure_sum + torch.where(known, pressures / units.bar, 0.0)
        self.pressure_samples = self.pressure_samples + known

    def passed(self, step: int) -> list[Tensor]:
        """Masks of structures that have passed a bound at this step without being stopped."""
        return [mask for observer in self.all if (mask := observer.passed(step)) is not None]

    def measured(self) -> dict[str, Tensor]:
        """Metrics of all structures; NaN where there is none."""
        spread = self.step_square_sum - self.step_sum**2 / max(self.counted, 1)
        moment = self.conserved_moment - self.conserved_sum * self.step_sum / max(self.counted, 1)
        timestep = torch.tensor([s.timestep for s in self.each], dtype=torch.float64, device=self.start.device)
        nothing = torch.full_like(timestep, torch.nan)
        begun = self.counted > 0
        found = {
            "total_energy_start": self.energy_start if begun else nothing,
            "total_energy_end": self.energy_last if begun else nothing,
            "conserved_energy_start": self.conserved_start if begun else nothing,
            "conserved_energy_end": self.conserved_last if begun else nothing,
            "energy_drift": moment / spread / (timestep * 1e-3) / self.sizes if spread > 0 else nothing,
            "mean_pressure": torch.where(
                self.pressure_samples > 0, self.pressure_sum / self.pressure_samples, torch.nan
            ),
            "pressure_samples": self.pressure_samples.to(torch.int64),
        }
        for observer in self.all:
            found |= observer.measured()
        return found

    def keep(self, structures: list[int], atoms: Tensor) -> None:
        """Go on with the structures of these indices; ``atoms`` holds the indices of their atoms."""
        which = torch.tensor(structures, dtype=torch.int64, device=self.start.device)
        for name in ("each", "structures", "ids", "indices", "trained_on"):
            setattr(self, name, [getattr(self, name)[k] for k in structures])
        for name in (*self.BY_STRUCTURE, "start_cells", "smallest"):
            setattr(self, name, getattr(self, name).index_select(0, which))
        self.start = self.start.index_select(0, atoms)
        self._set_sizes()
        for observer in self.all if structures else ():
            observer.keep(structures, which, atoms)

    def state(self) -> dict[str, np.ndarray]:
        """All that was gathered, as arrays; ``start`` included."""
        arrays = {name: getattr(self, name).cpu().numpy() for name in (*self.BY_STRUCTURE, "start")}
        arrays |= {name: np.array(getattr(self, name)) for name in self.FOR_ALL}
        for place, observer in enumerate(self.all):
            prefix = self._prefix(place)
            arrays |= {f"{prefix}{name}": value for name, value in observer.state().items()}
        return arrays

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on from :meth:`state`, with the same structures."""
        for name in self.BY_STRUCTURE:
            setattr(self, name, torch.from_numpy(arrays[name].copy()).to(self.start.device))
        for name in self.FOR_ALL:
            setattr(self, name, int(arrays[name]))
        for place, observer in enumerate(self.all):
            prefix = self._prefix(place)
            observer.restore({n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)})

    def _prefix(self, place: int) -> str:
        """Before the names of an observer's arrays; of those of this package the names differ."""
        number = place - len(BUILT_IN)
        return "" if number < 0 else f"{FIRST_NUMBER + number}_{type(self.all[place]).__name__}_"

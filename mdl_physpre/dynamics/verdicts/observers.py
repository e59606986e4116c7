"""What is watched while structures are simulated. No trajectory is kept.

Each thing that is watched is an :class:`Observer`: those of :mod:`mdl_physpre.dynamics.verdicts.built_in`, and those
that ``observers`` in the settings names. :class:`Observers` holds them together, and the averages that belong to no
reason for failure: energies, pressure. The same objects take the frames of a stored trajectory, of which some steps may
be missing.

A structure that an observer stops leaves with its verdict; averages cover the steps before.

Nothing is changed in place: a shallow copy keeps what was there before.

Where cells change, displacements are those beyond the change of the cell: x(t) − x(0) · M, with cell(t) = cell(0) · M.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from ase import Atoms, units
from torch import Tensor

from mdl_physpre.dynamics.engine.broken import Broken
from mdl_physpre.dynamics.engine.moving_atoms import MovingAtoms
from mdl_physpre.utils.import_paths import import_object
from mdl_physpre.utils.registry import Registry

Conditions = Any
"""What is asked of a structure: ``DynamicsSettings``, which look observers up and so cannot be imported here."""

Judged = tuple[dict[str, tuple[int, str]], dict[str, str]]
"""Failures (reason -> first failing step, sentence), and what cannot be judged (reason -> why)."""


def due(step: int, previous: int, interval: int) -> bool:
    """Whether a multiple of ``interval`` lies after ``previous`` and up to ``step``."""
    return step // interval > previous // interval


@dataclass
class Moment:
    """All structures at the end of a step: (B,) temperature in K and smallest distance in Å of each.

    deformation : (B, 3, 3), M with cell = cell(0) · M; ``None`` where cells do not change.
    """

    step: int
    atoms: MovingAtoms
    temperature: Tensor
    distances: Tensor
    deformation: Tensor | None = None


class Observer:
    """One thing that is watched, with the reasons for which a structure fails by it.

    The usual observer has one reason and defines :meth:`watch` and :meth:`sentence`. Its arguments are those of the
    settings: ``observers: ["package.module:Class?bound=2.5"]`` calls ``Class(watched, bound=2.5)``.

    A device runs ahead of the host: do not read tensors in :meth:`watch` and :meth:`count` (no ``float()``, no ``if``),
    and do not change them in place, because steps may be taken again; assign new tensors.

    Parameters
    ----------
    watched : the structures: ``settings`` and ``each`` (the settings of each), ``structures`` at the start (ASE),
        ``start`` (n, 3) Å, ``start_cells`` (B, 3, 3) Å, ``batch`` (n,), the structure of each atom, ``sizes`` (B,).
    """

    reasons: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[tuple[str, ...]] = ()  # names of what `measured` gives, for verdicts
    needs_a_step: ClassVar[bool] = True  # whether it says nothing of a structure with which no step can be taken
    # attributes that are stored, and kept when structures leave: (B, …), (n atoms, …), whole numbers
    BY_STRUCTURE: ClassVar[tuple[str, ...]] = ()
    BY_ATOM: ClassVar[tuple[str, ...]] = ()
    FOR_ALL: ClassVar[tuple[str, ...]] = ()

    def __init__(self, watched: Observers) -> None:
        self.watched = watched

    def watch(self, moment: Moment) -> Tensor | None:
        """Which structures fail at this step, (B,) bool: they are stopped. Called after each step."""
        return None

    def sentence(self, structure: int) -> str:
        """Why a structure for which :meth:`watch` gave true has failed."""
        return ""

    def check_cells(self, cells: Tensor, broken: Broken) -> None:
        """Called where cells have changed, before the atoms are looked at."""

    def check_positions(
        self, positions: Tensor, broken: Broken, deformation: Tensor | None = None, step_done: bool = True
    ) -> None:
        """Called after atoms have moved, before forces are computed."""

    def check_forces(self, atoms: MovingAtoms, broken: Broken, stress: bool = False) -> None:
        """Called after forces were computed; ``stress``: whether the stress is needed."""

    def check(self, moment: Moment, broken: Broken) -> None:
        """Called at the end of a step; here: :meth:`watch`, for structures that are not broken already."""
        mask = self.watch(moment)
        for k in [] if mask is None else broken.which(mask):
            if k not in broken:
                broken.add(k, self.reasons[0], self.sentence(k))

    def count(self, moment: Moment, previous: int) -> None:
        """Take a step that the remaining structures have survived into averages; ``previous``: the step before it."""

    def passed(self, step: int) -> Tensor | None:
        """Which structures have passed a bound at this step without being stopped, (B,) bool: their frames are kept."""
        return None

    def measured(self) -> dict[str, Tensor]:
        """Metrics of all structures, (B,); NaN where there is none."""
        return {}

    def not_applicable(self, structure: int) -> str | None:
        """Why a structure cannot be judged, if so."""
        return None

    def judge(self, structure: int, metrics: dict[str, Any]) -> Judged:
        """What is found at the end of a structure's run, beyond what stopped it; ``metrics`` may be completed."""
        why = self.not_applicable(structure)
        return {}, {} if why is None else dict.fromkeys(self.reasons, why)

    @property
    def parts(self) -> tuple[object, ...]:
        """Objects whose attributes the steps change."""
        return (self,)

    def keep(self, structures: list[int], which: Tensor, atoms: Tensor) -> None:
        """Go on with these structures: their indices, as a list and a tensor, and those of their atoms."""
        for names, rows in ((self.BY_STRUCTURE, which), (self.BY_ATOM, atoms)):
            for name in names:
                setattr(self, name, getattr(self, name).index_select(0, rows))

    def state(self) -> dict[str, np.ndarray]:
        """What a continued run needs, by name."""
        tensors = {name: getattr(self, name).cpu().numpy() for name in (*self.BY_STRUCTURE, *self.BY_ATOM)}
        return tensors | {name: np.array(getattr(self, name)) for name in self.FOR_ALL}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on from :meth:`state`, with the same structures."""
        for name in (*self.BY_STRUCTURE, *self.BY_ATOM):
            setattr(self, name, torch.from_numpy(arrays[name].copy()).to(self.watched.start.device))
        for name in self.FOR_ALL:
            setattr(self, name, int(arrays[name]))


BUILT_IN = tuple(
    f"mdl_physpre.dynamics.verdicts.built_in:{name}"
    for name in ("Volume", "Displacement", "Forces", "Temperature", "Overlap", "Lindemann")
)
"""The observers of every run, in the order in which they look."""

OBSERVERS: Registry[Observer] = Registry("observer", "mdl_physpre.observers", Observer, {})


class Observers:
    """All observers of the structures that are being simulated.

    Parameters
    ----------
    settings : what all structures share.
    each : the settings of each structure.
    structures, ids, indices : the structures at the start, their names and their places in the caller's list.
    start : (n, 3), Å, positions at the start.
    smallest : (n_structures,), Å, smallest distances at the start, NaN where there is no pair.
    """

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

    def __init__(
        self,
        settings: Conditions,
        each: Sequence[Conditions],
        structures: Sequence[Atoms],
        ids: Sequence[str],
        indices: Sequence[int],
        start: Tensor,
        smallest: Tensor,
    ) -> None:
        self.settings, self.each = settings, list(each)
        self.structures, self.ids, self.indices = list(structures), list(ids), list(indices)
        self.start, self.smallest = start.clone(), smallest
        cells = np.array([a.cell[:] for a in structures], dtype=float).reshape(-1, 3, 3)
        self.start_cells = torch.from_numpy(cells).to(start.device)
        self._set_sizes()
        for name in self.BY_STRUCTURE:
            setattr(self, name, torch.zeros_like(self.sizes))
        self.counted, self.step_sum, self.step_square_sum, self.last_step = 0, 0, 0, -1
        built_in: list[type[Observer]] = [import_object(path, "observer") for path in BUILT_IN]
        self.further = [OBSERVERS.find(name)(self, **options) for name, options in settings.further_observers()]
        self.all = [*(cls(self) for cls in built_in), *self.further]

    def _set_sizes(self) -> None:
        device, sizes = self.start.device, [len(a) for a in self.structures]
        self.batch = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(device)
        self.sizes = torch.tensor(sizes, dtype=torch.float64, device=device)
        self.periodic = torch.tensor([bool(np.all(a.pbc)) for a in self.structures], device=device)

    @property
    def parts(self) -> list[object]:
        """Objects whose attributes the steps change."""
        return [self, *(part for observer in self.all for part in observer.parts)]

    def sums(self, values: Tensor) -> Tensor:
        """Sums over the atoms of each structure, (B, …)."""
        out = torch.zeros((len(self.sizes), *values.shape[1:]), dtype=values.dtype, device=values.device)
        return out.index_add_(0, self.batch, values)

    def largest(self, values: Tensor) -> Tensor:
        """The largest of the values (n,), at least 0, of the atoms of each structure, (B,)."""
        return torch.zeros_like(self.sizes).scatter_reduce_(0, self.batch, values, "amax")

    def deformation(self, cells: Tensor) -> Tensor:
        """M (n_structures, 3, 3) with cell(0) · M = cell(t), for structures periodic in three directions."""
        return torch.linalg.solve_ex(self.start_cells, cells).result

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
        for name in ("each", "structures", "ids", "indices"):
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
        return "" if place < len(BUILT_IN) else f"{place}_{type(self.all[place]).__name__}_"

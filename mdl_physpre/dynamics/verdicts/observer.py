"""What an observer is: one thing that is watched while structures are simulated, with its reasons for failure.

Nothing is changed in place: a shallow copy keeps what was there before.

Where cells change, displacements are those beyond the change of the cell: x(t) − x(0) · M, with cell(t) = cell(0) · M.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from mdl_physpre.dynamics.engine.broken import Broken
from mdl_physpre.dynamics.engine.moving_atoms import MovingAtoms
from mdl_physpre.utils.registry import Registry

Conditions = Any
"""What is asked of a structure: ``DynamicsSettings``, which look observers up and so cannot be imported here."""

AnyObserver = TypeVar("AnyObserver", bound="Observer")

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


class Watched:
    """The structures that are being simulated, as observers see them.

    Of the start: ``structures`` (ASE), ``start`` (n, 3) Å, ``start_cells`` (B, 3, 3) Å, and ``smallest`` (B,) Å,
    smallest distances, NaN where there is no pair. ``settings``: what all share; ``each``: the settings of each;
    ``ids`` and ``indices``: names and places in the caller's list; ``batch`` (n,): the structure of each atom;
    ``sizes`` (B,): atoms; ``periodic`` (B,): whether in three directions. ``counted`` steps were survived, up to
    ``last_step``. ``trained_on``: the lowest energy per atom, eV, of each one's composition in the data that the
    potential was trained on; ``None`` where that is not known.
    """

    all: list[Observer]

    def __init__(
        self,
        settings: Conditions,
        each: Sequence[Conditions],
        structures: Sequence[Atoms],
        ids: Sequence[str],
        indices: Sequence[int],
        start: Tensor,
        smallest: Tensor,
        trained_on: Sequence[float | None] | None = None,
    ) -> None:
        self.settings, self.each = settings, list(each)
        self.structures, self.ids, self.indices = list(structures), list(ids), list(indices)
        self.start, self.smallest = start.clone(), smallest
        self.trained_on = [None] * len(self.each) if trained_on is None else list(trained_on)
        cells = np.array([a.cell[:] for a in structures], dtype=float).reshape(-1, 3, 3)
        self.start_cells = torch.from_numpy(cells).to(start.device)
        self.counted, self.last_step = 0, -1
        self._set_sizes()

    def of(self, cls: type[AnyObserver]) -> AnyObserver:
        """The observer of a class, among ``all`` that watch these structures."""
        return next(observer for observer in self.all if isinstance(observer, cls))

    def _set_sizes(self) -> None:
        device, sizes = self.start.device, [len(a) for a in self.structures]
        self.batch = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(device)
        self.sizes = torch.tensor(sizes, dtype=torch.float64, device=device)
        self.periodic = torch.tensor([bool(np.all(a.pbc)) for a in self.structures], device=device)

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


class Observer:
    """One thing that is watched, with the reasons for which a structure fails by it.

    The usual observer has one reason and defines :meth:`watch` and :meth:`sentence`. Its arguments are those of the
    settings: ``observers: ["package.module:Class?bound=2.5"]`` calls ``Class(watched, bound=2.5)``.

    A device runs ahead of the host: do not read tensors in :meth:`watch` and :meth:`count` (no ``float()``, no ``if``),
    and do not change them in place, because steps may be taken again; assign new tensors.

    Parameters
    ----------
    watched : the structures, see :class:`Watched`.
    """

    reasons: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[tuple[str, ...]] = ()  # names of what `measured` gives, for verdicts
    needs_a_step: ClassVar[bool] = True  # whether it says nothing of a structure with which no step can be taken
    # attributes that are stored, and kept when structures leave: (B, …), (n atoms, …), whole numbers
    BY_STRUCTURE: ClassVar[tuple[str, ...]] = ()
    BY_ATOM: ClassVar[tuple[str, ...]] = ()
    FOR_ALL: ClassVar[tuple[str, ...]] = ()

    def __init__(self, watched: Watched) -> None:
        self.watched = watched

    @classmethod
    def reasons_with(cls, settings: Conditions) -> tuple[str, ...]:
        """Those of ``reasons`` that structures are judged by with these settings."""
        return cls.reasons

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
        """Go on from :meth:`state`, with the same structures; what a state of an earlier version lacks begins anew."""
        for name in arrays.keys() & {*self.BY_STRUCTURE, *self.BY_ATOM}:
            setattr(self, name, torch.from_numpy(arrays[name].copy()).to(self.watched.start.device))
        for name in arrays.keys() & set(self.FOR_ALL):
            setattr(self, name, int(arrays[name]))


OBSERVERS: Registry[Observer] = Registry("observer", "mdl_physpre.observers", Observer, {})

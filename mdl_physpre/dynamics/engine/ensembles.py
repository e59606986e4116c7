"""What an ensemble is: how a step is taken, which random numbers it draws, what a continued run needs of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from ase import units
from torch import Tensor

from mdl_physpre.dynamics.engine.moving_atoms import MovingAtoms
from mdl_physpre.errors import ConfigError
from mdl_physpre.utils.import_paths import path_and_arguments
from mdl_physpre.utils.registry import Registry

Conditions = Any
"""What is asked of a structure: ``DynamicsSettings``, which look ensembles up and so cannot be imported here."""

FEMTOSECOND = units.fs
BOLTZMANN = units.kB

Noise = tuple[Tensor, ...]


class Ensemble:
    """How all structures take a step; here that of velocity Verlet (NVE).

    At each step: :meth:`begin_step`; :meth:`rescale` and new forces where ``changes_cells``; :meth:`first_half`; forces
    at the new positions; :meth:`second_half`, which sets the kinetic energies. They assign new tensors to the fields of
    the atoms.
    Tensors are not changed in place, because steps may be taken again, and not read by the host (no ``float()``, no
    ``if``), because a device runs ahead of it.

    Its arguments are those of the settings: ``ensemble: package.module:Class?rate=0.1`` calls
    ``Class(atoms, each, rate=0.1)``. It is made anew when structures leave.

    Parameters
    ----------
    atoms : the structures.
    each : the settings of each.
    """

    # attributes (B, …) and (n atoms, …) that are stored, and kept for those that stay
    FIELDS: ClassVar[tuple[str, ...]] = ("heat",)
    ATOM_FIELDS: ClassVar[tuple[str, ...]] = ()
    at_rest: ClassVar[bool] = False  # atoms have no velocities at the start
    changes_cells: ClassVar[bool] = False
    follows_temperature: ClassVar[bool] = False  # whether it has a thermostat that takes each step at the present kT

    @staticmethod
    def draw(generator: np.random.Generator, steps: int, n_atoms: int) -> np.ndarray:
        """The random numbers that some steps of one structure take, see ``Draw`` in ``random_numbers``; here none."""
        return np.zeros((steps, 0, 1))

    @classmethod
    def check(cls, settings: Conditions) -> None:
        """Raise ValueError for settings with which the ensemble cannot be."""

    def __init__(self, atoms: MovingAtoms, each: Sequence[Conditions]) -> None:
        self.each, self.device = list(each), atoms.positions.device
        self.timestep = self.values(lambda s: s.timestep) * FEMTOSECOND
        self.temperature = self.start_temperature = self.values(lambda s: s.temperature)
        self.kT = self.temperature * BOLTZMANN
        changes = any(s.temperature_end is not None for s in self.each)
        self.rise = self.values(lambda s: s.temperature_at(1) - s.temperature) if changes else None  # K in a step
        self.h = atoms.per_atom(self.timestep)[:, None]
        self.half_over_mass = 0.5 * self.h / atoms.masses
        self.heat = torch.zeros_like(self.timestep)

    def values(self, of: Callable[[Conditions], float]) -> Tensor:
        """One value for each structure, (B,)."""
        return torch.tensor([of(s) for s in self.each], dtype=torch.float64, device=self.device)

    def begin_step(self, atoms: MovingAtoms, step: int) -> None:
        """Set ``temperature``, K, and ``kT``, eV, both (B,), to those of a step where ``temperature_end`` is set."""
        if self.rise is not None:
            self.temperature = (self.start_temperature + step * self.rise).clamp(min=0)  # rounding may pass 0 K
            self.kT = self.temperature * BOLTZMANN

    def rescale(self, atoms: MovingAtoms) -> None:
        """What is done to velocities and cells before the forces of the step are taken."""

    def first_half(self, atoms: MovingAtoms, noise: Noise | None) -> None:
        """New positions, and velocities at the half step."""
        atoms.velocities = atoms.velocities + self.half_over_mass * atoms.forces
        atoms.positions = atoms.positions + self.h * atoms.velocities

    def second_half(self, atoms: MovingAtoms) -> None:
        """Velocities and kinetic energies at the new positions."""
        atoms.velocities = atoms.velocities + self.half_over_mass * atoms.forces
        atoms.kinetic = atoms.kinetic_energies()

    def finished(self, atoms: MovingAtoms) -> Tensor | None:
        """Which structures are done before their last step, (B,) bool, at the end of a step; ``None``: none is ever."""
        return None

    def take_over(self, before: Ensemble, structures: Tensor, atoms: Tensor) -> None:
        """Go on from ``before``, of which these structures and atoms, by their indices, are left."""
        for names, rows in ((self.FIELDS, structures), (self.ATOM_FIELDS, atoms)):
            for name in names:
                setattr(self, name, getattr(before, name).index_select(0, rows))

    def begin_work(self, atoms: MovingAtoms) -> None:
        """Note what :meth:`end_work` needs; before the first half of a step, after any change of velocities."""
        self.begun = (atoms.positions, atoms.forces, atoms.kinetic)

    def end_work(self, atoms: MovingAtoms) -> None:
        """Count what the kinetic energy gained in this step beyond the work of the forces as heat."""
        positions, forces, kinetic = self.begun
        work = (forces + atoms.forces) * (atoms.positions - positions)
        work += 0.5 * self.h * self.half_over_mass * (atoms.forces.square() - forces.square())
        self.heat = self.heat + (atoms.kinetic - kinetic - 0.5 * atoms.sums(work.sum(1)))


ENSEMBLES: Registry[Ensemble] = Registry(
    "ensemble",
    "mdl_physpre.ensembles",
    Ensemble,
    {
        "nve": "mdl_physpre.dynamics.engine.integrators:NVE",
        "nvt": "mdl_physpre.dynamics.engine.integrators:Langevin",
        "nvt_bussi": "mdl_physpre.dynamics.engine.thermostats:Bussi",
        "nvt_nose_hoover": "mdl_physpre.dynamics.engine.thermostats:NoseHooverChain",
        "npt": "mdl_physpre.dynamics.engine.thermostats:Berendsen",
        "fire": "mdl_physpre.dynamics.engine.relaxation:FIRE",
    },
)


class Chosen(NamedTuple):
    """The class of an ensemble and the arguments that its name in the settings gives it."""

    cls: type[Ensemble]
    arguments: dict[str, Any]

    def make(self, atoms: MovingAtoms, each: Sequence[Conditions]) -> Ensemble:
        """The integrator of these structures."""
        return self.cls(atoms, each, **self.arguments)


def ensemble_of(text: str) -> Chosen:
    """The ensemble of ``name`` or ``package.module:Class?key=value``.

    Raises
    ------
    ConfigError : an unknown name; arguments that the class does not take.
    """
    name, arguments = path_and_arguments(text)
    return Chosen(checked_class(ENSEMBLES, name, arguments, 2), arguments)


def checked_class(registry: Registry[Any], name: str, arguments: dict[str, Any], others: int) -> type[Any]:
    """The class of a name; ConfigError where it does not take these arguments, beside ``others`` that it always has."""
    cls = registry.find(name)
    try:
        inspect.signature(cls).bind(*[None] * others, **arguments)
    except TypeError as error:
        raise ConfigError(f"{name!r}: {error}; it is called as {cls.__name__}{inspect.signature(cls)}") from None
    return cls

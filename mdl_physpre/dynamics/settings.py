"""What a molecular dynamics run is asked to do, and the thresholds by which it is judged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator
from typing_extensions import Self

from mdl_physpre.dynamics.engine.ensembles import checked_class, ensemble_of
from mdl_physpre.dynamics.verdicts.observer import OBSERVERS
from mdl_physpre.errors import ConfigError, nearest
from mdl_physpre.utils.import_paths import path_and_arguments
from mdl_physpre.utils.settings import Settings, setting

PER_STRUCTURE = ("temperature", "temperature_end", "pressure", "timestep", "steps")


class DynamicsProtocol(Settings):
    """Molecular dynamics: the run, when a structure has failed, what else is measured, and the work."""

    SECTION: ClassVar[str] = "dynamics"
    LATER: ClassVar[dict[str, Any]] = {
        "temperature_end": None, "max_force_spread": None, "stop_on_uncertain": True,
        "too_deep_margin": 0.2, "stop_on_too_deep": False,
        "start_velocities": "maxwell_boltzmann",
    }  # fmt: skip

    ensemble: str = setting(
        "nvt",
        "nvt (Langevin), nvt_bussi (stochastic velocity rescaling), nvt_nose_hoover (chain of three), npt (Berendsen), "
        "nve (velocity Verlet), fire (relaxation), "
        "or a registered name or import path, with arguments: package.module:Class?rate=0.1.",
    )
    temperature: float = setting(
        300.0, "Of the thermostat, and of the Maxwell–Boltzmann velocities at the start in every ensemble.", "K", ge=0
    )
    start_velocities: Literal["maxwell_boltzmann", "structures"] = setting(
        "maxwell_boltzmann", "Velocities at the start: drawn for the temperature, or those of the given structures."
    )
    temperature_end: float | None = setting(
        None, "Of the thermostat at the last step; it is raised evenly from temperature. null: it stays.", "K", ge=0
    )
    timestep: float = setting(1.0, "Time step.", "fs", gt=0)
    steps: int = setting(5000, "Time steps of every structure.", ge=0)
    friction: float = setting(0.01, "Of the Langevin thermostat (nvt).", "1/fs", ge=0)
    fixcm: bool = setting(
        True, "nvt: noise that leaves the centre of mass alone; npt: its motion is taken out. As ASE's default."
    )
    overlap_ratio: float = setting(
        0.5, "Overlap: the smallest distance is at most this times the smallest distance at the start.", gt=0
    )
    stop_on_overlap: bool = setting(True, "An overlap ends the run of its structure.")
    too_deep_margin: float | None = setting(
        0.2,
        "Too deep: the potential energy per atom falls so far below the lowest in the training data, or at the start "
        "where that is lower. null: not judged.",
        "eV",
        ge=0,
    )
    stop_on_too_deep: bool = setting(
        False, "A structure that is too deep ends its run; otherwise it goes on, to be judged by the other bounds, too."
    )
    max_force_spread: float | None = setting(
        None,
        "Of a committee: with a larger force spread on one atom, a structure is uncertain; null: no bound.",
        "eV/Å",
        gt=0,
    )
    stop_on_uncertain: bool = setting(True, "To be uncertain ends the run of a structure.")
    lindemann_local: float = setting(0.25, "Bound of the largest Lindemann index of an atom.", gt=0)
    lindemann_global: float = setting(0.2, "Bound of the mean Lindemann index.", gt=0)
    distance: Literal["continuous", "minimum_image"] = setting(
        "continuous", "Distances of the Lindemann index: continuous in time, or of nearest images in each frame."
    )
    lindemann_interval: int = setting(5, "Steps between two samples of the Lindemann averages.", ge=1)
    lindemann_check_interval: int = setting(
        50, "Steps between two looks at the running index: the resolution of its first failing step.", ge=1
    )
    lindemann_min_steps: int = setting(100, "Shortest run that the Lindemann index is judged on.", ge=0)
    lindemann_max_atoms: int = setting(
        2000, "Structures with more atoms get no Lindemann index, which needs every pair of atoms."
    )
    max_temperature: float | None = setting(
        None,
        "Hotter structures have failed; null: 10 times the highest temperature of the thermostat, at least 10,000. It "
        "is multiplied by "
        "1 + 3 sqrt(2/(3 N)) for N atoms, because the temperature of few atoms fluctuates.",
        "K",
        gt=0,
    )
    max_displacement: float = setting(
        200.0,
        "An atom farther from its start, beyond the mean displacement of its structure, has escaped.",
        "Å",
        gt=0,
    )
    max_neighbours: int = setting(10_000, "With more neighbours of one atom, a structure has collapsed.", ge=1)
    observers: tuple[str, ...] = setting(
        (), "Further observers with reasons to fail: registered names or import paths, with arguments as ensemble has."
    )
    skin: float = setting(1.0, "Neighbour lists reach this much beyond the cutoff.", "Å", gt=0)
    max_edges: int = setting(
        50_000,
        "Edges in one evaluation of the potential on the CPU, which bounds its memory; a larger structure is evaluated "
        "alone. On a GPU its free memory decides.",
        ge=1,
    )
    checkpoint_steps: int = setting(250, "The state is stored after so many steps,", ge=1)
    checkpoint_seconds: float = setting(30.0, "or after so many seconds, whichever comes first.", "s")
    trajectory_interval: int = setting(0, "Steps between stored frames; 0 stores none.", ge=0)
    pressure: float = setting(1.01325, "Of the barostat (npt).", "bar")
    taut: float = setting(100.0, "Time constant of the thermostat (npt, nvt_bussi, nvt_nose_hoover).", "fs", gt=0)
    taup: float = setting(1000.0, "Time constant of the barostat (npt).", "fs", gt=0)
    compressibility: float = setting(4.57e-5, "Of the barostat (npt).", "1/bar", gt=0)
    min_volume_ratio: float = setting(0.1, "Lowest volume over the volume at the start.", gt=0, lt=1)
    max_volume_ratio: float = setting(10.0, "Highest volume over the volume at the start.", gt=1)
    pressure_interval: int = setting(
        25, "Steps between two samples of the pressure, where the potential has a stress; 0: none. npt: always 1.", ge=0
    )
    rdf_interval: int = setting(0, "Steps between two samples of the radial distribution functions; 0: none.", ge=0)
    rdf_start: int = setting(0, "First step of which they are sampled.", ge=0)
    rdf_r_max: float = setting(6.0, "Their largest distance.", "Å", gt=0)
    rdf_bins: int = setting(120, "Their bins.", ge=1)
    rdf_smoothing: float = setting(0.0, "Width of the Gaussian that they are smoothed with.", "Å", ge=0)

    @field_validator("ensemble")
    @classmethod
    def _ensemble_is_there(cls, name: str) -> str:
        try:
            ensemble_of(name)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return name

    @field_validator("observers")
    @classmethod
    def _observers_are_there(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            for text in names:
                checked_class(OBSERVERS, *path_and_arguments(text), 1)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return names

    @model_validator(mode="after")
    def _enough_for_the_ensemble(self) -> Self:
        cls = ensemble_of(self.ensemble).cls
        cls.check(self)
        if self.temperature_end is not None and not cls.follows_temperature:
            raise ValueError(
                f"temperature_end is {self.temperature_end:g}, and ensemble {self.ensemble!r} has no thermostat that "
                "follows it; take nvt, nvt_bussi, nvt_nose_hoover or npt, or leave temperature_end out"
            )
        return self

    def further_observers(self) -> list[tuple[str, dict[str, Any]]]:
        """Name or import path of each of ``observers``, and its arguments."""
        return [path_and_arguments(text) for text in self.observers]

    def temperature_at(self, step: int) -> float:
        """Temperature of the thermostat at a step, K: T(k) = T(0) + (T_end − T(0)) k / steps."""
        if self.temperature_end is None or not self.steps:
            return self.temperature
        return self.temperature + (self.temperature_end - self.temperature) * step / self.steps

    def temperature_bound(self, n_atoms: int) -> float:
        """Temperature, K, above which a structure of ``n_atoms`` atoms counts as broken."""
        hottest = max(self.temperature, self.temperature_end or 0.0)
        bound = max(10 * hottest, 10_000.0) if self.max_temperature is None else self.max_temperature
        return bound * (1 + 3 * math.sqrt(2 / (3 * max(n_atoms, 1))))


class DynamicsSettings(DynamicsProtocol):
    """Settings of :func:`mdl_physpre.simulate`."""

    seed: int = setting(0, "Random numbers of structure k come from (seed, k) alone.", ge=0)
    compile: bool = setting(False, "Compile the potential; physpre run takes this from task.compile.")


def settings_of_each(
    settings: DynamicsSettings, n: int, per_structure: Mapping[str, Sequence[Any]] | None
) -> list[DynamicsSettings]:
    """The settings of each of ``n`` structures.

    Parameters
    ----------
    per_structure : values of ``temperature``, ``temperature_end``, ``pressure``, ``timestep`` or ``steps``, one for
        each structure.

    Raises
    ------
    ConfigError : another name, not ``n`` values, or a value that cannot be used, with its place.
    """
    each = [settings] * n
    for name, values in (per_structure or {}).items():
        if name not in PER_STRUCTURE:
            raise ConfigError(f"per_structure names {name!r}; {nearest(name, PER_STRUCTURE)}")
        if len(values) != n:
            raise ConfigError(f"per_structure gives {len(values)} values of {name} for {n} structures; give one each")
        for k, value in enumerate(values):
            try:
                each[k] = each[k].changed(**{name: value})
            except ConfigError as error:
                raise ConfigError(f"per_structure[{name!r}][{k}] is {value!r}: {error}") from None
    return each

"""What a molecular dynamics run is asked to do, and the thresholds by which it is judged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from mdl_physpre.errors import ConfigError, nearest

ENSEMBLES = ("nvt", "nvt_bussi", "nvt_nose_hoover", "npt", "nve")
DISTANCES = ("continuous", "minimum_image")
PER_STRUCTURE = ("temperature", "pressure", "timestep", "steps")


@dataclass(frozen=True)
class DynamicsSettings:
    """Settings of :func:`mdl_physpre.dynamics.running.simulate.simulate`.

    Run
    ---
    ensemble : ``nvt`` (Langevin), ``nvt_bussi`` (stochastic velocity rescaling), ``nvt_nose_hoover`` (chain of three),
        ``npt`` (Berendsen) or ``nve`` (velocity Verlet).
    temperature : K; of the thermostat, and of the Maxwell–Boltzmann velocities at the start in every ensemble.
    pressure : bar; ``npt`` only.
    timestep : fs.
    steps : time steps of every structure.
    friction : 1/fs; ``nvt`` only.
    taut : fs; time constant of the thermostat of ``npt``, ``nvt_bussi`` and ``nvt_nose_hoover``.
    taup : fs; time constant of the barostat.
    compressibility : 1/bar; of the barostat.
    fixcm : ``nvt``: noise that leaves the centre of mass alone; ``npt``: its motion is taken out. As ASE's default.
    seed : random numbers of structure k come from (seed, k) alone.

    Failure
    -------
    overlap_ratio : overlap where the smallest distance is at most this times the smallest distance at the start.
    stop_on_overlap : whether an overlap ends that structure's run.
    lindemann_local, lindemann_global : bounds of the largest q_i and of the mean q_i.
    distance : ``continuous`` or ``minimum_image``, see :mod:`mdl_physpre.analysis.lindemann`.
    lindemann_interval : steps between two samples of the Lindemann averages.
    lindemann_check_interval : steps between two looks at the running index; the resolution of its first failing step.
    lindemann_min_steps : shortest run that the Lindemann index is judged on.
    lindemann_max_atoms : structures with more atoms get no Lindemann index (it needs every pair of atoms).
    max_temperature : K; ``None`` means 10 times ``temperature``, at least 10,000 K. The bound is multiplied by
        1 + 3 sqrt(2/(3 N)) for N atoms, because the temperature of few atoms fluctuates.
    max_displacement : Å; an atom farther from its start, beyond the mean displacement of its structure, has escaped.
    max_neighbours : more neighbours of one atom than this mean that the structure has collapsed.
    min_volume_ratio, max_volume_ratio : bounds of the volume over the volume at the start.

    Observation
    -----------
    pressure_interval : steps between two samples of the pressure where the potential has a stress; 0 takes none.
        ``npt`` has it at every step.
    rdf_interval, rdf_start : steps between two samples of the radial distribution functions (0 takes none), and the
        first step that is sampled.
    rdf_r_max, rdf_bins, rdf_smoothing : Å, number, Å; see :mod:`mdl_physpre.analysis.radial_distribution`.

    Work
    ----
    skin : Å; neighbour lists reach this much beyond the cutoff.
    max_edges : edges in one evaluation of the potential on the CPU, which bounds its memory; a larger structure is
        evaluated alone. On a GPU its free memory decides.
    compile : run the potential as :class:`~mdl_physpre.potentials.compiled.CompiledPotential`. In a run of
        ``physpre run``, ``task.compile`` says it.
    checkpoint_steps, checkpoint_seconds : the state is stored at whichever comes first.
    trajectory_interval : steps between stored frames; 0 stores none.
    """

    ensemble: str = "nvt"
    temperature: float = 300.0
    timestep: float = 1.0
    steps: int = 5000
    friction: float = 0.01
    fixcm: bool = True
    seed: int = 0
    overlap_ratio: float = 0.5
    stop_on_overlap: bool = True
    lindemann_local: float = 0.25
    lindemann_global: float = 0.2
    distance: str = "continuous"
    lindemann_interval: int = 5
    lindemann_check_interval: int = 50
    lindemann_min_steps: int = 100
    lindemann_max_atoms: int = 2000
    max_temperature: float | None = None
    max_displacement: float = 200.0
    max_neighbours: int = 10_000
    skin: float = 1.0
    max_edges: int = 50_000
    compile: bool = False
    checkpoint_steps: int = 250
    checkpoint_seconds: float = 30.0
    trajectory_interval: int = 0
    pressure: float = 1.01325
    taut: float = 100.0
    taup: float = 1000.0
    compressibility: float = 4.57e-5
    min_volume_ratio: float = 0.1
    max_volume_ratio: float = 10.0
    pressure_interval: int = 25
    rdf_interval: int = 0
    rdf_start: int = 0
    rdf_r_max: float = 6.0
    rdf_bins: int = 120
    rdf_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            # 300 and 300.0 are the same settings
            if isinstance(field.default, float) and type(getattr(self, field.name)) is int:
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        for name, known in (("ensemble", ENSEMBLES), ("distance", DISTANCES)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"dynamics.{name} is {value!r}; {nearest(value, known)}")
        positive = (
            "timestep", "skin", "overlap_ratio", "lindemann_local", "lindemann_global", "max_displacement", "taut",
            "taup", "compressibility", "min_volume_ratio", "max_volume_ratio", "rdf_r_max",
        )  # fmt: skip
        whole = (
            "lindemann_interval", "lindemann_check_interval", "max_neighbours", "max_edges", "checkpoint_steps",
            "rdf_bins",
        )  # fmt: skip
        not_negative = (
            "temperature", "friction", "steps", "seed", "trajectory_interval", "lindemann_min_steps",
            "pressure_interval", "rdf_interval", "rdf_start", "rdf_smoothing",
        )  # fmt: skip
        limits = ((positive, 0.0, "above 0"), (whole, 1, "at least 1"), (not_negative, 0, "0 or more"))
        for names, least, words in limits:
            for name in names:
                value = getattr(self, name)
                if not math.isfinite(value) or value < least or (names is positive and value <= 0):
                    raise ConfigError(f"dynamics.{name} is {value}; it must be {words}")
        if not math.isfinite(self.pressure):
            raise ConfigError(f"dynamics.pressure is {self.pressure}; it must be a number, in bar")
        if self.max_temperature is not None and not self.max_temperature > 0:
            raise ConfigError(f"dynamics.max_temperature is {self.max_temperature}; it must be above 0, or null")
        if not self.min_volume_ratio < 1 < self.max_volume_ratio:
            found = f"{self.min_volume_ratio:g} and {self.max_volume_ratio:g}"
            raise ConfigError(f"dynamics.min_volume_ratio and max_volume_ratio are {found}; 1 must lie between them")
        if self.ensemble == "nvt_nose_hoover" and not self.temperature > 0:
            raise ConfigError("dynamics.temperature is 0; the Nosé–Hoover thermostat needs a temperature above 0")

    def temperature_bound(self, n_atoms: int) -> float:
        """Temperature, K, above which a structure of ``n_atoms`` atoms counts as broken."""
        bound = max(10 * self.temperature, 10_000.0) if self.max_temperature is None else self.max_temperature
        return bound * (1 + 3 * math.sqrt(2 / (3 * max(n_atoms, 1))))


def settings_of_each(
    settings: DynamicsSettings, n: int, per_structure: Mapping[str, Sequence[Any]] | None
) -> list[DynamicsSettings]:
    """The settings of each of ``n`` structures.

    Parameters
    ----------
    per_structure : values of ``temperature``, ``pressure``, ``timestep`` or ``steps``, one for each structure.

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
                own: dict[str, Any] = {name: int(value) if name == "steps" else float(value)}
                each[k] = replace(each[k], **own)
            except (ConfigError, TypeError, ValueError) as error:
                raise ConfigError(f"per_structure[{name!r}][{k}] is {value!r}: {error}") from None
    return each

"""Heating: the temperature of a thermostat rises evenly until a structure breaks.

A structure breaks by any reason of molecular dynamics but the Lindemann index: a melt is not broken. The breaking point
is the temperature of the thermostat at the step at which it broke. All networks should be heated at one ``rate``, so
that their breaking points can be compared; where the ramp ends only says where a structure that holds is let go.

**Of a committee** with ``dynamics: {max_force_spread: 1.0, stop_on_uncertain: false}`` the temperature at which the
spread passes the bound is the metric ``uncertain_value``, beside where the structure breaks; with
``stop_on_uncertain`` it is where it breaks.

**The end of the ramp**, where none is given, is ``times_melting`` times the melting temperature of the potential
itself (:mod:`mdl_physpre.stress_tests.melting`), at most 20,000 K.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ase import Atoms
from pydantic import model_validator
from typing_extensions import Self

from mdl_physpre.dynamics.running.simulate import simulate
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts.verdict import Failure, Verdict
from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.stress_tests.kinds import StressTest
from mdl_physpre.stress_tests.melting import melting_temperature
from mdl_physpre.stress_tests.result import UNCERTAIN, BreakingPoint
from mdl_physpre.utils.settings import Settings, setting

logger = logging.getLogger(__name__)
UNKNOWN_END, HIGHEST_END = 6000.0, 20_000.0  # K; where no melting was found, and at most
MELTING = "melting"  # folder of the run that looks for it
OWN = ("temperature", "timestep", "ensemble", "friction", "seed", "compile")  # settings of molecular dynamics


class HeatingSettings(Settings):
    """Heating: the temperature of a thermostat rises evenly until a structure breaks."""

    temperature: float = setting(300.0, "Where the ramp begins.", "K", ge=0)
    temperature_end: float | None = setting(
        None,
        "Where it ends; null: times_melting times the melting temperature of the potential itself, which a short run "
        "tells, at most 20,000; 6000 where it tells nothing.",
        "K",
        gt=0,
    )
    times_melting: float = setting(4.0, "See temperature_end.", gt=1)
    rate: float = setting(5000.0, "By how much the temperature rises.", "K/ps", gt=0)
    timestep: float = setting(1.0, "Time step.", "fs", gt=0)
    ensemble: str = setting("nvt", "With a thermostat that follows the temperature, as in physpre.dynamics.")
    friction: float = setting(0.02, "Of the Langevin thermostat (nvt); atoms lag by rate/friction.", "1/fs", gt=0)
    seed: int = setting(0, "Of velocities and noise; in a run each network has its own.", ge=0)
    compile: bool = setting(False, "Compile the potential; a run takes this from task.compile.")
    frames: int = setting(0, "Frames of each structure that are stored along the ramp, evenly, as for an oracle.", ge=0)
    dynamics: dict[str, Any] = setting({}, "Further settings of physpre.dynamics by name, such as overlap_ratio.")

    @model_validator(mode="after")
    def _dynamics_can_be(self) -> Self:
        if self.temperature_end is not None and self.temperature_end <= self.temperature:
            raise ValueError(
                f"temperature_end is {self.temperature_end:g} and temperature is {self.temperature:g}; "
                "a ramp ends above its beginning"
            )
        own = sorted({"temperature_end", *OWN} & set(self.dynamics))
        if own:
            raise ValueError(f"dynamics: {own[0]} is a setting of heating itself; set heating.{own[0]}")
        if "steps" in self.dynamics:
            raise ValueError("dynamics: steps follow from temperature_end, rate and timestep")
        try:
            self.ramp(self.temperature + 1000.0)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    def ramp(self, end: float, **more: Any) -> DynamicsSettings:
        """Molecular dynamics from ``temperature`` up to ``end``, K, with further settings."""
        steps = max(1, round((end - self.temperature) / self.rate * 1000 / self.timestep))
        values = {name: getattr(self, name) for name in OWN} | {"temperature_end": end, "steps": steps}
        stored = {"trajectory_interval": max(1, steps // self.frames)} if self.frames else {}
        return DynamicsSettings(**values, **{"pressure_interval": 0, **stored, **self.dynamics, **more})


class Heating(StressTest):
    """See the module."""

    quantity, unit = "temperature", "K"
    Settings = HeatingSettings

    def ends(self) -> tuple[float, float]:
        """Of the ramp; where each network has its own end, in bins of 500 K all the same."""
        s: HeatingSettings = self.settings
        return (0.0, 5000.0) if s.temperature_end is None else (s.temperature, s.temperature_end)

    def run(
        self, potential: Potential, structures: Sequence[Atoms], out: Path | None, progress: bool = True
    ) -> list[BreakingPoint]:
        s: HeatingSettings = self.settings
        melting, end = None, s.temperature_end
        if end is None:
            looking = s.ramp(2 * s.temperature + 1).changed(temperature=s.temperature or 300.0)
            melting = melting_temperature(potential, structures, looking, out and out / MELTING, progress)
            end = UNKNOWN_END if melting is None else min(s.times_melting * melting, HIGHEST_END)
            end = max(round(end, -2), 2 * s.temperature)
            found = "no melting was found" if melting is None else f"melts at about {melting:.0f} K"
            logger.info("heating: %s; the ramp ends at %.0f K", found, end)
        ramp = s.ramp(end)
        verdicts = simulate(potential, structures, ramp, out, progress)
        more = {"temperature_end": end, "melting_temperature": melting}
        return [_breaking_point(verdict, ramp, more) for verdict in verdicts]


def breaks(verdict: Verdict, settings: DynamicsSettings) -> Failure | None:
    """The first failure of a structure that is more than melting, or a spread that is only watched."""
    watched = () if settings.stop_on_uncertain else ("uncertain",)
    found = (failure for failure in verdict.failures if not failure.reason.startswith("lindemann"))
    return next((failure for failure in found if failure.reason not in watched), None)


def _breaking_point(verdict: Verdict, ramp: DynamicsSettings, more: Mapping[str, Any]) -> BreakingPoint:
    failure = breaks(verdict, ramp)
    step = verdict.steps_run if failure is None else failure.step
    melted, uncertain = (
        verdict.metrics.get(f"{what}_step") for what in ("lindemann_global_first_exceeded", "uncertain")
    )
    if ramp.max_force_spread is not None and verdict.metrics.get("max_force_spread") is not None:
        more = {**more, UNCERTAIN: None if uncertain is None else ramp.temperature_at(uncertain)}
    return BreakingPoint(
        structure_id=verdict.structure_id,
        index=verdict.index,
        formula=verdict.formula,
        n_atoms=verdict.n_atoms,
        value=ramp.temperature_at(step),
        broken=failure is not None,
        reason=None if failure is None else failure.reason,
        text="" if failure is None else failure.text,
        step=step,
        metrics={
            **verdict.metrics,
            **more,
            "time_fs": step * ramp.timestep,
            "lindemann_temperature": None if melted is None else ramp.temperature_at(melted),
        },
    )

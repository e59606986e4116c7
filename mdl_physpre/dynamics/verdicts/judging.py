"""Verdicts from what the observers have gathered.

The drift of the conserved energy (total energy less the heat from thermostat and barostat) is the slope of the straight
line of least squares through its values at all steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ase import Atoms

from mdl_physpre.dynamics.engine.broken import Broken
from mdl_physpre.dynamics.engine.ensembles import ensemble_of
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts.melting import Diffusion
from mdl_physpre.dynamics.verdicts.observer import OBSERVERS, Observer
from mdl_physpre.dynamics.verdicts.observers import BUILT_IN, Observers
from mdl_physpre.dynamics.verdicts.verdict import LINDEMANN, REASONS, Verdict, make_verdict

METRICS = (
    "start_min_distance", "min_distance", "min_distance_step", "overlap_threshold", "lindemann_max_local",
    "lindemann_global", "lindemann_local_first_exceeded_step", "lindemann_global_first_exceeded_step",
    "lindemann_samples", "mean_temperature", "max_temperature", "max_force", "max_displacement", "total_energy_start",
    "total_energy_end", "conserved_energy_start", "conserved_energy_end", "energy_drift", "mean_pressure",
    "pressure_samples", "volume_start", "volume_end", "mean_volume", "temperature_bound", "lindemann_local_bound",
    "lindemann_global_bound", "lowest_energy", "lowest_energy_step", "lowest_training_energy", "lowest_energy_allowed",
    "mean_squared_displacement", "diffusion_exponent", "diffusion_coefficient", "late_temperature",
    "max_force_spread", "mean_force_spread", "max_energy_spread", "uncertain_step",
)  # fmt: skip
"""What is measured of each structure: distances in Å, temperatures in K, forces in eV/Å, energies in eV, pressure in
bar, volumes in Å³, what begins with ``lowest`` in eV/atom, spreads of a committee in eV/Å and eV/atom, and
``energy_drift`` of the conserved energy in eV per atom and ps."""


def verdicts_of(observers: Observers, structures: Sequence[int], steps_run: int, broken: Broken) -> list[Verdict]:
    """Final verdicts of these structures, which end after ``steps_run`` steps.

    The run of one that is not broken is taken to be as long as it was: it was asked for no more, it is relaxed, or it
    is a trajectory whose last steps were not stored.
    """
    measured = observers.measured()
    rows = torch.stack([values.to(torch.float64) for values in measured.values()]).tolist()  # one transfer
    table = {
        name: row if values.is_floating_point() else [int(value) for value in row]
        for (name, values), row in zip(measured.items(), rows, strict=True)
    }
    verdicts = []
    diffusion = observers.of(Diffusion)
    for k in structures:
        settings = observers.each[k]
        metrics = {name: values[k] for name, values in table.items()}
        failures = {reason: (steps_run, text) for reason, text in broken.get(k, {}).items()}
        missing: dict[str, str] = {}
        for observer in observers.all:
            found, unknown = observer.judge(k, metrics)
            failures |= found
            missing |= unknown
        moves = bool(failures) and failures.keys() <= set(LINDEMANN)
        verdicts.append(
            _verdict(
                settings,
                observers.structures[k],
                observers.ids[k],
                observers.indices[k],
                failures,
                missing,
                steps_run,
                settings.steps if k in broken else steps_run,
                metrics,
                diffusion.not_liquid(k, metrics) if moves else "",
            )
        )
    return verdicts


def observer_classes(settings: DynamicsSettings) -> list[type[Observer]]:
    """The classes of all observers of a run, those of this package first."""
    return [*BUILT_IN, *(OBSERVERS.find(name) for name, _ in settings.further_observers())]


def unusable(settings: DynamicsSettings, atoms: Atoms, name: str, index: int, reason: str, text: str) -> Verdict:
    """The verdict of a structure with which no step can be taken."""
    silent = [cls for cls in observer_classes(settings) if cls.needs_a_step]
    missing = {check: "the run did not begin" for cls in silent for check in cls.reasons_with(settings)}
    return _verdict(settings, atoms, name, index, {reason: (0, text)}, missing, 0, settings.steps, {})


def _verdict(
    settings: DynamicsSettings,
    atoms: Atoms,
    name: str,
    index: int,
    failures: dict[str, tuple[int, str]],
    missing: dict[str, str],
    steps_run: int,
    steps_asked: int,
    metrics: dict[str, Any],
    not_liquid: str | None = "",
) -> Verdict:
    conditions: dict[str, int | float] = {"temperature": settings.temperature, "timestep": settings.timestep}
    conditions["steps"] = settings.steps
    if settings.temperature_end is not None:
        conditions["temperature_end"] = settings.temperature_end
    if ensemble_of(settings.ensemble).cls.changes_cells:
        conditions["pressure"] = settings.pressure
    metrics["temperature_bound"] = settings.temperature_bound(len(atoms))
    metrics["lindemann_local_bound"] = settings.lindemann_local
    metrics["lindemann_global_bound"] = settings.lindemann_global
    classes = observer_classes(settings)
    further = classes[len(BUILT_IN) :]
    return make_verdict(
        structure_id=name,
        index=index,
        formula=atoms.get_chemical_formula(),
        n_atoms=len(atoms),
        failures=failures,
        not_applicable=missing,
        steps_run=steps_run,
        steps_asked=steps_asked,
        timestep=settings.timestep,
        conditions=conditions,
        metrics={metric: metrics.get(metric) for metric in (*METRICS, *(m for cls in further for m in cls.metrics))},
        reasons=list(dict.fromkeys([*REASONS, *(reason for cls in classes for reason in cls.reasons_with(settings))])),
        not_liquid=not_liquid,
    )

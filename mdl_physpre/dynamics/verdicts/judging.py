"""Verdicts from what the observers have gathered.

The Lindemann verdict is that of the average over the whole run, from the start to the last step. Its first failing step
is the end of the shortest run, among those that were looked at, which would have been judged a failure. A running index
that exceeded a bound and came back under it by the end is no failure; the step is kept in the metrics. A structure
stopped for another reason is judged by its average up to there, or ``n/a`` where that run is shorter than
``lindemann_min_steps``: an average over a few steps of a structure that starts at rest says little.

The drift of the conserved energy (total energy less the heat from thermostat and barostat) is the slope of the straight
line of least squares through its values at all steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from mdl_physpre.dynamics.engine.broken import Broken
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts.observers import Observers
from mdl_physpre.dynamics.verdicts.verdict import Verdict, make_verdict

METRICS = (
    "start_min_distance", "min_distance", "min_distance_step", "overlap_threshold", "lindemann_max_local",
    "lindemann_global", "lindemann_local_first_exceeded_step", "lindemann_global_first_exceeded_step",
    "lindemann_samples", "mean_temperature", "max_temperature", "max_force", "max_displacement", "total_energy_start",
    "total_energy_end", "conserved_energy_start", "conserved_energy_end", "energy_drift", "mean_pressure",
    "pressure_samples", "volume_start", "volume_end", "mean_volume", "temperature_bound", "lindemann_local_bound",
    "lindemann_global_bound",
)  # fmt: skip
"""What is measured of each structure: distances in Å, temperatures in K, forces in eV/Å, energies in eV, pressure in
bar, volumes in Å³, and ``energy_drift`` of the conserved energy in eV per atom and ps."""


def verdicts_of(
    observers: Observers, structures: Sequence[int], steps_run: int, broken: Broken, complete: bool = True
) -> list[Verdict]:
    """Final verdicts of these structures, which end after ``steps_run`` steps.

    Where not ``complete`` (a trajectory whose last steps were not stored), the run is taken to be as long as it was.
    """
    measured = _measured(observers)
    rows = torch.stack([values.to(torch.float64) for values in measured.values()]).tolist()  # one transfer
    table = {
        name: row if values.is_floating_point() else [int(value) for value in row]
        for (name, values), row in zip(measured.items(), rows, strict=True)
    }
    verdicts = []
    for k in structures:
        settings = observers.each[k]
        metrics = {name: values[k] for name, values in table.items()}
        failures, missing = _judge(observers, k, steps_run, broken.get(k, {}), metrics)
        verdicts.append(
            _verdict(
                settings,
                observers.structures[k],
                observers.ids[k],
                observers.indices[k],
                failures,
                missing,
                steps_run,
                settings.steps if complete or k in broken else steps_run,
                metrics,
            )
        )
    return verdicts


def unusable(settings: DynamicsSettings, atoms: Atoms, name: str, index: int, reason: str, text: str) -> Verdict:
    """The verdict of a structure with which no step can be taken."""
    missing = {check: "the run did not begin" for check in ("overlap", "lindemann_local", "lindemann_global")}
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
) -> Verdict:
    conditions: dict[str, int | float] = {"temperature": settings.temperature, "timestep": settings.timestep}
    conditions["steps"] = settings.steps
    if settings.ensemble == "npt":
        conditions["pressure"] = settings.pressure
    metrics["temperature_bound"] = settings.temperature_bound(len(atoms))
    metrics["lindemann_local_bound"] = settings.lindemann_local
    metrics["lindemann_global_bound"] = settings.lindemann_global
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
        metrics={metric: metrics.get(metric) for metric in METRICS},
    )


def _measured(o: Observers) -> dict[str, Tensor]:
    """Metrics of all structures; NaN where there is none."""
    largest, mean = o.lindemann_indices()
    by_structure = torch.zeros((2, len(o.sizes)), dtype=torch.float64, device=o.start.device)
    forces, displacements = (
        row.scatter_reduce_(0, o.batch, values, "amax").sqrt()
        for row, values in zip(by_structure, (o.force_max, o.displacement_max), strict=True)
    )
    steps = o.counted - 1
    spread = o.step_square_sum - o.step_sum**2 / max(o.counted, 1)
    moment = o.conserved_moment - o.conserved_sum * o.step_sum / max(o.counted, 1)
    timestep = torch.tensor([s.timestep for s in o.each], dtype=torch.float64, device=o.start.device)
    nothing = torch.full_like(timestep, torch.nan)
    begun = o.counted > 0
    return {
        "start_min_distance": o.overlap.start,
        "min_distance": o.overlap.smallest,
        "min_distance_step": o.overlap.smallest_step,
        "overlap_threshold": o.overlap.threshold,
        "overlap_first_step": o.overlap.first_step,
        "lindemann_max_local": largest,
        "lindemann_global": mean,
        "lindemann_local_first_exceeded_step": o.exceeded[:, 0],
        "lindemann_global_first_exceeded_step": o.exceeded[:, 1],
        "mean_temperature": o.temperature_sum / steps if steps > 0 else nothing,
        "max_temperature": o.temperature_max,
        "max_force": forces,
        "max_displacement": displacements,
        "total_energy_start": o.energy_start if begun else nothing,
        "total_energy_end": o.energy_last if begun else nothing,
        "conserved_energy_start": o.conserved_start if begun else nothing,
        "conserved_energy_end": o.conserved_last if begun else nothing,
        "energy_drift": moment / spread / (timestep * 1e-3) / o.sizes if spread > 0 else nothing,
        "mean_pressure": torch.where(o.pressure_samples > 0, o.pressure_sum / o.pressure_samples, torch.nan),
        "pressure_samples": o.pressure_samples.to(torch.int64),
        "volume_start": torch.where(o.periodic, o.start_volumes.abs(), torch.nan),
        "volume_end": torch.where(o.periodic, o.volume_last, torch.nan) if begun else nothing,
        "mean_volume": torch.where(o.periodic, o.volume_sum / steps, torch.nan) if steps > 0 else nothing,
    }


def _judge(
    o: Observers, k: int, steps_run: int, broken: dict[str, str], metrics: dict[str, Any]
) -> tuple[dict[str, tuple[int, str]], dict[str, str]]:
    """Failures (reason -> step, sentence) and what cannot be judged (reason -> why); completes ``metrics``."""
    settings, n = o.each[k], len(o.structures[k])
    failures = {reason: (steps_run, text) for reason, text in broken.items() if reason != "overlap"}
    missing: dict[str, str] = {}
    overlap_step = metrics["overlap_first_step"]
    if np.isnan(metrics["start_min_distance"]):
        missing["overlap"] = "fewer than two atoms"
        metrics["min_distance_step"] = None
    elif overlap_step >= 0:
        least, most, start = (metrics[m] for m in ("min_distance", "overlap_threshold", "start_min_distance"))
        text = f"distance {least:.4f} Å at step {metrics['min_distance_step']}, overlap from {most:.4f} Å down "
        failures["overlap"] = (overlap_step, text + f"({settings.overlap_ratio:g} of {start:.4f} Å at the start)")
    sound_steps = max(o.last_step, 0)
    for key, name, limit in (
        ("lindemann_max_local", "local", settings.lindemann_local),
        ("lindemann_global", "global", settings.lindemann_global),
    ):
        reason, exceeded = f"lindemann_{name}", f"lindemann_{name}_first_exceeded_step"
        seen = metrics[exceeded]
        if n < 2:
            missing[reason] = "fewer than two atoms"
        elif n > settings.lindemann_max_atoms:
            missing[reason] = f"{n} atoms, more than lindemann_max_atoms = {settings.lindemann_max_atoms}"
        elif sound_steps < settings.lindemann_min_steps:
            missing[reason] = f"{sound_steps} steps, too few (lindemann_min_steps = {settings.lindemann_min_steps})"
        elif metrics[key] > limit:
            text = f"index {metrics[key]:.4f} over {sound_steps} steps, at most {limit:g} allowed"
            failures[reason] = (seen if seen >= 0 else sound_steps, text)
        metrics[exceeded] = seen if seen >= 0 else None
    metrics["lindemann_samples"] = o.lindemann.samples
    return failures, missing

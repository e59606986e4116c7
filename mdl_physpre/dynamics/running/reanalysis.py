"""Verdicts from stored trajectories, by the observers that watch a run.

A trajectory of every step gives the verdict that the run gave, up to the eight decimals that are stored. From every
n-th step it is the verdict on those: a failure is found at the first stored step that shows it, and Lindemann averages
are taken over the first stored step at or after each multiple of ``lindemann_interval``.

A frame may carry ``potential_error`` or ``cell_collapsed`` in its ``info``, which are what the run knew and the
positions do not show: the error that the potential raised, or too many neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from mdl_physpre.analysis.lindemann import cell_change
from mdl_physpre.analysis.overlap import minimum_distance
from mdl_physpre.dynamics.engine.broken import Broken
from mdl_physpre.dynamics.engine.moving_atoms import MovingAtoms
from mdl_physpre.dynamics.running.run_state import smallest_distance
from mdl_physpre.dynamics.running.storage import TRAJECTORIES, VERDICTS, TrajectoryFiles
from mdl_physpre.dynamics.running.trajectory_frames import read_frames, unwrapped
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts.judging import unusable, verdicts_of
from mdl_physpre.dynamics.verdicts.observer import Moment
from mdl_physpre.dynamics.verdicts.observers import Observers
from mdl_physpre.dynamics.verdicts.verdict import Verdict
from mdl_physpre.errors import DataError


def judge_trajectory(
    frames: str | Path | Iterable[Atoms],
    settings: DynamicsSettings | None = None,
    index: int = 0,
    trained_on: float | None = None,
) -> Verdict:
    """The verdict on a stored trajectory of one structure, whose first frame is the start.

    Parameters
    ----------
    frames : extended XYZ file, or frames. Where atoms were wrapped back into the cell, their jumps by lattice vectors
        are undone. ``info["step"]`` numbers a frame; without it they are taken as steps 0, 1, … Without momenta,
        energies or forces what needs them is not judged.
    settings : thresholds, and the temperature, time step and number of steps of this structure.
    index : place of the structure in a list.
    trained_on : the lowest energy per atom, eV, of its composition in the data that the potential was trained on
        (``potential.training_energies.lowest(atoms)``); where ``None``, ``too_deep`` is not judged.

    Returns
    -------
    Verdict : as :func:`mdl_physpre.dynamics.simulate` gives for each structure.

    Raises
    ------
    DataError : no frames, a frame with other atoms, or a file that cannot be read.
    """
    settings = settings or DynamicsSettings()
    name = str(frames) if isinstance(frames, (str, Path)) else "the trajectory"
    listed = unwrapped(read_frames(Path(frames)) if isinstance(frames, (str, Path)) else frames, name)
    first = next(listed, None)
    if first is None:
        raise DataError(f"{name} has no frames; there is nothing to judge")
    identity = str(first.info.get("structure_id", index))
    distance, problem = smallest_distance(first, settings.max_neighbours)
    if problem is not None:
        return unusable(settings, first, identity, index, *problem)
    start = torch.from_numpy(np.array(first.positions, dtype=float))
    smallest = torch.tensor([distance], dtype=torch.float64)
    observers = Observers(settings, [settings], [first], [identity], [index], start, smallest, [trained_on])
    broken = Broken()
    frame: Atoms | None = first
    step, number = -1, 0
    while frame is not None:
        previous, step = step, int(frame.info.get("step", number))
        if step <= previous or not np.array_equal(frame.numbers, first.numbers):
            found = f"frame {number} is step {step} of {frame.symbols}, after step {previous} of {first.symbols}"
            raise DataError(f"{name}: {found}; expected one structure, step by step")
        broken = _watch(observers, frame, first, step)
        if broken:
            break
        frame, number = next(listed, None), number + 1
    return verdicts_of(observers, [0], step, broken)[0]


def finished_run(out: str | Path) -> tuple[DynamicsSettings, dict[str, list[Any]], list[Verdict]]:
    """Settings, values of single structures, and verdicts in the folder of a finished run.

    Raises DataError where there is no ``verdicts.json``, or it is damaged.
    """
    path = Path(out) / VERDICTS
    if not path.is_file():
        raise DataError(
            f"{out}: holds no {VERDICTS}; give a folder that physpre md --out has finished, or that of a network's "
            "dynamics in a run (3-networks/NETWORK/dynamics)"
        )
    try:
        stored = json.loads(path.read_text())
        known = DynamicsSettings.model_fields
        settings = DynamicsSettings(**{k: v for k, v in stored["settings"].items() if k in known})
        per_structure, verdicts = stored["per_structure"], [Verdict.model_validate(v) for v in stored["verdicts"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not the result of a finished run: {error}") from None
    return settings, per_structure, verdicts


def judge_run(out: str | Path) -> list[Verdict]:
    """The verdicts on all trajectories in the folder of a finished run, with the settings in its ``verdicts.json``.

    Raises
    ------
    DataError : no ``verdicts.json``, or a trajectory that is missing.
    """
    settings, per_structure, verdicts = finished_run(out)
    files, judged = TrajectoryFiles(Path(out) / TRAJECTORIES), []
    for k, verdict in enumerate(verdicts):
        trajectory = files.path(verdict.index)
        if not trajectory.exists() and not verdict.steps_run:
            judged.append(verdict)  # no step could be taken, and there is no frame
            continue
        if not trajectory.exists():
            raise DataError(f"{trajectory} does not exist; a run stores trajectories where trajectory_interval is set")
        own = settings.changed(**{name: values[k] for name, values in per_structure.items()})
        trained_on = verdict.metrics.get("lowest_training_energy")
        judged.append(judge_trajectory(trajectory, own, verdict.index, trained_on))
    return judged


def _watch(observers: Observers, frame: Atoms, first: Atoms, step: int) -> Broken:
    """Show one frame to the observers; returns why the structure breaks, or nothing."""
    atoms, broken = MovingAtoms.of([frame], torch.device("cpu")), Broken()
    results = {} if frame.calc is None else frame.calc.results
    atoms.velocities = torch.from_numpy(frame.get_velocities())
    atoms.kinetic = atoms.kinetic_energies()
    atoms.energies[0] = float(results.get("energy", np.nan))
    if "forces" in results:
        atoms.forces = torch.from_numpy(np.array(results["forces"], dtype=float))
    if "force_spread" in frame.arrays and "energy_spread" in frame.info:
        atoms.force_spread = torch.from_numpy(np.array(frame.arrays["force_spread"], dtype=float))
        atoms.energy_spread = torch.tensor([float(frame.info["energy_spread"])], dtype=torch.float64)
    if "stress" in results:
        atoms.stress[0] = torch.from_numpy(frame.get_stress(voigt=False))
    deformation = cell_change(first.cell[:], frame.cell[:], frame.pbc)
    if deformation is not None:
        observers.check_cells(atoms.cells, broken)
    observers.check_positions(atoms.positions, broken, deformation)
    lost = bool(broken)
    for reason in ("cell_collapsed", "potential_error"):
        if reason in frame.info and reason not in broken.get(0, {}):
            broken.add(0, reason, str(frame.info[reason]))
    if "forces" in results:
        observers.check_forces(atoms, broken, stress="stress" in results)
    distance = np.inf if lost else minimum_distance(frame.positions, frame.cell[:], frame.pbc)
    moment = Moment(step, atoms, atoms.temperatures(), torch.tensor([distance], dtype=torch.float64), deformation)
    observers.check_motion(moment, broken)
    if not broken:
        conserved = atoms.energies + atoms.kinetic
        if "conserved_energy" in frame.info:
            conserved = torch.tensor([float(frame.info["conserved_energy"])], dtype=torch.float64)
        observers.count(moment, conserved)
        if step and "stress" in results:
            observers.count_pressure(atoms.pressures())
    return broken

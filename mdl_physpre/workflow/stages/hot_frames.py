"""Structures of the pretraining set that Algorithm 1 does not make: frames of hot dynamics of the teacher."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms

from mdl_physpre.dynamics import DynamicsSettings, simulate
from mdl_physpre.dynamics.running.trajectory_frames import read_frames
from mdl_physpre.potentials.base import Potential
from mdl_physpre.pretraining import label
from mdl_physpre.pretraining.copies import displaced_copy, inherited_info
from mdl_physpre.stress_tests.heating import breaks
from mdl_physpre.utils.devices import threads
from mdl_physpre.workflow.config.hot_frames import HotFrames

logger = logging.getLogger(__name__)
STARTS, FAR = 12, HotFrames(n=3)  # runs, at most, that give structures far from the data, and what each gives


def hot_frames(
    structures: Sequence[Atoms],
    teacher: Potential,
    settings: HotFrames,
    seed: int,
    max_force: float | None = None,
    workers: int | None = None,
) -> list[Atoms]:
    """Frames of a heated run of each structure, labelled by the teacher that ran it.

    The temperature rises linearly, at constant volume. A structure that breaks, or sinks below all energies that the
    teacher was fitted to, ends its run, and gives the frames before.

    Parameters
    ----------
    structures, teacher, settings, seed : where runs start, what gives forces, how long and hot, and random numbers.
    max_force : frames on which the norm of a force passes it, eV/Å, are left out.
    workers : processes that label.
    """
    if not settings.n:
        return []
    every = max(settings.steps // settings.n, 1)
    run = DynamicsSettings(
        temperature=settings.temperature, temperature_end=settings.temperature_end, steps=settings.steps,
        timestep=settings.timestep, trajectory_interval=every, pressure_interval=0, seed=seed,
    )  # fmt: skip
    frames: list[Atoms] = []
    with tempfile.TemporaryDirectory() as folder:
        logger.info("dynamics of the teacher: %d structures, up to %g K", len(structures), settings.temperature_end)
        verdicts = simulate(teacher, structures, run, folder)
        for k, (atoms, verdict) in enumerate(zip(structures, verdicts)):
            read = read_frames(Path(folder) / "trajectories" / f"{k:05d}.extxyz")
            broke = breaks(verdict, run)
            whole = [frame for n, frame in enumerate(read) if n and (broke is None or n * every < broke.step)]
            for frame in whole[: settings.n]:
                name = {"structure_id": f"{atoms.info.get('structure_id', k)}-hot-{len(frames)}"}
                hot = displaced_copy(atoms, frame.positions, inherited_info(atoms) | name)
                hot.wrap()
                frames.append(hot)
    labelled = label(frames, teacher, workers=workers)
    kept = [one for one in labelled if max_force is None or np.linalg.norm(one.get_forces(), axis=1).max() <= max_force]
    logger.info("%d hot frames, %d left out for their forces", len(kept), len(labelled) - len(kept))
    return kept


def far_frames(structures: Sequence[Atoms], potential: Potential) -> list[Atoms]:
    """Structures far from the data, with the labels of a potential that was fitted to these: hot frames of its own."""
    starts = np.linspace(0, len(structures) - 1, min(STARTS, len(structures))).round().astype(int)
    with threads(1):
        return hot_frames([structures[k] for k in starts], potential, FAR, seed=0, workers=1)

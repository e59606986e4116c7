"""How atoms move in a simulation and in that of a reference from the same start (with the radial distribution
functions, the paper's Figure 5): mean square displacements and vibrational densities of states.

Both simulations store their frames at the same steps. Structures that either of them left before the end are not
compared. Two densities of states g and g° differ by the overlap of their areas, 1 − ½ ∫ |g/f − g°/f| dν.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdl_physpre.analysis.mean_square_displacement import MeanSquareDisplacement, mean_square_displacement
from mdl_physpre.analysis.radial_distribution import Array
from mdl_physpre.analysis.vibrations import VibrationalDOS, vibrational_dos
from mdl_physpre.dynamics.running.reanalysis import finished_run
from mdl_physpre.dynamics.running.storage import TRAJECTORIES, TrajectoryFiles
from mdl_physpre.dynamics.running.trajectory_frames import read_frames, unwrapped
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.utils.record import Record
from mdl_physpre.utils.text_table import shown

FEWEST = 20  # frames
SLOWEST = 10.0  # fs between frames: frequencies end at 50 THz, 1670 1/cm, at most


class Motion(Record):
    """Mean square displacements, and the sum of the vibrational densities of states, of several structures.

    time_fs : (lags,). msd : (lags,) by element, Å², averages over atoms. diffusion : by element, Å²/ps.
    frequency, dos : (points,), THz, and 1/THz by element; empty where frames are too far apart for it.
    """

    time_fs: Array
    msd: dict[str, Array]
    diffusion: dict[str, float]
    frequency: Array
    dos: dict[str, Array]


class MotionComparison(Record):
    """A simulation and its reference.

    structures : their names. motion, reference : of these.
    msd_ratio : by element, mean square displacement over that of the reference, at half the length of the run.
    dos_overlap : of the areas under the densities of states, by element; 1 where they are the same.
    notes : what could not be compared, and why.
    """

    structures: tuple[str, ...]
    motion: Motion | None = None
    reference: Motion | None = None
    msd_ratio: dict[str, float | None] = {}
    dos_overlap: dict[str, float] = {}
    notes: tuple[str, ...] = ()


def compare_motion(folder: str | Path, reference: str | Path) -> MotionComparison:
    """Compare the trajectories of two finished simulations of the same structures with the same settings.

    Parameters
    ----------
    folder, reference : that :func:`mdl_physpre.simulate` was given as ``out``, with ``trajectory_interval``.

    Raises DataError where one of them is no finished simulation.
    """
    settings, per_structure, mine = finished_run(folder)
    theirs = {(v.index, v.structure_id): v for v in finished_run(reference)[2]}
    each = {v.index: {name: values[k] for name, values in per_structure.items()} for k, v in enumerate(mine)}
    whole = [v for v in mine if not v.stopped and (v.index, v.structure_id) in theirs]
    whole = [v for v in whole if not theirs[v.index, v.structure_id].stopped]
    whole = [v for v in whole if settings.trajectory_interval and v.steps_run // settings.trajectory_interval >= FEWEST]
    notes = []
    if not whole:
        return MotionComparison(
            structures=(),
            notes=(f"no structure ran to the end in both simulations with {FEWEST} stored frames or more",),
        )
    if len(whole) < len(mine):
        notes.append(f"{len(mine) - len(whole)} of {len(mine)} structures did not run to the end in both simulations")
    if settings.trajectory_interval * settings.timestep > SLOWEST:
        notes.append(f"no densities of states: frames are more than {SLOWEST:g} fs apart")
    own, other = (
        _motion(Path(place), settings, [(v.index, each[v.index]) for v in whole]) for place in (folder, reference)
    )
    return MotionComparison(
        structures=tuple(v.structure_id for v in whole),
        motion=own,
        reference=other,
        msd_ratio={name: _ratio(own.msd[name][-1], other.msd[name][-1]) for name in own.msd},
        dos_overlap={name: _overlap(own.dos[name], other.dos[name]) for name in own.dos},
        notes=tuple(notes),
    )


def _ratio(one: float, other: float) -> float | None:
    return float(one / other) if other > 0 else None


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """1 − ½ Σ |p − q| of two curves of the same points, each with area 1; noise below zero counts as none."""
    p, q = (np.maximum(g, 0.0) / np.maximum(g, 0.0).sum() for g in (one, other))
    return float(1 - 0.5 * np.abs(p - q).sum())


def _motion(folder: Path, settings: DynamicsSettings, structures: Sequence[tuple[int, Mapping[str, Any]]]) -> Motion:
    moves: list[MeanSquareDisplacement] = []
    spectra: list[VibrationalDOS] = []
    for index, values in structures:
        own = settings.changed(**values)
        interval = own.trajectory_interval * own.timestep
        path = TrajectoryFiles(folder / TRAJECTORIES).path(index)
        frames = list(unwrapped(read_frames(path), str(path)))
        first, cells = frames[0], np.array([frame.cell[:] for frame in frames])
        changing = bool((cells != cells[0]).any())
        masses = first.get_masses()
        moves.append(
            mean_square_displacement(
                np.array([frame.positions for frame in frames]),
                first.numbers,
                interval,
                masses=masses,
                cells=cells if changing else None,
            )
        )
        if interval <= SLOWEST:
            velocities = np.array([frame.get_velocities() for frame in frames])
            spectra.append(vibrational_dos(velocities, first.numbers, interval, masses=masses))
    time = min((one.time_fs for one in moves), key=lambda t: t[-1])
    names = list(dict.fromkeys(name for one in moves for name in one.msd))

    def mean(name: str, value: Any) -> Any:
        having = [one for one in moves if name in one.msd]
        return np.average([value(one) for one in having], axis=0, weights=[one.atoms[name] for one in having])

    frequency = min((one.frequency for one in spectra), key=len, default=np.zeros(0))
    found = dict.fromkeys((name for one in spectra for name in one.dos), np.zeros(len(frequency)))
    for one in spectra:
        for name, dos in one.dos.items():
            found[name] = found[name] + np.interp(frequency, one.frequency, dos)
    return Motion(
        time_fs=time,
        msd={name: mean(name, lambda one: np.interp(time, one.time_fs, one.msd[name])) for name in names},  # noqa: B023
        diffusion={name: float(mean(name, lambda one: one.diffusion[name].value)) for name in names},  # noqa: B023
        frequency=frequency,
        dos=found,
    )


def format_motion(found: MotionComparison) -> str:
    """A comparison as text."""
    lines = [f"Motion against the reference, {len(found.structures)} structures:"]
    for name, ratio in found.msd_ratio.items():
        text = f"  {name}: mean square displacement {shown(ratio, '{:.2f}')} times that of the reference"
        if name in found.dos_overlap:
            text += f", densities of states overlap by {found.dos_overlap[name]:.3f}"
        lines.append(text)
    return "\n".join([*lines, *(f"  {note}" for note in found.notes)])

"""Molecular dynamics of many structures at once, each judged while it runs.

All structures take their steps together, on the device of the potential. Their positions, velocities and averages are
float64 whatever the precision of the potential, which is evaluated on chunks of structures. A structure that breaks
leaves with its verdict and the others go on. With a folder, the state is stored now and then, and a run that was killed
continues to the same verdicts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.data import chemical_symbols

from mdl_physpre.dynamics.engine.ensembles import ensemble_of
from mdl_physpre.dynamics.engine.forces import inference
from mdl_physpre.dynamics.running.batch import BatchRun
from mdl_physpre.dynamics.running.description import description, finished_or_alone
from mdl_physpre.dynamics.running.rdf_sampling import write_rdfs
from mdl_physpre.dynamics.running.run_state import begin_or_resume, store
from mdl_physpre.dynamics.running.storage import STATE, run_key, write_speed, write_verdicts
from mdl_physpre.dynamics.settings import DynamicsSettings, settings_of_each
from mdl_physpre.dynamics.verdicts.verdict import Verdict
from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.utils.overwrite import overwriting
from mdl_physpre.utils.progress import progress as show_progress

logger = logging.getLogger(__name__)


def simulate(
    potential: Potential,
    structures: Sequence[Atoms],
    settings: DynamicsSettings | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    *,
    per_structure: Mapping[str, Sequence[Any]] | None = None,
    indices: Sequence[int] | None = None,
    raise_at_start: bool = True,
    overwrite: bool = False,
) -> list[Verdict]:
    """Simulate all structures at once and judge each.

    Parameters
    ----------
    potential, settings : forces come from it, on its device and in its precision; :class:`DynamicsSettings`.
    structures : positions and cells at the start, and momenta where ``start_velocities`` says so, named by
        ``info["structure_id"]``.
    out : folder for verdicts, the state to go on from, and what else is asked for (docs/dynamics.md). A finished run of
        the same potential, structures and settings is read, an unfinished one continued.
    per_structure : ``temperature``, ``temperature_end``, ``pressure``, ``timestep`` or ``steps``, one value for each
        structure, in place of that of ``settings``. A structure with fewer steps leaves the batch when it has finished.
    indices : place of each structure in a longer list, from which its random numbers come; 0, 1, … where ``None``.
    raise_at_start : raise an error of the potential at the start for every structure; else it is their verdict.
    overwrite : delete the results of any other run in ``out``.

    Returns
    -------
    A :class:`~mdl_physpre.dynamics.Verdict` for each structure, in order.

    Raises
    ------
    DataError : an unknown element, no atoms, or at constant pressure a structure that is not periodic in 3 directions.
    ConfigError : trajectories or radial distribution functions without a folder; constant pressure with a potential
        that has no stress; values for single structures that cannot be used.
    WouldDelete, PhyspreError : ``out`` holds another run, and what differs; another process works there.
    Exception : whatever the potential raises at the start, if it does so for every structure.
    """
    settings = settings or DynamicsSettings()
    each = settings_of_each(settings, len(structures), per_structure)
    places, ids = check_input(potential, structures, settings, out, indices)
    if not structures:
        return []
    if out is None:
        with inference(potential):
            run = begin_or_resume(potential, structures, ids, places, settings, each, raise_at_start=raise_at_start)
            return run_to_the_end(run, progress)
    folder, key = Path(out), run_key(potential, structures, ids, each, places)
    now = description(potential, structures, settings, each)
    with overwriting(overwrite), finished_or_alone(folder, key, now) as finished, inference(potential):
        if finished is not None:
            return finished
        run = begin_or_resume(potential, structures, ids, places, settings, each, folder, key, raise_at_start)
        verdicts = run_to_the_end(run, progress)
        if run.rdfs is not None:
            write_rdfs(folder, key, ids, run.rdfs.results())
        write_verdicts(folder, key, settings, each, verdicts)
        (folder / STATE).unlink(missing_ok=True)
    return verdicts


def run_and_return(
    potential: Potential,
    structures: Sequence[Atoms],
    settings: DynamicsSettings | None = None,
    progress: bool = True,
    *,
    per_structure: Mapping[str, Sequence[Any]] | None = None,
    indices: Sequence[int] | None = None,
    raise_at_start: bool = True,
    frames: dict[int, list[Atoms]] | None = None,
) -> tuple[list[Verdict], list[Atoms]]:
    """Simulate all structures at once, and give back what became of them; parameters and errors as :func:`simulate`.

    ``frames`` is filled with those of every ``trajectory_interval`` steps, by the place of their structure.

    Returns
    -------
    The verdict of each structure, and each as it was when it broke or ended, with cell, unwrapped positions, momenta,
    energy, forces (``arrays["forces"]``), and stress where it was computed at that step. One with which no step could
    be taken is as it was given.
    """
    settings = settings or DynamicsSettings()
    each = settings_of_each(settings, len(structures), per_structure)
    stored = settings if frames is None else settings.changed(trajectory_interval=0)
    places, ids = check_input(potential, structures, stored, None, indices)
    if not structures:
        return [], []
    with inference(potential):
        run = begin_or_resume(
            potential, structures, ids, places, settings, each, raise_at_start=raise_at_start, returning=True,
            frames=frames,
        )  # fmt: skip
        verdicts = run_to_the_end(run, progress)
    last = dict(zip(places, (atoms.copy() for atoms in structures), strict=True)) | (run.last or {})
    return verdicts, [last[place] for place in places]


def run_to_the_end(run: BatchRun, progress: bool) -> list[Verdict]:
    """Take all steps that are left, storing the state now and then; returns the verdicts of all structures."""
    s, first = run.settings, run.step
    steps: Any = range(first, max((t.steps for t in run.each), default=0))
    if progress:
        steps = show_progress(steps, len(steps), f"molecular dynamics of {len(run.structures)} structures")
    atom_steps, start = 0, time.monotonic()
    stored_step, stored_time = first, start
    for _ in steps:
        if not run.active:
            break
        atom_steps += len(run.atoms.positions)
        run.advance()
        waited = time.monotonic() - stored_time >= s.checkpoint_seconds
        if run.active and run.window is None and (waited or run.step - stored_step >= s.checkpoint_steps):
            run.seconds_per_step = (time.monotonic() - start) / (run.step - first)
            store(run)
            stored_step, stored_time = run.step, time.monotonic()
    seconds, done = time.monotonic() - start, run.step - first
    for files in (run.files, run.failing):
        if files is not None:
            files.flush()
    if done and seconds > 0:
        logger.info("%.4g steps and %.4g atom-steps per second", done / seconds, atom_steps / seconds)
        if run.folder is not None:
            write_speed(run.folder, done, atom_steps, seconds, run.lists.rebuilds)
    return [run.verdicts[k] for k in range(len(run.structures))]


def check_input(
    potential: Potential,
    structures: Sequence[Atoms],
    settings: DynamicsSettings,
    out: str | Path | None,
    indices: Sequence[int] | None,
) -> tuple[list[int], list[str]]:
    """Places and names of the structures; raises what :func:`simulate` says."""
    places = list(range(len(structures))) if indices is None else [int(k) for k in indices]
    if len(set(places)) != len(structures):
        raise ConfigError(f"indices must be {len(structures)} different integers, one for each structure; got {places}")
    for name, what in (("trajectory_interval", "trajectories"), ("rdf_interval", "radial distribution functions")):
        if getattr(settings, name) and out is None:
            raise ConfigError(f"dynamics.{name} is set, but there is no folder to write {what} to")
    changing = ensemble_of(settings.ensemble).cls.changes_cells
    if changing and not potential.gives_stress:
        raise ConfigError(
            f"dynamics.ensemble is {settings.ensemble!r}, which needs stress, and this potential gives none; "
            "take an ensemble at constant volume, or a potential with stress"
        )
    ids = [str(a.info.get("structure_id", k)) for k, a in zip(places, structures, strict=True)]
    for place, name, atoms in zip(places, ids, structures, strict=True):
        if len(atoms) == 0:
            raise DataError(f"structure {place} ({name}) has no atoms; leave it out")
        if changing and not atoms.pbc.all():
            pbc = atoms.pbc.tolist()
            raise DataError(
                f"structure {place} ({name}) is periodic along {pbc}; constant pressure needs three periodic "
                "directions. Leave it out, or take an ensemble at constant volume"
            )
        strange = set() if potential.elements is None else set(atoms.numbers.tolist()) - set(potential.elements)
        if strange:
            symbols = ", ".join(sorted(chemical_symbols[z] for z in strange))
            known = ", ".join(chemical_symbols[z] for z in potential.elements or ())
            raise DataError(f"structure {place} ({name}) holds {symbols}; the potential knows {known}. Leave it out")
    constrained = [name for name, atoms in zip(ids, structures, strict=True) if atoms.constraints]
    if constrained:
        first = constrained[0]
        logger.warning("constraints of %d structures (%s, …) are not applied: all atoms move", len(constrained), first)
    return places, ids

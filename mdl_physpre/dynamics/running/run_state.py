"""How a run of many structures begins, how its state is stored, and how it goes on from there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from mdl_physpre.analysis.overlap import minimum_distance
from mdl_physpre.dynamics.engine.broken import Broken
from mdl_physpre.dynamics.engine.cpu_lists import SkinLists
from mdl_physpre.dynamics.engine.device_lists import DeviceLists
from mdl_physpre.dynamics.engine.device_memory import ONE_CHUNK, edges_that_fit, memory_of
from mdl_physpre.dynamics.engine.ensembles import Ensemble
from mdl_physpre.dynamics.engine.forces import chunks_at_once
from mdl_physpre.dynamics.engine.moving_atoms import MovingAtoms
from mdl_physpre.dynamics.engine.neighbour_lists import MovingLists
from mdl_physpre.dynamics.engine.random_numbers import NoiseStreams, maxwell_boltzmann_velocities, structure_generator
from mdl_physpre.dynamics.running.batch import BatchRun
from mdl_physpre.dynamics.running.description import begin_anew, description
from mdl_physpre.dynamics.running.storage import FramesInMemory, read_state, write_state
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts.judging import unusable
from mdl_physpre.dynamics.verdicts.observers import Observers
from mdl_physpre.dynamics.verdicts.verdict import Verdict
from mdl_physpre.errors import DataError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.structures.neighbours import complete_cell, expected_neighbours

logger = logging.getLogger(__name__)
SEARCH_RADIUS = 3.0  # Å; where the search for the smallest distance begins


def lists_for(device: torch.device) -> type[MovingLists]:
    """Neighbour lists that are fast there."""
    return SkinLists if device.type == "cpu" else DeviceLists


def begin_or_resume(
    potential: Potential,
    structures: Sequence[Atoms],
    ids: Sequence[str],
    places: Sequence[int],
    settings: DynamicsSettings,
    each: Sequence[DynamicsSettings],
    folder: Path | None = None,
    key: str = "",
    raise_at_start: bool = True,
    returning: bool = False,
    frames: dict[int, list[Atoms]] | None = None,
) -> BatchRun:
    """A run at its start, or where its stored state was written; parameters as :class:`BatchRun`.

    ``returning``: keep the last frame of each structure, in ``last``; such a run has no folder. ``frames``: where the
    others go that the settings ask for.

    Raises
    ------
    Exception : with ``raise_at_start`` whatever the potential raises at the start, if it does so for every structure.
    """
    run = BatchRun(potential, structures, ids, places, settings, each, folder, key)
    run.last = {} if returning else None
    if frames is not None and settings.trajectory_interval:
        run.files = FramesInMemory(frames)
    stored = None if folder is None else read_state(folder, key)
    if stored is None:
        if folder is not None:
            begin_anew(folder, key, description(potential, structures, settings, each))
        _begin(run, raise_at_start)
    else:
        _resume(run, *stored)
    return run


def _set_up(run: BatchRun, active: list[int], generators: list[np.random.Generator]) -> None:
    """Atoms at their start, integrator and noise of the active structures."""
    run.active = active
    run.atoms = MovingAtoms.of([run.structures[k] for k in active], run.device)
    run.integrator = run.ensemble.make(run.atoms, [run.each[k] for k in active])
    sizes = [len(run.structures[k]) for k in active]
    draw = run.integrator.draw
    run.noise = None if draw is Ensemble.draw else NoiseStreams(generators, sizes, run.device, draw)


def _watch(run: BatchRun, start: Tensor, smallest: Tensor) -> None:
    """Observers and neighbour lists of the active structures."""
    structures, s = [run.structures[k] for k in run.active], run.settings
    names, places = [run.ids[k] for k in run.active], [run.places[k] for k in run.active]
    known = run.potential.training_energies
    trained_on = None if known is None else [known.lowest(atoms) for atoms in structures]
    each = [run.each[k] for k in run.active]
    run.observers = Observers(s, each, structures, names, places, start, smallest, trained_on)
    run.lists = lists_for(run.device)(
        [a.numbers for a in structures],
        run.atoms.cells,
        [np.array(a.pbc) for a in structures],
        # a list that always holds the pair that was closest at the start
        [max(run.potential.cutoff, d) if d > 0 else run.potential.cutoff for d in smallest.tolist()],
        cutoff=run.potential.cutoff,
        skin=s.skin,
        dtype=run.dtype,
        device=run.device,
        max_edges=s.max_edges if run.device.type == "cpu" else ONE_CHUNK,
        max_neighbours=s.max_neighbours,
        changing=run.changing,
        shares=chunks_at_once(run.potential, run.device, s.max_edges),
        structures=structures,
    )


def smallest_distance(atoms: Atoms, max_neighbours: int) -> tuple[float, tuple[str, str] | None]:
    """Smallest distance at the start, or the reason and sentence why no step can be taken."""
    if not np.isfinite(atoms.positions).all() or not np.isfinite(atoms.cell[:]).all():
        return np.nan, ("not_finite", "a position or a cell vector is not finite at the start")
    try:
        complete_cell(atoms.cell[:], atoms.pbc)
        # before the search: its pairs might not fit into memory
        mean = expected_neighbours(len(atoms), atoms.cell[:], atoms.pbc, SEARCH_RADIUS)
        if mean > max_neighbours:
            text = f"about {mean:.3g} neighbours within {SEARCH_RADIUS:g} Å, at most {max_neighbours} allowed"
            return np.nan, ("cell_collapsed", text)
        return minimum_distance(atoms.positions, atoms.cell[:], atoms.pbc, SEARCH_RADIUS), None
    except DataError as error:
        return np.nan, ("cell_collapsed", str(error))


def _start_velocities(run: BatchRun, k: int, generator: np.random.Generator) -> np.ndarray:
    atoms = run.structures[k]
    if run.ensemble.cls.at_rest:
        return np.zeros((len(atoms), 3))
    if run.settings.start_velocities == "structures":
        return atoms.get_velocities()
    return maxwell_boltzmann_velocities(atoms.get_masses(), run.each[k].temperature, generator)


def _begin(run: BatchRun, raise_at_start: bool) -> None:
    run.step = 0
    smallest: list[float] = []
    active: list[int] = []
    for k, atoms in enumerate(run.structures):
        distance, problem = smallest_distance(atoms, run.settings.max_neighbours)
        if problem is None:
            active.append(k)
            smallest.append(distance)
        else:
            run.verdicts[k] = unusable(run.each[k], atoms, run.ids[k], run.places[k], *problem)
            logger.warning("structure %s: %s", run.ids[k], problem[1])
    generators = [structure_generator(run.settings.seed, run.places[k]) for k in active]
    velocities = [_start_velocities(run, k, g) for k, g in zip(active, generators, strict=True)]
    _set_up(run, active, generators)
    if not active:
        return
    run.atoms.velocities = torch.from_numpy(np.concatenate(velocities)).to(run.device)
    run.atoms.kinetic = run.atoms.kinetic_energies()
    _watch(run, run.atoms.positions, torch.tensor(smallest, dtype=torch.float64, device=run.device))
    broken = Broken()
    for k, text in run.lists.build_all(run.atoms.positions).items():
        broken.add(k, "cell_collapsed", text)
    stress = run.wants_stress()
    _cut_by_memory(run)
    raised = run.evaluate(broken, stress)
    if raise_at_start and len(raised) == len(active):
        raise next(iter(raised.values()))
    run.observers.check_forces(run.atoms, broken, stress=run.changing)
    run.settle(broken, None, stress)


def _cut_by_memory(run: BatchRun) -> None:
    """Chunks as large as the memory of a GPU allows; on the CPU they are what the settings say."""
    if run.device.type == "cpu":
        return
    pressed = run.changing or bool(run.settings.pressure_interval and run.potential.gives_stress)
    memory = memory_of(run.device)
    run.lists.max_edges = edges_that_fit(run.potential, run.lists, run.atoms.positions, pressed, memory)
    run.lists.cut()


def store(run: BatchRun) -> None:
    """Write the state of a run to its folder, if it has one."""
    if run.folder is None:
        return
    sizes = {} if run.files is None else run.files.flush()
    arrays = {name: getattr(run.atoms, name) for name in (*MovingAtoms.PER_ATOM, *MovingAtoms.PER_STRUCTURE)}
    fields = (*run.integrator.FIELDS, *run.integrator.ATOM_FIELDS)
    arrays |= {f"integrator_{name}": getattr(run.integrator, name) for name in fields}
    arrays |= {"reference": run.lists.reference, "reference_cells": run.lists.reference_cells}
    stored = {name: tensor.cpu().numpy() for name, tensor in arrays.items()}
    stored |= {f"observed_{name}": value for name, value in run.observers.state().items()}
    if run.rdfs is not None:
        stored |= {f"rdf_{name}": value for name, value in run.rdfs.state().items()}
    plain = {
        "step": run.step,
        "seconds_per_step": run.seconds_per_step,
        "active": run.active,
        "boundaries": run.lists.boundaries,
        "max_edges": run.lists.max_edges,
        "device": run.device.type,
        "window_length": run.length,
        "list_ages": run.lists.age.tolist(),
        "noise": None if run.noise is None else run.noise.state(),
        "trajectory_sizes": sizes,
        "failing_sizes": {} if run.failing is None else run.failing.flush(),
        "verdicts": {str(k): verdict.plain() for k, verdict in run.verdicts.items()},
    }
    write_state(run.folder, run.key, stored, plain)


def _resume(run: BatchRun, arrays: dict[str, np.ndarray], plain: dict[str, Any]) -> None:
    def tensor(name: str) -> Tensor:
        return torch.from_numpy(arrays[name].copy()).to(run.device)

    def named(prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}

    run.step = plain["step"]
    run.verdicts = {int(k): Verdict.model_validate(verdict) for k, verdict in plain["verdicts"].items()}
    _set_up(run, plain["active"], [structure_generator(0, 0) for _ in plain["active"]])
    if run.noise is not None:
        run.noise.restore(plain["noise"])
    for name in (*run.integrator.FIELDS, *run.integrator.ATOM_FIELDS):
        setattr(run.integrator, name, tensor(f"integrator_{name}"))
    # lists are built where they were built before: their order decides the rounding of sums over neighbours
    run.atoms.cells = tensor("reference_cells")
    observed = named("observed_")
    _watch(run, tensor("observed_start"), tensor("observed_overlap_start"))
    run.observers.restore(observed)
    if plain.get("device", "cpu") == run.device.type:
        run.lists.max_edges = plain["max_edges"]
        run.lists.build_all(tensor("reference"), plain["boundaries"])
    else:  # another device has room for other chunks
        run.lists.build_all(tensor("reference"))
        run.atoms.positions = tensor("positions")
        _cut_by_memory(run)
    for name in (*MovingAtoms.PER_ATOM, *MovingAtoms.PER_STRUCTURE):
        setattr(run.atoms, name, tensor(name))
    run.lists.cells = run.atoms.cells
    # of earlier versions' states there are none, and they need none
    run.length = plain.get("window_length", run.length)
    run.lists.age = np.array(plain.get("list_ages", run.lists.age), dtype=np.int64)
    if run.rdfs is not None:
        run.rdfs.restore(named("rdf_"))
    if run.files is not None:
        run.files.restore(plain["trajectory_sizes"], run.places)
    if run.failing is not None:
        run.failing.restore(plain.get("failing_sizes", {}), run.places)
    logger.info("%s continues at step %d", run.folder, run.step)

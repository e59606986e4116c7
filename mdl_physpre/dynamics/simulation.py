"""Molecular dynamics of many structures at once, each judged while it runs.

All structures take their steps together. Their positions, velocities and averages are float64 whatever the precision
of the potential, which is evaluated on chunks of structures. A structure that breaks leaves with its verdict and the
others go on. With a folder, the state is stored now and then, and a run that was killed continues to the same verdicts.
"""
from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from torch import Tensor

from mdl_physpre.analysis.overlap import minimum_distance
from mdl_physpre.dynamics.forces import evaluate_chunks, floating, inference
from mdl_physpre.dynamics.integrators import (
    Langevin,
    NoiseStreams,
    VelocityVerlet,
    maxwell_boltzmann_velocities,
    structure_generator,
)
from mdl_physpre.dynamics.observers import Broken, Observers, add_reason
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.skin_lists import SkinLists
from mdl_physpre.dynamics.storage import (
    STATE,
    TRAJECTORIES,
    TrajectoryFiles,
    read_state,
    read_verdicts,
    run_key,
    write_state,
    write_verdicts,
)
from mdl_physpre.dynamics.verdicts import summarise
from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.progress import progress as show_progress
from mdl_physpre.structures.neighbours import complete_cell

__all__ = ["DynamicsSettings", "simulate", "summarise"]
logger = logging.getLogger(__name__)


def simulate(
    potential: Potential,
    structures: Sequence[Atoms],
    settings: DynamicsSettings | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    *,
    indices: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Simulate all structures at once and judge each.

    Parameters
    ----------
    potential : forces come from it, on its device and in its precision.
    structures : start positions and cells; ``info["structure_id"]`` names them. Their momenta are not used.
    settings : see :class:`DynamicsSettings`.
    out : folder for ``verdicts.json``, the state to continue from, and trajectories where they are asked for. A
        finished run of the same potential, structures and settings is read, an unfinished one continued, any other
        replaced.
    progress : show progress.
    indices : place of each structure in a longer list, from which its random numbers come; 0, 1, … where ``None``.

    Returns
    -------
    A verdict (dict) for each structure, in order; see :func:`mdl_physpre.dynamics.verdicts.make_verdict`.

    Raises
    ------
    DataError : an element that the potential does not know, a structure without atoms or with an impossible cell.
    ConfigError : trajectories without a folder.
    """
    settings = settings or DynamicsSettings()
    places = list(range(len(structures))) if indices is None else [int(k) for k in indices]
    if len(set(places)) != len(structures):
        raise ConfigError(f"indices must be {len(structures)} different integers, one for each structure; got {places}")
    if settings.trajectory_interval and out is None:
        raise ConfigError("dynamics.trajectory_interval is set, but there is no folder to write trajectories to")
    if not structures:
        return []
    ids = [str(a.info.get("structure_id", k)) for k, a in zip(places, structures, strict=True)]
    _check(potential, structures, places, ids)
    written = dataclasses.asdict(settings)
    folder = None if out is None else Path(out)
    key = ""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        physics = {k: v for k, v in written.items() if not k.startswith("checkpoint_")}
        key = run_key(potential, structures, physics, places)
        finished = read_verdicts(folder, key)
        if finished is not None:
            return finished
    with inference(potential):
        run = _Run(potential, structures, ids, places, settings, folder, key)
        verdicts = run.go(progress)
    if folder is not None:
        write_verdicts(folder, key, written, summarise(verdicts), verdicts)
        (folder / STATE).unlink(missing_ok=True)
    return verdicts


def _check(potential: Potential, structures: Sequence[Atoms], places: list[int], ids: list[str]) -> None:
    for place, name, atoms in zip(places, ids, structures, strict=True):
        if len(atoms) == 0:
            raise DataError(f"structure {place} ({name}) has no atoms; leave it out")
        strange = set() if potential.elements is None else set(atoms.numbers.tolist()) - set(potential.elements)
        if strange:
            symbols = ", ".join(sorted(chemical_symbols[z] for z in strange))
            known = ", ".join(chemical_symbols[z] for z in potential.elements or ())
            raise DataError(f"structure {place} ({name}) holds {symbols}; the potential knows {known}. Leave it out")


class _Run:
    """The structures that are still being simulated. They are numbered 0, 1, … anew whenever one leaves."""

    ARRAYS = ("positions", "velocities", "forces", "energies")

    def __init__(
        self,
        potential: Potential,
        structures: Sequence[Atoms],
        ids: list[str],
        places: list[int],
        settings: DynamicsSettings,
        folder: Path | None,
        key: str,
    ) -> None:
        self.potential, self.settings, self.folder, self.key = potential, settings, folder, key
        self.dtype, self.device = floating(potential)
        self.every, self.ids, self.places = list(structures), ids, places
        self.n_structures = len(structures)
        self.verdicts: dict[int, dict] = {}
        self.files = TrajectoryFiles(folder / TRAJECTORIES) if folder and settings.trajectory_interval else None
        stored = None if folder is None else read_state(folder, key)
        if stored is None:
            self._start()
        else:
            self._restore(*stored)

    # -- beginning, storing, continuing ------------------------------------------------------------------------------

    def _set_up(self, active: list[int]) -> None:
        """Everything that follows from which structures are active (places in the list of all of them)."""
        self.active = active
        atoms = [self.every[k] for k in active]
        self.sizes = [len(a) for a in atoms]
        self.counts = torch.tensor(self.sizes, dtype=torch.int64, device=self.device)
        self.batch = torch.from_numpy(np.repeat(np.arange(len(active)), self.sizes)).to(self.device)
        masses = np.concatenate([np.zeros(0), *(a.get_masses() for a in atoms)])
        self.masses = torch.from_numpy(masses).to(self.device)[:, None]
        s = self.settings
        self.integrator: Langevin | VelocityVerlet
        if s.ensemble == "nve":
            self.integrator = VelocityVerlet(self.masses, timestep=s.timestep)
        else:
            self.integrator = Langevin(
                self.masses,
                self.batch,
                self.counts,
                timestep=s.timestep,
                temperature=s.temperature,
                friction=s.friction,
                fixcm=s.fixcm,
            )

    def _observe(self, start: Tensor, smallest: Tensor) -> None:
        """Observers and neighbour lists of the active structures."""
        atoms, s = [self.every[k] for k in self.active], self.settings
        names, places = [self.ids[k] for k in self.active], [self.places[k] for k in self.active]
        self.observers = Observers(s, atoms, names, places, start, smallest)
        self.lists = SkinLists(
            [a.numbers for a in atoms],
            [np.array(a.cell[:]) for a in atoms],
            [np.array(a.pbc) for a in atoms],
            # a list that always holds the pair that was closest at the start
            [max(self.potential.cutoff, float(d)) if d > 0 else self.potential.cutoff for d in smallest],
            cutoff=self.potential.cutoff,
            skin=s.skin,
            dtype=self.dtype,
            device=self.device,
            max_edges=s.max_edges,
            max_neighbours=s.max_neighbours,
        )

    def _start(self) -> None:
        s = self.settings
        self.step = 0
        self._set_up(list(range(self.n_structures)))
        if self.files is not None:
            self.files.restore({}, self.places)
        generators = [structure_generator(s.seed, place) for place in self.places]
        velocities = [
            maxwell_boltzmann_velocities(a.get_masses(), s.temperature, g)
            for a, g in zip(self.every, generators, strict=True)
        ]
        self.noise = NoiseStreams(generators, self.sizes, self.device)
        self.velocities = torch.from_numpy(np.concatenate(velocities)).to(self.device)
        self.positions = torch.from_numpy(np.concatenate([a.positions for a in self.every])).to(self.device)
        smallest = []
        for place, name, atoms in zip(self.places, self.ids, self.every, strict=True):
            try:
                complete_cell(atoms.cell[:], atoms.pbc)
                smallest.append(minimum_distance(atoms.positions, atoms.cell[:], atoms.pbc))
            except DataError as error:
                raise DataError(f"structure {place} ({name}): {error}") from None
        start = torch.tensor(smallest, dtype=torch.float64, device=self.device)
        self._observe(self.positions, start)
        broken: Broken = {}
        for k, text in self.lists.build_all(self.positions).items():
            add_reason(broken, k, "cell_collapsed", text)
        self._evaluate(broken)
        self.observers.check_forces(self.forces, self.energies, broken)
        temperature = self.observers.check_motion(0, self._kinetic(), self._distances(), broken)
        self._settle(broken, temperature)

    def _store(self) -> None:
        if self.folder is None:
            return
        sizes = {} if self.files is None else self.files.flush()
        arrays = {name: getattr(self, name).cpu().numpy() for name in self.ARRAYS}
        arrays["reference"] = self.lists.reference.cpu().numpy()
        arrays |= {f"observed_{name}": value for name, value in self.observers.state().items()}
        plain = {
            "step": self.step,
            "active": self.active,
            "boundaries": self.lists.boundaries,
            "noise": self.noise.state(),
            "trajectory_sizes": sizes,
            "verdicts": {str(k): verdict for k, verdict in self.verdicts.items()},
        }
        write_state(self.folder, self.key, arrays, plain)

    def _restore(self, arrays: dict[str, np.ndarray], plain: dict[str, Any]) -> None:
        self.step = plain["step"]
        self.verdicts = {int(k): verdict for k, verdict in plain["verdicts"].items()}
        self._set_up(plain["active"])
        for name in self.ARRAYS:
            setattr(self, name, torch.from_numpy(arrays[name].copy()).to(self.device))
        generators = [structure_generator(0, 0) for _ in self.active]
        self.noise = NoiseStreams(generators, self.sizes, self.device)
        self.noise.restore(plain["noise"])
        observed = {k.removeprefix("observed_"): v for k, v in arrays.items() if k.startswith("observed_")}
        start = torch.from_numpy(observed["start"]).to(self.device)
        self._observe(start, torch.from_numpy(observed["overlap_start"]).to(self.device))
        self.observers.restore(observed)
        # lists are built where they were built before: their order decides the rounding of sums over neighbours
        self.lists.build_all(torch.from_numpy(arrays["reference"]).to(self.device), plain["boundaries"])
        if self.files is not None:
            self.files.restore(plain["trajectory_sizes"], self.places)
        logger.info("%s continues at step %d of %d", self.folder, self.step, self.settings.steps)

    # -- one step ----------------------------------------------------------------------------------------------------

    def go(self, progress: bool) -> list[dict]:
        """All steps that are left; returns the verdicts of all structures."""
        s = self.settings
        steps: Any = range(self.step, s.steps)
        if progress:
            steps = show_progress(steps, len(steps), f"molecular dynamics of {self.n_structures} structures")
        stored_step, stored_time = self.step, time.monotonic()
        for _ in steps:
            if not self.active:
                break
            self._advance()
            waited = time.monotonic() - stored_time >= s.checkpoint_seconds
            if (waited or self.step - stored_step >= s.checkpoint_steps) and self.step < s.steps:
                self._store()
                stored_step, stored_time = self.step, time.monotonic()
        if self.active:
            self._finish(list(range(len(self.active))), {})
        if self.files is not None:
            self.files.flush()
        return [self.verdicts[k] for k in range(self.n_structures)]

    def _advance(self) -> None:
        noise = (self.noise.next(),) if isinstance(self.integrator, Langevin) else ()
        self.step += 1
        positions, velocities = self.integrator.first_half(self.positions, self.velocities, self.forces, *noise)
        broken: Broken = {}
        self.observers.check_positions(positions, broken)
        if broken:
            # they leave at the end of the step; until then they stay where their lists are right
            lost = torch.isin(self.batch, torch.tensor(list(broken), device=self.device))
            positions = torch.where(lost[:, None], self.lists.reference, positions)
        self.positions = positions
        for k, text in self.lists.update(positions).items():
            add_reason(broken, k, "cell_collapsed", text)
        self._evaluate(broken)
        self.observers.check_forces(self.forces, self.energies, broken)
        self.velocities = self.integrator.second_half(velocities, self.forces)
        temperature = self.observers.check_motion(self.step, self._kinetic(), self._distances(), broken)
        self._settle(broken, temperature)

    def _evaluate(self, broken: Broken) -> None:
        """Forces (n, 3) and energies (n_structures,) at the present positions."""
        self.forces, self.energies, raised = evaluate_chunks(
            self.potential, self.lists, self.positions, one_by_one=self.step > 0
        )
        for k, text in raised.items():
            add_reason(broken, k, "potential_error", text)

    def _kinetic(self) -> Tensor:
        twice = (self.masses * self.velocities.square()).sum(1)
        total = torch.zeros(len(self.active), dtype=torch.float64, device=self.device)
        return 0.5 * total.index_add_(0, self.batch, twice)

    def _distances(self) -> Tensor:
        return self.lists.minimum_distances(self.positions)

    def _settle(self, broken: Broken, temperature: Tensor) -> None:
        """Let the broken structures go, and count the step for the others."""
        if broken:
            self._finish(sorted(broken), broken)
            kept = [k for k in range(len(self.active)) if k not in broken]
            where = torch.tensor(kept, dtype=torch.int64, device=self.device)
            self._keep(kept, where)
            temperature = temperature.index_select(0, where)
        if self.active:
            self.observers.count(self.step, self.positions, temperature, self.energies + self._kinetic())
            if self.files is not None and self.step % self.settings.trajectory_interval == 0:
                self._write_frames(range(len(self.active)))

    def _finish(self, structures: list[int], broken: Broken) -> None:
        if self.files is not None and broken:
            lost = ("not_finite", "escaped")  # their positions are no longer those of the trajectory
            self._write_frames([k for k in structures if not any(r in broken[k] for r in lost)])
        for k, verdict in zip(structures, self.observers.verdicts(structures, self.step, broken), strict=True):
            self.verdicts[self.active[k]] = verdict
            if broken:
                first = verdict["failures"][0]
                logger.debug("structure %s breaks at step %d: %s", verdict["structure_id"], self.step, first["text"])

    def _keep(self, kept: list[int], where: Tensor) -> None:
        atoms = torch.isin(self.batch, where).nonzero().flatten()
        for name in ("positions", "velocities", "forces"):
            setattr(self, name, getattr(self, name).index_select(0, atoms))
        self.energies = self.energies.index_select(0, where)
        self.noise.keep(kept, atoms)
        self.observers.keep(kept, atoms)
        self.lists.keep(kept, atoms)
        self._set_up([self.active[k] for k in kept])

    def _write_frames(self, structures: Sequence[int]) -> None:
        assert self.files is not None
        first = np.concatenate([[0], np.cumsum(self.sizes)])
        positions, momenta = self.positions.cpu().numpy(), (self.velocities * self.masses).cpu().numpy()
        for k in structures:
            mine, whole = slice(first[k], first[k + 1]), self.every[self.active[k]]
            frame = Atoms(whole.numbers, positions[mine], cell=whole.cell, pbc=whole.pbc, momenta=momenta[mine])
            frame.info = {
                "structure_id": self.ids[self.active[k]],
                "step": self.step,
                "time_fs": self.step * self.settings.timestep,
            }
            self.files.add(self.places[self.active[k]], frame)

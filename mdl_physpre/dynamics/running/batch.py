"""The steps of all structures together: move, evaluate, watch, and let go of those that break or finish."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from torch import Tensor

from mdl_physpre.dynamics.engine.broken import Broken
from mdl_physpre.dynamics.engine.ensembles import Ensemble, ensemble_of
from mdl_physpre.dynamics.engine.forces import evaluate_chunks
from mdl_physpre.dynamics.engine.moving_atoms import MovingAtoms
from mdl_physpre.dynamics.engine.neighbour_lists import MovingLists
from mdl_physpre.dynamics.engine.random_numbers import NoiseStreams
from mdl_physpre.dynamics.running.rdf_sampling import RDFSampler
from mdl_physpre.dynamics.running.storage import FAILING, TRAJECTORIES, FailingFrames, TrajectoryFiles
from mdl_physpre.dynamics.running.trajectory_frames import present_frames
from mdl_physpre.dynamics.running.windows import Unread, Window, steps_between_readings
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts.judging import verdicts_of
from mdl_physpre.dynamics.verdicts.observer import Moment
from mdl_physpre.dynamics.verdicts.observers import Observers
from mdl_physpre.dynamics.verdicts.verdict import Verdict
from mdl_physpre.potentials.base import Potential, Predictions
from mdl_physpre.potentials.compiled import compiled
from mdl_physpre.utils.devices import precision_and_device

logger = logging.getLogger(__name__)
ONLY_THE_RUN_KNOWS = ("potential_error", "cell_collapsed")


class BatchRun:
    """The structures that are still being simulated. They are numbered 0, 1, … anew whenever one leaves.

    Made by :func:`mdl_physpre.dynamics.running.run_state.begin_or_resume`. ``active`` holds the place of each in the
    list of all structures, ``places`` the place of each of all structures in the caller's list.
    """

    active: list[int]
    step: int
    atoms: MovingAtoms
    integrator: Ensemble
    observers: Observers
    lists: MovingLists
    noise: NoiseStreams | None

    def __init__(
        self,
        potential: Potential,
        structures: Sequence[Atoms],
        ids: Sequence[str],
        places: Sequence[int],
        settings: DynamicsSettings,
        each: Sequence[DynamicsSettings],
        folder: Path | None,
        key: str,
    ) -> None:
        self.potential = compiled(potential) if settings.compile else potential
        self.settings, self.each = settings, list(each)
        self.folder, self.key = folder, key
        self.dtype, self.device = precision_and_device(self.potential)
        self.structures, self.ids, self.places = list(structures), list(ids), list(places)
        self.verdicts: dict[int, Verdict] = {}
        self.files = TrajectoryFiles(folder / TRAJECTORIES) if folder and settings.trajectory_interval else None
        starts = dict(zip(places, structures, strict=True))
        self.failing = FailingFrames(folder / FAILING, starts) if folder else None
        self.rdfs = RDFSampler(settings, structures) if settings.rdf_interval else None
        self.ensemble = ensemble_of(settings.ensemble)
        self.changing = self.ensemble.cls.changes_cells
        self.seconds_per_step: float | None = None  # of this process, for those who ask how long it will take
        self.stress_missed = False  # and said so
        self.last: dict[int, Atoms] | None = None  # the last frame of each place, where they are wanted
        self.left_at: dict[int, tuple[Tensor, Tensor]] = {}  # where structures were whose step could not be finished
        self.ends = {s.steps for s in each}
        self.interval = steps_between_readings(self.device)
        self.length = 1  # of the next window; 0 where its first step is to be judged at once
        self.window: Window | None = None  # None where all steps that were taken have been judged

    def advance(self) -> None:
        """One step of all structures, judged at once or in a window of :mod:`mdl_physpre.dynamics.running.windows`."""
        if self.window is None and (self.interval == 1 or self.length == 0):
            self.length = 1
            self.take_step(Broken())
            return
        if self.window is None:
            if self.noise is not None:
                self.noise.prepare()
            parts = [self.atoms, self.integrator, *self.observers.parts, self.lists]
            parts += [] if self.noise is None else [self.noise]
            self.window = Window(parts, self.step, self.length)
        try:
            self.take_step(self.window.unread)
        except Exception as error:
            logger.debug("steps are taken again, because of %r", error)
            self.take_again()
            return
        if self.step >= self.window.end or self.due() or (self.noise is not None and self.noise.used_up):
            happened, spent = self.window.read(self.lists.spent())
            if happened:
                self.take_again()
                return
            self.window = None
            self.length = self.lists.prepare(spent, self.interval, self.atoms.positions)
            self.record()

    def take_again(self) -> None:
        """The steps of the window again, each judged at once."""
        assert self.window is not None
        last, self.step = self.step, self.window.step
        self.window.put_back()
        self.window, self.length = None, 1
        while self.active and self.step < last:
            self.take_step(Broken())

    def due(self) -> bool:
        """Whether this step ends a structure's run, or is stored or sampled by the host."""
        stored = self.files is not None and self.step % self.settings.trajectory_interval == 0
        return stored or self.step in self.ends or (self.rdfs is not None and self.rdfs.due(self.step))

    def take_step(self, broken: Broken) -> None:
        """One step of all structures, of which ``broken`` judges."""
        atoms, integrator = self.atoms, self.integrator
        noise = None if self.noise is None else self.noise.next()
        self.step += 1
        integrator.begin_step(atoms, self.step)
        if self.changing:
            integrator.rescale(atoms)
            self.moved(broken, step_done=False)
            self.evaluate(broken, stress=False)
        integrator.first_half(atoms, noise)
        deformation = self.moved(broken)
        stress = self.wants_stress()
        self.evaluate(broken, stress)
        self.observers.check_forces(atoms, broken, stress=self.changing)
        integrator.second_half(atoms)
        self.settle(broken, deformation, stress)

    def wants_stress(self) -> bool:
        """Whether the stress is computed at this step."""
        interval = self.settings.pressure_interval
        return self.changing or bool(interval and self.potential.gives_stress and self.step % interval == 0)

    def moved(self, broken: Broken, step_done: bool = True) -> Tensor | None:
        """Check where the atoms have come to, and bring the neighbour lists up to date; returns the deformations."""
        atoms, deformation = self.atoms, None
        if self.changing:
            self.observers.check_cells(atoms.cells, broken)
            deformation = self.observers.deformation(atoms.cells)
        self.observers.check_positions(atoms.positions, broken, deformation, step_done)
        if broken:
            # they leave at the end of the step; until then they stay where their lists are right
            for k in broken:
                self.left_at.setdefault(self.active[k], (atoms.positions[atoms.batch == k], atoms.cells[k]))
            lost = torch.zeros(len(self.active), dtype=torch.bool, device=self.device)
            lost[list(broken)] = True
            atoms.positions = torch.where(atoms.per_atom(lost)[:, None], self.lists.reference, atoms.positions)
            atoms.cells = torch.where(lost[:, None, None], self.lists.reference_cells, atoms.cells)
        for k, text in self.lists.update(atoms.positions, atoms.cells, broken).items():
            broken.add(k, "cell_collapsed", text)
        return deformation

    def evaluate(self, broken: Broken, stress: bool) -> dict[int, Exception]:
        """Forces, energies and stress at the present positions; returns the errors that the potential raised."""
        judged = not isinstance(broken, Unread)
        found, raised = evaluate_chunks(self.potential, self.lists, self.atoms.positions, stress, one_by_one=judged)
        if raised and stress and not self.changing:
            raised = self.without_stress(found, raised)
        self.atoms.take(found)
        for k, error in raised.items():
            broken.add(k, "potential_error", f"the potential raised {type(error).__name__}: {error}")
        return raised

    def without_stress(self, found: Predictions, raised: dict[int, Exception]) -> dict[int, Exception]:
        """Put forces and energies of structures whose stress alone raises into ``found``; returns the other errors.

        At constant volume the pressure is only watched: that it cannot be had ends no run.
        """
        again, still = evaluate_chunks(self.potential, self.lists, self.atoms.positions)
        for k in raised.keys() - still.keys():
            if not self.stress_missed:
                self.stress_missed = True
                said = f"{type(raised[k]).__name__}: {raised[k]}"
                logger.warning("the potential raised for the stress (%s): such structures get no pressure", said)
            mine = self.atoms.batch == k
            for name, rows in (("forces", mine), ("force_spread", mine), ("energies", k), ("energy_spread", k)):
                if (values := getattr(found, name)) is not None:
                    values[rows] = getattr(again, name)[rows]
        return {k: error for k, error in still.items() if k in raised}

    def settle(self, broken: Broken, deformation: Tensor | None, stress: bool) -> None:
        """Judge the step, let the broken structures go, count it for the others, and let the finished ones go."""
        atoms = self.atoms
        distances = self.lists.minimum_distances(atoms.positions)
        moment = Moment(self.step, atoms, atoms.temperatures(), distances, deformation)
        self.observers.check_motion(moment, broken)
        if broken:
            self.finish(sorted(broken), broken)
            kept = self.let_go(broken)
            moment.temperature, moment.distances = (v.index_select(0, kept) for v in (moment.temperature, distances))
            moment.deformation = None if deformation is None else deformation.index_select(0, kept)
        if not self.active:
            return
        conserved = atoms.energies + atoms.kinetic - self.integrator.heat
        self.observers.count(moment, conserved)
        if stress and self.step:
            self.observers.count_pressure(atoms.pressures())
        self.keep_first_failures(broken)
        if not isinstance(broken, Unread):
            self.record()

    def record(self) -> None:
        """Store and sample what is due at this step, and let the structures go that end with it."""
        atoms = self.atoms
        ended = [k for k, place in enumerate(self.active) if self.each[place].steps <= self.step]
        done = self.integrator.finished(atoms)
        if done is not None:
            ended = sorted({*ended, *done.nonzero().flatten().tolist()})
        if self.files is not None and self.step % self.settings.trajectory_interval == 0:
            for place, frame in self.frames(range(len(self.active)), Broken()):
                self.files.add(place, frame)
        if self.rdfs is not None and self.rdfs.due(self.step):
            self.rdfs.take(self.active, atoms)
        if ended:
            self.finish(ended, Broken())
            self.let_go(ended)

    def finish(self, structures: list[int], broken: Broken) -> None:
        """Final verdicts of these structures."""
        if self.files is not None and broken:
            for place, frame in self.frames(structures, broken):
                self.files.add(place, frame)
        if self.last is not None:
            self.last |= dict(self.frames(structures, broken))
        found = verdicts_of(self.observers, structures, self.step, broken)
        if self.failing is not None:
            self.settle_failing_frames(structures, found, broken)
        for k, verdict in zip(structures, found, strict=True):
            self.verdicts[self.active[k]] = verdict
            if broken:
                first = verdict.failures[0]
                logger.debug("structure %s breaks at step %d: %s", verdict.structure_id, self.step, first.text)

    def let_go(self, leaving: Any) -> Tensor:
        """Go on without these structures; returns the numbers of the others."""
        kept = [k for k in range(len(self.active)) if k not in leaving]
        where = torch.tensor(kept, dtype=torch.int64, device=self.device)
        self.active = [self.active[k] for k in kept]
        atoms = self.atoms.keep(where)
        before, self.integrator = self.integrator, self.ensemble.make(self.atoms, [self.each[k] for k in self.active])
        self.integrator.take_over(before, where, atoms)
        if self.noise is not None:
            self.noise.keep(kept, atoms)
        self.observers.keep(kept, atoms)
        self.lists.keep(kept, atoms)
        return where

    def keep_first_failures(self, broken: Broken) -> None:
        """Keep the frames of structures that pass a bound at this step and go on all the same."""
        if self.failing is None:
            return
        passed = self.observers.passed(self.step)
        found = broken.which(torch.stack(passed).any(0)) if passed else []
        if found:
            self.failing.keep(self.frames(found, Broken()))

    def settle_failing_frames(self, structures: Sequence[int], verdicts: Sequence[Verdict], broken: Broken) -> None:
        """Frames of structures that leave: kept of those that failed, dropped of those that did not in the end."""
        assert self.failing is not None
        known = self.failing.known()
        late = []
        for k, verdict in zip(structures, verdicts, strict=True):
            place = self.places[self.active[k]]
            if verdict.failed and (k in broken or place not in known):
                late.append(k)
            elif not verdict.failed and place in known:
                self.failing.drop(place)
        self.failing.keep(self.frames(late, broken))

    def frames(self, structures: Sequence[int], broken: Broken) -> Iterator[tuple[int, Atoms]]:
        """The present frames of these structures, each with its place in the caller's list."""
        conserved = (self.atoms.energies + self.atoms.kinetic - self.integrator.heat).tolist()
        wholes = [self.structures[place] for place in self.active]
        left = {k: self.left_at[place] for k, place in enumerate(self.active) if place in self.left_at}
        for k, frame in zip(structures, present_frames(self.atoms, structures, wholes, left), strict=True):
            place = self.active[k]
            frame.info |= {"structure_id": self.ids[place], "step": self.step}
            frame.info |= {"time_fs": self.step * self.each[place].timestep, "conserved_energy": conserved[k]}
            frame.info |= {r: " ".join(t.split()) for r, t in broken.get(k, {}).items() if r in ONLY_THE_RUN_KNOWS}
            yield self.places[place], frame

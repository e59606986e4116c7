"""A few steps of each kind of work of a run, on a few of its structures, timed. Nothing of them is kept."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms

from mdl_physpre.dynamics.engine.forces import inference
from mdl_physpre.dynamics.running.run_state import begin_or_resume
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.eam_fit.fit import fit_eam
from mdl_physpre.eam_fit.settings import EAMFitSettings
from mdl_physpre.potentials.base import Backbone, Potential
from mdl_physpre.potentials.eam.angular import AngularEAM
from mdl_physpre.potentials.eam.potential import EAMInteraction
from mdl_physpre.pretraining.perturbation_settings import PerturbationSettings
from mdl_physpre.pretraining.pretraining_set import make_pretraining_set
from mdl_physpre.structures.labels import set_labels
from mdl_physpre.training.arms import Training
from mdl_physpre.training.average import WeightAverage
from mdl_physpre.training.data import GraphBatches, epoch_batches
from mdl_physpre.training.gradient import LossGradient
from mdl_physpre.training.optimizer import make_optimizer, take_step
from mdl_physpre.training.ranks import Ranks
from mdl_physpre.training.replay import Steps
from mdl_physpre.training.sam import climb, go_back
from mdl_physpre.utils.memory import PeakMemory
from mdl_physpre.workflow.config.hot_frames import HotFrames
from mdl_physpre.workflow.throughput import seconds_of, timed_steps

SECONDS = 0.05  # of each measurement, where one step does not take longer
FITTED, PASSES = 16, 4  # structures and passes in a trial fit
PERTURBED = 4  # structures in a trial set
MOVED = 2000  # atoms in trial dynamics, at most, if one structure has no more


@dataclass(frozen=True)
class Cost:
    """Seconds of a unit of work; of a structure in validation; bytes at the peak beyond the start, NaN if not known."""

    seconds: float
    validation: float = 0.0
    memory: float = float("nan")


@contextmanager
def trying() -> Iterator[None]:
    """Within the block nothing below an error is logged; afterwards random numbers of PyTorch are as before."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        logging.disable(before)


def of_all_sizes(structures: Sequence[Atoms], n: int) -> list[Atoms]:
    """``n`` structures, evenly from the smallest to the largest; again and again the same where there are fewer."""
    order = sorted(range(len(structures)), key=lambda k: len(structures[k]))
    return [structures[order[k]] for k in np.linspace(0, len(order) - 1, n).round().astype(int)]


def with_all_labels(structures: Sequence[Atoms]) -> list[Atoms]:
    """Copies that have energy, forces and stress, all zero: the work of labels of a teacher, not their sense."""
    return [set_labels(a.copy(), 0.0, np.zeros((len(a), 3)), np.zeros((3, 3))) for a in structures]


def training_cost(potential: Backbone, training: Training, device: torch.device) -> Cost:
    """Of a step, and of a structure in validation. The potential is trained meanwhile."""
    settings = training.settings.changed(devices=1, compile=False)
    memory, ranks = PeakMemory(trim=True), Ranks()
    potential.to(device).train()
    replayed_settings = settings if training.replay is None else training.replay.settings
    gradient = LossGradient(potential, settings, replayed_settings, ranks)
    optimizer, _ = make_optimizer(potential, settings)
    average = None if settings.ema_decay is None else WeightAverage(gradient.parameters, settings.ema_decay)
    batches = GraphBatches(training.train, epoch_batches(training.train, settings, 0))
    steps = itertools.cycle(list(Steps(batches, training.replay, settings, 0)))
    (judged, *_) = GraphBatches(training.val, epoch_batches(training.val, settings))

    def step() -> None:
        graph, replayed = next(steps)
        graphs = graph.on(device), [(other.on(device), weight) for other, weight in replayed]
        gradient(*graphs)
        if settings.sam_rho is not None:
            before = climb(gradient.parameters, settings.sam_rho, settings.sam_adaptive)
            gradient(*graphs)
            go_back(gradient.parameters, before)
        take_step(optimizer, settings, 0, 0.0)
        if average is not None:
            average.update()

    seconds = seconds_of(step, device, SECONDS)
    potential.eval()
    validation = seconds_of(lambda: gradient.validation_errors(judged.on(device)), device, SECONDS)
    return Cost(seconds, validation / len(judged.n_atoms), memory.on(device))


def fit_cost(
    train: Sequence[Atoms], val: Sequence[Atoms], settings: EAMFitSettings, elements: Sequence[str]
) -> tuple[Cost, EAMInteraction]:
    """Of the whole fit, if it takes all passes, and the potential of a few of them.

    Raises FitError as :func:`.fit_eam`.
    """
    memory = PeakMemory(trim=True)
    few, judged = (of_all_sizes(part, min(FITTED, len(part))) for part in (train, val))
    passes = min(PASSES, settings.epochs)
    fit = fit_eam(few, judged, settings.changed(epochs=passes), elements=elements, progress=False)
    first, last = fit.history[0], fit.history[-1]
    between = last["epoch"] - first["epoch"]
    one = (last["seconds"] - first["seconds"]) / between if between else fit.seconds
    whole = fit.seconds + (settings.epochs - last["epoch"]) * one
    return Cost(whole * len(train) / len(few), memory=memory.on(torch.device("cpu"))), fit.potential


def teacher_cost(
    structures: Sequence[Atoms], fit: Callable[[Sequence[Atoms]], AngularEAM], runs: int, hot: HotFrames
) -> tuple[Cost, Potential]:
    """Of a structure in the fit of a teacher, and the first fit to a few of them.

    fit : the first fit. runs, hot : dynamics between it and the second one, and their settings.
    """
    few, n = of_all_sizes(structures, min(PERTURBED, len(structures))), len(structures)
    memory, start = PeakMemory(trim=True), time.perf_counter()
    fitted = fit(few)
    one = (time.perf_counter() - start) / len(few)
    seconds = one * (n + runs * hot.n)
    if runs:
        cpu, settings = torch.device("cpu"), DynamicsSettings(temperature=hot.temperature, timestep=hot.timestep)
        atoms = runs * sum(map(len, structures)) / n
        seconds += hot.steps * atoms * dynamics_cost(fitted, structures, settings, cpu).seconds
    return Cost(seconds / n, memory=memory.on(torch.device("cpu"))), fitted


def perturbing_cost(structures: Sequence[Atoms], settings: PerturbationSettings, teacher: Potential) -> Cost:
    """Of one structure of a pretraining set, labelled by a potential."""
    few = of_all_sizes(structures, min(PERTURBED, len(structures)))
    memory, start = PeakMemory(trim=True), time.perf_counter()
    rounds = settings.changed(n_aug=min(2, settings.n_aug), max_force=None)
    made = make_pretraining_set(few, rounds, teacher, workers=1, progress=False)
    return Cost((time.perf_counter() - start) / len(made.structures), memory=memory.on(torch.device("cpu")))


def dynamics_cost(
    potential: Backbone, structures: Sequence[Atoms], settings: DynamicsSettings, device: torch.device
) -> Cost:
    """Of an atom in one step of molecular dynamics.

    Raises PhyspreError where the potential lets all structures break at once.
    """
    memory = PeakMemory(trim=True)
    few = of_all_sizes(structures, max(1, min(len(structures), MOVED // max(map(len, structures)))))
    n, plain = len(few), settings.changed(compile=False, steps=1_000_000)  # longer than the trial
    with inference(potential.to(device)):
        run = begin_or_resume(potential, few, list(map(str, range(n))), range(n), plain, [plain] * n)
        per_second, _ = timed_steps(run, device, SECONDS)
    return Cost(1.0 / per_second, memory=memory.on(device))

"""How fast a potential is trained and simulated on a device, and how much memory that takes, on made-up structures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from ase.build import make_supercell
from ase.spacegroup import crystal
from torch import nn

from mdl_physpre.dynamics.engine.forces import inference
from mdl_physpre.dynamics.running.batch import BatchRun
from mdl_physpre.dynamics.running.run_state import begin_or_resume
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.errors import PhyspreError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import AtomGraph, GraphDataset
from mdl_physpre.structures.labels import set_labels
from mdl_physpre.training.loss import label_errors, total_loss
from mdl_physpre.training.optimizer import make_optimizer
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.utils.memory import PeakMemory

REPEATS = 3  # timed calls, at least
WORTH = 1.05  # more structures at once are tried as long as the rate rises by this factor


@dataclass
class Rate:
    """What was reached.

    per_second : structures in training, atom-steps in dynamics.
    at_once : structures in a batch, or simulated together.
    memory : bytes at the peak; on a GPU of its tensors, on the CPU of the process beyond what it had before. NaN where
        the system does not tell.
    """

    per_second: float
    at_once: int
    memory: float


def silica_like(n: int, repeat: Sequence[int] = (2, 2, 2), labels: bool = True) -> list[Atoms]:
    """Strained and rattled quartz, 9 atoms x ``repeat``, with random labels: the work of real data, not its sense."""
    places = [(0.4697, 0, 1 / 3), (0.4133, 0.2672, 0.4524)]
    quartz = crystal(["Si", "O"], places, spacegroup=152, cellpar=[4.916, 4.916, 5.405, 90, 90, 120])
    cell = make_supercell(quartz, np.diag(repeat))
    made = []
    for k in range(n):
        rng, atoms = np.random.default_rng(k), cell.copy()
        atoms.set_cell(atoms.cell[:] @ (np.eye(3) + rng.normal(0, 0.01, (3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.03, atoms.positions.shape)
        if labels:
            set_labels(atoms, rng.normal(), rng.normal(size=(len(atoms), 3)), 0.01 * np.eye(3) * rng.normal())
        made.append(atoms)
    return made


def batch_of(n: int, cutoff: float, device: torch.device, structures: Sequence[Atoms]) -> AtomGraph:
    """A batch of ``n`` structures, repeated as often as it takes, with labels, float32."""
    data = GraphDataset(structures, cutoff, dtype=torch.float32, workers=1)
    return data.batch(np.arange(n) % len(data)).on(device)


def training_step(potential: Potential, trained: Potential | None = None) -> Callable[[AtomGraph], None]:
    """A step of training on a batch: energies, forces and stress, the gradient of their loss, clipping, AdamW.

    ``trained`` has the parameters where ``potential`` stands for it, as a compiled one does.
    """
    learning, settings = trained or potential, TrainingSettings()
    optimizer, _ = make_optimizer(learning, settings)
    learning.train()

    def step(graph: AtomGraph) -> None:
        optimizer.zero_grad(set_to_none=True)
        found = evaluate(potential, graph, create_graph=True)
        total_loss(label_errors(found, graph, settings), settings).backward()
        nn.utils.clip_grad_norm_(learning.parameters(), settings.clip_grad_norm or math.inf)
        optimizer.step()

    return step


def seconds_of(call: Callable[[], object], device: torch.device, seconds: float = 0.0, repeats: int = REPEATS) -> float:
    """Seconds of one call: the mean of ``repeats`` calls, or of as many as fill ``seconds``, after one that is not
    timed; of one, where that first one already took longer. The device has done its work when the clock is read."""
    start = time.perf_counter()
    call()
    synchronise(device)
    repeats = 1 if 0 < seconds < time.perf_counter() - start else repeats
    start, done = time.perf_counter(), 0
    while done < repeats or time.perf_counter() - start < seconds:
        call()
        done += 1
        if done >= repeats:
            synchronise(device)
    return (time.perf_counter() - start) / done


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def training_rate(
    potential: Potential,
    device: torch.device,
    seconds: float,
    sizes: Sequence[int] = (1, 4, 16, 64),
    structures: Sequence[Atoms] | None = None,
    trained: Potential | None = None,
) -> Rate:
    """Structures per second in training, at the best of some batch sizes; at most about ``seconds`` are spent."""
    step, made = training_step(potential, trained), structures or silica_like(4)

    def measure(n: int, time_left: float) -> float:
        graph = batch_of(n, potential.cutoff, device, made)
        return n / seconds_of(lambda: step(graph), device, time_left)

    return _best(measure, device, seconds, sizes)


def dynamics_rate(
    potential: Potential,
    device: torch.device,
    seconds: float,
    sizes: Sequence[int] = (1, 8, 32, 128),
    structures: Sequence[Atoms] | None = None,
) -> Rate:
    """Atom-steps per second of molecular dynamics (Langevin, 300 K, 1 fs, judged as ever), at the best of some numbers
    of structures; at most about ``seconds`` are spent. Building the first neighbour lists is not timed."""
    made = structures or silica_like(4, labels=False)

    def measure(n: int, time_left: float) -> float:
        atoms = [made[k % len(made)] for k in range(n)]
        with running(potential, atoms) as run:
            return timed_steps(run, device, time_left)[0]

    return _best(measure, device, seconds, sizes)


@contextmanager
def running(potential: Potential, structures: Sequence[Atoms], ensemble: str = "nvt") -> Iterator[BatchRun]:
    """Molecular dynamics of structures at its start, at 300 K with steps of 1 fs."""
    n = len(structures)
    settings = DynamicsSettings(ensemble=ensemble, temperature=300.0, timestep=1.0, steps=1_000_000)
    with inference(potential):
        yield begin_or_resume(potential, structures, list(map(str, range(n))), range(n), settings, [settings] * n)


def timed_steps(run: BatchRun, device: torch.device, seconds: float) -> tuple[float, float]:
    """Atom-steps per second and seconds of one step, of steps that fill ``seconds``, after one that is not timed.

    Raises PhyspreError where no structure is left to simulate.
    """
    start = time.perf_counter()
    if run.active:
        run.advance()
    synchronise(device)
    repeats = 1 if 0 < seconds < time.perf_counter() - start else REPEATS
    start, moved, steps = time.perf_counter(), 0, 0
    while run.active and (steps < repeats or time.perf_counter() - start < seconds):
        moved += len(run.atoms.positions)
        run.advance()
        steps += 1
    synchronise(device)
    if not run.active:
        why = next((f.text for v in run.verdicts.values() for f in v.failures), "")
        raise PhyspreError(f"no structure is left after {run.step} steps of dynamics: {why}")
    spent = time.perf_counter() - start
    return moved / spent, spent / steps


def _best(measure: Callable[[int, float], float], device: torch.device, seconds: float, sizes: Sequence[int]) -> Rate:
    """The best rate of several sizes, ascending, as far as time and memory go and the rate rises."""
    end, best = time.perf_counter() + seconds, Rate(0.0, 0, math.nan)
    for k, n in enumerate(sizes):
        start = time.perf_counter()
        memory = PeakMemory(trim=True)
        try:
            found = measure(n, min(seconds / 8, max(0.0, end - start) / 4))
        except (MemoryError, torch.OutOfMemoryError):
            if not best.at_once:
                raise
            break
        rose = found > WORTH * best.per_second
        if found > best.per_second:
            best = Rate(found, n, memory.on(device))
        took = time.perf_counter() - start
        # twice the time for more structures: the first call is not timed, and graphs are built
        if not rose or k + 1 < len(sizes) and time.perf_counter() + took * sizes[k + 1] / n > end:
            break
    return best

"""A potential as dynamics uses it: in evaluation mode, chunk by chunk, and one by one where it raises.

On several cores, each thread evaluates chunks of its own, with the operations inside on fewer threads: the threads of
an operation wait for each other at its end, hundreds of times in one evaluation, and those of chunks only once.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from mdl_physpre.dynamics.engine.neighbour_lists import Chunk, MovingLists
from mdl_physpre.potentials.base import Potential, Predictions
from mdl_physpre.potentials.evaluation import evaluate

logger = logging.getLogger(__name__)
SHARE_EDGES = 25_000
"""Edges of a chunk, at least, where chunks are evaluated at the same time: Python's part is too much for fewer."""


@contextmanager
def inference(potential: Potential) -> Iterator[None]:
    """Evaluation mode, and no gradients of parameters; as it was before, afterwards."""
    training = potential.training
    learning = [p for p in potential.parameters() if p.requires_grad]
    potential.eval()
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        potential.train(training)
        for parameter in learning:
            parameter.requires_grad_(True)


def chunks_at_once(potential: Potential, device: torch.device, max_edges: int) -> int:
    """How many threads are to evaluate chunks of their own, with at most ``max_edges`` edges in all of them."""
    if device.type != "cpu" or not potential.concurrent:
        return 1
    return max(1, min(torch.get_num_threads(), max_edges // SHARE_EDGES))


@lru_cache(maxsize=1)
def _workers(process: int, number: int, threads: int) -> ThreadPoolExecutor:
    """So many threads, which share PyTorch's ``threads``; for one process, because threads do not survive a fork."""
    all_there = threading.Barrier(number)

    def begin() -> None:
        torch.set_num_threads(max(1, threads // number))
        torch.get_num_threads()  # a thread keeps what it finds here first; below it is set back for all others
        all_there.wait()

    pool = ThreadPoolExecutor(number, thread_name_prefix="mdl_physpre-chunks", initializer=begin)
    for started in [pool.submit(int) for _ in range(number)]:
        started.result()
    torch.set_num_threads(threads)
    return pool


def evaluate_chunks(
    potential: Potential, lists: MovingLists, positions: Tensor, stress: bool = False, *, one_by_one: bool = True
) -> tuple[Predictions, dict[int, Exception]]:
    """Energies, forces and stress in float64, and the structures for which the potential raised an error.

    Without ``stress``, and where a structure has none, stress is NaN. A chunk for which the potential raises is
    evaluated again structure by structure, so that one structure does not lose the others. Where it raises for want of
    memory, chunks are halved from then on. Structures whose forces are not finite are evaluated alone, too: in a batch,
    one structure's NaN can reach the others (0 · NaN). Without ``one_by_one`` the first error is raised.
    """
    n = len(lists.numbers)
    found = Predictions(
        energies=torch.zeros(n, dtype=torch.float64, device=positions.device),
        forces=torch.zeros_like(positions),
        stress=torch.full((n, 3, 3), torch.nan, dtype=torch.float64, device=positions.device),
    )
    assert found.forces is not None
    if potential.gives_spread:
        found.force_spread, found.energy_spread = torch.zeros_like(positions[:, 0]), torch.zeros_like(found.energies)
    raised: dict[int, Exception] = {}
    too_large = 0

    def attempt(chunk: Chunk) -> Exception | None:
        try:
            _evaluate(potential, lists, positions, chunk, stress, found)
        except Exception as error:
            return error
        return None

    workers = None
    if min(lists.shares, len(lists.chunks)) > 1:
        workers = _workers(os.getpid(), lists.shares, torch.get_num_threads())
    errors = map(attempt, lists.chunks) if workers is None else workers.map(attempt, lists.chunks)
    for chunk, error in zip(lists.chunks, list(errors), strict=True):
        if not one_by_one:
            if error is not None:
                raise error
            continue
        several = chunk.last - chunk.first > 1
        if error is not None:
            if not several:
                raised[chunk.first] = error
                continue
            if _lacks_memory(error):
                too_large = max(too_large, sum(chunk.pairs.counts) if chunk.pairs else 0)
            logger.debug("the potential raised %r; its structures are evaluated one by one", error)
            again = list(range(chunk.first, chunk.last))
        else:
            bad = lists.batch[chunk.atoms][~found.forces[chunk.atoms].isfinite().all(1)]
            again = torch.unique(bad).tolist() if several and len(bad) else []
        for k in again:
            try:
                _evaluate(potential, lists, positions, lists.alone(k), stress, found)
            except Exception as error:
                raised[k] = error
    if too_large:
        lists.max_edges = max(1, min(lists.max_edges, too_large) // 2)
        logger.warning("%d edges in one batch do not fit into memory; from now on %d", too_large, lists.max_edges)
        lists.cut()
    return found, raised


def _evaluate(
    potential: Potential, lists: MovingLists, positions: Tensor, chunk: Chunk, stress: bool, into: Predictions
) -> None:
    one = evaluate(potential, lists.graph(chunk, positions), stress=stress)
    assert one.forces is not None and into.forces is not None and into.stress is not None
    into.forces[chunk.atoms] = one.forces.to(torch.float64)
    into.energies[chunk.first : chunk.last] = one.energies.to(torch.float64)
    if into.force_spread is not None and into.energy_spread is not None:
        assert one.force_spread is not None and one.energy_spread is not None
        into.force_spread[chunk.atoms] = one.force_spread.to(torch.float64)
        into.energy_spread[chunk.first : chunk.last] = one.energy_spread.to(torch.float64)
    if stress and one.stress is not None:
        into.stress[chunk.first : chunk.last] = one.stress.to(torch.float64)


def _lacks_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "can't allocate memory" in str(error)

"""How many edges a potential can be evaluated on at a time in the memory that a device has free."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mdl_physpre.dynamics.engine.neighbour_lists import MovingLists
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.evaluation import evaluate

logger = logging.getLogger(__name__)
ONE_CHUNK = 2**62  # edges: all structures together
SHARE = 0.8  # of the free memory; lists, observers and new lists need some, too


@dataclass(frozen=True)
class Memory:
    """Bytes that a device has free for tensors, and at most had in use since ``forget_peak``."""

    free: Callable[[], int]
    used: Callable[[], int]
    peak: Callable[[], int]
    forget_peak: Callable[[], None]


def memory_of(device: torch.device) -> Memory | None:
    """The memory of a GPU, or ``None`` for a device that does not tell."""
    if device.type != "cuda":
        return None

    def free() -> int:
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept

    return Memory(
        free,
        lambda: torch.cuda.memory_allocated(device),
        lambda: torch.cuda.max_memory_allocated(device),
        lambda: torch.cuda.reset_peak_memory_stats(device),
    )


def edges_that_fit(
    potential: Potential, lists: MovingLists, positions: Tensor, stress: bool, memory: Memory | None
) -> int:
    """Edges that are to be evaluated at a time: all, where the device does not tell, or the potential raises.

    The memory of an edge is taken from the structure with the most edges, evaluated alone for the second time: the
    first brings workspaces of libraries that come but once.
    """
    counts = lists.edge_counts()
    if memory is None or not counts or not max(counts):
        return ONE_CHUNK
    largest = max(range(len(counts)), key=counts.__getitem__)
    taken = 0
    for _ in range(2):
        memory.forget_peak()
        before = memory.used()
        try:
            evaluate(potential, lists.graph(lists.alone(largest), positions), stress=stress)
        except Exception as error:  # what it means is for the run to find
            logger.debug("the memory of an edge cannot be measured: %r", error)
            return ONE_CHUNK
        taken = memory.peak() - before
    fit = int(SHARE * memory.free() / max(taken / counts[largest], 1e-9))
    logger.info("%d edges; %.3g bytes each, %d fit at a time", sum(counts), taken / counts[largest], fit)
    return max(1, fit)

"""A potential as dynamics uses it: in evaluation mode, chunk by chunk, and one by one where it raises."""
from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mdl_physpre.dynamics.skin_lists import SkinLists
from mdl_physpre.errors import DataError
from mdl_physpre.potentials.base import Potential, evaluate

logger = logging.getLogger(__name__)

# errors that say nothing about one structure
GENERAL = (DataError, MemoryError, torch.OutOfMemoryError)


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


def floating(potential: Potential) -> tuple[torch.dtype, torch.device]:
    """Precision and device of a potential: those of its parameters, or of its buffers; float64 on the CPU if none."""
    for tensor in [*potential.parameters(), *potential.buffers()]:
        if tensor.is_floating_point():
            return tensor.dtype, tensor.device
    return torch.float64, torch.device("cpu")


def evaluate_chunks(
    potential: Potential, lists: SkinLists, positions: Tensor, one_by_one: bool = True
) -> tuple[Tensor, Tensor, dict[int, str]]:
    """Forces (n, 3) and energies (n_structures,) in float64, and the structures for which the potential raised.

    A chunk for which the potential raises is evaluated again structure by structure, so that one structure does not
    lose the others; without ``one_by_one`` the error goes on to the caller. Errors that are not one structure's
    (unknown elements, memory) always do. Structures whose forces are not finite are evaluated again alone, too: in a
    batch, the derivative of one structure's NaN can reach the others (0 · NaN).
    """
    forces = torch.zeros_like(positions)
    energies = torch.zeros(len(lists.numbers), dtype=torch.float64, device=positions.device)
    raised: dict[int, str] = {}
    for chunk in lists.chunks:
        try:
            found = evaluate(potential, lists.graph(chunk, positions), stress=False)
        except GENERAL:
            raise
        except Exception as error:
            if not one_by_one:
                raise
            logger.debug("the potential raised %r; its structures are evaluated one by one", error)
            for k in range(chunk.first, chunk.last):
                _evaluate_one(potential, lists, positions, k, forces, energies, raised)
            continue
        assert found.forces is not None
        forces[chunk.atoms] = found.forces.to(torch.float64)
        energies[chunk.first : chunk.last] = found.energies.to(torch.float64)
        bad = lists.batch[chunk.atoms][~forces[chunk.atoms].isfinite().all(1)]
        if len(bad) and chunk.last - chunk.first > 1:
            for k in torch.unique(bad).tolist():
                _evaluate_one(potential, lists, positions, k, forces, energies, raised)
    return forces, energies, raised


def _evaluate_one(
    potential: Potential,
    lists: SkinLists,
    positions: Tensor,
    k: int,
    forces: Tensor,
    energies: Tensor,
    raised: dict[int, str],
) -> None:
    alone = lists.alone(k)
    try:
        found = evaluate(potential, lists.graph(alone, positions), stress=False)
    except GENERAL:
        raise
    except Exception as error:
        raised[k] = f"the potential raised {type(error).__name__}: {error}"
        return
    assert found.forces is not None
    forces[alone.atoms] = found.forces.to(torch.float64)
    energies[k] = found.energies[0].to(torch.float64)

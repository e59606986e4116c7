"""At what temperature a potential melts, roughly, from how far atoms swing in its crystals.

Lindemann's rule: a crystal melts where the swings u of its atoms reach a part δ of the distance d of neighbours, some
0.1 (F. A. Lindemann, Phys. Z. 11, 609 (1910); J. J. Gilvarry, Phys. Rev. 102, 308 (1956)). While forces are harmonic
<u²> grows as T, so that a short run at T tells

    T_m = T (0.1 / δ(T))²,      δ = sqrt(<u²>) / d.

It takes no melting, and so no overheating, and nothing of what a potential does far from its data. It holds to a factor
of two: soft modes that are slower than the run, or longer than the cell, are missed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list
from torch import Tensor

from mdl_physpre.dynamics.running.simulate import simulate
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts.observer import Moment, Observer
from mdl_physpre.potentials.base import Potential

CRITICAL = 0.1
LOOKED_AT = 4  # structures, at most
FIRST, LAST = 200.0, 700.0  # fs; swings are those between


class Swings(Observer):
    """δ of each structure from step ``first`` on; ``d``: mean distance of nearest neighbours at the start."""

    metrics = ("swing",)
    BY_ATOM = ("moved_sum", "square_sum")
    FOR_ALL = ("samples",)

    def __init__(self, watched: Any, first: int = 0) -> None:
        super().__init__(watched)
        self.first, self.samples = first, 0
        self.moved_sum = torch.zeros_like(watched.start)
        self.square_sum = torch.zeros_like(watched.start[:, 0])

    def count(self, moment: Moment, previous: int) -> None:
        if moment.step < self.first:
            return
        o = self.watched
        moved = moment.atoms.positions - o.start
        moved = moved - (o.sums(moved) / o.sizes[:, None]).index_select(0, o.batch)
        self.moved_sum, self.square_sum = self.moved_sum + moved, self.square_sum + moved.square().sum(1)
        self.samples += 1

    def measured(self) -> dict[str, Tensor]:
        o, n = self.watched, max(self.samples, 1)
        variances = self.square_sum / n - (self.moved_sum / n).square().sum(1)
        swings = (o.sums(variances.clamp(min=0)) / o.sizes).sqrt()
        distances = [nearest_distance(a, d) for a, d in zip(o.structures, o.smallest.tolist(), strict=True)]
        relative = swings / torch.tensor(distances, dtype=swings.dtype, device=swings.device)
        return {"swing": relative if self.samples > 1 else torch.full_like(relative, torch.nan)}


def nearest_distance(atoms: Atoms, smallest: float) -> float:
    """Mean over atoms of the distance of the nearest neighbour, Å, of those that have one within twice ``smallest``."""
    if not 0 < smallest < math.inf:
        return math.nan
    i, distances = neighbor_list("id", atoms, 2 * smallest)
    nearest = np.full(len(atoms), np.inf)
    np.minimum.at(nearest, i, distances)
    return float(nearest[np.isfinite(nearest)].mean())


def melting_temperature(
    potential: Potential,
    structures: Sequence[Atoms],
    settings: DynamicsSettings,
    out: Path | None = None,
    progress: bool = True,
) -> float | None:
    """T_m of the potential, K: the highest of at most four of the structures, evenly spaced.

    Those that are no crystals at the start swing by more, and say nothing of when one melts.

    Parameters
    ----------
    settings : the run, of which temperature, time step and thermostat are used.

    Returns
    -------
    ``None`` where every structure breaks, or has one atom.
    """
    some = list(structures[:: -(-len(structures) // LOOKED_AT) or 1])
    observer = f"{__name__}:{Swings.__name__}?first={round(FIRST / settings.timestep)}"
    steps = max(1, round(LAST / settings.timestep))
    run = settings.changed(
        steps=steps, temperature_end=None, observers=(*settings.observers, observer), trajectory_interval=0,
        rdf_interval=0,
    )  # fmt: skip
    swings = [
        verdict.metrics["swing"]
        for verdict in simulate(potential, some, run, out, progress)
        if not verdict.stopped and verdict.metrics["swing"]
    ]
    return settings.temperature * (CRITICAL / min(swings)) ** 2 if swings else None

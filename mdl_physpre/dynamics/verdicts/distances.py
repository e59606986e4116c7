"""Observers of distances: overlap, at every step, and the Lindemann index.

An overlap stops a structure unless ``stop_on_overlap`` is false. Lindemann averages take a sample every
``lindemann_interval`` steps, beginning with the start; the running index is looked at every
``lindemann_check_interval`` steps, from ``lindemann_min_steps`` on.

The Lindemann verdict is that of the average over the whole run, from the start to the last step. Its first failing step
is the end of the shortest run, among those that were looked at, which would have been judged a failure. A running index
that exceeded a bound and came back under it by the end is no failure; the step is kept in the metrics. A structure
stopped for another reason is judged by its average up to there, or ``n/a`` where that run is shorter than
``lindemann_min_steps``: an average over a few steps of a structure that starts at rest says little.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdl_physpre.analysis.lindemann import LindemannAccumulator
from mdl_physpre.analysis.overlap import OverlapAccumulator
from mdl_physpre.dynamics.engine.broken import Broken
from mdl_physpre.dynamics.verdicts.observer import Judged, Moment, Observer, Watched, due


class Overlap(Observer):
    """Structures that overlap. Those that are lost do not: they have been put elsewhere."""

    reasons = ("overlap",)
    metrics = ("start_min_distance", "min_distance", "min_distance_step", "overlap_threshold")

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        self.found = OverlapAccumulator(watched.smallest, watched.settings.overlap_ratio)

    def check(self, moment: Moment, broken: Broken) -> None:
        distances = moment.distances
        if lost := broken.lost():
            distances = distances.index_fill(0, torch.tensor(lost, device=distances.device), torch.inf)
        overlapping = self.found.add(moment.step, distances)
        if self.watched.settings.stop_on_overlap:
            for k in broken.which(overlapping):
                broken.add(k, "overlap", "")

    def passed(self, step: int) -> Tensor | None:
        return None if self.watched.settings.stop_on_overlap else self.found.first_step == step

    def measured(self) -> dict[str, Tensor]:
        o = self.found
        return {
            "start_min_distance": o.start,
            "min_distance": o.smallest,
            "min_distance_step": o.smallest_step,
            "overlap_threshold": o.threshold,
            "overlap_first_step": o.first_step,
        }

    def judge(self, structure: int, metrics: dict[str, Any]) -> Judged:
        step = metrics["overlap_first_step"]
        if np.isnan(metrics["start_min_distance"]):
            metrics["min_distance_step"] = None
            return {}, {"overlap": "fewer than two atoms"}
        if step < 0:
            return {}, {}
        least, most, start = (metrics[m] for m in ("min_distance", "overlap_threshold", "start_min_distance"))
        ratio = self.watched.each[structure].overlap_ratio
        text = f"distance {least:.4f} Å at step {metrics['min_distance_step']}, overlap from {most:.4f} Å down "
        return {"overlap": (step, text + f"({ratio:g} of {start:.4f} Å at the start)")}, {}

    @property
    def parts(self) -> tuple[object, ...]:
        return self, self.found

    def keep(self, structures: list[int], which: Tensor, atoms: Tensor) -> None:
        self.found.keep(which)

    def state(self) -> dict[str, np.ndarray]:
        return {f"overlap_{name}": getattr(self.found, name).cpu().numpy() for name in OverlapAccumulator.FIELDS}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        for name in OverlapAccumulator.FIELDS:
            value = torch.from_numpy(arrays[f"overlap_{name}"].copy()).to(self.watched.start.device)
            setattr(self.found, name, value)


class Lindemann(Observer):
    """The Lindemann index of each structure: its largest q_i and their mean, see the module."""

    reasons = ("lindemann_local", "lindemann_global")
    metrics = (
        "lindemann_max_local", "lindemann_global", "lindemann_local_first_exceeded_step",
        "lindemann_global_first_exceeded_step", "lindemann_samples",
    )  # fmt: skip
    BY_STRUCTURE = ("exceeded",)

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        s, structures = watched.settings, watched.structures
        sizes = [len(a) for a in structures]
        self.found = LindemannAccumulator(
            watched.start,
            sizes,
            [a.cell[:] for a in structures],
            [a.pbc for a in structures],
            s.distance,
            [n > s.lindemann_max_atoms for n in sizes],
        )
        self.exceeded = torch.full((len(sizes), 2), -1, dtype=torch.int64, device=watched.start.device)

    def indices(self) -> tuple[Tensor, Tensor]:
        """Largest q_i and q_global of each structure."""
        local, mean = self.found.indices()
        largest = torch.full_like(mean, -torch.inf).scatter_reduce_(0, self.watched.batch, local, "amax")
        return torch.where(mean.isnan(), mean, largest), mean

    def count(self, moment: Moment, previous: int) -> None:
        s, step = self.watched.settings, moment.step
        if due(step, previous, s.lindemann_interval):
            self.found.add(moment.atoms.positions, moment.deformation)
        if step >= s.lindemann_min_steps and due(step, previous, s.lindemann_check_interval):
            largest, mean = self.indices()
            over = torch.stack([largest > s.lindemann_local, mean > s.lindemann_global], dim=1)
            self.exceeded = torch.where(over & (self.exceeded < 0), step, self.exceeded)

    def passed(self, step: int) -> Tensor | None:
        return (self.exceeded == step).any(1) if step % self.watched.settings.lindemann_check_interval == 0 else None

    def measured(self) -> dict[str, Tensor]:
        largest, mean = self.indices()
        return {
            "lindemann_max_local": largest,
            "lindemann_global": mean,
            "lindemann_local_first_exceeded_step": self.exceeded[:, 0],
            "lindemann_global_first_exceeded_step": self.exceeded[:, 1],
        }

    def judge(self, structure: int, metrics: dict[str, Any]) -> Judged:
        s, steps = self.watched.each[structure], max(self.watched.last_step, 0)
        why = self.not_applicable(structure)
        failures = {}
        for key, name, limit in (
            ("lindemann_max_local", "local", s.lindemann_local),
            ("lindemann_global", "global", s.lindemann_global),
        ):
            exceeded = f"lindemann_{name}_first_exceeded_step"
            seen = metrics[exceeded]
            if why is None and metrics[key] > limit:
                text = f"index {metrics[key]:.4f} over {steps} steps, at most {limit:g} allowed"
                failures[f"lindemann_{name}"] = (seen if seen >= 0 else steps, text)
            metrics[exceeded] = seen if seen >= 0 else None
        metrics["lindemann_samples"] = self.found.samples
        return failures, {} if why is None else dict.fromkeys(self.reasons, why)

    def not_applicable(self, structure: int) -> str | None:
        s, n = self.watched.each[structure], len(self.watched.structures[structure])
        steps = max(self.watched.last_step, 0)
        if n < 2:
            return "fewer than two atoms"
        if n > s.lindemann_max_atoms:
            return f"{n} atoms, more than lindemann_max_atoms = {s.lindemann_max_atoms}"
        if steps < s.lindemann_min_steps:
            return f"{steps} steps, too few (lindemann_min_steps = {s.lindemann_min_steps})"
        return None

    @property
    def parts(self) -> tuple[object, ...]:
        return self, self.found

    def keep(self, structures: list[int], which: Tensor, atoms: Tensor) -> None:
        super().keep(structures, which, atoms)
        self.found.keep(structures)

    def state(self) -> dict[str, np.ndarray]:
        sums = {"lindemann_sum": self.found.sum, "lindemann_square_sum": self.found.square_sum}
        stored = {name: value.cpu().numpy() for name, value in sums.items()}
        return super().state() | stored | {"lindemann_samples": np.array(self.found.samples)}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        super().restore(arrays)
        device = self.watched.start.device
        for name in ("sum", "square_sum"):
            setattr(self.found, name, torch.from_numpy(arrays[f"lindemann_{name}"].copy()).to(device))
        self.found.samples = int(arrays["lindemann_samples"])

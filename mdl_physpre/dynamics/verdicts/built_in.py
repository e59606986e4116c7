"""The observers of every run.

At every step: smallest distance (overlap), temperature, finite numbers, displacement from the start, volume where cells
change. Every ``lindemann_interval`` steps, beginning with the start: a sample of the Lindemann averages. Every
``lindemann_check_interval`` steps, from ``lindemann_min_steps`` on: the running index.

A structure that is not finite, too hot, escaped or collapsed is stopped; an overlap stops it too unless
``stop_on_overlap`` is false.

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
from mdl_physpre.dynamics.engine.moving_atoms import MovingAtoms
from mdl_physpre.dynamics.verdicts.observers import Judged, Moment, Observer, Observers, due


class Volume(Observer):
    """Structures whose volume has fallen to nothing or exploded; neighbour lists find others that collapse."""

    reasons = ("cell_collapsed",)
    metrics = ("volume_start", "volume_end", "mean_volume")
    needs_a_step = False
    BY_STRUCTURE = ("volume_sum", "volume_last")

    def __init__(self, watched: Observers) -> None:
        super().__init__(watched)
        self.volume_sum, self.volume_last = torch.zeros_like(watched.sizes), torch.zeros_like(watched.sizes)
        self.start_volumes = torch.linalg.det(watched.start_cells)

    def check_cells(self, cells: Tensor, broken: Broken) -> None:
        s = self.watched.settings
        ratio = torch.linalg.det(cells) / self.start_volumes
        sound = (ratio >= s.min_volume_ratio) & (ratio <= s.max_volume_ratio)  # false for NaN, too
        for k in broken.which(~sound):
            found = f"the volume is {float(ratio[k]):.4g} of that at the start"
            bounds = f"{s.min_volume_ratio:g} to {s.max_volume_ratio:g} allowed"
            broken.add(k, "cell_collapsed", f"{found}, {bounds}")

    def count(self, moment: Moment, previous: int) -> None:
        if previous < 0:
            self.volume_last = self.start_volumes.abs()
            return
        if moment.deformation is not None:
            self.volume_last = torch.linalg.det(moment.atoms.cells).abs()
        self.volume_sum = self.volume_sum + self.volume_last

    def measured(self) -> dict[str, Tensor]:
        o, steps = self.watched, self.watched.counted - 1
        values = {"volume_start": self.start_volumes.abs()}
        values["volume_end"] = self.volume_last if o.counted else torch.full_like(o.sizes, torch.nan)
        values["mean_volume"] = self.volume_sum / steps if steps > 0 else torch.full_like(o.sizes, torch.nan)
        return {name: torch.where(o.periodic, value, torch.nan) for name, value in values.items()}

    def keep(self, structures: list[int], which: Tensor, atoms: Tensor) -> None:
        super().keep(structures, which, atoms)
        self.start_volumes = torch.linalg.det(self.watched.start_cells)


class Displacement(Observer):
    """Structures with a position that is not finite or an atom that has escaped; broken ones are passed by."""

    reasons = ("escaped",)
    metrics = ("max_displacement",)
    needs_a_step = False
    BY_ATOM = ("displacement_max",)

    def __init__(self, watched: Observers) -> None:
        super().__init__(watched)
        self.displacement_max = torch.zeros_like(watched.start[:, 0])

    def check_positions(
        self, positions: Tensor, broken: Broken, deformation: Tensor | None = None, step_done: bool = True
    ) -> None:
        o = self.watched
        start, limit = o.start, o.settings.max_displacement
        if deformation is not None:
            start = torch.einsum("nx,nxy->ny", start, deformation.index_select(0, o.batch))
        moved = positions - start
        drift = (o.sums(moved) / o.sizes[:, None]).index_select(0, o.batch)
        squared = (moved - drift).square().sum(1)
        sound = squared <= limit**2  # false for NaN, too
        if step_done:
            counted = squared
            if broken:
                gone = torch.isin(o.batch, torch.tensor(list(broken), device=o.batch.device))
                counted = squared.masked_fill(gone, 0.0)
            self.displacement_max = torch.fmax(self.displacement_max, counted)
        for k in broken.which(~sound, o.batch):
            if k in broken:
                continue
            mine = squared[o.batch == k]
            if bool(mine.isfinite().all()):
                farthest = float(mine.max().sqrt())
                broken.add(k, "escaped", f"an atom is {farthest:.4g} Å from its start, at most {limit:g} Å allowed")
            else:
                broken.add(k, "not_finite", "a position is not finite")

    def measured(self) -> dict[str, Tensor]:
        return {"max_displacement": self.watched.largest(self.displacement_max).sqrt()}


class Forces(Observer):
    """Structures with a force or an energy, or where it is needed a stress, that is not finite."""

    reasons = ("not_finite", "potential_error")
    metrics = ("max_force",)
    needs_a_step = False
    BY_ATOM = ("force_max",)

    def __init__(self, watched: Observers) -> None:
        super().__init__(watched)
        self.force_max = torch.zeros_like(watched.start[:, 0])

    def check_forces(self, atoms: MovingAtoms, broken: Broken, stress: bool = False) -> None:
        squared = atoms.forces.square().sum(1)
        self.force_max = torch.fmax(self.force_max, squared)
        for k in broken.which(~squared.isfinite(), self.watched.batch):
            broken.add(k, "not_finite", "a force is not finite")
        bad = ~atoms.energies.isfinite()
        if stress:
            bad = bad | ~atoms.stress.sum((1, 2)).isfinite()
        for k in broken.which(bad):
            if not {"not_finite", "potential_error"} & set(broken.get(k, {})):
                energy = float(atoms.energies[k])
                text = "the stress is not finite" if np.isfinite(energy) else f"the energy is {energy}"
                broken.add(k, "not_finite", text)

    def measured(self) -> dict[str, Tensor]:
        return {"max_force": self.watched.largest(self.force_max).sqrt()}


class Temperature(Observer):
    """Structures that are too hot."""

    reasons = ("temperature",)
    metrics = ("mean_temperature", "max_temperature")
    needs_a_step = False
    BY_STRUCTURE = ("temperature_sum", "temperature_max", "hottest")

    def __init__(self, watched: Observers) -> None:
        super().__init__(watched)
        self.temperature_sum, self.temperature_max = torch.zeros_like(watched.sizes), torch.zeros_like(watched.sizes)
        bounds = [s.temperature_bound(len(a)) for s, a in zip(watched.each, watched.structures, strict=True)]
        self.hottest = torch.tensor(bounds, dtype=torch.float64, device=watched.start.device)

    def check(self, moment: Moment, broken: Broken) -> None:
        temperature = moment.temperature
        for k in broken.which(~(temperature <= self.hottest)):
            if "not_finite" in broken.get(k, {}):
                continue
            if bool(temperature[k].isfinite()):
                text = f"{float(temperature[k]):.4g} K, at most {float(self.hottest[k]):.4g} K allowed"
                broken.add(k, "temperature", text)
            else:
                broken.add(k, "not_finite", "a velocity is not finite")

    def count(self, moment: Moment, previous: int) -> None:
        if previous >= 0:
            self.temperature_sum = self.temperature_sum + moment.temperature
            self.temperature_max = torch.maximum(self.temperature_max, moment.temperature)

    def measured(self) -> dict[str, Tensor]:
        steps = self.watched.counted - 1
        mean = self.temperature_sum / steps if steps > 0 else torch.full_like(self.temperature_sum, torch.nan)
        return {"mean_temperature": mean, "max_temperature": self.temperature_max}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        super().restore({"hottest": self.hottest.cpu().numpy(), **arrays})  # states of earlier versions have none


class Overlap(Observer):
    """Structures that overlap. Those that are lost do not: they have been put elsewhere."""

    reasons = ("overlap",)
    metrics = ("start_min_distance", "min_distance", "min_distance_step", "overlap_threshold")

    def __init__(self, watched: Observers) -> None:
        super().__init__(watched)
        self.found = OverlapAccumulator(watched.smallest, watched.settings.overlap_ratio)

    def check(self, moment: Moment, broken: Broken) -> None:
        distances = moment.distances
        lost = [k for k, reasons in broken.items() if {"not_finite", "escaped", "cell_collapsed"} & set(reasons)]
        if lost:
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

    def __init__(self, watched: Observers) -> None:
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

"""Observers of every run but those of distances: volume, displacement from the start, finite numbers, temperature,
and energies below all that the potential was trained on.

They look at every step. A structure that is not finite, too hot, escaped or collapsed is stopped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdl_physpre.dynamics.engine.broken import Broken
from mdl_physpre.dynamics.engine.moving_atoms import MovingAtoms
from mdl_physpre.dynamics.verdicts.observer import Judged, Moment, Observer, Watched


class Volume(Observer):
    """Structures whose volume has fallen to nothing or exploded; neighbour lists find others that collapse."""

    reasons = ("cell_collapsed",)
    metrics = ("volume_start", "volume_end", "mean_volume")
    needs_a_step = False
    BY_STRUCTURE = ("volume_sum", "volume_last")

    def __init__(self, watched: Watched) -> None:
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

    def __init__(self, watched: Watched) -> None:
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

    def __init__(self, watched: Watched) -> None:
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

    def __init__(self, watched: Watched) -> None:
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


class TooDeep(Observer):
    """Structures that have fallen into a well that is not there: deeper than all that the potential was trained on.

    Too deep: E_pot / N < min(lowest of the training data for this composition, E_pot / N at the start) − margin.
    """

    reasons = ("too_deep",)
    metrics = ("lowest_energy", "lowest_energy_step", "lowest_training_energy", "lowest_energy_allowed")
    BY_STRUCTURE = ("allowed", "lowest", "lowest_step", "too_deep_step")

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        margin, device = watched.settings.too_deep_margin, watched.start.device
        known = [torch.nan if energy is None else energy for energy in watched.trained_on]
        self.active = margin is not None and any(energy is not None for energy in watched.trained_on)
        self.allowed = torch.tensor(known, dtype=torch.float64, device=device)  # NaN, where nothing is below it
        self.lowest = torch.full_like(self.allowed, torch.nan)
        self.lowest_step = torch.zeros_like(self.allowed, dtype=torch.int64)
        self.too_deep_step = torch.full_like(self.lowest_step, -1)

    def check(self, moment: Moment, broken: Broken) -> None:
        if not self.active:
            return
        energies = moment.atoms.energies / self.watched.sizes
        if not self.watched.counted:
            self.allowed = torch.minimum(self.allowed, energies) - self.watched.settings.too_deep_margin
            self.lowest = energies
            return
        if lost := broken.lost():
            energies = energies.index_fill(0, torch.tensor(lost, device=energies.device), torch.inf)
        lower, deep = energies < self.lowest, energies < self.allowed
        self.lowest = torch.where(lower, energies, self.lowest)
        self.lowest_step = self.lowest_step.masked_fill(lower, moment.step)
        self.too_deep_step = self.too_deep_step.masked_fill(deep & (self.too_deep_step < 0), moment.step)
        if self.watched.settings.stop_on_too_deep:
            for k in broken.which(deep):
                broken.add(k, "too_deep", "")

    def passed(self, step: int) -> Tensor | None:
        stopped = self.watched.settings.stop_on_too_deep
        return self.too_deep_step == step if self.active and not stopped else None

    def measured(self) -> dict[str, Tensor]:
        return {
            "lowest_energy": self.lowest,
            "lowest_energy_step": self.lowest_step,
            "lowest_energy_allowed": self.allowed,
            "too_deep_first_step": self.too_deep_step,
        }

    def judge(self, structure: int, metrics: dict[str, Any]) -> Judged:
        metrics["lowest_training_energy"] = known = self.watched.trained_on[structure]
        margin = self.watched.settings.too_deep_margin
        if known is None or margin is None:
            metrics |= dict.fromkeys(("lowest_energy", "lowest_energy_step", "lowest_energy_allowed"))
            why = "the potential does not say what energies of this composition it was trained on"
            return {}, {"too_deep": "too_deep_margin is null" if margin is None else why}
        step = metrics["too_deep_first_step"]
        if step < 0:
            return {}, {}
        lowest, allowed = metrics["lowest_energy"], metrics["lowest_energy_allowed"]
        text = f"{lowest:.4f} eV/atom at step {metrics['lowest_energy_step']}, at least {allowed:.4f} eV/atom allowed ("
        return {"too_deep": (step, text + f"{known:.4f} is the lowest trained on, less {margin:g} or more)")}, {}

"""What is watched while structures are simulated, and the verdicts that come of it. No trajectory is kept.

At every step: smallest distance (overlap), temperature, finite numbers, displacement from the start. Every
``lindemann_interval`` steps, beginning with the start: a sample of the Lindemann averages. Every
``lindemann_check_interval`` steps, from ``lindemann_min_steps`` on: the running index.

A structure that is not finite, too hot, escaped or collapsed is stopped; an overlap stops it too unless
``stop_on_overlap`` is false. Its averages (temperature, Lindemann) cover the steps before the one that stopped it.

The Lindemann verdict is that of the average over the whole run, from the start to the last step. Its first failing step
is the end of the shortest run, among those that were looked at, which would have been judged a failure. A running index
that exceeded a bound and came back under it by the end is no failure; the step is kept in the metrics. A structure
stopped for another reason is judged by its average up to there, or ``n/a`` where that run is shorter than
``lindemann_min_steps``: an average over a few steps of a structure that starts at rest says little.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from mdl_physpre.analysis.lindemann import LindemannAccumulator
from mdl_physpre.analysis.overlap import OverlapAccumulator
from mdl_physpre.dynamics.integrators import BOLTZMANN
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts import make_verdict

Broken = dict[int, dict[str, str]]  # structure -> reason -> sentence


def add_reason(broken: Broken, structure: int, reason: str, text: str) -> None:
    """Note that ``structure`` breaks at this step."""
    broken.setdefault(structure, {})[reason] = text


class Observers:
    """Accumulators of the structures that are being simulated.

    Parameters
    ----------
    structures, ids, indices : the structures at the start, their names and their places in the caller's list.
    start : (n, 3), Å, positions at the start.
    smallest : (n_structures,), Å, smallest distances at the start, NaN where there is no pair.
    """

    # per structure, per atom: what a stored state holds
    BY_STRUCTURE = ("temperature_sum", "temperature_max", "energy_start", "energy_last", "exceeded")
    BY_ATOM = ("start", "force_max", "displacement_max")

    def __init__(
        self,
        settings: DynamicsSettings,
        structures: Sequence[Atoms],
        ids: Sequence[str],
        indices: Sequence[int],
        start: Tensor,
        smallest: Tensor,
    ) -> None:
        self.settings, self.structures, self.ids, self.indices = settings, list(structures), list(ids), list(indices)
        self.start = start.clone()
        self.overlap = OverlapAccumulator(smallest, settings.overlap_ratio)
        sizes = [len(a) for a in structures]
        self.lindemann = LindemannAccumulator(
            start,
            sizes,
            [a.cell[:] for a in structures],
            [a.pbc for a in structures],
            settings.distance,
            [n > settings.lindemann_max_atoms for n in sizes],
        )
        zero = torch.zeros(len(sizes), dtype=torch.float64, device=start.device)
        self.temperature_sum, self.temperature_max = zero.clone(), zero.clone()
        self.energy_start, self.energy_last = zero * torch.nan, zero * torch.nan
        self.exceeded = torch.full((len(sizes), 2), -1, dtype=torch.int64, device=start.device)
        self.force_max, self.displacement_max = torch.zeros_like(start[:, 0]), torch.zeros_like(start[:, 0])
        self._set_sizes()

    def _set_sizes(self) -> None:
        device = self.start.device
        sizes = [len(a) for a in self.structures]
        self.batch = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(device)
        self.counts = torch.tensor(sizes, dtype=torch.float64, device=device)
        bounds = [self.settings.temperature_bound(n) for n in sizes]
        self.hottest = torch.tensor(bounds, dtype=torch.float64, device=device)

    def _sum(self, values: Tensor) -> Tensor:
        out = torch.zeros((len(self.counts), *values.shape[1:]), dtype=values.dtype, device=values.device)
        return out.index_add_(0, self.batch, values)

    def _structures_of(self, atoms: Tensor) -> list[int]:
        return torch.unique(self.batch[atoms]).tolist()

    def check_positions(self, positions: Tensor, broken: Broken) -> None:
        """Structures with a position that is not finite, or with an atom that has escaped."""
        moved = positions - self.start
        drift = (self._sum(moved) / self.counts[:, None]).index_select(0, self.batch)
        squared = (moved - drift).square().sum(1)
        sound = squared <= self.settings.max_displacement**2  # false for NaN, too
        if bool(sound.all()):
            self.displacement_max = torch.fmax(self.displacement_max, squared)
            return
        for k in self._structures_of(~sound):
            mine = squared[self.batch == k]
            if bool(mine.isfinite().all()):
                farthest, limit = float(mine.max().sqrt()), self.settings.max_displacement
                text = f"an atom is {farthest:.4g} Å from its start, at most {limit:g} Å allowed"
                add_reason(broken, k, "escaped", text)
            else:
                add_reason(broken, k, "not_finite", "a position is not finite")
        self.displacement_max = torch.fmax(self.displacement_max, squared)

    def check_forces(self, forces: Tensor, energies: Tensor, broken: Broken) -> None:
        """Structures with a force or an energy that is not finite."""
        squared = forces.square().sum(1)
        self.force_max = torch.fmax(self.force_max, squared)
        bad = ~squared.isfinite()
        if bool(bad.any()):
            for k in self._structures_of(bad):
                add_reason(broken, k, "not_finite", "a force is not finite")
        if not bool(energies.isfinite().all()):
            for k in (~energies.isfinite()).nonzero().flatten().tolist():
                if "not_finite" not in broken.get(k, {}):
                    add_reason(broken, k, "not_finite", f"the energy is {float(energies[k])}")

    def check_motion(self, step: int, kinetic: Tensor, distances: Tensor, broken: Broken) -> Tensor:
        """Structures that are too hot or overlap. ``kinetic`` energies in eV; returns the temperatures in K."""
        temperature = 2 * kinetic / (3 * BOLTZMANN * self.counts)
        hot = ~(temperature <= self.hottest)
        if bool(hot.any()):
            for k in hot.nonzero().flatten().tolist():
                if "not_finite" in broken.get(k, {}):
                    continue
                if bool(temperature[k].isfinite()):
                    text = f"{float(temperature[k]):.4g} K, at most {float(self.hottest[k]):.4g} K allowed"
                    add_reason(broken, k, "temperature", text)
                else:
                    add_reason(broken, k, "not_finite", "a velocity is not finite")
        overlapping = self.overlap.add(step, distances)
        if self.settings.stop_on_overlap and bool(overlapping.any()):
            for k in overlapping.nonzero().flatten().tolist():
                add_reason(broken, k, "overlap", "")
        return temperature

    def count(self, step: int, positions: Tensor, temperature: Tensor, total_energy: Tensor) -> None:
        """Take a step that the remaining structures have survived into the averages."""
        settings = self.settings
        if step == 0:
            self.energy_start = total_energy.clone()
        else:
            self.temperature_sum += temperature
            self.temperature_max = torch.maximum(self.temperature_max, temperature)
        self.energy_last = total_energy
        if step % settings.lindemann_interval == 0:
            self.lindemann.add(positions)
        if step >= settings.lindemann_min_steps and step % settings.lindemann_check_interval == 0:
            over = self._lindemann_over()
            self.exceeded = torch.where(over & (self.exceeded < 0), step, self.exceeded)

    def _lindemann(self) -> tuple[Tensor, Tensor]:
        """Largest q_i and q_global of each structure."""
        local, mean = self.lindemann.indices()
        largest = torch.full_like(mean, -torch.inf).scatter_reduce_(0, self.batch, local, "amax")
        return torch.where(mean.isnan(), mean, largest), mean

    def _lindemann_over(self) -> Tensor:
        largest, mean = self._lindemann()
        return torch.stack([largest > self.settings.lindemann_local, mean > self.settings.lindemann_global], dim=1)

    def verdicts(self, structures: Sequence[int], steps_run: int, broken: Broken) -> list[dict]:
        """Final verdicts of these structures, which end after ``steps_run`` steps."""
        largest, mean = self._lindemann()
        by_structure = torch.zeros((2, len(self.counts)), dtype=torch.float64, device=self.start.device)
        forces, displacements = (
            row.scatter_reduce_(0, self.batch, values, "amax").sqrt()
            for row, values in zip(by_structure, (self.force_max, self.displacement_max), strict=True)
        )
        numbers = {
            "start_min_distance": self.overlap.start,
            "min_distance": self.overlap.smallest,
            "min_distance_step": self.overlap.smallest_step,
            "overlap_threshold": self.overlap.threshold,
            "lindemann_max_local": largest,
            "lindemann_global": mean,
            "lindemann_local_first_exceeded_step": self.exceeded[:, 0],
            "lindemann_global_first_exceeded_step": self.exceeded[:, 1],
            "mean_temperature": self.temperature_sum,
            "max_temperature": self.temperature_max,
            "max_force": forces,
            "max_displacement": displacements,
            "total_energy_start": self.energy_start,
            "total_energy_end": self.energy_last,
            "overlap_first_step": self.overlap.first_step,
        }
        table = {key: value.tolist() for key, value in numbers.items()}
        return [self._verdict(k, {key: row[k] for key, row in table.items()}, steps_run, broken) for k in structures]

    def _verdict(self, k: int, metrics: dict, steps_run: int, broken: Broken) -> dict:
        settings, n = self.settings, len(self.structures[k])
        sound_steps = steps_run - 1 if k in broken else steps_run
        failures = {reason: (steps_run, text) for reason, text in broken.get(k, {}).items() if reason != "overlap"}
        missing: dict[str, str] = {}
        overlap_step = metrics.pop("overlap_first_step")
        if np.isnan(metrics["start_min_distance"]):
            missing["overlap"] = "fewer than two atoms"
            metrics["min_distance_step"] = None
        elif overlap_step >= 0:
            least, most, start = (metrics[m] for m in ("min_distance", "overlap_threshold", "start_min_distance"))
            text = f"distance {least:.4f} Å at step {metrics['min_distance_step']}, overlap from {most:.4f} Å down "
            failures["overlap"] = (overlap_step, text + f"({settings.overlap_ratio:g} of {start:.4f} Å at the start)")
        for key, name, limit in (
            ("lindemann_max_local", "local", settings.lindemann_local),
            ("lindemann_global", "global", settings.lindemann_global),
        ):
            reason, seen = f"lindemann_{name}", metrics[f"lindemann_{name}_first_exceeded_step"]
            if n < 2:
                missing[reason] = "fewer than two atoms"
            elif n > settings.lindemann_max_atoms:
                missing[reason] = f"{n} atoms, more than lindemann_max_atoms = {settings.lindemann_max_atoms}"
            elif sound_steps < settings.lindemann_min_steps:
                missing[reason] = f"{sound_steps} steps, too few (lindemann_min_steps = {settings.lindemann_min_steps})"
            elif metrics[key] > limit:
                text = f"index {metrics[key]:.4f} over {sound_steps} steps, at most {limit:g} allowed"
                failures[reason] = (seen if seen >= 0 else sound_steps, text)
            metrics[f"lindemann_{name}_first_exceeded_step"] = seen if seen >= 0 else None
        metrics["lindemann_samples"] = self.lindemann.samples
        metrics["mean_temperature"] = metrics["mean_temperature"] / sound_steps if sound_steps > 0 else None
        metrics["temperature_bound"] = settings.temperature_bound(n)
        metrics["lindemann_local_bound"] = settings.lindemann_local
        metrics["lindemann_global_bound"] = settings.lindemann_global
        return make_verdict(
            structure_id=self.ids[k],
            index=self.indices[k],
            formula=self.structures[k].get_chemical_formula(),
            n_atoms=n,
            failures=failures,
            not_applicable=missing,
            steps_run=steps_run,
            steps_asked=settings.steps,
            timestep=settings.timestep,
            metrics=metrics,
        )

    def keep(self, structures: list[int], atoms: Tensor) -> None:
        """Go on with the structures of these indices; ``atoms`` holds the indices of their atoms."""
        which = torch.tensor(structures, dtype=torch.int64, device=self.start.device)
        for name in ("structures", "ids", "indices"):
            setattr(self, name, [getattr(self, name)[k] for k in structures])
        for names, rows in ((self.BY_STRUCTURE, which), (self.BY_ATOM, atoms)):
            for name in names:
                setattr(self, name, getattr(self, name).index_select(0, rows))
        self.overlap.keep(which)
        self.lindemann.keep(structures)
        self._set_sizes()

    def state(self) -> dict[str, np.ndarray]:
        """All that was gathered, as arrays; ``start`` included."""
        stored = {name: getattr(self, name) for name in (*self.BY_STRUCTURE, *self.BY_ATOM)}
        stored |= {f"overlap_{name}": getattr(self.overlap, name) for name in OverlapAccumulator.FIELDS}
        stored |= {"lindemann_sum": self.lindemann.sum, "lindemann_square_sum": self.lindemann.square_sum}
        arrays = {name: value.cpu().numpy() for name, value in stored.items()}
        return arrays | {"lindemann_samples": np.array(self.lindemann.samples)}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on from :meth:`state`, with the same structures."""

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(arrays[name].copy()).to(self.start.device)

        for name in (*self.BY_STRUCTURE, *self.BY_ATOM):
            setattr(self, name, tensor(name))
        for name in OverlapAccumulator.FIELDS:
            setattr(self.overlap, name, tensor(f"overlap_{name}"))
        self.lindemann.sum, self.lindemann.square_sum = tensor("lindemann_sum"), tensor("lindemann_square_sum")
        self.lindemann.samples = int(arrays["lindemann_samples"])

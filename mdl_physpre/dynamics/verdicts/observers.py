"""What is watched while structures are simulated. No trajectory is kept.

At every step: smallest distance (overlap), temperature, conserved energy, finite numbers, displacement from the start,
volume where cells change. Every ``lindemann_interval`` steps, beginning with the start: a sample of the Lindemann
averages. Every ``lindemann_check_interval`` steps, from ``lindemann_min_steps`` on: the running index. The same object
takes the frames of a stored trajectory, of which some steps may be missing.

A structure that is not finite, too hot, escaped or collapsed is stopped; an overlap stops it too unless
``stop_on_overlap`` is false. Its averages (temperature, Lindemann) cover the steps before the one that stopped it.

Nothing is changed in place: a shallow copy keeps what was there before.

Where cells change, displacements are those beyond the change of the cell: x(t) − x(0) · M, with cell(t) = cell(0) · M.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms, units
from torch import Tensor

from mdl_physpre.analysis.lindemann import LindemannAccumulator
from mdl_physpre.analysis.overlap import OverlapAccumulator
from mdl_physpre.dynamics.engine.broken import Broken
from mdl_physpre.dynamics.engine.moving_atoms import MovingAtoms
from mdl_physpre.dynamics.settings import DynamicsSettings


def due(step: int, previous: int, interval: int) -> bool:
    """Whether a multiple of ``interval`` lies after ``previous`` and up to ``step``."""
    return step // interval > previous // interval


class Observers:
    """Accumulators of the structures that are being simulated.

    Parameters
    ----------
    settings : what all structures share.
    each : the settings of each structure.
    structures, ids, indices : the structures at the start, their names and their places in the caller's list.
    start : (n, 3), Å, positions at the start.
    smallest : (n_structures,), Å, smallest distances at the start, NaN where there is no pair.
    """

    # per structure, per atom, for all: what a stored state holds
    BY_STRUCTURE = (
        "temperature_sum", "temperature_max", "energy_start", "energy_last", "conserved_start", "conserved_last",
        "conserved_sum", "conserved_moment", "pressure_sum", "pressure_samples", "volume_sum", "volume_last",
        "exceeded",
    )  # fmt: skip
    BY_ATOM = ("start", "force_max", "displacement_max")
    FOR_ALL = ("counted", "step_sum", "step_square_sum", "last_step")

    temperature_sum: Tensor
    temperature_max: Tensor
    energy_start: Tensor
    energy_last: Tensor
    conserved_start: Tensor
    conserved_last: Tensor
    conserved_sum: Tensor
    conserved_moment: Tensor
    pressure_sum: Tensor
    pressure_samples: Tensor
    volume_sum: Tensor
    volume_last: Tensor

    def __init__(
        self,
        settings: DynamicsSettings,
        each: Sequence[DynamicsSettings],
        structures: Sequence[Atoms],
        ids: Sequence[str],
        indices: Sequence[int],
        start: Tensor,
        smallest: Tensor,
    ) -> None:
        self.settings, self.each = settings, list(each)
        self.structures, self.ids, self.indices = list(structures), list(ids), list(indices)
        self.start = start.clone()
        cells = np.array([a.cell[:] for a in structures], dtype=float).reshape(-1, 3, 3)
        self.start_cells = torch.from_numpy(cells).to(start.device)
        self.overlap = OverlapAccumulator(smallest, settings.overlap_ratio)
        sizes = [len(a) for a in structures]
        self.lindemann = LindemannAccumulator(
            self.start,
            sizes,
            [a.cell[:] for a in structures],
            [a.pbc for a in structures],
            settings.distance,
            [n > settings.lindemann_max_atoms for n in sizes],
        )
        zero = torch.zeros(len(sizes), dtype=torch.float64, device=self.start.device)
        for name in self.BY_STRUCTURE:
            setattr(self, name, zero.clone())
        self.exceeded = torch.full((len(sizes), 2), -1, dtype=torch.int64, device=self.start.device)
        self.force_max, self.displacement_max = torch.zeros_like(self.start[:, 0]), torch.zeros_like(self.start[:, 0])
        self.counted, self.step_sum, self.step_square_sum, self.last_step = 0, 0, 0, -1
        self._set_sizes()

    def _set_sizes(self) -> None:
        device = self.start.device
        sizes = [len(a) for a in self.structures]
        self.batch = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(device)
        self.sizes = torch.tensor(sizes, dtype=torch.float64, device=device)
        bounds = [s.temperature_bound(n) for s, n in zip(self.each, sizes, strict=True)]
        self.hottest = torch.tensor(bounds, dtype=torch.float64, device=device)
        self.start_volumes = torch.linalg.det(self.start_cells)
        self.periodic = torch.tensor([bool(np.all(a.pbc)) for a in self.structures], device=device)

    def _sum(self, values: Tensor) -> Tensor:
        out = torch.zeros((len(self.sizes), *values.shape[1:]), dtype=values.dtype, device=values.device)
        return out.index_add_(0, self.batch, values)

    def deformation(self, cells: Tensor) -> Tensor:
        """M (n_structures, 3, 3) with cell(0) · M = cell(t), for structures periodic in three directions."""
        return torch.linalg.solve_ex(self.start_cells, cells).result

    def check_cells(self, cells: Tensor, broken: Broken) -> None:
        """Structures whose volume has fallen to nothing or exploded."""
        s = self.settings
        ratio = torch.linalg.det(cells) / self.start_volumes
        sound = (ratio >= s.min_volume_ratio) & (ratio <= s.max_volume_ratio)  # false for NaN, too
        for k in broken.which(~sound):
            found = f"the volume is {float(ratio[k]):.4g} of that at the start"
            bounds = f"{s.min_volume_ratio:g} to {s.max_volume_ratio:g} allowed"
            broken.add(k, "cell_collapsed", f"{found}, {bounds}")

    def check_positions(
        self, positions: Tensor, broken: Broken, deformation: Tensor | None = None, step_done: bool = True
    ) -> None:
        """Structures with a position that is not finite or an atom that has escaped; broken ones are passed by."""
        start = self.start
        if deformation is not None:
            start = torch.einsum("nx,nxy->ny", start, deformation.index_select(0, self.batch))
        moved = positions - start
        drift = (self._sum(moved) / self.sizes[:, None]).index_select(0, self.batch)
        squared = (moved - drift).square().sum(1)
        sound = squared <= self.settings.max_displacement**2  # false for NaN, too
        if step_done:
            counted = squared
            if broken:
                gone = torch.isin(self.batch, torch.tensor(list(broken), device=self.batch.device))
                counted = squared.masked_fill(gone, 0.0)
            self.displacement_max = torch.fmax(self.displacement_max, counted)
        for k in broken.which(~sound, self.batch):
            if k in broken:
                continue
            mine = squared[self.batch == k]
            if bool(mine.isfinite().all()):
                farthest, limit = float(mine.max().sqrt()), self.settings.max_displacement
                text = f"an atom is {farthest:.4g} Å from its start, at most {limit:g} Å allowed"
                broken.add(k, "escaped", text)
            else:
                broken.add(k, "not_finite", "a position is not finite")

    def check_forces(self, atoms: MovingAtoms, broken: Broken, stress: bool = False) -> None:
        """Structures with a force or an energy, or where ``stress`` is needed a stress, that is not finite."""
        squared = atoms.forces.square().sum(1)
        self.force_max = torch.fmax(self.force_max, squared)
        for k in broken.which(~squared.isfinite(), self.batch):
            broken.add(k, "not_finite", "a force is not finite")
        bad = ~atoms.energies.isfinite()
        if stress:
            bad = bad | ~atoms.stress.sum((1, 2)).isfinite()
        for k in broken.which(bad):
            if not {"not_finite", "potential_error"} & set(broken.get(k, {})):
                energy = float(atoms.energies[k])
                text = "the stress is not finite" if np.isfinite(energy) else f"the energy is {energy}"
                broken.add(k, "not_finite", text)

    def check_motion(self, step: int, temperature: Tensor, distances: Tensor, broken: Broken) -> None:
        """Structures that are too hot or overlap. Those that are lost do not overlap: they have been put elsewhere."""
        hot = ~(temperature <= self.hottest)
        for k in broken.which(hot):
            if "not_finite" in broken.get(k, {}):
                continue
            if bool(temperature[k].isfinite()):
                text = f"{float(temperature[k]):.4g} K, at most {float(self.hottest[k]):.4g} K allowed"
                broken.add(k, "temperature", text)
            else:
                broken.add(k, "not_finite", "a velocity is not finite")
        lost = [k for k, reasons in broken.items() if {"not_finite", "escaped", "cell_collapsed"} & set(reasons)]
        if lost:
            distances = distances.index_fill(0, torch.tensor(lost, device=distances.device), torch.inf)
        overlapping = self.overlap.add(step, distances)
        if self.settings.stop_on_overlap:
            for k in broken.which(overlapping):
                broken.add(k, "overlap", "")

    def count(
        self,
        step: int,
        atoms: MovingAtoms,
        temperature: Tensor,
        conserved: Tensor,
        deformation: Tensor | None = None,
    ) -> None:
        """Take a step that the remaining structures have survived into the averages."""
        s, previous = self.settings, self.last_step
        self.energy_last, self.conserved_last = atoms.energies + atoms.kinetic, conserved
        if not self.counted:
            self.energy_start, self.conserved_start = self.energy_last.clone(), conserved.clone()
            self.volume_last = self.start_volumes.abs()
        else:
            self.temperature_sum = self.temperature_sum + temperature
            self.temperature_max = torch.maximum(self.temperature_max, temperature)
            if deformation is not None:
                self.volume_last = torch.linalg.det(atoms.cells).abs()
            self.volume_sum = self.volume_sum + self.volume_last
        change = conserved - self.conserved_start
        self.conserved_sum = self.conserved_sum + change
        self.conserved_moment = self.conserved_moment + step * change
        self.counted += 1
        self.step_sum, self.step_square_sum, self.last_step = self.step_sum + step, self.step_square_sum + step**2, step
        if due(step, previous, s.lindemann_interval):
            self.lindemann.add(atoms.positions, deformation)
        if step >= s.lindemann_min_steps and due(step, previous, s.lindemann_check_interval):
            largest, mean = self.lindemann_indices()
            over = torch.stack([largest > s.lindemann_local, mean > s.lindemann_global], dim=1)
            self.exceeded = torch.where(over & (self.exceeded < 0), step, self.exceeded)

    def count_pressure(self, pressures: Tensor) -> None:
        """Take a sample of the pressures, eV/Å³; structures that have none are passed by."""
        known = pressures.isfinite() & self.periodic
        self.pressure_sum = self.pressure_sum + torch.where(known, pressures / units.bar, 0.0)
        self.pressure_samples = self.pressure_samples + known

    def lindemann_indices(self) -> tuple[Tensor, Tensor]:
        """Largest q_i and q_global of each structure."""
        local, mean = self.lindemann.indices()
        largest = torch.full_like(mean, -torch.inf).scatter_reduce_(0, self.batch, local, "amax")
        return torch.where(mean.isnan(), mean, largest), mean

    def keep(self, structures: list[int], atoms: Tensor) -> None:
        """Go on with the structures of these indices; ``atoms`` holds the indices of their atoms."""
        which = torch.tensor(structures, dtype=torch.int64, device=self.start.device)
        for name in ("each", "structures", "ids", "indices"):
            setattr(self, name, [getattr(self, name)[k] for k in structures])
        for names, rows in (((*self.BY_STRUCTURE, "start_cells"), which), (self.BY_ATOM, atoms)):
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
        arrays |= {name: np.array(getattr(self, name)) for name in self.FOR_ALL}
        return arrays | {"lindemann_samples": np.array(self.lindemann.samples)}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on from :meth:`state`, with the same structures."""

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(arrays[name].copy()).to(self.start.device)

        for name in (*self.BY_STRUCTURE, *self.BY_ATOM):
            setattr(self, name, tensor(name))
        for name in self.FOR_ALL:
            setattr(self, name, int(arrays[name]))
        for name in OverlapAccumulator.FIELDS:
            setattr(self.overlap, name, tensor(f"overlap_{name}"))
        self.lindemann.sum, self.lindemann.square_sum = tensor("lindemann_sum"), tensor("lindemann_square_sum")
        self.lindemann.samples = int(arrays["lindemann_samples"])

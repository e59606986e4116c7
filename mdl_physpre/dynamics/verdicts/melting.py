"""Melted or broken: whether a structure whose atoms have left their neighbours has become a healthy liquid.

The Lindemann index only says that atoms do not stay beside their neighbours. A liquid goes on moving: with
displacements beyond their mean and the change of the cell (of a structure in empty space also beyond the rotation that
fits best: W. Kabsch, Acta Cryst. A 32, 922 (1976)),

    MSD(s, t) = 1/N Σ_i |x_i(t) − x_i(s) · M(s, t)|²,   a = MSD(T/2, 3T/4),  b = MSD(3T/4, T),  c = MSD(T/2, T)

of a run of T steps. Steps that are independent of each other add up, c = a + b; about a fixed place a = b = c. So the
exponent of MSD ~ t^α is α = log₂(2c / (a + b)): 1 in a liquid, 0 in a solid, 2 in free flight; and what vibrations add
to each cancels in the diffusion coefficient D = (c − (a + b)/2) / (6 T/4). A crystal at its melting point swings by
a tenth of the distance d of neighbours (F. A. Lindemann, 1910), which makes b some 0.02 d².

A structure is a liquid where b ≥ (0.3 d)² and α ≥ 0.4; where its atoms have neighbours at 0.7 to 1.5 times d (nearer:
it has collapsed; farther: it flies apart), and where the mean temperature from 3T/4 on is that of the thermostat within
a fifth, times 1 + 3 sqrt(2/(3N)), because the temperature of few atoms fluctuates. Without a thermostat it must not be
hotter. d is the mean distance of an atom's nearest neighbour at the start. Where the thermostat heats, a crystal
melts whenever it may: then motion needs not be seen.

T/2 and 3T/4 are the nearest of up to eight steps at which positions are kept; their spacing doubles as the run goes on.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from mdl_physpre.analysis.overlap import nearest_distances
from mdl_physpre.dynamics.engine.ensembles import ensemble_of
from mdl_physpre.dynamics.verdicts.built_in import Temperature
from mdl_physpre.dynamics.verdicts.observer import Moment, Observer, Watched, due

MOST = 8  # steps at which positions are kept
MOVED = 0.3  # of the distance of neighbours, that atoms of a liquid move in the last quarter of a run
EXPONENT = 0.4
NEAREST = (0.7, 1.5)  # mean distance of nearest neighbours over that at the start
HELD = 0.2  # relative to the temperature of the thermostat


class Diffusion(Observer):
    """Displacements in the second half of a run, see the module.

    ``marks``: steps at which positions were kept, the ``counted_at[k]``-th that were counted; ``kept``: what was there:
    ``positions`` (n, 3) Å, ``deformation`` (B, 3, 3) of the cells since the start, ``temperature_sum`` (B,) K. ``now``:
    the same of the last step, ``step``.
    """

    metrics = ("diffusion_coefficient", "diffusion_exponent", "mean_squared_displacement", "late_temperature")
    FOR_ALL = ("spacing", "step")

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        self.spacing = watched.settings.lindemann_interval
        self.marks: tuple[int, ...] = ()
        self.counted_at: tuple[int, ...] = ()
        self.kept: tuple[dict[str, Tensor], ...] = ()
        self.now: dict[str, Tensor] = {}
        self.step = -1
        free = [not atoms.pbc.any() for atoms in watched.structures]
        self.free = torch.tensor(free, device=watched.start.device)

    def count(self, moment: Moment, previous: int) -> None:
        self.step = moment.step
        self.now = {
            "positions": moment.atoms.positions,
            "temperature_sum": self.watched.of(Temperature).temperature_sum,
        }
        if moment.deformation is not None:
            self.now["deformation"] = moment.deformation
        if not due(moment.step, previous, self.spacing):
            return
        if len(self.marks) == MOST:
            self.marks, self.counted_at = self.marks[::2], self.counted_at[::2]
            self.kept, self.spacing = self.kept[::2], 2 * self.spacing
        if due(moment.step, previous, self.spacing):
            self.marks, self.counted_at = (*self.marks, moment.step), (*self.counted_at, self.watched.counted)
            self.kept = (*self.kept, self.now)

    def middle(self) -> tuple[int, int] | None:
        """Which marks are nearest to a half and to three quarters of the run; ``None`` where there are too few."""
        half, late = (
            min(range(len(self.marks)), key=lambda k: abs(self.marks[k] - part * self.step), default=0)
            for part in (0.5, 0.75)
        )
        return (half, late) if half < late and self.marks[late] < self.step else None

    def squared_displacement(self, first: dict[str, Tensor], last: dict[str, Tensor]) -> Tensor:
        """MSD of each structure, (B,), Å², beyond the mean displacement, the change of the cell and free rotation."""
        o, start, end = self.watched, first["positions"], last["positions"]
        if "deformation" in last:
            change = last["deformation"]
            if "deformation" in first:
                change = torch.linalg.solve_ex(first["deformation"], change).result
            start = torch.einsum("nx,nxy->ny", start, change.index_select(0, o.batch))
        start, end = (x - (o.sums(x) / o.sizes[:, None]).index_select(0, o.batch) for x in (start, end))
        turned = torch.zeros_like(o.sizes)
        if self.free.any():
            overlap = o.sums(start[:, :, None] * end[:, None, :])
            u, s, v = torch.linalg.svd(overlap)
            s = torch.cat([s[:, :2], s[:, 2:] * torch.linalg.det(u @ v).sign()[:, None]], dim=1)
            turned = torch.where(self.free, 2 * (s.sum(1) - overlap.diagonal(dim1=1, dim2=2).sum(1)), 0.0)
        return (o.sums((end - start).square().sum(1)) - turned) / o.sizes

    def measured(self) -> dict[str, Tensor]:
        found = dict.fromkeys(self.metrics, torch.full_like(self.watched.sizes, torch.nan))
        middle = self.middle()
        if middle is None:
            return found
        half, late = (self.kept[k] for k in middle)
        a, b, c = (self.squared_displacement(*pair) for pair in ((half, late), (late, self.now), (half, self.now)))
        each, steps = (a + b) / 2, [s.timestep * 1e-3 for s in self.watched.each]
        time = torch.tensor(steps, dtype=torch.float64, device=c.device) * (self.step - self.marks[middle[0]]) / 2
        temperatures = self.now["temperature_sum"] - late["temperature_sum"]
        return {
            "diffusion_coefficient": (c - each) / (6 * time),
            "diffusion_exponent": torch.log2(c / each),
            "mean_squared_displacement": b,
            "late_temperature": temperatures / (self.watched.counted - self.counted_at[middle[1]]),
        }

    def not_liquid(self, structure: int, metrics: dict[str, Any]) -> str | None:
        """Why a structure at the end of its run is no healthy liquid; ``None`` where it is one."""
        s, n, middle = self.watched.each[structure], len(self.watched.structures[structure]), self.middle()
        if middle is None:
            return "too few steps to see whether its atoms go on moving"
        start = self.watched.structures[structure]
        at_start, at_end = (float(nearest_distances(atoms).mean()) for atoms in (start, self.at_end(structure)))
        moved, heating = metrics["mean_squared_displacement"], s.temperature_end is not None
        if moved < (MOVED * at_start) ** 2 and not heating:
            return f"its atoms hardly move any more ({moved:.3g} Å² in the last quarter)"
        if metrics["diffusion_exponent"] < EXPONENT and not heating:
            return f"its atoms stay about their places (exponent {metrics['diffusion_exponent']:.2f})"
        ratio = at_end / at_start
        if not NEAREST[0] <= ratio <= NEAREST[1]:
            return f"neighbours are at {ratio:.2f} times their distance at the start"
        wanted, found = s.temperature_at(round((self.marks[middle[1]] + self.step) / 2)), metrics["late_temperature"]
        held = HELD * (1 + 3 * math.sqrt(2 / (3 * n))) * wanted
        cold = ensemble_of(s.ensemble).cls.follows_temperature and found < wanted - held
        if cold or found > wanted + held:
            return f"its temperature is {found:.0f} K and not {wanted:.0f} K"
        return None

    def at_end(self, structure: int) -> Atoms:
        """A structure as it is now."""
        atoms = self.watched.structures[structure].copy()
        atoms.positions = self.now["positions"][self.watched.batch == structure].cpu().numpy()
        if "deformation" in self.now:
            atoms.cell = atoms.cell[:] @ self.now["deformation"][structure].cpu().numpy()
        return atoms

    def keep(self, structures: list[int], which: Tensor, atoms: Tensor) -> None:
        def kept(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return {n: v.index_select(0, atoms if n == "positions" else which) for n, v in values.items()}

        self.kept, self.now = tuple(map(kept, self.kept)), kept(self.now)
        self.free = self.free.index_select(0, which)

    def state(self) -> dict[str, np.ndarray]:
        numbers = {name: np.array(getattr(self, name), dtype=np.int64) for name in ("marks", "counted_at")}
        tensors = {
            f"moved_{k}_{name}": value.cpu().numpy()
            for k, one in enumerate([*self.kept, self.now])
            for name, value in one.items()
        }
        return super().state() | numbers | tensors

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        super().restore(arrays)
        if "marks" not in arrays:  # a state of an earlier version: displacements are those from here on
            return
        self.marks, self.counted_at = (tuple(arrays[name].tolist()) for name in ("marks", "counted_at"))
        kept: list[dict[str, Tensor]] = [{} for _ in range(len(self.marks) + 1)]
        for key, value in arrays.items():
            if key.startswith("moved_"):
                _, k, name = key.split("_", 2)
                kept[int(k)][name] = torch.from_numpy(value.copy()).to(self.watched.start.device)
        self.kept, self.now = tuple(kept[:-1]), kept[-1]

"""How far the members of a committee are apart, at every step, and structures where that passes a bound.

Of a potential that gives no spread nothing is computed and nothing stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdl_physpre.dynamics.engine.broken import Broken
from mdl_physpre.dynamics.engine.moving_atoms import MovingAtoms
from mdl_physpre.dynamics.verdicts.observer import Conditions, Judged, Moment, Observer, Watched


class Uncertainty(Observer):
    """The largest force spread of the atoms of each structure, with ``max_force_spread`` of the settings as its bound.

    ``now`` (B,) eV/Å: at this step; ``spread_largest``: so far; ``spread_energy``: the largest energy spread so far,
    eV/atom; ``spread_sum``: of means over atoms; ``spread_step``: the step at which the bound was first passed, −1
    where it was not. There are none until a spread has been ``seen``.
    """

    reasons = ("uncertain",)
    metrics = ("max_force_spread", "mean_force_spread", "max_energy_spread", "uncertain_step")
    BY_STRUCTURE = ("spread_largest", "spread_energy", "spread_sum", "spread_step")

    now: Tensor
    spread_largest: Tensor
    spread_energy: Tensor
    spread_sum: Tensor
    spread_step: Tensor

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        self.seen = False
        self.bound: float | None = watched.settings.max_force_spread
        self.stops: bool = watched.settings.stop_on_uncertain

    @classmethod
    def reasons_with(cls, settings: Conditions) -> tuple[str, ...]:
        """None without a bound."""
        return () if settings.max_force_spread is None else cls.reasons

    def check_forces(self, atoms: MovingAtoms, broken: Broken, stress: bool = False) -> None:
        if atoms.force_spread is None or atoms.energy_spread is None:
            return
        sizes = self.watched.sizes
        if not self.seen:
            self.seen = True
            self.spread_largest = self.spread_energy = self.spread_sum = torch.zeros_like(sizes)
            self.spread_step = torch.full_like(sizes, -1, dtype=torch.int64)
        self.now = self.watched.largest(atoms.force_spread)
        self.spread_largest = torch.fmax(self.spread_largest, self.now)
        self.spread_energy = torch.fmax(self.spread_energy, atoms.energy_spread / sizes)

    def check(self, moment: Moment, broken: Broken) -> None:
        if not self.seen or self.bound is None:
            return
        over = self.now > self.bound
        self.spread_step = torch.where(over & (self.spread_step < 0), moment.step, self.spread_step)
        if self.stops:
            for k in broken.which(over):
                broken.add(k, "uncertain", "")

    def count(self, moment: Moment, previous: int) -> None:
        if previous >= 0 and moment.atoms.force_spread is not None:
            self.spread_sum = self.spread_sum + self.watched.sums(moment.atoms.force_spread) / self.watched.sizes

    def passed(self, step: int) -> Tensor | None:
        return None if self.stops or not self.seen or self.bound is None else self.spread_step == step

    def measured(self) -> dict[str, Tensor]:
        if not self.seen:
            return {}
        steps = self.watched.counted - 1
        return {
            "max_force_spread": self.spread_largest,
            "mean_force_spread": self.spread_sum / steps if steps > 0 else torch.full_like(self.spread_sum, torch.nan),
            "max_energy_spread": self.spread_energy,
            "uncertain_step": self.spread_step,
        }

    def not_applicable(self, structure: int) -> str | None:
        return None if self.seen else "the potential gives no spread, as a committee does"

    def judge(self, structure: int, metrics: dict[str, Any]) -> Judged:
        step = metrics.get("uncertain_step", -1)
        metrics["uncertain_step"] = step if step >= 0 else None
        if self.bound is None:
            return {}, {}
        if step < 0:
            return super().judge(structure, metrics)
        text = f"the forces on an atom are up to {metrics['max_force_spread']:.4g} eV/Å apart, at most {self.bound:g}"
        return {"uncertain": (step, f"{text} allowed")}, {}

    def keep(self, structures: list[int], which: Tensor, atoms: Tensor) -> None:
        if self.seen:
            super().keep(structures, which, atoms)

    def state(self) -> dict[str, np.ndarray]:
        return super().state() if self.seen else {}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        self.seen = "spread_step" in arrays
        if self.seen:
            super().restore(arrays)

"""The two ends of every scale: a potential with a true wall holds to the end of it, one without breaks where it begins.

And ASE's EMT breaks nowhere below the point where plain ASE says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

from mdl_physpre.potentials import CalculatorPotential, EAMInteraction
from mdl_physpre.stress_tests import StressResult, run_stress_tests
from tests.helpers.pair_potentials import Attraction

SCALES: dict[str, dict[str, Any]] = {
    "heating": {"temperature_end": 12_000.0, "rate": 40_000.0, "timestep": 1.0},
    "compression": {"steps": 60, "start_steps": 100, "volume_step": 0.05, "lowest_volume": 0.45, "fmax": 0.05},
    "collisions": {"rungs": 2, "pairs": 2},
    "random_starts": {"starts": 1, "compression_step": 70.0, "steps": 200},
}
FIRST = {
    "heating": ({"rate": 5000.0}, 1500.0),
    "compression": ({}, 0.0),
    "collisions": ({}, 1.0),
    "random_starts": ({}, 20.0),
}
"""Settings, and the beginning of the scale; a constant attraction takes time to pull hot atoms together."""


def copper(n: int = 2) -> list[Atoms]:
    made = [bulk("Cu", "fcc", a=3.61, cubic=True).repeat((2, 2, 2)) for _ in range(n)]
    for seed, atoms in enumerate(made):
        atoms.rattle(0.02, seed=seed)
    return made


def stressed(potential: Any, name: str, **more: Any) -> StressResult:
    return run_stress_tests(potential, copper(), {name: {**SCALES[name], **more}}, progress=False)[name]


@pytest.mark.parametrize("name", SCALES)
def test_a_true_wall_holds_to_the_end(name: str) -> None:
    potential = EAMInteraction(["Cu"], cutoff=5.0, init="spread", short_range="zbl").double()
    found = stressed(potential, name)
    assert [(point.broken, point.reason) for point in found.points] == [(False, None)] * 2
    ends = {"heating": 12_000.0, "collisions": 100.0, "random_starts": 90.0}
    if name in ends:  # compression ends at a volume, at whatever pressure
        assert [point.value for point in found.points] == [ends[name]] * 2


@pytest.mark.parametrize("name", SCALES)
def test_without_a_wall_it_breaks_where_the_scale_begins(name: str) -> None:
    more, bound = FIRST[name]
    found = stressed(Attraction(), name, **more)
    assert all(point.broken for point in found.points)
    assert all(point.value <= bound for point in found.points)


def plain_ramp(atoms: Atoms, end: float, seed: int) -> float:
    """Plain ASE: the smallest distance, over that at the start, while a Langevin thermostat rises to ``end``."""
    s, rng = SCALES["heating"], np.random.default_rng(seed)
    atoms.calc = EMT()
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=rng)
    dynamics = Langevin(atoms, s["timestep"] * units.fs, temperature_K=300, friction=0.02 / units.fs, rng=rng)
    found = []
    for temperature in np.arange(300, end, s["rate"] * s["timestep"] / 1000):
        dynamics.set_temperature(temperature_K=temperature)
        dynamics.run(1)
        found.append(atoms.get_all_distances(mic=True)[np.triu_indices(len(atoms), 1)].min())
    return float(min(found) / found[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_emt_breaks_nowhere_below_what_plain_ase_says() -> None:
    end = 6000.0
    by_hand = [plain_ramp(atoms, end, seed) for seed, atoms in enumerate(copper())]
    assert min(by_hand) > 0.5  # never half of what it was: no overlap up to the end
    found = stressed(CalculatorPotential(EMT, name="emt"), "heating", temperature_end=end)
    assert [(point.broken, point.value) for point in found.points] == [(False, end)] * 2
    closest = [point.metrics["min_distance"] / point.metrics["start_min_distance"] for point in found.points]
    assert np.mean(closest) == pytest.approx(np.mean(by_hand), abs=0.1)

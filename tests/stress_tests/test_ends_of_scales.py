"""The two ends of every scale: a potential with a true wall holds to the end of it, one without breaks where it begins.

And ASE's EMT breaks nowhere below the point where plain ASE says so: here, and under compression in ``test_ladders``.
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
from ase.md.verlet import VelocityVerlet
from ase.neighborlist import neighbor_list
from ase.optimize import FIRE

from mdl_physpre.potentials import CalculatorPotential, EAMInteraction
from mdl_physpre.stress_tests import StressResult, run_stress_tests
from mdl_physpre.stress_tests.collisions import Collisions, CollisionsSettings, turning_point
from mdl_physpre.stress_tests.ladder import Climber
from mdl_physpre.stress_tests.random_starts import RandomStarts, RandomStartsSettings
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


def cell() -> Atoms:
    """Four atoms, which EMT evaluates quickly."""
    atoms = bulk("Cu", "fcc", a=3.61, cubic=True)
    atoms.rattle(0.02, seed=0)
    return atoms


def test_emt_collides_as_plain_ase_says() -> None:
    """Up to 100 eV no pair comes closer than half of where bare nuclei turn, and the energy is kept."""
    settings = {"rungs": 2, "pairs": 1, "min_width": 0.0, "relax_steps": 0}
    test, closest = Collisions(CollisionsSettings(**settings)), []
    for energy in (1.0, 100.0):
        for shot in test.collisions(Climber(0, "", cell(), {}), energy):
            atoms, image = shot.atoms, shot.atoms.info["collision"][2]
            atoms.calc = EMT()
            dynamics, start, near = VelocityVerlet(atoms, shot.timestep * units.fs), atoms.get_total_energy(), []
            for _ in range(250):
                dynamics.run(1)
                near.append(np.linalg.norm(atoms.positions[shot.j] + image - atoms.positions[shot.i]))
            assert abs(atoms.get_total_energy() - start) < 0.02 * energy
            assert min(near) > 0.5 * turning_point(29, 29, energy)
            closest.append(min(near))
    (point,) = run_stress_tests(
        CalculatorPotential(EMT, name="emt"), [cell()], {"collisions": settings}, progress=False
    )["collisions"].points
    assert not point.broken and point.value == 100
    assert point.metrics["closest_approach"] == pytest.approx(min(closest), rel=1e-4)


def test_emt_gets_out_of_random_starts_as_plain_ase_says() -> None:
    """Relaxed by ASE's FIRE no pair of the same starts is closer than half the sum of its radii, 1.12 Å."""
    settings = {"starts": 2, "compression_step": 35.0, "min_width": 0.0}
    test, rungs = RandomStarts(RandomStartsSettings(**settings)), (20.0, 55.0, 90.0)
    for rung, compression in enumerate(rungs, start=1):
        for atoms in test.random(Climber(0, "", cell(), {}), rung, compression):
            assert len(neighbor_list("d", atoms, 2.24 * (1 - compression / 100) * 1.01))
            atoms.calc = EMT()
            FIRE(atoms, maxstep=0.1, logfile=None).run(fmax=0.1, steps=300)
            assert not len(neighbor_list("d", atoms, 1.12))
    (point,) = run_stress_tests(
        CalculatorPotential(EMT, name="emt"), [cell()], {"random_starts": settings}, progress=False
    )["random_starts"].points
    assert not point.broken and point.value == 90

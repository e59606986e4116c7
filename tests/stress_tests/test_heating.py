"""Heating: potentials with a wall and without at the two ends of the scale, where a ramp ends, and what a melt is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read

from mdl_physpre.dynamics import DynamicsSettings, simulate
from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials import Committee
from mdl_physpre.potentials.zbl import ZBL
from mdl_physpre.report.tables.stress import format_stress
from mdl_physpre.stress_tests import run_stress_tests
from mdl_physpre.stress_tests.melting import melting_temperature, nearest_distance
from tests.helpers.pair_potentials import Attraction, AttractiveGold, Frozen, Killed, Morse

QUICK = {"rate": 20_000.0, "timestep": 2.0, "seed": 3}


def crystals(n: int = 3, repeat: int = 2) -> list[Atoms]:
    """Copper crystals for a Morse potential whose distance is 2.5 Å."""
    made = [bulk("Cu", "fcc", a=3.5, cubic=True).repeat((repeat, repeat, repeat)) for _ in range(n)]
    for k, atoms in enumerate(made):
        atoms.rattle(0.02, seed=k)
        atoms.info["structure_id"] = f"copper-{k}"
    return made


def heat(potential, structures, out=None, **settings):
    return run_stress_tests(potential, structures, {"heating": {**QUICK, **settings}}, out, progress=False)["heating"]


def test_a_wall_holds_to_the_end_and_a_melt_is_not_broken() -> None:
    found = heat(Morse(depth=0.2), crystals(), temperature_end=9000.0, dynamics={"lindemann_global": 0.07})
    assert (found.quantity, found.unit, found.test) == ("temperature", "K", "heating")
    assert [p.value for p in found.points] == [9000.0] * 3
    for point in found.points:
        assert not point.broken and point.reason is None and point.step == 218
        assert 1000 < point.metrics["lindemann_temperature"] < 9000
        assert point.metrics["min_distance"] > 0.5 * point.metrics["start_min_distance"]


class WithNuclei(Attraction):
    """The attraction with the repulsion of the nuclei: a true wall, on which nothing overlaps."""

    def __init__(self) -> None:
        super().__init__()
        self.core = ZBL(elements=["Cu"])

    def atomic_energies(self, graph):
        return super().atomic_energies(graph) + self.core.atomic_energies(graph)


def test_a_true_wall_holds_to_the_end_what_falls_without_it() -> None:
    """With ratio 0.3: the attraction alone passes 0.3 of the distance at the start, 0.7 Å, and the nuclei do not."""
    within = {"temperature_end": 6000.0, "timestep": 1.0, "dynamics": {"overlap_ratio": 0.3}}
    without, wall = (heat(potential, crystals(2), **within) for potential in (Attraction(), WithNuclei()))
    assert [p.broken for p in without.points] == [True, True] and max(p.value for p in without.points) < 6000
    assert [(p.broken, p.value) for p in wall.points] == [(False, 6000.0)] * 2


def test_an_attraction_breaks_at_the_start(tmp_path: Path) -> None:
    found = heat(Attraction(), crystals(), tmp_path, temperature_end=9000.0, rate=5000.0)
    for point in found.points:
        assert point.broken and point.reason == "overlap" and "distance" in point.text
        assert point.value < 1500 and point.value == 300 + 5 * 2 * point.step
        frames = read(tmp_path / "heating" / "failing_frames" / f"{point.index:05d}.extxyz", ":")
        assert frames[-1].info["step"] == point.step


def test_one_breaks_and_the_others_go_on() -> None:
    structures = crystals(3)
    structures[1].numbers[:] = 79
    found = heat(AttractiveGold(), structures, temperature_end=4000.0, rate=5000.0)
    assert [p.broken for p in found.points] == [False, True, False]
    assert [p.structure_id for p in found.points] == ["copper-0", "copper-1", "copper-2"]
    assert found.points[1].value < found.points[0].value == 4000


def test_the_end_follows_the_melting_of_the_potential_itself() -> None:
    """Of a well twice as deep a harmonic crystal swings half as far in the square."""
    settings = DynamicsSettings(temperature=50, friction=0.02, timestep=2.0)
    one, two = (melting_temperature(Morse(depth=d), crystals(4), settings, progress=False) for d in (0.2, 0.4))
    assert one is not None and two is not None
    assert two / one == pytest.approx(2, rel=0.2)
    found = heat(Morse(depth=0.2), crystals(4), times_melting=3.0)
    melting = found.points[0].metrics["melting_temperature"]
    assert melting == pytest.approx(one, rel=0.5)
    assert {p.value for p in found.points} == {p.metrics["temperature_end"] for p in found.points}
    assert found.points[0].value == round(3 * melting, -2)


def test_swings_are_those_of_the_trajectory(tmp_path: Path) -> None:
    """From the positions of every step, read with ASE."""
    observer = "mdl_physpre.stress_tests.melting:Swings?first=10"
    settings = DynamicsSettings(steps=40, trajectory_interval=1, observers=(observer,), seed=1)
    structures = crystals(2)
    verdicts = simulate(Morse(), structures, settings, tmp_path, progress=False)
    for k, verdict in enumerate(verdicts):
        frames = read(tmp_path / "trajectories" / f"{k:05d}.extxyz", "10:")
        positions = np.array([frame.positions - frame.positions.mean(0) for frame in frames])
        swing = np.sqrt(positions.var(axis=0).sum(1).mean())
        distances = structures[k].get_all_distances(mic=True)
        np.fill_diagonal(distances, np.inf)
        assert verdict.metrics["swing"] == pytest.approx(swing / distances.min(1).mean(), rel=1e-5)


def test_nearest_distances_are_those_of_all_images() -> None:
    assert nearest_distance(bulk("Cu", "fcc", a=3.6), 2.5) == pytest.approx(3.6 / 2**0.5)
    assert np.isnan(nearest_distance(Atoms("Cu"), np.inf))


def test_where_all_break_at_once_the_ramp_ends_at_6000_kelvin() -> None:
    point = heat(Attraction(), crystals(2)).points[0]
    assert point.broken and point.metrics["melting_temperature"] is None and point.metrics["temperature_end"] == 6000


def test_frozen_structures_hold() -> None:
    found = heat(Frozen(), [Atoms("Cu", cell=[9, 9, 9], pbc=True)], temperature_end=500.0)
    assert not found.points[0].broken and found.points[0].metrics["lindemann_temperature"] is None


@pytest.mark.parametrize("at", [60, 400])
def test_killed_in_either_ramp_it_goes_on_to_the_same_points(tmp_path: Path, at: int) -> None:
    own = {"times_melting": 2.0, "dynamics": {"checkpoint_steps": 20}}
    whole = heat(Killed(10**9), crystals(2), tmp_path / "whole", **own)
    with pytest.raises(KeyboardInterrupt):
        heat(Killed(at), crystals(2), tmp_path / "cut", **own)
    folder = tmp_path / "cut" / "heating"
    assert (folder / "state.npz" if at > 351 else folder / "melting" / "state.npz").is_file()
    assert heat(Killed(10**9), crystals(2), tmp_path / "cut", **own).points == whole.points


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature_end": 200.0}, "heating: temperature_end is 200 and temperature is 300; a ramp ends above"),
        ({"ensemble": "nve"}, "and ensemble 'nve' has no thermostat"),
        ({"dynamics": {"steps": 5}}, "heating: dynamics: steps follow from"),
        ({"dynamics": {"seed": 5}}, "heating: dynamics: seed is a setting of heating itself"),
        ({"dynamics": {"overlap": 5}}, "heating: dynamics.overlap: unknown key"),
        ({"rate": 0}, "heating.rate: found 0"),
        ({"rat": 5}, "heating.rat: unknown key; did you mean 'rate'"),
    ],
)
def test_mistakes_are_named(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        run_stress_tests(Morse(), crystals(1), {"heating": settings})
    assert words in str(error.value)


@pytest.mark.parametrize("stops", [True, False])
def test_the_temperature_at_which_a_committee_becomes_uncertain(stops: bool) -> None:
    """Of two wells of unlike depth the forces part in proportion to how far atoms swing."""
    committee = Committee([Morse(depth=0.2), Morse(depth=0.24)])
    free = heat(committee, crystals(), temperature_end=3000.0)
    bound = float(np.median([point.metrics["max_force_spread"] for point in free.points])) * 0.7
    settings = {"max_force_spread": bound, "stop_on_uncertain": stops}
    found = heat(committee, crystals(), temperature_end=3000.0, dynamics=settings)
    for point in found.points:
        assert 300 < point.metrics["uncertain_value"] < 3000
        assert point.broken == stops and point.reason == ("uncertain" if stops else None)
        assert point.value == (point.metrics["uncertain_value"] if stops else 3000)
    seen = found.uncertain_observations("a")
    assert [(o.value, o.broken) for o in seen] == [(p.metrics["uncertain_value"], True) for p in found.points]
    told = format_stress({"heating": found})
    assert "the committee is uncertain from a median of" in told and "3 of 3" in told and "uncertain at" in told
    assert free.uncertain_observations() == [] and "uncertain" not in format_stress({"heating": free})
    held = heat(committee, crystals(), temperature_end=600.0, dynamics={**settings, "max_force_spread": 1e3})
    assert [(o.value, o.broken) for o in held.uncertain_observations()] == [(600.0, False)] * 3
    alone = heat(Morse(depth=0.2), crystals(), temperature_end=600.0, dynamics=settings)
    assert alone.uncertain_observations() == []

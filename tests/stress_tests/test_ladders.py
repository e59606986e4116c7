"""Compression, collisions and random starts: potentials with a wall and without at the two ends of every scale."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.io import read

from mdl_physpre.dynamics import DynamicsSettings, run_and_return
from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials import ZBL, CalculatorPotential, SumPotential
from mdl_physpre.potentials.zbl import nuclear_repulsion
from mdl_physpre.stress_tests import run_stress_tests
from mdl_physpre.stress_tests.collisions import Collisions, CollisionsSettings, turning_point
from mdl_physpre.stress_tests.ladder import Climber, bonds, repeated
from mdl_physpre.stress_tests.random_starts import with_closest
from tests.helpers.pair_potentials import Morse, PairPotential

SCALES = {
    "compression": {"steps": 60, "start_steps": 100, "volume_step": 0.05, "lowest_volume": 0.45, "fmax": 0.05},
    "collisions": {"rungs": 3, "pairs": 2, "min_width": 0},
    "random_starts": {"starts": 2, "compression_step": 35.0, "min_width": 0, "steps": 150},
}
ENDS = {"compression": 200.0, "collisions": 100.0, "random_starts": 90.0}
STARTS = {"compression": 0.0, "collisions": 1.0, "random_starts": 20.0}


class Walled(PairPotential):
    """Copper that repels by its nuclei, up to where a Morse well takes over."""

    def pair(self, r: torch.Tensor) -> torch.Tensor:
        well = 0.3 * ((1 - torch.exp(-1.5 * (r - 2.5))) ** 2 - 1) * (1 - (r / self.cutoff) ** 2) ** 3
        return well + nuclear_repulsion(29, 29, r) * torch.exp(-((r / 1.8) ** 8))


class Sinking(PairPotential):
    """An attraction without a wall."""

    def pair(self, r: torch.Tensor) -> torch.Tensor:
        return -20.0 * torch.exp(-r / 0.7) * (1 - (r / self.cutoff) ** 2) ** 3


class Hollow(Walled):
    """A wall with a deep hole behind it."""

    def __init__(self, where: float = 0.9, depth: float = 200.0, width: float = 0.25) -> None:
        super().__init__()
        self.where, self.hole, self.width = where, depth, width

    def pair(self, r: torch.Tensor) -> torch.Tensor:
        return super().pair(r) - self.hole * torch.exp(-(((r - self.where) / self.width) ** 2))


HOLES = {"compression": (1.85, 12.0, 0.12), "collisions": (), "random_starts": ()}


class WithoutStress(Walled):
    gives_stress = False


def crystals(n: int = 2) -> list[Atoms]:
    made = [bulk("Cu", "fcc", a=3.5, cubic=True) for _ in range(n)]
    for k, atoms in enumerate(made):
        atoms.rattle(0.03, seed=k)
        atoms.info["structure_id"] = f"copper-{k}"
    return made


def test_of(name: str, potential, structures, out=None, **settings):
    return run_stress_tests(potential, structures, {name: SCALES[name] | settings}, out, progress=False)[name].points


test_of.__test__ = False


@pytest.mark.parametrize("name", SCALES)
def test_a_wall_holds_to_the_end_of_the_scale(name: str) -> None:
    for point in test_of(name, Walled(), crystals()):
        assert not point.broken and point.reason is None, point.text
        assert point.value == pytest.approx(ENDS[name]) and "has reached the end" in point.text


@pytest.mark.parametrize("name", SCALES)
def test_an_attraction_breaks_at_the_start(name: str, tmp_path: Path) -> None:
    for point in test_of(name, Sinking(), crystals(), tmp_path):
        assert point.broken and point.value == pytest.approx(STARTS[name]) and point.text
        frames = read(tmp_path / name / "failing_frames" / f"{point.index:05d}.extxyz", ":")
        assert len(frames) == 2 and (frames[0].numbers == 29).all()
        assert {frame.info["structure_id"] for frame in frames} == {point.structure_id}


@pytest.mark.parametrize("name", SCALES)
def test_a_hole_behind_the_wall_is_found_between(name: str) -> None:
    for point in test_of(name, Hollow(*HOLES[name]), crystals()):
        assert point.broken and STARTS[name] < point.value <= ENDS[name], point


@pytest.mark.parametrize("name", SCALES)
def test_stopped_it_goes_on_to_the_same_points(name: str, tmp_path: Path) -> None:
    class Stops(Hollow):
        left = 10**9

        def atomic_energies(self, graph):
            Stops.left -= 1
            if Stops.left == 0:
                raise KeyboardInterrupt
            return super().atomic_energies(graph)

    whole = test_of(name, Stops(*HOLES[name]), crystals(), tmp_path / "whole")
    used = 10**9 - Stops.left
    Stops.left = int(0.7 * used)
    with pytest.raises(KeyboardInterrupt):
        test_of(name, Stops(*HOLES[name]), crystals(), tmp_path / "cut")
    state = json.loads((tmp_path / "cut" / name / "ladder.json").read_text())
    assert state["rung"] > 0
    Stops.left = 10**9
    assert test_of(name, Stops(*HOLES[name]), crystals(), tmp_path / "cut") == whole
    assert 10**9 - Stops.left < used


def test_the_pressure_of_copper_is_that_of_an_independent_script() -> None:
    """E(V) of ASE's EMT on a fine grid of volumes; 1 %. EMT gives no stress here."""
    copper = bulk("Cu", "fcc", a=3.6, cubic=True)
    potential = CalculatorPotential(EMT(), name="EMT")
    potential.gives_stress = False
    point = test_of("compression", potential, [copper], volume_step=0.02, end_pressure=150.0)[0]
    assert not point.broken and point.value == 150
    ratios, pressures = point.metrics["volume_ratios"], point.metrics["pressures"]
    assert len(ratios) == len(pressures) + 1 > 15

    def energy(ratio: float) -> float:
        atoms = copper.copy()
        atoms.set_cell(copper.cell[:] * ratio ** (1 / 3), scale_atoms=True)
        atoms.calc = EMT()
        return atoms.get_potential_energy()

    trues = []
    for k, pressure in enumerate(pressures):
        middle, h = (ratios[k] + ratios[k + 1]) / 2, 1e-4
        true = (energy(middle - h) - energy(middle + h)) / (2 * h * copper.get_volume()) / units.GPa
        assert pressure == pytest.approx(true, rel=0.01, abs=0.1)
        trues.append(true)
    assert trues == sorted(trues) and trues[-1] > 140  # the script finds no point below at which EMT would give way


def test_at_a_temperature_the_pressure_is_that_of_the_stress_or_of_mean_energies() -> None:
    own = {"temperature": 50.0, "steps": 120, "start_steps": 120, "lowest_volume": 0.8, "timestep": 2.0}
    crystal = [bulk("Cu", "fcc", a=3.5, cubic=True).repeat((2, 2, 2))]
    hot = test_of("compression", Walled(), crystal, **own)[0]
    silent = test_of("compression", WithoutStress(), crystal, **own)[0]
    cold = test_of("compression", Walled(), crystal, **(own | {"temperature": 0.0}))[0]
    assert "lowest volume" in hot.text and "lowest volume" in silent.text
    assert len(hot.metrics["pressures"]) == len(cold.metrics["pressures"]) + 1
    middle = 0.5 * (np.array(hot.metrics["pressures"][1:]) + hot.metrics["pressures"][:-1])
    np.testing.assert_allclose(middle, cold.metrics["pressures"], rtol=0.1, atol=1.5)
    np.testing.assert_allclose(silent.metrics["pressures"], cold.metrics["pressures"], rtol=0.1, atol=1.5)


@pytest.mark.parametrize("name", SCALES)
def test_a_potential_without_stress_is_tested_all_the_same(name: str) -> None:
    assert test_of(name, WithoutStress(), crystals(1)) == test_of(name, Walled(), crystals(1))


@pytest.mark.parametrize("name", ["compression", "random_starts"])
def test_what_is_not_periodic_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="structure 0 is periodic along .*Leave it out"):
        test_of(name, Morse(), [molecule("H2O")])


def test_a_pair_in_nothing_turns_where_its_energy_says() -> None:
    """Two atoms with nuclear repulsion alone: head-on they turn at V(r) = E + V(d)."""
    pair = Atoms("Cu2", [[0, 0, 0], [2.2, 0, 0]])
    potential = ZBL(["Cu"], {"Cu-Cu": 6.0})  # whole up to 2 Å
    test = Collisions(CollisionsSettings(relax_steps=0, impact_parameters=(0.0,), fraction=0.002))
    for energy in (3.0, 100.0):
        (shot,) = test.collisions(Climber(0, "pair", pair, {}), energy)
        momenta = shot.atoms.get_momenta()
        assert shot.atoms.get_kinetic_energy() == pytest.approx(energy) and abs(momenta.sum(0)).max() < 1e-12
        settings = DynamicsSettings(
            ensemble="nve", start_velocities="structures", timestep=shot.timestep, steps=1250, overlap_ratio=1e-9,
            max_temperature=1e12, observers=("mdl_physpre.stress_tests.collisions:Approach",),
        )  # fmt: skip
        metrics = run_and_return(potential, [shot.atoms], settings, progress=False)[0][0].metrics
        start = float(potential.pair_energy(*(torch.tensor([29]),) * 2, torch.tensor([2.2], dtype=torch.float64))[0])
        assert metrics["closest_approach"] == pytest.approx(turning_point(29, 29, energy + start), abs=0.01)
        assert metrics["largest_energy_error"] < 0.02 * energy


def test_pairs_are_bonds_of_each_kind_and_the_same_at_every_energy() -> None:
    salt = repeated(bulk("NaCl", "rocksalt", a=5.6), 7.0)
    test = Collisions(CollisionsSettings(pairs=3, impact_parameters=(0.0, 0.7)))
    low, high = (test.collisions(Climber(0, "salt", salt, {}), energy) for energy in (1.0, 50.0))
    assert [(a.i, a.j, a.impact) for a in low] == [(b.i, b.j, b.impact) for b in high]
    assert {a.impact for a in low} == {0.0, 0.7} and len(low) == 6
    for shot in low:
        start = shot.atoms.positions[shot.j] + shot.atoms.info["collision"][2] - shot.atoms.positions[shot.i]
        towards = shot.atoms.get_velocities()[shot.i] - shot.atoms.get_velocities()[shot.j]
        passes = np.linalg.norm(np.cross(start, towards)) / np.linalg.norm(towards)
        assert passes == pytest.approx(shot.impact, abs=1e-6)
        assert {shot.atoms.symbols[shot.i], shot.atoms.symbols[shot.j]} == {"Na", "Cl"}


@pytest.mark.parametrize("fraction", [0.8, 0.5, 0.1])
def test_random_structures_have_the_closest_pair_that_is_asked_for(fraction: float) -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    rng = np.random.default_rng(4)
    atoms.set_scaled_positions(rng.random((len(atoms), 3)))
    *_, ratios = bonds(with_closest(atoms, fraction, rng), 2.0)
    assert ratios.min() == pytest.approx(fraction, rel=0.01)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"random_starts.*the scale rises"):
        test_of("random_starts", Morse(), crystals(), compression=95.0)


def test_a_sum_with_a_core_is_walled_too() -> None:
    potential = SumPotential(network=Morse(), core=ZBL(["Cu"], {"Cu-Cu": 2.2}))
    assert not test_of("collisions", potential, crystals(1))[0].broken

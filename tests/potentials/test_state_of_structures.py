"""Charges, spins, moments and tags reach an ASE calculator through every door, and no result of other ones is used."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.mixing import SumCalculator

from mdl_physpre import PotentialCalculator, build_graph, evaluate, label, simulate
from mdl_physpre.analysis.errors import prediction_errors
from mdl_physpre.dynamics import DynamicsSettings, simulate_parallel
from mdl_physpre.dynamics.running.trajectory_frames import read_frames
from mdl_physpre.potential_checks.run import examine
from mdl_physpre.potentials.adapters.from_ase import CalculatorPotential
from mdl_physpre.pretraining.perturbation import perturb
from mdl_physpre.stress_tests.ladder import plain_atoms, repeated
from mdl_physpre.structures import get_labels
from mdl_physpre.structures.supercell import enlarge
from mdl_physpre.utils.overwrite import WouldDelete

SEEN: list[Atoms] = []


class Charged(Calculator):
    """E = charge + 10 spin + Σ (100 q + 1000 m + 10⁴ tag), no forces; remembers what it was asked for."""

    implemented_properties = ["energy", "forces", "stress"]

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        SEEN.append(atoms.copy())
        per_atom = (
            100 * atoms.get_initial_charges() + 1e3 * atoms.get_initial_magnetic_moments() + 1e4 * atoms.get_tags()
        )
        energy = atoms.info.get("charge", 0) + 10.0 * atoms.info.get("spin", 0) + per_atom.sum()
        self.results = {"energy": float(energy), "forces": np.zeros((len(atoms), 3)), "stress": np.zeros(6)}


def made(charge, spin=1, q=0.0, m=0.0, tag=0):
    atoms = bulk("NaCl", "rocksalt", 5.64)
    atoms.info = {"charge": charge, "spin": spin, "structure_id": "salt", "energy": 3.0}
    atoms.set_initial_charges([q, -q / 2])
    atoms.set_initial_magnetic_moments([m, 0.0])
    atoms.set_tags([tag, 0])
    return atoms


SALTS = [made(0), made(1), made(1, 3), made(1, 3, 0.5), made(1, 3, 0.5, 2.0), made(1, 3, 0.5, 2.0, 1)]
ENERGIES = [10.0, 11.0, 31.0, 56.0, 2056.0, 12056.0]


def test_a_batch_and_labels_tell_structures_apart_that_differ_in_their_state_alone():
    np.testing.assert_array_equal(evaluate(CalculatorPotential(Charged), build_graph(SALTS, 0.0)).energies, ENERGIES)
    labelled = label(SALTS, Charged, workers=1, progress=False)
    assert [get_labels(a).energy for a in labelled] == ENERGIES
    assert [a.info["charge"] for a in labelled] == [0, 1, 1, 1, 1, 1]
    assert prediction_errors(CalculatorPotential(Charged), labelled).energy_mae == 0.0


def test_a_sum_of_calculators_forgets_in_all_its_parts():
    both = CalculatorPotential(lambda: SumCalculator([Charged(), Charged()]))
    np.testing.assert_array_equal(evaluate(both, build_graph(SALTS, 0.0)).energies, 2 * np.array(ENERGIES))
    wrapped = PotentialCalculator(CalculatorPotential(Charged))
    atoms = made(0)
    atoms.calc = wrapped
    assert atoms.get_potential_energy() == 10.0
    atoms.info["charge"] = 4
    assert atoms.get_potential_energy() == 14.0


@pytest.mark.parametrize("workers", [1, 2])
def test_dynamics(tmp_path, workers):
    settings = DynamicsSettings(ensemble="nve", steps=2, trajectory_interval=1, temperature=10)
    potential, out = CalculatorPotential(Charged, name="charged"), tmp_path / "md"
    simulate_parallel(potential, SALTS, settings, out=out, processes=workers, progress=False)
    for k, energy in enumerate(ENERGIES):
        frames = list(read_frames(out / "trajectories" / f"{k:05d}.extxyz"))
        assert [frame.get_potential_energy() for frame in frames] == [energy] * 3
        assert [evaluate(potential, build_graph(frame, 0.0)).energies.item() for frame in frames] == [energy] * 3


def test_stored_dynamics_of_another_charge_are_not_read_again(tmp_path):
    settings = DynamicsSettings(ensemble="nve", steps=1, trajectory_interval=1)
    for charge in (1, 2):
        simulate(CalculatorPotential(Charged, name="charged"), [made(charge)], settings, tmp_path, overwrite=True)
        (first, *_) = read_frames(tmp_path / "trajectories" / "00000.extxyz")
        assert first.get_potential_energy() == charge + 10
    with pytest.raises(WouldDelete, match="charges, names or the like"):
        simulate(CalculatorPotential(Charged, name="charged"), [made(1)], settings, tmp_path)


def test_checks_and_copies_keep_it():
    SEEN.clear()
    examine(CalculatorPotential(Charged), [made(1, 3)], cutoff=4.0)
    asked = [a for a in SEEN if len(a) >= 2 and "charge" in a.info]
    assert asked and all(a.info["charge"] == len(a) // 2 and a.info["spin"] == 3 for a in asked)
    salt = made(1.5, 3, 0.5, 2.0, 1)
    for copy in (perturb(salt, seed=1), plain_atoms(salt, salt), enlarge(salt, 2)):
        assert (copy.info["charge"], copy.info["spin"]) == (1.5, 3)
        np.testing.assert_array_equal(copy.get_initial_magnetic_moments(), [2.0, 0.0])
        np.testing.assert_array_equal(copy.get_tags(), [1, 0])
    for large in (enlarge(salt, 8), repeated(salt, 8.0)):
        assert large.info["charge"] == 1.5 * len(large) / 2
        assert large.get_initial_charges().sum() == pytest.approx(0.25 * len(large) / 2)

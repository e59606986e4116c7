"""An ASE calculator as a potential: its own numbers, through every door that takes a potential."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.verlet import VelocityVerlet

from mdl_physpre import PotentialCalculator, build_graph, evaluate, label, simulate
from mdl_physpre.analysis.errors import prediction_errors
from mdl_physpre.dynamics import DynamicsSettings
from mdl_physpre.dynamics.running.storage import run_key
from mdl_physpre.errors import CheckpointError, ConfigError, DataError
from mdl_physpre.potentials.adapters.from_ase import CalculatorPotential, graph_structures
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.structures import get_labels


class NoStress(Calculator):
    implemented_properties = ["energy", "forces"]

    def calculate(self, atoms=None, properties=None, system_changes=None):
        super().calculate(atoms, properties or ["energy"], system_changes or [])
        self.results = {"energy": np.array([2.0]), "forces": np.zeros((len(self.atoms), 3))}


class Fragile(LennardJones):
    """Raises for structures with oxygen."""

    def calculate(self, atoms=None, properties=None, system_changes=("positions",)):
        if 8 in atoms.numbers:
            raise RuntimeError("no oxygen")
        super().calculate(atoms, properties, system_changes)


def argon(**kwargs):
    return LennardJones(**{"sigma": 3.4, "epsilon": 0.0104, "rc": 7.0, "smooth": True, **kwargs})


@pytest.fixture()
def structures():
    rng = np.random.default_rng(0)
    skew = bulk("Ar", "fcc", 5.3)
    skew.positions += 2 * skew.cell[0] - 3 * skew.cell[2]
    slab = bulk("Ar", "fcc", 5.2, cubic=True)
    slab.pbc = (True, True, False)
    made = [bulk("Ar", "fcc", 5.4, cubic=True), skew, slab, Atoms("Ar3", np.diag([3.5, 3.8, 4.1])), Atoms("Ar")]
    for atoms in made:
        atoms.rattle(0.1, rng=rng)
    return made


def alone(atoms, calculator):
    atoms = atoms.copy()
    atoms.calc = calculator
    stress = atoms.get_stress(voigt=False) if atoms.pbc.all() else np.full((3, 3), np.nan)
    return atoms.get_potential_energy(), atoms.get_forces(), stress


def test_a_batch_is_the_calculator_structure_by_structure(structures):
    found = evaluate(CalculatorPotential(argon), build_graph(structures, 0.0))
    expected = [alone(atoms, argon()) for atoms in structures]
    assert found.energies.dtype == torch.float64
    np.testing.assert_array_equal(found.energies.numpy(), [e for e, _, _ in expected])
    np.testing.assert_array_equal(found.forces.numpy(), np.concatenate([f for _, f, _ in expected]))
    np.testing.assert_array_equal(found.stress.numpy(), [s for _, _, s in expected])
    assert np.abs(found.forces.numpy()).max() > 1e-3


def test_only_what_is_asked_for_is_given(structures):
    found = evaluate(CalculatorPotential(argon), build_graph(structures, 0.0), forces=False, stress=False)
    assert found.forces is None
    assert found.stress is None


def test_structures_of_a_graph_are_those_it_was_built_from(structures):
    for back, atoms in zip(graph_structures(build_graph(structures, 4.0)), structures, strict=True):
        np.testing.assert_array_equal(back.positions, atoms.positions)
        np.testing.assert_array_equal(back.cell[:], atoms.cell[:])
        np.testing.assert_array_equal(back.pbc, atoms.pbc)
        np.testing.assert_array_equal(back.numbers, atoms.numbers)


def test_a_calculator_without_stress_says_so_where_stress_is_needed():
    potential = CalculatorPotential(NoStress())
    assert not potential.gives_stress
    graph = build_graph(bulk("Si"), 0.0)
    with pytest.raises(DataError, match="NoStress .* gives no stress"):
        evaluate(potential, graph)
    assert float(evaluate(potential, graph, stress=False).energies[0]) == 2.0
    molecule_stress = evaluate(potential, build_graph(molecule("H2O"), 0.0)).stress
    assert bool(molecule_stress.isnan().all())


def test_training_is_an_error_that_says_what_to_do():
    potential = CalculatorPotential(EMT())
    graph = build_graph(bulk("Cu"), 0.0)
    with pytest.raises(DataError, match="cannot be trained"):
        evaluate(potential, graph, create_graph=True)


def test_errors_against_labels(structures):
    labelled = []
    for atoms in structures[:2]:
        energy, forces, stress = alone(atoms, argon())
        atoms = atoms.copy()
        atoms.calc = SinglePointCalculator(atoms, energy=energy + 0.5, forces=forces - 0.1, stress=stress)
        labelled.append(atoms)
    errors = prediction_errors(CalculatorPotential(argon), labelled)
    assert errors.energy_mae == pytest.approx(0.5)
    assert errors.forces_mae == pytest.approx(0.1)
    assert errors.stress_mae == pytest.approx(0.0, abs=1e-12)
    without = prediction_errors(CalculatorPotential(NoStress()), labelled)
    assert without.stress_mae is None
    assert without.forces_mae is not None


@pytest.mark.parametrize("workers", [1, 2])
def test_labels_are_those_of_the_calculator(structures, workers):
    for potential in (CalculatorPotential(argon), CalculatorPotential(argon())):
        labelled = label(structures, potential, workers=workers)
        for atoms, made in zip(structures, labelled, strict=True):
            energy, forces, stress = alone(atoms, argon())
            found = get_labels(made)
            assert found.energy == pytest.approx(energy, abs=1e-12)
            np.testing.assert_allclose(found.forces, forces, atol=1e-12)
            assert (found.stress is None) == bool(np.isnan(stress).any())


def test_dynamics_follow_ase_step_by_step(tmp_path):
    start = bulk("Ar", "fcc", 5.4, cubic=True).repeat((2, 1, 1))
    start.rattle(0.05, seed=3)
    settings = DynamicsSettings(ensemble="nve", temperature=0.0, timestep=5.0, steps=40, trajectory_interval=40)
    verdicts = simulate(CalculatorPotential(argon), [start], settings, out=tmp_path, progress=False)
    assert verdicts[0].status == "stable"
    reference = start.copy()
    reference.calc = argon()
    VelocityVerlet(reference, 5.0 * units.fs).run(40)
    from ase.io import read

    last = read(tmp_path / "trajectories" / "00000.extxyz", -1)
    moved = last.positions - start.positions
    np.testing.assert_allclose(moved, reference.positions - start.positions, atol=1e-7)
    assert np.abs(moved).max() > 1e-2


def test_a_calculator_that_raises_loses_its_structure_alone():
    def falls_apart():
        return Late(argon().parameters)

    class Late(LennardJones):
        def __init__(self, parameters):
            super().__init__(**parameters)
            self.calls = 0

        def calculate(self, atoms=None, properties=None, system_changes=("positions",)):
            self.calls += 1
            if len(atoms) == 2 and self.calls > 20:
                raise RuntimeError("no convergence")
            super().calculate(atoms, properties, system_changes)

    pair = Atoms("Ar2", [[0, 0, 0], [3.8, 0, 0]])
    three = Atoms("Ar3", np.diag([3.5, 3.8, 4.1]))
    settings = DynamicsSettings(ensemble="nve", temperature=10.0, steps=30)
    verdicts = simulate(CalculatorPotential(falls_apart), [pair, three], settings, progress=False)
    assert verdicts[0].failures[0].reason == "potential_error"
    assert "no convergence" in verdicts[0].failures[0].text
    assert verdicts[1].status == "stable"


def test_a_calculator_that_raised_is_reset():
    """EMT leaves its neighbour list undone where it does not know an element."""
    potential, copper = CalculatorPotential(EMT), bulk("Cu", cubic=True)
    expected = evaluate(potential, build_graph(copper, 0.0), stress=False)
    with_iron = copper.copy()
    with_iron.symbols[0] = "Fe"
    with pytest.raises(NotImplementedError, match="Fe"):
        evaluate(potential, build_graph(with_iron, 0.0), stress=False)
    found = evaluate(potential, build_graph(copper, 0.0), stress=False)
    assert torch.equal(found.energies, expected.energies)


def test_different_calculators_have_different_run_keys(structures):
    def key(potential):
        return run_key(potential, structures[:1], ["0"], [DynamicsSettings()], [0])

    keys = {key(CalculatorPotential(c)) for c in (argon(), argon(rc=6.0), argon(sigma=3.3), Fragile(), EMT())}
    assert len(keys) == 5
    assert key(CalculatorPotential(argon())) == key(CalculatorPotential(argon))
    assert key(CalculatorPotential(argon, name="a")) != key(CalculatorPotential(argon, name="b"))
    held = argon()
    held.lock = open(__file__)  # noqa: SIM115
    assert key(CalculatorPotential(held)) != key(CalculatorPotential(held))
    held.lock.close()


def test_the_identity_is_the_same_in_another_process():
    code = (
        "from ase.calculators.lj import LennardJones\n"
        "from mdl_physpre.potentials.adapters.from_ase import CalculatorPotential\n"
        "print(CalculatorPotential(LennardJones(sigma=3.4, rc=7.0)).name)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert out == CalculatorPotential(LennardJones(sigma=3.4, rc=7.0)).name


def test_copies_build_their_own_calculator_and_share_a_given_one():
    made = CalculatorPotential(partial(LennardJones, rc=5.0))
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert other.calculator is not made.calculator
        assert other.name == made.name
        assert other.calculator.parameters["rc"] == 5.0
    given = CalculatorPotential(LennardJones(rc=5.0))
    assert copy.deepcopy(given).calculator is given.calculator


def test_a_calculator_that_is_a_torch_module_is_no_part_of_the_potential():
    class Network(torch.nn.Module):
        implemented_properties = ["energy", "forces"]

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))

        def get_property(self, name, atoms=None, allow_calculation=True):
            return 1.0 if name == "energy" else np.zeros((len(atoms), 3))

        def get_potential_energy(self, atoms, **kwargs):
            return 1.0

        def get_forces(self, atoms):
            return np.zeros((len(atoms), 3))

    network = Network()
    potential = CalculatorPotential(network).float()
    assert list(potential.parameters()) == []
    assert evaluate(potential, build_graph(bulk("Si"), 0.0), stress=False).energies.tolist() == [1.0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: 3, "returned int, expected an ASE calculator"),
        (lambda: LennardJones, "returned the class LennardJones"),
        (partial(int, "x"), "cannot be built: ValueError"),
        (7, "found int"),
    ],
)
def test_what_is_no_calculator_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        CalculatorPotential(wrong)


def test_forces_of_a_wrong_shape_are_named():
    class Wrong(NoStress):
        def get_forces(self, atoms=None):
            return np.zeros(3)

    with pytest.raises(DataError, match=r"shape \(3,\); expected \(2, 3\)"):
        evaluate(CalculatorPotential(Wrong()), build_graph(bulk("Si"), 0.0), stress=False)


def test_there_and_back_again():
    atoms = bulk("Ar", "fcc", 5.3)
    atoms.rattle(0.2)
    expected = alone(atoms, argon())
    atoms.calc = PotentialCalculator(CalculatorPotential(argon))
    assert atoms.get_potential_energy() == expected[0]
    np.testing.assert_array_equal(atoms.get_stress(voigt=False), expected[2])


def test_it_is_not_saved_as_a_checkpoint(tmp_path):
    save = partial(save_potential, tmp_path / "a.pt", CalculatorPotential(argon))
    with pytest.raises(CheckpointError, match="cannot be saved"):
        save()


class Differentiates(Calculator):
    """E = Σ x² by torch, as networks of others have their forces."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        x = torch.tensor(atoms.positions, requires_grad=True)
        energy = (x**2).sum()
        self.results = {"energy": energy.item(), "forces": -torch.autograd.grad(energy, x)[0].numpy()}


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_calculator_that_differentiates_works_where_nothing_else_does(context):
    atoms = bulk("Cu", cubic=True)
    with context():
        found = evaluate(CalculatorPotential(Differentiates(), name="x"), build_graph(atoms, 0.0), stress=False)
    assert np.allclose(found.forces.numpy(), -2 * atoms.positions)

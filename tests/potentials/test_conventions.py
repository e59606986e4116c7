"""docs/conventions.md, checked by finite differences for every potential and for the ASE calculator."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.stress import full_3x3_to_voigt_6_stress

from mdl_physpre import PotentialCalculator, build_graph, evaluate
from mdl_physpre.errors import DataError
from mdl_physpre.potentials import CGCNN, EAMInteraction, HybridPotential

STEP = 1e-4


def potentials():
    torch.manual_seed(1)
    yield "EAM", EAMInteraction(elements=["Na", "Cl"], cutoff=5.0, n_basis=3)
    yield "CGCNN", CGCNN(elements=["Na", "Cl"], cutoff=5.0, dim1=8, dim2=8, gc_count=2, post_fc_count=1, edge_dim=8)
    network = CGCNN(elements=["Na", "Cl"], cutoff=4.0, dim1=8, dim2=8, gc_count=2, post_fc_count=1, edge_dim=8)
    yield "hybrid", HybridPotential(network, EAMInteraction(elements=["Na", "Cl"], cutoff=5.0, n_basis=3))


@pytest.fixture(params=list(potentials()), ids=lambda p: p[0])
def potential(request):
    return request.param[1].double()


@pytest.fixture
def atoms():
    """A skew, left-handed, rattled cell narrower than the cutoff, with an atom outside it."""
    rng = np.random.default_rng(3)
    atoms = bulk("NaCl", "rocksalt", 5.3)
    atoms.set_cell(atoms.cell[:][[1, 0, 2]] @ (np.eye(3) + 0.08 * rng.normal(size=(3, 3))), scale_atoms=True)
    atoms.positions += rng.normal(0, 0.2, atoms.positions.shape)
    atoms.positions[1] += 3 * atoms.cell[0]
    return atoms


def energy(potential, atoms):
    return float(evaluate(potential, build_graph(atoms, potential.cutoff), forces=False, stress=False).energies[0])


def central(function):
    return (function(STEP) - function(-STEP)) / (2 * STEP)


def test_forces_are_minus_the_gradient(potential, atoms):
    forces = evaluate(potential, build_graph(atoms, potential.cutoff)).forces.numpy()

    def moved(i, x, d):
        other = atoms.copy()
        other.positions[i, x] += d
        return energy(potential, other)

    numeric = [[-central(lambda d, i=i, x=x: moved(i, x, d)) for x in range(3)] for i in range(len(atoms))]
    np.testing.assert_allclose(forces, numeric, rtol=1e-6, atol=1e-6 * np.abs(forces).max())


def test_stress_is_the_strain_derivative_over_volume(potential, atoms):
    stress = evaluate(potential, build_graph(atoms, potential.cutoff)).stress[0].numpy()

    def strained(a, b, d):
        strain = np.zeros((3, 3))
        strain[a, b] += d / 2
        strain[b, a] += d / 2
        other = atoms.copy()
        other.set_cell(atoms.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
        return energy(potential, other)

    numeric = [[central(lambda d, a=a, b=b: strained(a, b, d)) for b in range(3)] for a in range(3)]
    np.testing.assert_allclose(
        stress, np.array(numeric) / atoms.get_volume(), rtol=1e-6, atol=1e-6 * np.abs(stress).max()
    )


def test_the_calculator_says_the_same(potential, atoms):
    found = evaluate(potential, build_graph(atoms, potential.cutoff))
    atoms.calc = PotentialCalculator(potential)
    assert atoms.get_potential_energy() == pytest.approx(float(found.energies[0]), abs=1e-10)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_forces(), found.forces.numpy(), atol=1e-10)
    np.testing.assert_allclose(atoms.get_stress(), full_3x3_to_voigt_6_stress(found.stress[0].numpy()), atol=1e-12)


def test_a_molecule_has_forces_and_no_stress(potential):
    molecule = Atoms("NaCl", positions=[[0, 0, 0], [2.1, 0, 0]])
    found = evaluate(potential, build_graph(molecule, potential.cutoff))
    assert torch.isfinite(found.forces).all()
    assert torch.isnan(found.stress).all()
    molecule.calc = PotentialCalculator(potential)
    assert "stress" not in (molecule.get_forces() is not None and molecule.calc.results)


def test_an_unknown_element_is_named(potential):
    with pytest.raises(DataError, match="holds Fe, which this potential does not know \\(it knows"):
        evaluate(potential, build_graph(bulk("Fe"), potential.cutoff))

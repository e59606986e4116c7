"""Langevin and velocity Verlet against ASE's, step by step with the same random numbers."""
from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.md.langevin import Langevin as AseLangevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet as AseVerlet
from pair_potentials import Abrupt, Morse

from mdl_physpre.dynamics.integrators import NoiseStreams, maxwell_boltzmann_velocities, structure_generator
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.simulation import _Run
from mdl_physpre.potentials.calculator import PotentialCalculator


def structures() -> list[Atoms]:
    rng = np.random.default_rng(5)
    crystal = bulk("Cu", "fcc", a=3.5).repeat((2, 2, 2))
    alloy = bulk("NaCl", "rocksalt", a=5.2)
    skew = Atoms("Si3", rng.random((3, 3)) * 2 + np.arange(3)[:, None] * 1.8, cell=[[6, 0, 0], [2, 5, 0], [1, 2, 6]])
    skew.pbc = True
    slab = bulk("Al", "fcc", a=4.0, cubic=True)
    slab.pbc = (True, True, False)
    cluster = molecule("CH3CH2OH")
    cluster.positions *= 1.6
    for atoms in (crystal, alloy, slab):
        atoms.rattle(0.05, seed=3)
    return [crystal, alloy, skew, slab, cluster]


def run_of(potential, atoms: list[Atoms], settings: DynamicsSettings) -> _Run:
    return _Run(potential, atoms, [str(k) for k in range(len(atoms))], list(range(len(atoms))), settings, None, "")


@pytest.mark.parametrize("fixcm", [True, False])
@pytest.mark.parametrize("kind", [Morse, Abrupt])
def test_langevin_is_ases(fixcm: bool, kind: type) -> None:
    potential, atoms = kind(), structures()
    settings = DynamicsSettings(
        temperature=400, timestep=1.5, steps=200, friction=0.01, fixcm=fixcm, seed=11, skin=0.4, stop_on_overlap=False
    )
    run = run_of(potential, atoms, settings)
    ours = []
    for _ in range(200):
        run._advance()
        ours.append((run.positions.numpy().copy(), (run.velocities * run.masses).numpy().copy()))
    assert len(run.active) == len(atoms)
    assert run.lists.rebuilds > 2 * len(atoms), "the test must pass through rebuilt neighbour lists"
    first = 0
    for k, one in enumerate(atoms):
        rng = structure_generator(11, k)
        theirs = one.copy()
        theirs.calc = PotentialCalculator(potential)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            MaxwellBoltzmannDistribution(theirs, temperature_K=400, rng=rng)
            dynamics = AseLangevin(
                theirs, 1.5 * units.fs, temperature_K=400, friction=0.01 / units.fs, fixcm=fixcm, rng=rng
            )
        mine = slice(first, first + len(one))
        first += len(one)
        for positions, momenta in ours:
            dynamics.run(1)
            np.testing.assert_allclose(positions[mine], theirs.positions, rtol=1e-10, atol=1e-10)
            np.testing.assert_allclose(momenta[mine], theirs.get_momenta(), rtol=1e-10, atol=1e-10)


def test_verlet_is_ases_and_conserves_energy() -> None:
    potential, atoms = Morse(), [structures()[k] for k in (0, 1, 3)]
    settings = DynamicsSettings(ensemble="nve", temperature=600, timestep=1.0, steps=400, seed=2, stop_on_overlap=False)
    run = run_of(potential, atoms, settings)
    start = run.observers.energy_start.clone()
    kinetic = run._kinetic()
    spread = torch.zeros_like(start)
    trail = []
    for _ in range(400):
        run._advance()
        spread = torch.maximum(spread, (run.observers.energy_last - start).abs())
        trail.append(run.positions.numpy().copy())
    assert float((spread / kinetic).max()) < 1e-3
    first = 0
    for k, one in enumerate(atoms):
        theirs = one.copy()
        theirs.calc = PotentialCalculator(potential)
        theirs.set_velocities(maxwell_boltzmann_velocities(one.get_masses(), 600, structure_generator(2, k)))
        dynamics = AseVerlet(theirs, 1.0 * units.fs)
        for positions in trail[:200]:
            dynamics.run(1)
            np.testing.assert_allclose(positions[first : first + len(one)], theirs.positions, rtol=1e-10, atol=1e-10)
        first += len(one)


def test_velocities_have_the_temperature() -> None:
    masses = np.full(20_000, 30.0)
    velocities = maxwell_boltzmann_velocities(masses, 500, structure_generator(0, 0))
    temperature = (masses[:, None] * velocities**2).mean() / units.kB
    assert temperature == pytest.approx(500, abs=5 * 500 * np.sqrt(2 / 60_000))


def test_langevin_holds_the_temperature_of_one_free_atom() -> None:
    """One atom has no centre of mass to fix: it must not stay cold, and must not become NaN."""
    atoms = [Atoms("Ar", cell=[20, 20, 20], pbc=True) for _ in range(200)]
    run = run_of(Morse(), atoms, DynamicsSettings(temperature=300, timestep=5, friction=0.05, steps=200))
    seen = []
    for step in range(200):
        run._advance()
        if step >= 50:
            seen.append(float((2 / 3 * run._kinetic() / units.kB).mean()))
    assert np.mean(seen) == pytest.approx(300, abs=25)


def test_noise_streams_are_the_generators_own_numbers() -> None:
    sizes = [2, 3]
    streams = NoiseStreams([structure_generator(1, k) for k in (0, 1)], sizes, torch.device("cpu"))
    taken = [streams.next() for _ in range(70)]
    stored, after = streams.state(), [streams.next() for _ in range(70)]
    for k, at in ((0, slice(0, 2)), (1, slice(2, 5))):
        rng = structure_generator(1, k)
        for xi, eta in [*taken, *after]:
            np.testing.assert_array_equal(xi[at].numpy(), rng.standard_normal((sizes[k], 3)))
            np.testing.assert_array_equal(eta[at].numpy(), rng.standard_normal((sizes[k], 3)))
    again = NoiseStreams([structure_generator(0, 0) for _ in sizes], sizes, torch.device("cpu"))
    again.restore(stored)
    for xi, eta in after:
        new_xi, new_eta = again.next()
        assert torch.equal(new_xi, xi)
        assert torch.equal(new_eta, eta)

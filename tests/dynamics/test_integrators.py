"""Every ensemble against ASE's integrator of that name, step by step with the same random numbers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.md.bussi import Bussi as AseBussi
from ase.md.langevin import Langevin as AseLangevin
from ase.md.nose_hoover_chain import NoseHooverChainNVT
from ase.md.nptberendsen import NPTBerendsen
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet as AseVerlet

from mdl_physpre.dynamics.engine.random_numbers import (
    NoiseStreams,
    maxwell_boltzmann_velocities,
    normal_noise,
    rescaling_noise,
    structure_generator,
)
from mdl_physpre.dynamics.running.batch import BatchRun
from mdl_physpre.dynamics.running.run_state import begin_or_resume
from mdl_physpre.dynamics.settings import DynamicsSettings, settings_of_each
from mdl_physpre.potentials.adapters.ase_calculator import PotentialCalculator
from mdl_physpre.potentials.base import Predictions
from mdl_physpre.potentials.evaluation import evaluate
from tests.helpers.pair_potentials import Abrupt, Morse


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


def run_of(potential, atoms: list[Atoms], settings: DynamicsSettings, per_structure: dict | None = None) -> BatchRun:
    names, each = [str(k) for k in range(len(atoms))], settings_of_each(settings, len(atoms), per_structure)
    return begin_or_resume(potential, atoms, names, list(range(len(atoms))), settings, each)


def ase_dynamics(settings: DynamicsSettings, atoms: Atoms, potential, rng: np.random.Generator):
    """ASE's integrator with the same settings, velocities from the same random numbers."""
    atoms = atoms.copy()
    atoms.calc = PotentialCalculator(potential)
    h, kelvin, taut = settings.timestep * units.fs, settings.temperature, settings.taut * units.fs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        MaxwellBoltzmannDistribution(atoms, temperature_K=kelvin, rng=rng)
        if settings.ensemble == "nve":
            return AseVerlet(atoms, h)
        if settings.ensemble == "nvt_bussi":
            return AseBussi(atoms, h, kelvin, taut, rng=rng)
        if settings.ensemble == "nvt_nose_hoover":
            return NoseHooverChainNVT(atoms, h, kelvin, taut)
        if settings.ensemble == "npt":
            return NPTBerendsen(
                atoms, h, temperature_K=kelvin, pressure_au=settings.pressure * 1e5 * units.Pascal, taut=taut,
                taup=settings.taup * units.fs, compressibility_au=settings.compressibility / (1e5 * units.Pascal),
                fixcm=settings.fixcm,
            )  # fmt: skip
        friction = settings.friction / units.fs
        return AseLangevin(atoms, h, temperature_K=kelvin, friction=friction, fixcm=settings.fixcm, rng=rng)


@pytest.mark.parametrize(
    ("ensemble", "fixcm", "kind", "which"),
    [
        ("nvt", True, Abrupt, (0, 1, 2, 3, 4)),
        ("nvt", False, Morse, (1, 2)),
        ("nve", True, Morse, (1, 3, 4)),
        ("nvt_bussi", True, Morse, (1, 2, 4)),
        ("nvt_nose_hoover", True, Abrupt, (1, 2, 4)),
        ("npt", True, Abrupt, (0, 1, 2)),
        ("npt", False, Morse, (1, 2)),
    ],
)
def test_every_step_is_ases(ensemble: str, fixcm: bool, kind: type, which: tuple[int, ...]) -> None:
    """200 steps, structures with temperatures and time steps of their own; positions, momenta and cells to 1e-10."""
    potential = kind()
    atoms = [structures()[k] for k in which]
    settings = DynamicsSettings(
        ensemble=ensemble, fixcm=fixcm, steps=201, max_temperature=1e9, seed=11, skin=0.4, stop_on_overlap=False,
        taut=40, taup=200, pressure=5e3, compressibility=1e-4,
    )  # fmt: skip
    own = {"temperature": [400, 300, 500, 350, 200][: len(atoms)], "timestep": [1.5, 1, 1.5, 2, 0.5][: len(atoms)]}
    if ensemble == "npt":
        own["pressure"] = [5e3, -2e4, 1e3][: len(atoms)]
    run = run_of(potential, atoms, settings, own)
    ours = []
    conserved = []
    for _ in range(200):
        run.advance()
        now = run.atoms
        ours.append(tuple(x.numpy().copy() for x in (now.positions, now.velocities * now.masses, now.cells)))
        conserved.append((now.energies + now.kinetic - run.integrator.heat).numpy())
    assert len(run.active) == len(atoms)
    assert run.lists.rebuilds > len(atoms), "the test must pass through rebuilt neighbour lists"
    first = 0
    for k, one in enumerate(atoms):
        mine, rng = slice(first, first + len(one)), structure_generator(11, k)
        first += len(one)
        dynamics = ase_dynamics(settings_of_each(settings, len(atoms), own)[k], one, potential, rng)
        for step, (positions, momenta, cells) in enumerate(ours):
            dynamics.run(1)
            theirs = dynamics.atoms
            np.testing.assert_allclose(positions[mine], theirs.positions, rtol=1e-10, atol=1e-10)
            np.testing.assert_allclose(momenta[mine], theirs.get_momenta(), rtol=1e-10, atol=1e-10)
            np.testing.assert_allclose(cells[k], theirs.cell[:], rtol=1e-10, atol=1e-10)
            energy = theirs.get_total_energy()
            if ensemble == "nvt_bussi":
                assert conserved[step][k] == pytest.approx(energy - dynamics.transferred_energy, abs=1e-9)
            if ensemble == "nvt_nose_hoover":
                assert conserved[step][k] == pytest.approx(dynamics.get_conserved_energy(), abs=1e-9)
        if ensemble == "npt":
            assert abs(theirs.get_volume() / one.get_volume() - 1) > 1e-3


def test_verlet_conserves_energy_and_the_others_the_rest() -> None:
    """The conserved energy, total energy less heat, stays where it was in every ensemble."""
    atoms = [structures()[k] for k in (0, 1)]
    for ensemble in ("nve", "nvt", "nvt_bussi", "nvt_nose_hoover", "npt"):
        settings = DynamicsSettings(ensemble=ensemble, temperature=600, timestep=1.0, steps=251, seed=2, taut=50)
        run = run_of(Morse(), atoms, settings)
        start, spread = run.observers.conserved_start.clone(), torch.zeros(2, dtype=torch.float64)
        for _ in range(250):
            run.advance()
            spread = torch.maximum(spread, (run.observers.conserved_last - start).abs())
        kinetic = 1.5 * units.kB * 600 * run.atoms.counts
        # the path of Langevin dynamics is rough, and the work along it less exact
        assert float((spread / kinetic).max()) < (1e-2 if ensemble == "nvt" else 2e-3), ensemble
        moved = (run.observers.energy_last - run.observers.energy_start).abs() / kinetic
        assert ensemble == "nve" or float(moved.max()) > 0.02, "heat must have been exchanged for the test to say much"


def test_a_drift_shows() -> None:
    class Creeping(Morse):
        """Forces that are 2 % too large for the energy."""

        def predictions(self, graph, forces, stress):
            right = evaluate(Morse(), graph, stress=stress)
            return Predictions(right.energies, 1.02 * right.forces, right.stress)

    drifts = {}
    for potential in (Morse(), Creeping()):
        for ensemble in ("nve", "nvt"):
            settings = DynamicsSettings(ensemble=ensemble, temperature=900, steps=300, seed=1, pressure_interval=0)
            run = run_of(potential, [structures()[0]], settings)
            while run.active:
                run.advance()
            metrics = run.verdicts[0].metrics
            change = metrics["conserved_energy_end"] - metrics["conserved_energy_start"]
            drifts[type(potential).__name__, ensemble] = abs(change)
    for ensemble in ("nve", "nvt"):
        assert drifts["Creeping", ensemble] > 10 * drifts["Morse", ensemble]


@pytest.mark.parametrize("ensemble", ["nvt_bussi", "npt"])
def test_distributions_have_their_temperature_and_pressure(ensemble: str) -> None:
    """Mean temperature, its spread where it is canonical, and the pressure, within five standard errors."""
    atoms = [bulk("Cu", "fcc", a=3.55, cubic=True) for _ in range(16)]
    settings = DynamicsSettings(
        ensemble=ensemble, temperature=300, timestep=4.0, steps=501, seed=4, taut=60, taup=300, compressibility=1e-5,
        pressure=2e4, friction=0.02, pressure_interval=1, skin=1.5,
    )  # fmt: skip
    run = run_of(Morse(cutoff=4.5), atoms, settings)
    temperatures, pressures = [], []
    for step in range(500):
        run.advance()
        if step >= 200:
            temperatures.append(run.atoms.temperatures().numpy())
            pressures.append(run.atoms.pressures().numpy() / units.bar)
    each = np.mean(temperatures, axis=0)  # 16 independent means
    error = each.std(ddof=1) / np.sqrt(len(each))
    assert abs(each.mean() - 300) < max(5 * error, 3)
    if ensemble != "npt":
        degrees = 12
        spread = np.std(temperatures) / np.mean(temperatures)
        assert spread == pytest.approx(np.sqrt(2 / degrees), rel=0.15)
    else:
        pressure = np.mean(pressures, axis=0)
        assert abs(pressure.mean() - 2e4) < max(5 * pressure.std(ddof=1) / np.sqrt(len(pressure)), 500)


def test_velocities_have_the_temperature() -> None:
    masses = np.full(20_000, 30.0)
    velocities = maxwell_boltzmann_velocities(masses, 500, structure_generator(0, 0))
    temperature = (masses[:, None] * velocities**2).mean() / units.kB
    assert temperature == pytest.approx(500, abs=5 * 500 * np.sqrt(2 / 60_000))


def test_langevin_holds_the_temperature_of_one_free_atom() -> None:
    """One atom has no centre of mass to fix: it must not stay cold, and must not become NaN."""
    atoms = [Atoms("Ar", cell=[20, 20, 20], pbc=True) for _ in range(200)]
    run = run_of(Morse(), atoms, DynamicsSettings(temperature=300, timestep=5, friction=0.05, steps=201))
    seen = []
    for step in range(200):
        run.advance()
        if step >= 50:
            seen.append(float(run.atoms.temperatures().mean()))
    assert np.mean(seen) == pytest.approx(300, abs=25)


@pytest.mark.parametrize("ensemble", ["nvt_bussi", "npt", "nve", "nvt"])
def test_one_atom_and_no_temperature(ensemble: str) -> None:
    atoms = [Atoms("Ar", cell=[8, 8, 8], pbc=True), bulk("Cu", "fcc", a=3.5)]
    for temperature in (0.0, 300.0):
        run = run_of(Morse(), atoms, DynamicsSettings(ensemble=ensemble, temperature=temperature, steps=20))
        while run.active:
            run.advance()
        assert [v.status for v in run.verdicts.values()] == ["stable", "stable"]


def test_noise_streams_are_the_generators_own_numbers() -> None:
    sizes = [2, 3]
    device = torch.device("cpu")
    for draw, at in ((normal_noise, (slice(0, 2), slice(2, 5))), (rescaling_noise, (0, 1))):
        streams = NoiseStreams([structure_generator(1, k) for k in (0, 1)], sizes, device, draw)
        taken = [streams.next() for _ in range(70)]
        stored, after = streams.state(), [streams.next() for _ in range(70)]
        for k in (0, 1):
            rng = structure_generator(1, k)
            for first, second in [*taken, *after]:
                if draw is normal_noise:
                    want = rng.standard_normal((sizes[k], 3)), rng.standard_normal((sizes[k], 3))
                else:
                    want = rng.standard_normal(), 2 * rng.standard_gamma(0.5 * (3 * sizes[k] - 1))
                np.testing.assert_array_equal(first[at[k]].numpy().squeeze(), want[0])
                np.testing.assert_array_equal(second[at[k]].numpy().squeeze(), want[1])
        again = NoiseStreams([structure_generator(0, 0) for _ in sizes], sizes, device, draw)
        again.restore(stored)
        for first, second in after:
            new_first, new_second = again.next()
            assert torch.equal(new_first, first)
            assert torch.equal(new_second, second)

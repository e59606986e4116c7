"""FIRE against ASE's, and structures that come back from a run."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.optimize import FIRE as AseFIRE

from mdl_physpre.dynamics import DynamicsSettings, run_and_return, simulate
from mdl_physpre.dynamics.running.storage import run_key
from mdl_physpre.potentials.adapters.ase_calculator import PotentialCalculator
from tests.dynamics.test_integrators import run_of, structures
from tests.helpers.pair_potentials import Morse


def moved(atoms: Atoms, by: float, seed: int) -> Atoms:
    atoms = atoms.copy()
    atoms.rattle(by, seed=seed)
    return atoms


def test_every_step_is_ases() -> None:
    """Positions of 80 steps to 1e-9, mixed sizes in one batch, through resets of the velocities and rebuilt lists."""
    atoms = [moved(structures()[k], 0.12, 7) for k in (0, 1, 3)]
    largest = 1e3  # ASE bounds another norm
    settings = DynamicsSettings(ensemble=f"fire?fmax=0&maxstep={largest}", steps=81, skin=0.1, stop_on_overlap=False)
    run = run_of(Morse(), atoms, settings)
    ours, resets = [], 0
    for _ in range(80):
        run.advance()
        ours.append(run.atoms.positions.numpy().copy())
        resets += int((run.integrator.downhill == 0).sum())
        assert not run.atoms.kinetic.any() and not run.atoms.velocities.any()
    assert resets > 3 and run.lists.rebuilds > len(atoms)
    first = 0
    for one in atoms:
        mine = slice(first, first + len(one))
        first += len(one)
        one = one.copy()
        one.calc = PotentialCalculator(Morse())
        theirs = AseFIRE(one, maxstep=largest, logfile=None)
        for positions in ours:
            theirs.step()
            np.testing.assert_allclose(positions[mine], one.positions, atol=1e-9)


def test_the_minimum_is_ases_and_those_who_are_there_leave() -> None:
    atoms = [moved(structures()[k], 0.25, 3) for k in (0, 1, 3)]
    settings = DynamicsSettings(ensemble="fire?fmax=0.001", steps=2000, overlap_ratio=0.1)
    verdicts, relaxed = run_and_return(Morse(), atoms, settings, progress=False)
    for one, verdict, found in zip(atoms, verdicts, relaxed, strict=True):
        assert not verdict.failed and not verdict.stopped and 5 < verdict.steps_run < 2000
        assert np.linalg.norm(found.arrays["forces"], axis=1).max() < 0.001
        one = one.copy()
        one.calc = PotentialCalculator(Morse())
        AseFIRE(one, logfile=None).run(fmax=0.001, steps=5000)
        assert found.get_potential_energy() == pytest.approx(one.get_potential_energy(), abs=1e-3)
        assert verdict.metrics["total_energy_end"] == found.get_potential_energy()
        assert verdict.metrics["total_energy_end"] < verdict.metrics["total_energy_start"]
    assert len({v.steps_run for v in verdicts}) == 3
    alone = [run_and_return(Morse(), [a], settings, progress=False, indices=[k])[1][0] for k, a in enumerate(atoms)]
    for one, other in zip(relaxed, alone, strict=True):
        np.testing.assert_allclose(one.positions, other.positions, atol=1e-10)


def test_a_repeated_structure_takes_the_same_steps() -> None:
    """The limit of the step is that of the atom that moves most; ASE's is of all atoms together."""
    one = moved(structures()[0], 0.4, 3)
    settings = DynamicsSettings(ensemble="fire?fmax=0&maxstep=0.05", steps=12, stop_on_overlap=False)
    _, (small, large) = run_and_return(Morse(), [one, one.repeat((2, 1, 1))], settings, progress=False)
    np.testing.assert_allclose(large.positions[: len(one)], small.positions, atol=1e-9)
    assert 0.05 * 6 < np.linalg.norm(small.positions - one.positions, axis=1).max() <= 0.05 * 12


def test_a_relaxation_goes_on_where_it_was_killed(tmp_path) -> None:
    atoms = [moved(structures()[k], 0.25, 3) for k in (0, 1, 3)]
    settings = DynamicsSettings(ensemble="fire?fmax=0.001", steps=2000, checkpoint_steps=7, overlap_ratio=0.1)
    whole = simulate(Morse(), atoms, settings, progress=False)

    class Killed(Morse):
        calls = 0

        def atomic_energies(self, graph):
            Killed.calls += 1
            if Killed.calls == 30:
                raise KeyboardInterrupt
            return super().atomic_energies(graph)

    with pytest.raises(KeyboardInterrupt):
        simulate(Killed(), atoms, settings, tmp_path, progress=False)
    assert (tmp_path / "state.npz").exists()
    Killed.calls = 100
    again = simulate(Killed(), atoms, settings, tmp_path, progress=False)
    assert [v.plain() for v in again] == [v.plain() for v in whole]


def test_frames_come_back_as_they_were() -> None:
    """Momenta in, momenta out: one run is the same as two halves, the second from where the first ended."""
    atoms = [structures()[k] for k in (0, 1)]
    settings = DynamicsSettings(ensemble="nve", temperature=400, steps=40, lindemann_max_atoms=0)
    _, whole = run_and_return(Morse(), atoms, settings, progress=False)
    _, half = run_and_return(Morse(), atoms, settings.changed(steps=20), progress=False)
    on = settings.changed(steps=20, start_velocities="structures")
    verdicts, both = run_and_return(Morse(), half, on, progress=False)
    for one, other in zip(whole, both, strict=True):
        np.testing.assert_allclose(one.positions, other.positions, atol=1e-9)
        np.testing.assert_allclose(one.get_momenta(), other.get_momenta(), atol=1e-9)
    for verdict, frame in zip(verdicts, both, strict=True):
        graph_energy = frame.get_potential_energy() + frame.get_kinetic_energy()
        assert verdict.metrics["total_energy_end"] == pytest.approx(graph_energy, abs=1e-9)
        frame_again = frame.copy()
        frame_again.calc = PotentialCalculator(Morse())
        np.testing.assert_allclose(frame_again.get_forces(), frame.arrays["forces"], atol=1e-9)


def test_structures_that_break_come_back_too() -> None:
    atoms = [structures()[0], Atoms("Cu2", [[0, 0, 0], [np.nan, 0, 0]], cell=[9, 9, 9], pbc=True), structures()[0]]
    atoms[2].positions[1] = atoms[2].positions[0] + [0.9, 0, 0]
    settings = DynamicsSettings(ensemble="nve", temperature=0, steps=50, max_temperature=300)
    verdicts, last = run_and_return(Morse(), atoms, settings, progress=False)
    assert [v.reasons for v in verdicts] == [(), ("not_finite",), ("temperature",)]
    assert last[1].positions[1, 0] != last[1].positions[1, 0]
    assert last[2].get_temperature() > 300


def test_keys_of_stored_runs_know_momenta_only_where_they_count() -> None:
    atoms = [structures()[0]]
    pushed = [atoms[0].copy()]
    pushed[0].set_momenta(np.ones((len(pushed[0]), 3)))
    drawn, given = DynamicsSettings(), DynamicsSettings(start_velocities="structures")

    def key(structures, settings):
        return run_key(Morse(), structures, ["0"], [settings], [0])

    assert key(atoms, drawn) == key(pushed, drawn)
    assert len({key(atoms, drawn), key(atoms, given), key(pushed, given)}) == 3

"""Trajectories whose atoms were wrapped back into the cell are judged as those whose atoms were not."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from mdl_physpre.dynamics import DynamicsSettings, judge_trajectory
from mdl_physpre.dynamics.running.trajectory_frames import unwrapped


def frames(drift=0.0, strain=0.0, n=60):
    rng, made = np.random.default_rng(0), []
    solid = bulk("Ar", "fcc", a=5.4, cubic=True)
    solid.set_cell(solid.cell[:] + [[0, 0, 0], [1.0, 0, 0], [0, -0.7, 0]], scale_atoms=True)
    for step in range(n):
        atoms = solid.copy()
        atoms.positions += 0.05 * rng.normal(size=atoms.positions.shape) + [drift * step, 0, 0]
        atoms.set_cell(atoms.cell[:] * (1 + strain * np.sin(step)), scale_atoms=True)
        atoms.info["step"] = step
        atoms.calc = SinglePointCalculator(atoms, energy=0.1 * step)
        made.append(atoms)
    return made


def wrapped(made):
    result = []
    for atoms in made:
        copy = atoms.copy()
        copy.wrap()
        copy.calc = SinglePointCalculator(copy, **atoms.calc.results)
        result.append(copy)
    return result


@pytest.mark.parametrize("drift", [0.0, 0.3])
@pytest.mark.parametrize("strain", [0.0, 0.01])
def test_jumps_by_lattice_vectors_are_undone(drift, strain, caplog):
    whole = frames(drift, strain)
    broken = wrapped(whole)
    found = list(unwrapped(broken, "a.extxyz"))
    first = (found[0].positions - whole[0].positions) @ np.linalg.inv(whole[0].cell[:])
    np.testing.assert_allclose(first, np.round(first), atol=1e-9)
    for one, other in zip(found, whole):  # each atom goes on from where it stood in the first frame
        np.testing.assert_allclose(one.positions - np.round(first) @ other.cell[:], other.positions, atol=1e-9)
        assert one.get_potential_energy() == other.get_potential_energy()
    assert "atoms were wrapped back into the cell" in caplog.text
    caplog.clear()
    assert [id(a) for a in unwrapped(whole, "a")] == [id(a) for a in whole] and not caplog.text


def test_a_vibrating_crystal_passes_when_it_was_wrapped():
    settings, made = DynamicsSettings(steps=60), frames()
    right, found = judge_trajectory(made, settings), judge_trajectory(wrapped(made), settings)
    assert not right.failed and not found.failed
    assert found.metrics["lindemann_global"] == pytest.approx(right.metrics["lindemann_global"], rel=1e-6)

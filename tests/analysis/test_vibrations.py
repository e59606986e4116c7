"""Vibrational densities of states: lines at known frequencies, areas of known size."""

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.io import read

from mdl_physpre import simulate
from mdl_physpre.analysis import vibrational_dos
from mdl_physpre.dynamics import DynamicsSettings
from mdl_physpre.errors import DataError
from tests.helpers.pair_potentials import PairPotential


def swinging(frequencies, masses, n=4000, interval=1.0, seed=0):
    """Velocities of atoms that swing along x, each pair against each other, with the same kinetic energy."""
    rng, t = np.random.default_rng(seed), interval / 1000 * np.arange(n)
    v = np.zeros((n, 2 * len(frequencies), 3))
    for k, (f, m) in enumerate(zip(frequencies, masses)):
        own = np.cos(2 * np.pi * f * t + rng.uniform(0, 2 * np.pi)) / np.sqrt(m)
        v[:, 2 * k, 0], v[:, 2 * k + 1, 0] = own, -own
    return v, np.repeat(masses, 2)


def test_each_oscillator_is_a_line_at_its_frequency_of_the_same_area():
    v, masses = swinging([10.0, 30.0], [28.0, 16.0])
    found = vibrational_dos(v, [14, 14, 8, 8], 1.0, masses=masses)
    assert found.degrees_of_freedom == 9 and found.atoms == {"O": 2, "Si": 2}
    width = found.frequency[1]
    for name, line in (("Si", 10.0), ("O", 30.0)):
        assert found.frequency[np.argmax(found.dos[name])] == pytest.approx(line, abs=width)
        assert (found.dos[name] * found.integral).sum() == pytest.approx(4.5, rel=0.01)
    assert (found.total * found.integral).sum() == pytest.approx(9, rel=1e-12)
    assert found.wavenumber[np.argmax(found.dos["O"])] == pytest.approx(30 * 33.356, abs=34 * width)


@pytest.mark.parametrize("window", ["hann", "none"])
def test_the_area_is_the_degrees_of_freedom(window):
    v = np.random.default_rng(0).normal(size=(501, 6, 3))
    found = vibrational_dos(v, [1, 8, 1, 8, 8, 1], 2.0, window=window)
    assert (found.total * found.integral).sum() == pytest.approx(15, rel=1e-12)
    assert found.frequency[-1] == pytest.approx(250.0)  # 1/(2 · 2 fs)
    # noise is flat
    assert found.total[5:-5].mean() == pytest.approx(15 / 250, rel=0.1)


def test_as_the_cosine_transform_of_the_correlation():
    rng = np.random.default_rng(1)
    v, masses = rng.normal(size=(60, 3, 3)), np.array([1.0, 2.0, 3.0])
    found = vibrational_dos(v, [1, 1, 1], 3.0, masses=masses, window="none", longest_fs=40.0)
    v = v - np.average(v, axis=1, weights=masses)[:, None]
    c = [np.mean([(masses[:, None] * v[t] * v[t + k]).sum() for t in range(60 - k)]) for k in range(14)]
    weights = np.array([0.5, *[1.0] * 12, 0.5])  # of the trapezium
    expected = [4 * 6 / c[0] * 0.003 * (weights * c * np.cos(2 * np.pi * f * 0.003 * np.arange(14))).sum()
                for f in found.frequency]  # fmt: skip
    np.testing.assert_allclose(found.dos["H"], expected, atol=1e-12)


class Spring(PairPotential):
    """½ k (r − 1.1)² with k = 60 eV/Å²."""

    def pair(self, r: torch.Tensor) -> torch.Tensor:
        return 30.0 * (r - 1.1) ** 2


def test_a_molecule_in_dynamics_swings_at_its_frequency(tmp_path):
    """ν = √(k/μ)/2π."""
    settings = DynamicsSettings(ensemble="nve", temperature=50, timestep=0.5, steps=6000, trajectory_interval=2)
    simulate(Spring(), [Atoms("N2", [[0, 0, 0], [1.1, 0, 0]])], settings, tmp_path, progress=False)
    v = np.array([frame.get_velocities() for frame in read(tmp_path / "trajectories" / "00000.extxyz", index=":")])
    found = vibrational_dos(v, [7, 7], 1.0)
    expected = np.sqrt(60.0 / 7.0035) / (2 * np.pi) * units.fs * 1000
    vibration = found.frequency > 20  # below: rotation
    assert found.frequency[vibration][np.argmax(found.total[vibration])] == pytest.approx(expected, rel=0.01)


def test_what_cannot_be_used():
    with pytest.raises(DataError, match="too few"):
        vibrational_dos(np.ones((3, 2, 3)), [1, 1], 1.0)
    with pytest.raises(DataError, match="nothing moves"):
        vibrational_dos(np.ones((30, 2, 3)), [1, 1], 1.0)
    with pytest.raises(DataError, match="expected hann or none"):
        vibrational_dos(np.ones((30, 2, 3)), [1, 1], 1.0, window="welch")

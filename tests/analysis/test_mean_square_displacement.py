"""Mean square displacements and diffusion coefficients, against sums over all pairs of frames and known answers."""

import numpy as np
import pytest

from mdl_physpre.analysis import mean_square_displacement
from mdl_physpre.errors import DataError


def brute_force(x, masses):
    x = x - np.average(x, axis=1, weights=masses)[:, None]
    return [np.mean([((x[t + lag] - x[t]) ** 2).sum(-1) for t in range(len(x) - lag)], axis=0) for lag in range(len(x))]


def test_as_the_sum_over_all_pairs_of_frames():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(31, 5, 3)).cumsum(0) + 1000.0  # far from the origin
    numbers = np.array([8, 14, 8, 8, 14])
    masses = np.array([16.0, 28.0, 16.0, 17.0, 28.0])
    found = mean_square_displacement(x, numbers, 2.0, masses=masses)
    expected = np.array(brute_force(x, masses))
    assert found.time_fs.tolist() == [2.0 * k for k in range(16)] and found.atoms == {"O": 3, "Si": 2}
    for name, z in (("O", 8), ("Si", 14)):
        np.testing.assert_allclose(found.msd[name], expected[:16, numbers == z].mean(1), rtol=1e-10, atol=1e-10)
    assert type(found).model_validate(found.plain()).msd["O"].tolist() == found.msd["O"].tolist()


def test_a_random_walk_diffuses_as_it_should():
    """D = σ²/(2Δt) for steps of standard deviation σ in each direction."""
    rng, inside = np.random.default_rng(1), 0
    sigma, interval, n = 0.1, 10.0, 64
    d = 1000 * sigma**2 / (2 * interval) * (1 - 1 / n)  # the centre of mass takes its part along
    for _ in range(20):
        x = rng.normal(scale=sigma, size=(800, n, 3)).cumsum(0)
        found = mean_square_displacement(x, np.full(n, 18), interval)
        own = found.diffusion["Ar"]
        assert own.value == pytest.approx(d, rel=0.4)
        inside += own.interval[0] <= d <= own.interval[1]
        np.testing.assert_allclose(found.msd["Ar"][1:20], 6 * d / 1000 * found.time_fs[1:20], rtol=0.1)
    assert inside >= 16  # of 20, at 95 %


def test_a_harmonic_crystal_swings_and_does_not_diffuse():
    """Σ A² (1 − cos ωt) over directions, for whole periods."""
    rng = np.random.default_rng(2)
    amplitude, period = rng.uniform(0.05, 0.1, (40, 3)), 50
    phase = rng.uniform(0, 2 * np.pi, (40, 3))
    t = np.arange(4001)
    x = 3.0 * rng.random((40, 3)) + amplitude * np.cos(2 * np.pi * t[:, None, None] / period + phase)
    x[:, 20:] = x[:, 20:] - (x[:, 20:] - x[:, 20:].mean(0)) - (x[:, :20] - x[:, :20].mean(0))  # opposite: no drift
    amplitude[20:] = amplitude[:20]
    found = mean_square_displacement(x, np.full(40, 14), 1.0)
    expected = (amplitude**2).sum(1).mean() * (1 - np.cos(2 * np.pi * found.time_fs / period))
    np.testing.assert_allclose(found.msd["Si"][:200], expected[:200], atol=2e-4)
    assert abs(found.diffusion["Si"].value) < 1e-3


def test_drift_and_a_growing_cell_are_no_diffusion():
    x = np.zeros((50, 8, 3)) + np.random.default_rng(3).random((8, 3))
    cells = np.eye(3) * (5.0 + 0.01 * np.arange(50))[:, None, None]
    moved = x @ cells / 5.0 + np.arange(50)[:, None, None] * np.array([0.1, 0.0, -0.2])
    found = mean_square_displacement(moved, np.full(8, 14), 1.0, cells=cells)
    assert found.msd["Si"].max() < 1e-20


def test_what_cannot_be_used():
    with pytest.raises(DataError, match="expected \\(frames, atoms, 3\\)"):
        mean_square_displacement(np.zeros((1, 2, 3)), [1, 1], 1.0)
    with pytest.raises(DataError, match="not finite"):
        mean_square_displacement(np.full((4, 1, 3), np.nan), [1], 1.0)
    with pytest.raises(DataError, match="interval between frames is 0 fs"):
        mean_square_displacement(np.zeros((4, 1, 3)), [1], 0)

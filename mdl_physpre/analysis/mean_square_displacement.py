"""Mean square displacement of atoms, and their diffusion coefficient.

    MSD_a(t) = < |x_i(t₀ + t) − x_i(t₀)|² >     over the atoms i of element a and all origins t₀,

with x_i the unwrapped positions less those of the centre of mass, so that a drift of the whole is no diffusion. In a
cell that changes, positions are taken back to the first cell. The sum over origins is done by Fourier transforms (V.
Calandrini et al., Collection SFN 12, 201 (2011), section 4.1): n log n operations for n frames, the same to rounding.

    D_a = 1/6 d MSD_a / dt      at long times (A. Einstein, Ann. Phys. 322, 549 (1905)).

The slope is that of a straight line between two times. Its interval comes from the slopes of equal parts of the
trajectory, by Student's t: displacements at different times of one part are correlated, so that the scatter of points
about the line says nothing of the error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase.data import atomic_masses, chemical_symbols
from scipy.fft import next_fast_len
from scipy.stats import t as student

from mdl_physpre.analysis.radial_distribution import Array
from mdl_physpre.errors import DataError
from mdl_physpre.utils.record import Record

FIT = (0.2, 0.5)  # of the length of a trajectory: between these times lies the straight line


class Diffusion(Record):
    """Diffusion coefficient, Å²/ps (10⁻⁸ m²/s), and its 95 % interval; ``None`` from one part alone."""

    value: float
    interval: tuple[float, float] | None


class MeanSquareDisplacement(Record):
    """Mean square displacements, see the module.

    time_fs : (lags,), from 0. msd : (lags,) by element, Å². diffusion : by element. atoms : by element.
    """

    time_fs: Array
    msd: dict[str, Array]
    diffusion: dict[str, Diffusion]
    atoms: dict[str, int]


def mean_square_displacement(
    positions: np.ndarray,
    numbers: Sequence[int] | np.ndarray,
    interval_fs: float,
    *,
    masses: np.ndarray | None = None,
    cells: np.ndarray | None = None,
    longest: float = 0.5,
    parts: int = 4,
) -> MeanSquareDisplacement:
    """Mean square displacements of a trajectory whose frames are evenly spaced.

    Parameters
    ----------
    positions : (frames, n, 3), Å, unwrapped.
    numbers : (n,) atomic numbers.
    interval_fs : between frames.
    masses : (n,), for the centre of mass; those of the elements where ``None``.
    cells : (frames, 3, 3), Å, where they change and have a volume.
    longest : longest time, over the length of the trajectory: beyond a half, few origins are left.
    parts : of the trajectory, for the interval of the diffusion coefficient.

    Raises
    ------
    DataError : fewer than two frames, positions of another shape or not finite, or an interval that is not positive.
    """
    x, numbers = checked(positions, numbers, interval_fs)
    if cells is not None:
        cells = np.asarray(cells, dtype=float)
        x = x @ np.linalg.inv(cells) @ cells[0]
    x = without_drift(x, atomic_masses[numbers] if masses is None else np.asarray(masses, dtype=float))
    names = {chemical_symbols[z]: numbers == z for z in np.unique(numbers)}
    lags = max(2, int(longest * len(x)) + 1)
    msd = {name: _msd(x[:, mine])[:lags] for name, mine in names.items()}
    pieces = np.array_split(x, min(parts, max(1, len(x) // 10)))
    diffusion = {name: _diffusion([piece[:, mine] for piece in pieces], interval_fs) for name, mine in names.items()}
    time = interval_fs * np.arange(lags)
    atoms = {name: int(mine.sum()) for name, mine in names.items()}
    return MeanSquareDisplacement(time_fs=time, msd=msd, diffusion=diffusion, atoms=atoms)


def checked(
    vectors: np.ndarray, numbers: Sequence[int] | np.ndarray, interval_fs: float
) -> tuple[np.ndarray, np.ndarray]:
    """Positions or velocities (frames, n, 3) and numbers (n,) as arrays. Raises DataError where they cannot be used."""
    x, numbers = np.asarray(vectors, dtype=float), np.asarray(numbers, dtype=int)
    if x.ndim != 3 or x.shape[1:] != (len(numbers), 3) or len(x) < 2 or not len(numbers):
        raise DataError(f"found {x.shape} for {len(numbers)} atoms; expected (frames, atoms, 3), with 2 frames or more")
    if not np.isfinite(x).all():
        raise DataError("a number in the trajectory is not finite; leave out what comes after a break")
    if not (np.isfinite(interval_fs) and interval_fs > 0):
        raise DataError(f"the interval between frames is {interval_fs} fs; it must be above 0")
    return x, numbers


def without_drift(vectors: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Positions or velocities (frames, n, 3) less those of the centre of mass."""
    drift: np.ndarray = vectors - np.average(vectors, axis=1, weights=masses)[:, None]
    return drift


def correlation(x: np.ndarray) -> np.ndarray:
    """Σ_{t₀} x(t₀)·x(t₀ + t) for each lag t, (frames,), summed over all else, by Fourier transforms, padded."""
    n = len(x)
    flat = x.reshape(n, -1)
    transformed = np.fft.rfft(flat, next_fast_len(2 * n, real=True), axis=0)
    power = (transformed.real**2 + transformed.imag**2).sum(axis=1)
    found: np.ndarray = np.fft.irfft(power, next_fast_len(2 * n, real=True))[:n]
    return found


def _msd(x: np.ndarray) -> np.ndarray:
    """MSD at every lag, (frames,): Σ |x(t₀)|² + |x(t₀ + t)|² − 2 x(t₀)·x(t₀ + t) over origins, atoms averaged."""
    x = x - x[:1]  # small numbers: less to cancel
    n, squares = len(x), (x**2).sum(axis=(1, 2))
    before = np.concatenate([[0.0], np.cumsum(squares)])
    origins = n - np.arange(n)
    both = before[origins] + before[n] - before[np.arange(n)]  # of all first, and of all last frames
    found: np.ndarray = (both - 2 * correlation(x)) / origins / x.shape[1]
    found[0] = 0.0
    return np.maximum(found, 0.0)


def _diffusion(pieces: Sequence[np.ndarray], interval_fs: float) -> Diffusion:
    slopes = []
    for x in pieces:
        first, last = (round(fraction * len(x)) for fraction in FIT)
        lags = np.arange(first, max(last, first + 1) + 1)[: len(x)]
        msd = _msd(x)[lags[lags < len(x)]]
        slopes.append(1000 / 6 * np.polyfit(interval_fs * lags[: len(msd)], msd, 1)[0] if len(msd) > 1 else np.nan)
    value, n = float(np.mean(slopes)), len(slopes)
    if n < 2:
        return Diffusion(value=value, interval=None)
    half = float(student.ppf(0.975, n - 1) * np.std(slopes, ddof=1) / np.sqrt(n))
    return Diffusion(value=value, interval=(value - half, value + half))

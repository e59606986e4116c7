"""Vibrational density of states, from the correlation of velocities in time.

    C_a(t) = < Σ_{i of a} m_i v_i(t₀)·v_i(t₀ + t) >     over origins t₀, less the motion of the centre of mass,
    g_a(ν) = 4 f / C(0) ∫_0^∞ C_a(t) w(t) cos(2πνt) dt,     C = Σ_a C_a,

(J. M. Dickey and A. Paskin, Phys. Rev. 188, 1407 (1969)). ∫ Σ_a g_a dν = f, the degrees of freedom: 3N − 3 with the
centre of mass at rest. Where energy is shared equally, each mode of a harmonic crystal is a line of area 1. The window
w is 1 at t = 0 and ends at ``longest_fs``: the longer, the finer the lines and the larger their noise; the correlation
is found by Fourier transforms (Wiener and Khinchin), padded with zeros, so that the ends of the trajectory do not meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from ase.data import atomic_masses, chemical_symbols

from mdl_physpre.analysis.mean_square_displacement import checked, correlation, without_drift
from mdl_physpre.analysis.radial_distribution import Array
from mdl_physpre.errors import DataError
from mdl_physpre.utils.record import Record

PER_CM = 33.3564095198152  # 1/cm in one THz
LONGEST = 2000.0  # fs


class VibrationalDOS(Record):
    """Vibrational density of states, see the module.

    frequency : (points,), THz, evenly spaced from 0. dos : (points,) by element, 1/THz.
    degrees_of_freedom : ∫ of the sum of all elements. atoms : by element.
    """

    frequency: Array
    dos: dict[str, Array]
    degrees_of_freedom: float
    atoms: dict[str, int]

    @property
    def wavenumber(self) -> np.ndarray:
        """(points,), 1/cm."""
        return PER_CM * self.frequency

    @property
    def total(self) -> np.ndarray:
        """Of all elements, (points,), 1/THz."""
        total: np.ndarray = np.sum(list(self.dos.values()), axis=0)
        return total

    @property
    def integral(self) -> np.ndarray:
        """Weights with which the sum over points is the integral over frequencies, (points,), THz."""
        weights = np.full(len(self.frequency), self.frequency[1])
        weights[[0, -1]] /= 2
        return weights


def vibrational_dos(
    velocities: np.ndarray,
    numbers: Sequence[int] | np.ndarray,
    interval_fs: float,
    *,
    masses: np.ndarray | None = None,
    window: Literal["hann", "none"] = "hann",
    longest_fs: float = LONGEST,
) -> VibrationalDOS:
    """The vibrational density of states of a trajectory whose frames are evenly spaced.

    Parameters
    ----------
    velocities : (frames, n, 3), in any unit, which cancels.
    numbers : (n,) atomic numbers.
    interval_fs : between frames. Frequencies end at 1/(2 interval); what vibrates faster is seen at a wrong place.
    masses : (n,), those of the elements where ``None``.
    window : ``hann``, (1 + cos(πt/``longest_fs``))/2, or ``none``, which lets lines ring.
    longest_fs : where it ends; half the length of the trajectory where that is shorter.

    Raises
    ------
    DataError : fewer than four frames, velocities of another shape or not finite, or all zero; another window.
    """
    v, numbers = checked(velocities, numbers, interval_fs)
    if window not in ("hann", "none"):
        raise DataError(f"window is {window!r}; expected hann or none")
    masses = atomic_masses[numbers] if masses is None else np.asarray(masses, dtype=float)
    weighted = np.sqrt(masses)[:, None] * without_drift(v, masses)
    lags = int(min(len(v) // 2, longest_fs // interval_fs)) + 1
    if lags < 3:
        raise DataError(f"{len(v)} frames every {interval_fs:g} fs are too few for a density of states")
    shape = np.ones(lags) if window == "none" else 0.5 * (1 + np.cos(np.pi * np.arange(lags) / (lags - 1)))
    each = {}
    for z in np.unique(numbers):
        each[chemical_symbols[z]] = correlation(weighted[:, numbers == z])[:lags] / (len(v) - np.arange(lags))
    start = float(sum(c[0] for c in each.values()))
    if not start > 0:
        raise DataError("nothing moves: there is no density of states")
    free = 3.0 * max(len(numbers) - 1, 1)
    step = interval_fs / 1000  # ps, so that frequencies are in THz
    frequency = np.arange(lags) / (2 * (lags - 1) * step)
    dos = {}
    for name, c in each.items():
        even = np.concatenate([c * shape, (c * shape)[-2:0:-1]])  # C(−t) = C(t)
        dos[name] = 2 * free / start * step * np.fft.rfft(even).real
    atoms = {chemical_symbols[z]: int((numbers == z).sum()) for z in np.unique(numbers)}
    return VibrationalDOS(frequency=frequency, dos=dos, degrees_of_freedom=free, atoms=atoms)

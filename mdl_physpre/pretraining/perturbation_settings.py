"""Strengths, filters and redraws of a perturbed set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mdl_physpre.errors import ConfigError


def strengths(start: float, end: float, n: int) -> NDArray[np.float64]:
    """Linear schedule of perturbation strengths over the rounds, end excluded.

    d_k = start + (end - start) k / n for k = 0 ... n-1, so that (1.0, 0.0) with five rounds is 1.0, 0.8, 0.6, 0.4,
    0.2 Å (paper, Table A.1).

    Returns
    -------
    (n,) strengths in Å.

    Raises
    ------
    ConfigError : n below one, or a strength that is negative or not finite.
    """
    if n < 1:
        raise ConfigError(f"perturbation rounds (n_aug): found {n}, expected at least 1")
    for name, value in (("start", start), ("end", end)):
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"perturbation strength ({name}): found {value}, expected a finite length in Å, >= 0")
    return np.linspace(start, end, n, endpoint=False)


@dataclass(frozen=True)
class PerturbationSettings:
    """Settings of a perturbed set; the defaults of n_aug ... perturb are those of Table A.1 for M3GNet on silica.

    Attributes
    ----------
    n_aug : rounds, that is perturbed copies of each structure.
    n_pairs : close pairs that are pulled together in a structure.
    pull : (first, end) of the largest pull over the rounds, Å; linear, end excluded.
    n_sites : sites displaced at random; all of them where a structure has fewer.
    perturb : (first, end) of the largest random displacement over the rounds, Å; linear, end excluded.
    pull_share : part of the drawn pull that each atom of the pair moves. 0.5 closes the gap by s and is what produced
        the published results; 1.0 closes it by 2 s and is the algorithm as printed.
    min_distance : smallest distance of a perturbed pair, as a fraction of the sum of its covalent radii; 0 is off.
        A bond is about one such sum long, and a trajectory counts as broken when the smallest distance halves: 0.4
        keeps the whole wall down to that mark and a little beyond, and drops what lies inside the atoms. A parent with
        a pair closer than twice the bound gets half of its own smallest ratio as its bound.
    max_force : largest norm of a force by the teacher, eV/Å; ``None`` is off. With the strengths of Table A.1 200 takes
        off the tail of the labels (silica: largest 8,000, of one draw in twenty 1,000) and still keeps pairs at 0.6 of
        their distance; under 50, no pair of a silicate comes below 0.75.
    max_redraws : new draws of a rejected structure at one strength; after them both strengths are halved.
    max_weakenings : how often they may be halved before the draw is given up (counted, with its reason).
    originals : also label the unperturbed structures. Off: the finetuning set has better labels for them, and the set
        keeps the size, n_aug times the original, that the paper states.

    Raises
    ------
    ConfigError : a value of the wrong type or out of its range.
    """

    n_aug: int = 5
    n_pairs: int = 2
    pull: tuple[float, float] = (1.0, 0.0)
    n_sites: int = 5
    perturb: tuple[float, float] = (1.0, 0.0)
    pull_share: float = 0.5
    min_distance: float = 0.4
    max_force: float | None = 200.0
    max_redraws: int = 3
    max_weakenings: int = 4
    originals: bool = False

    def __post_init__(self) -> None:
        for name in ("n_aug", "n_pairs", "n_sites", "max_redraws", "max_weakenings"):
            value = getattr(self, name)
            least = 1 if name == "n_aug" else 0
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise ConfigError(f"perturbation.{name}: found {value!r}, expected a whole number >= {least}")
        for name in ("pull", "perturb"):
            value = getattr(self, name)
            if isinstance(value, (str, bytes)) or not hasattr(value, "__len__") or len(value) != 2:
                raise ConfigError(f"perturbation.{name}: found {value!r}, expected [first, end] in Å")
            try:
                schedule = (float(value[0]), float(value[1]))
                strengths(*schedule, self.n_aug)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"perturbation.{name}: found {value!r}, expected two numbers in Å") from error
            except ConfigError as error:
                raise ConfigError(f"perturbation.{name}: {error}") from error
            object.__setattr__(self, name, schedule)  # a list from YAML becomes hashable
        if not 0 <= self.pull_share <= 1:
            raise ConfigError(f"perturbation.pull_share: found {self.pull_share!r}, expected 0 to 1")
        if not 0 <= self.min_distance < 1:
            raise ConfigError(
                f"perturbation.min_distance: found {self.min_distance!r}, expected a fraction of the sum of covalent "
                "radii, from 0 (off) to below 1"
            )
        if self.max_force is not None and not self.max_force > 0:
            raise ConfigError(f"perturbation.max_force: found {self.max_force!r}, expected eV/Å above 0, or null")

    @property
    def max_attempts(self) -> int:
        """Draws that a round of a structure gets before it is given up."""
        return (self.max_redraws + 1) * (self.max_weakenings + 1)

    def weakenings(self, attempt: int) -> int:
        """How often the strengths have been halved at a draw, counted from zero."""
        return attempt // (self.max_redraws + 1)

    def scale(self, attempt: int) -> float:
        """Factor on the strengths at a draw, counted from zero: 2^-w after w halvings."""
        return 0.5 ** self.weakenings(attempt)

    def round_strengths(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Largest pull and largest random displacement of every round, (n_aug,) each, in Å."""
        return strengths(*self.pull, self.n_aug), strengths(*self.perturb, self.n_aug)

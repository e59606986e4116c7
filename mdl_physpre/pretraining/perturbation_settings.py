"""Strengths, filters and redraws of a perturbed set."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mdl_physpre.utils.settings import Settings, setting

Strengths = tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]]
Strains = tuple[Annotated[float, Field(ge=0, le=0.2)], Annotated[float, Field(ge=0, le=0.2)]]


def strengths(start: float, end: float, n: int) -> NDArray[np.float64]:
    """Linear schedule of perturbation strengths over n rounds, (n,) Å, end excluded.

    d_k = start + (end - start) k / n for k = 0 ... n-1, so that (1.0, 0.0) with five rounds is 1.0, 0.8, 0.6, 0.4,
    0.2 Å (paper, Table A.1).
    """
    return np.linspace(start, end, n, endpoint=False)


class PerturbationSettings(Settings):
    """How structures are perturbed and which draws are kept; the defaults are those of Table A.1 for M3GNet on silica.

    ``min_distance``: a bond is about one sum of covalent radii long, and a trajectory counts as broken when the
    smallest distance halves: 0.4 keeps the whole wall down to that mark and a little beyond, and drops what lies inside
    the atoms. A parent with a pair closer than twice the bound gets half of its own smallest ratio as its bound.

    ``max_force``: with the strengths of Table A.1 200 eV/Å takes off the tail of the labels (silica: largest 8,000, of
    one draw in twenty 1,000) and still keeps pairs at 0.6 of their distance; under 50, no pair of a silicate comes
    below 0.75.
    """

    LATER: ClassVar[dict[str, Any]] = {"strain": (0.0, 0.0)}

    n_aug: int = setting(5, "Rounds, that is perturbed copies of each structure.", ge=1)
    n_pairs: int = setting(2, "Close pairs of a structure that are pulled together.", ge=0)
    pull: Strengths = setting(
        (1.0, 0.0), "First and end of the largest pull over the rounds; linear, the end excluded.", "Å"
    )
    n_sites: int = setting(5, "Sites displaced at random; all of them where a structure has fewer.", ge=0)
    perturb: Strengths = setting(
        (1.0, 0.0), "First and end of the largest random displacement over the rounds; linear, the end excluded.", "Å"
    )
    strain: Strains = setting(
        (0.0, 0.0),
        "First and end of the largest strain over the rounds, at most 0.2; linear, the end excluded. Cell and atoms of "
        "the perturbed structure follow a symmetric strain, each component drawn between minus and plus this; cells "
        "that are not periodic in three directions stay.",
    )
    pull_share: float = setting(
        0.5,
        "Part of the drawn pull s that each atom of the pair moves. 0.5 closes the gap by s, as for the published "
        "results; 1.0 closes it by 2 s, as the algorithm is printed.",
        ge=0,
        le=1,
    )
    min_distance: float = setting(
        0.4,
        "Smallest distance of a perturbed pair, as a fraction of the sum of its covalent radii; 0 is off.",
        ge=0,
        lt=1,
    )
    max_force: float | None = setting(200.0, "Largest norm of a force by the teacher; null is off.", "eV/Å", gt=0)
    max_redraws: int = setting(
        3, "New draws of a rejected structure at one strength; after them both strengths are halved.", ge=0
    )
    max_weakenings: int = setting(
        4, "How often the strengths may be halved before a draw is given up, and counted with its reason.", ge=0
    )
    originals: bool = setting(
        False,
        "Keep the unperturbed structures, too, labelled by the teacher. Without them the set is n_aug times as large "
        "as the original, as the paper states; the finetuning set has better labels for them.",
    )

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

    def round_strains(self) -> NDArray[np.float64]:
        """Largest component of the strain of every round, (n_aug,)."""
        return strengths(*self.strain, self.n_aug)

    def round_strengths(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Largest pull and largest random displacement of every round, (n_aug,) each, in Å."""
        return strengths(*self.pull, self.n_aug), strengths(*self.perturb, self.n_aug)

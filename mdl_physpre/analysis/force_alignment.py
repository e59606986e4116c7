"""Angles between the forces of two potentials, atom by atom (the paper's Figure B.1).

θ_i = arccos( F¹_i · F²_i / (|F¹_i| |F²_i|) )

Of two potentials that have nothing to do with each other, the density of angles is sin(θ)/2, largest at 90°: a broad
distribution is what chance gives, and the histogram carries it for comparison (``isotropic``).

An atom without force has no direction. Atoms on which either force is below ``zero_force`` are counted apart. A second
histogram weighs each atom by √(|F¹_i| |F²_i|), because of a small force the direction is noise and matters little.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from pydantic import computed_field

from mdl_physpre.analysis.batches import graphs_of, numbers, predicted_batches
from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.utils.record import Record


class ForceAlignment(Record):
    """Histogram of the angles between the forces of two potentials.

    edges : (bins + 1,), degrees. atoms : (bins,), atoms in each bin. weighted : (bins,), sum of their weights, eV/Å.
    isotropic : (bins,), fraction in each bin for directions that are independent.
    n_atoms : with an angle. zero_force : without one; ``…_first``, ``…_second``: because of either potential.
    mean, weighted_mean : degrees; ``None`` where no atom has an angle.
    """

    edges: tuple[float, ...]
    atoms: tuple[int, ...]
    weighted: tuple[float, ...]
    isotropic: tuple[float, ...]
    n_atoms: int
    zero_force: int
    zero_force_first: int
    zero_force_second: int
    mean: float | None
    weighted_mean: float | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def share_above_90(self) -> float | None:
        """The share of atoms beyond 90°."""
        return _upper_half(self.atoms)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def weighted_share_above_90(self) -> float | None:
        """The same by weight."""
        return _upper_half(self.weighted)


def _upper_half(values: Sequence[float]) -> float | None:
    total = sum(values)
    return sum(values[len(values) // 2 :]) / total if total else None


def force_alignment(
    first: Potential, second: Potential, structures: Sequence[Atoms], *, bins: int = 36, zero_force: float = 1e-3
) -> ForceAlignment:
    """Histogram of the angles between the forces of two potentials.

    Parameters
    ----------
    first, second : the potentials; of a hybrid one, give ``hybrid.network`` and ``hybrid.eam``.
    structures : what they are evaluated on; no labels are needed.
    bins : number of bins between 0° and 180°; an even number, so that 90° is an edge.
    zero_force : eV/Å.

    Raises
    ------
    DataError : no structures, or an element that a potential does not know.
    ConfigError : ``bins`` odd or not positive.
    """
    if bins < 2 or bins % 2:
        raise ConfigError(f"bins is {bins}; expected an even number of at least 2")
    if not len(structures):
        raise DataError("there are no structures on which forces could be compared")
    a, b = (_forces(potential, structures) for potential in (first, second))
    lengths = [np.linalg.norm(f, axis=1) for f in (a, b)]
    missing = [~(length >= zero_force) for length in lengths]
    used = ~(missing[0] | missing[1])
    weights = np.sqrt(lengths[0][used] * lengths[1][used])
    # exact where two forces are nearly parallel, which the arc cosine is not
    across = np.linalg.norm(np.cross(a[used], b[used]), axis=1)
    angles = np.degrees(np.arctan2(across, (a[used] * b[used]).sum(axis=1)))
    edges = np.linspace(0.0, 180.0, bins + 1)
    return ForceAlignment(
        edges=edges,
        atoms=np.histogram(angles, edges)[0],
        weighted=np.histogram(angles, edges, weights=weights)[0],
        isotropic=-np.diff(np.cos(np.radians(edges))) / 2,
        n_atoms=used.sum(),
        zero_force=(~used).sum(),
        zero_force_first=missing[0].sum(),
        zero_force_second=missing[1].sum(),
        mean=angles.mean() if len(angles) else None,
        weighted_mean=(angles * weights).sum() / weights.sum() if len(angles) else None,
    )


def pooled_alignment(found: Sequence[ForceAlignment]) -> ForceAlignment:
    """Results of :func:`force_alignment` with the same bins, all atoms together."""

    def mean(means: Sequence[float | None], sizes: Sequence[float]) -> float | None:
        known = [(m, n) for m, n in zip(means, sizes) if m is not None]
        if len(known) == 1:
            return known[0][0]
        return sum(m * n for m, n in known) / sum(n for _, n in known) if known else None

    return ForceAlignment(
        edges=found[0].edges,
        isotropic=found[0].isotropic,
        atoms=tuple(map(sum, zip(*(f.atoms for f in found)))),
        weighted=tuple(map(sum, zip(*(f.weighted for f in found)))),
        n_atoms=sum(f.n_atoms for f in found),
        zero_force=sum(f.zero_force for f in found),
        zero_force_first=sum(f.zero_force_first for f in found),
        zero_force_second=sum(f.zero_force_second for f in found),
        mean=mean([f.mean for f in found], [sum(f.atoms) for f in found]),
        weighted_mean=mean([f.weighted_mean for f in found], [sum(f.weighted) for f in found]),
    )


def _forces(potential: Potential, structures: Sequence[Atoms]) -> np.ndarray:
    """Forces on all atoms of all structures, (n_atoms, 3), eV/Å."""
    found = []
    for _, _, predicted in predicted_batches(potential, graphs_of(potential, structures, labels=False), stress=False):
        assert predicted.forces is not None
        found.append(numbers(predicted.forces))
    return np.concatenate(found)

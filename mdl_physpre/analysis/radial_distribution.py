"""Radial distribution functions of pairs of elements, from running sums over frames.

    g_ab(r) = < V n_ab(r) > / (N_a N_b v(r)),      v(r) = 4π/3 (r₊³ − r₋³),

where n_ab(r) counts the ordered pairs of an atom i of element a and an atom j of element b whose distance lies in the
bin from r₋ to r₊, v is the exact volume of that shell, V the volume of that frame's own cell, and <·> the average over
frames. All periodic images of j count, those of i itself too, so a cell narrower than the range gives what its
supercells give, to the last digit that rounding leaves.

Like pairs (a = b): every pair counts in both directions, n_aa, and the norm is N_a², not N_a (N_a − 1), because images
of i itself are among the neighbours; this is what makes g independent of the choice of the cell. An ideal gas of N
atoms in a periodic cell therefore has g_aa = 1 − 1/N up to its shortest lattice vector, where the first image of i
itself adds the rest as a spike; g_ab of unlike elements is 1.

    c_ab(r) = < Σ_{r' ≤ r} n_ab(r') > / N_a      running coordination number: atoms b within r of an atom a.

Smoothing spreads each pair as a Gaussian over distances (counts are smoothed, and divided by shell volumes afterwards):
the weight that a Gaussian would have at r < 0 is given back to r > 0, so each pair still counts as one, and none leaks
through r = 0. Distances are counted beyond the range, as far as the Gaussian reaches, so that as much comes in at the
upper end as leaves there. An ideal gas, whose counts grow as r², is smoothed to 1 + (σ/r)².
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations_with_replacement, product
from typing import Annotated, Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from pydantic import BeforeValidator, PlainSerializer
from scipy.special import ndtr

from mdl_physpre.errors import DataError
from mdl_physpre.structures.neighbours import neighbour_list
from mdl_physpre.utils.record import Record

R_MAX, BINS = 6.0, 120
REACH = 5.0  # standard deviations that a smoothed pair reaches
MAX_DENSITY = 10.0  # atoms/Å³, a hundred times that of solids: a cell beyond it has collapsed, and has too many pairs


Array = Annotated[
    np.ndarray,
    BeforeValidator(lambda values: np.asarray(values, dtype=float)),
    PlainSerializer(lambda values: values.tolist(), when_used="json"),
]


class RDF(Record):
    """Radial distribution functions of one structure, or averages over several.

    r, edges : (bins,) centres and (bins + 1,) edges of the bins, Å.
    g : of each unordered pair ("O-O", "O-Si", lighter element first), (bins,).
    coordination : of each ordered pair ("Si-O" are O around Si), (bins,), up to the upper edge of each bin.
    frames, structures : counted. smoothing : Å.
    not_applicable : why ``g`` is empty, or ``None``.
    pair_weights, atom_weights : Σ N_a N_b / V and Σ N_a over frames, with which :func:`average_rdfs` averages.
    """

    r: Array
    edges: Array
    g: dict[str, Array] = {}
    coordination: dict[str, Array] = {}
    frames: int
    structures: int = 1
    smoothing: float
    not_applicable: str | None = None
    pair_weights: dict[str, float] = {}
    atom_weights: dict[str, float] = {}


class NamedRDF(RDF):
    """That of a structure of a run."""

    structure_id: str


class RDFAccumulator:
    """Running sums of one structure.

    Parameters
    ----------
    numbers : (n,) atomic numbers.
    r_max : Å; range of g.
    bins : of equal width from 0 to ``r_max``.
    smoothing : Å; standard deviation of the Gaussian that each pair is spread over, 0 for none.
    volume : Å³; used for structures that are not periodic in all three directions, which have no volume of their own.
        Without it they have coordination numbers and no g.

    Raises
    ------
    DataError : no atoms, or a range, number of bins, smoothing or volume that cannot be used.
    """

    def __init__(
        self,
        numbers: Sequence[int] | np.ndarray,
        r_max: float = R_MAX,
        bins: int = BINS,
        smoothing: float = 0.0,
        volume: float | None = None,
    ) -> None:
        self.numbers = np.asarray(numbers, dtype=int)
        if not len(self.numbers):
            raise DataError("a structure without atoms has no radial distribution function")
        if not (np.isfinite(r_max) and r_max > 0 and bins >= 1 and np.isfinite(smoothing) and smoothing >= 0):
            raise DataError(
                f"r_max is {r_max}, bins is {bins}, smoothing is {smoothing}; r_max must be above 0, bins at least 1, "
                "smoothing 0 or more"
            )
        if volume is not None and not (np.isfinite(volume) and volume > 0):
            raise DataError(f"volume is {volume}; it must be above 0, in Å³")
        self.bins, self.width, self.smoothing, self.volume = int(bins), r_max / bins, float(smoothing), volume
        self.beyond = int(np.ceil(REACH * smoothing / self.width))  # bins counted past the range
        self.edges = np.linspace(0.0, r_max, self.bins + 1)
        self.elements, self.species = np.unique(self.numbers, return_inverse=True)
        m = len(self.elements)
        shape = (m, m, self.bins + self.beyond)
        self.counts = np.zeros(shape, dtype=np.int64)
        self.volume_counts = np.zeros(shape)  # Σ over frames of V n
        self.frames, self.inverse_volume = 0, 0.0  # Σ over frames of 1/V; NaN where a frame has no volume

    def add(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
        """Count one frame.

        Parameters
        ----------
        positions : (n, 3), Å; need not lie in the cell.
        cell, pbc : (3, 3), Å, rows are vectors, and (3,), of this frame.

        Raises
        ------
        DataError : positions that are not finite, a cell without volume or collapsed; nothing is counted then.
        """
        positions = np.asarray(positions, dtype=float)
        cell, pbc = np.asarray(cell, dtype=float), np.asarray(pbc, dtype=bool)
        reach = (self.bins + self.beyond) * self.width
        volume = abs(np.linalg.det(cell)) if pbc.all() else None
        if volume is not None and len(positions) > MAX_DENSITY * volume:
            raise DataError(
                f"cell {cell.tolist()} of {volume:.4g} Å³ has collapsed: more than {MAX_DENSITY:g} atoms per Å³"
            )
        i, j, shifts = neighbour_list(positions, cell, pbc, reach)
        vectors = positions.take(j, axis=0)
        vectors -= positions.take(i, axis=0)
        vectors += shifts @ cell
        self.add_pairs(i, j, np.sqrt(np.einsum("nx,nx->n", vectors, vectors)), volume)

    def add_pairs(self, i: np.ndarray, j: np.ndarray, distances: np.ndarray, volume: float | None) -> None:
        """Count one frame whose neighbours are known.

        Parameters
        ----------
        i, j, distances : (n_pairs,), every pair within range (and, with smoothing, 5 σ more) in both directions, images
            and own images included; farther pairs are left out here.
        volume : Å³, ``None`` where the frame has none.
        """
        m, n = self.counts.shape[1:]
        which = (distances / self.width).astype(np.int64)
        which += (self.species[i] * m + self.species[j]) * n
        inside = distances < n * self.width
        if not inside.all():
            which = which[inside]
        found = np.bincount(which, minlength=m * m * n).reshape(m, m, n)
        volume = self.volume if volume is None else volume
        self.counts += found
        if volume is None:
            self.inverse_volume = np.nan
        else:
            self.volume_counts += volume * found
            self.inverse_volume += 1 / volume
        self.frames += 1

    FIELDS = ("counts", "volume_counts", "frames", "inverse_volume")

    def state(self) -> dict[str, np.ndarray]:
        """The sums, as arrays."""
        return {name: np.array(getattr(self, name)) for name in self.FIELDS}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from :meth:`state` of an accumulator of the same structure, range, bins and smoothing."""
        shape = np.shape(state["counts"])
        if shape != self.counts.shape:
            raise DataError(f"stored counts have shape {shape}, expected {self.counts.shape}: other elements or bins")
        self.counts, self.volume_counts = np.array(state["counts"]), np.array(state["volume_counts"])
        self.frames, self.inverse_volume = int(state["frames"]), float(state["inverse_volume"])

    def result(self) -> RDF:
        """What was found so far."""
        reason = "not periodic in three directions, and no volume was given" if np.isnan(self.inverse_volume) else None
        centres = 0.5 * (self.edges[1:] + self.edges[:-1])
        found = RDF(
            r=centres,
            edges=self.edges,
            frames=self.frames,
            smoothing=self.smoothing,
            not_applicable=reason if self.frames else "no frames",
        )
        if not self.frames:
            return found
        names, n_atoms = [chemical_symbols[z] for z in self.elements], np.bincount(self.species)
        spread, shells = self._spread(), 4 * np.pi / 3 * np.diff(self.edges**3)
        for a, b in product(range(len(names)), repeat=2):
            within = np.cumsum(spread @ self.counts[a, b])
            found.coordination[f"{names[a]}-{names[b]}"] = within / (self.frames * n_atoms[a])
        found.atom_weights.update((name, int(n) * self.frames) for name, n in zip(names, n_atoms, strict=True))
        for a, b in combinations_with_replacement(range(len(names)), 2) if reason is None else ():
            name, pairs = f"{names[a]}-{names[b]}", float(n_atoms[a] * n_atoms[b])
            found.g[name] = spread @ self.volume_counts[a, b] / (self.frames * pairs * shells)
            found.pair_weights[name] = pairs * self.inverse_volume
        return found

    def _spread(self) -> np.ndarray:
        """(bins, bins counted): which part of a pair counted in one bin goes to another."""
        n = self.bins + self.beyond
        if not self.smoothing:
            return np.eye(n)
        edges = self.width * np.arange(n + 1)
        centres = 0.5 * (edges[1:] + edges[:-1])
        below = ndtr((edges[:, None] - centres) / self.smoothing)
        return (np.diff(below, axis=0) / (1 - below[0]))[: self.bins]


def rdf(
    frames: Iterable[Atoms],
    r_max: float = R_MAX,
    bins: int = BINS,
    smoothing: float = 0.0,
    volume: float | None = None,
) -> RDF:
    """Radial distribution functions of one structure's frames; parameters as :class:`RDFAccumulator`.

    Raises
    ------
    DataError : no frames, or a frame with other atoms, or one that cannot be used, which it names.
    """
    sums: RDFAccumulator | None = None
    for k, atoms in enumerate(frames):
        sums = sums or RDFAccumulator(atoms.numbers, r_max, bins, smoothing, volume)
        if not np.array_equal(atoms.numbers, sums.numbers):
            raise DataError(f"frame {k} holds {atoms.symbols}, not the atoms of the first frame in their order")
        try:
            sums.add(atoms.positions, atoms.cell[:], atoms.pbc)
        except DataError as error:
            raise DataError(f"frame {k}: {error}") from None
    if sums is None:
        raise DataError("there are no frames")
    return sums.result()


def average_rdfs(results: Iterable[RDF]) -> RDF:
    """One radial distribution function of many structures.

        g_ab = Σ_s w_s g_ab,s / Σ_s w_s,      w_s = Σ_frames N_a N_b / V,

    the number of pairs found over the number that ideal gases of the same densities would have: what counting all
    frames of all structures together gives. Coordination numbers are averages over atoms a and frames. A structure with
    more frames weighs more; one that lacks a pair or has no volume does not count for it. Averages can be averaged.

    Raises DataError where there are no results, or other bins or smoothing.
    """
    every = list(results)
    if not every:
        raise DataError("there are no radial distribution functions to average")
    for k, result in enumerate(every):
        check_same_grid(every[0], result, "the first", f"number {k}")
    counted = [result for result in every if result.frames]
    pair_weights, atom_weights = (
        _sums(getattr(result, name) for result in counted) for name in ("pair_weights", "atom_weights")
    )
    shares = [{p: r.pair_weights[p] / pair_weights[p] * values for p, values in r.g.items()} for r in counted]
    # Si-O needs every structure with Si: one without O has none around its Si
    neighbours = _sums(
        {pair: r.atom_weights[pair.split("-")[0]] * values for pair, values in r.coordination.items()} for r in counted
    )
    g = _sums(shares)
    return RDF(
        r=every[0].r,
        edges=every[0].edges,
        g=g,
        coordination={pair: values / atom_weights[pair.split("-")[0]] for pair, values in neighbours.items()},
        frames=sum(result.frames for result in counted),
        structures=sum(result.structures for result in counted),
        smoothing=every[0].smoothing,
        not_applicable=None if g else next((r.not_applicable for r in counted), "no frames"),
        pair_weights=pair_weights,
        atom_weights=atom_weights,
    )


def _sums(tables: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums by key."""
    total: dict[str, Any] = {}
    for table in tables:
        for key, value in table.items():
            total[key] = total.get(key, 0) + value
    return total


def check_same_grid(one: RDF, other: RDF, first: str, second: str) -> None:
    """Raise DataError, which names ``first`` and ``second``, where bins or smoothing of two results differ."""
    a, b = one.edges, other.edges
    if a.shape != b.shape or not np.allclose(a, b, rtol=1e-9, atol=0) or one.smoothing != other.smoothing:
        found = [
            f"{name} has {len(edges) - 1} bins up to {edges[-1]:g} Å, smoothed by {result.smoothing:g} Å"
            for name, edges, result in ((first, a, one), (second, b, other))
        ]
        raise DataError(f"{'; '.join(found)}: radial distribution functions need the same bins and smoothing")

"""Radial distribution functions against those of a reference.

Two errors for each pair of elements, over the whole range of the functions:

mean absolute error    1/r_max ∫ |g − g_ref| dr, without unit. Sees heights of peaks, and how many pairs there are.
Wasserstein-1          ∫ |P(r) − P_ref(r)| dr, in Å, with P the cumulative distribution of pair distances within r_max,
                       P(r) = ∫_0^r x² g(x) dx / ∫_0^{r_max} x² g(x) dx.

r² g(r), normalised, is the probability that two atoms of that pair within r_max lie at distance r, so the Wasserstein
distance is the mean distance, in Å, by which pair distances have to be moved to turn one distribution into the other. A
peak that is shifted by d and holds a fraction f of the pairs adds f·d, however narrow it is, where the mean absolute
error only tells that two peaks do not overlap. (g itself, normalised, would be no distribution of anything: it would
count a pair at 2 Å nine times as much as one at 6 Å.) Distances within a bin are taken as evenly spread.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from mdl_physpre.analysis.radial_distribution import BINS, R_MAX, RDF, RDFAccumulator, check_same_grid
from mdl_physpre.errors import DataError
from mdl_physpre.utils.record import Record


class RDFError(Record):
    """Errors of one pair of elements, see the module; ``wasserstein`` in Å.

    ``None`` where one of the two lacks the pair, and for ``wasserstein`` where one has no two such atoms within range.
    """

    mae: float | None = None
    wasserstein: float | None = None


def rdf_errors(found: RDF, reference: RDF) -> dict[str, RDFError]:
    """Errors of radial distribution functions, see the module, for each pair of elements of either.

    Raises DataError, which names both, for other bins or smoothing.
    """
    check_same_grid(found, reference, "found", "the reference")
    shells, width = np.diff(reference.edges**3), np.diff(reference.edges)
    errors: dict[str, RDFError] = {}
    for pair in dict.fromkeys([*reference.g, *found.g]):
        if pair not in found.g or pair not in reference.g:
            errors[pair] = RDFError()
            continue
        one, other = found.g[pair], reference.g[pair]
        errors[pair] = RDFError(
            mae=np.average(np.abs(one - other), weights=width),
            wasserstein=_wasserstein(one * shells, other * shells, width),
        )
    return errors


def _wasserstein(one: np.ndarray, other: np.ndarray, width: np.ndarray) -> float | None:
    """∫ |P − Q| dr of two histograms whose bins are evenly filled: P − Q is linear in each bin."""
    if not one.sum() > 0 or not other.sum() > 0:
        return None
    gap = np.concatenate([[0.0], np.cumsum(one) / one.sum() - np.cumsum(other) / other.sum()])
    left, right = gap[:-1], gap[1:]
    both = np.abs(left) + np.abs(right)
    crossing = left * right < 0
    # two triangles where the sign changes, a trapezium elsewhere
    area = np.where(crossing, (left**2 + right**2) / np.where(both > 0, both, 1.0), both) / 2
    return float((area * width).sum())


def reference_rdf(
    source: str | Path,
    r_max: float = R_MAX,
    bins: int = BINS,
    smoothing: float = 0.0,
    volume: float | None = None,
    *,
    skip: int = 0,
    every: int = 1,
    first_step: int = 0,
) -> dict[str, RDF]:
    """Radial distribution functions of stored trajectories, by the name of the structure.

    Parameters
    ----------
    source : a file of frames in any format that ASE reads, or a folder of such files. Frames with the same
        ``info["structure_id"]`` are of one structure; where there is none, those of one file are.
    r_max, bins, smoothing, volume : see :class:`~mdl_physpre.analysis.radial_distribution.RDFAccumulator`.
    skip : frames left out at the start of each structure.
    every : of the others, each ``every``-th is taken.
    first_step : frames that say that they are of an earlier step (``info["step"]``) are left out, too.

    Raises
    ------
    DataError : nothing there, a file that cannot be read, a frame with other atoms, or one that cannot be used. The
        message names file and frame.
    """
    if skip < 0 or every < 1:
        raise DataError(f"skip is {skip} and every is {every}; skip must be 0 or more, every at least 1")
    sums: dict[str, RDFAccumulator] = {}
    seen: dict[str, int] = {}
    for path in _files(Path(source)):
        for k, atoms in enumerate(_frames(path)):
            name = str(atoms.info.get("structure_id", path.name.split(".")[0]))
            try:
                if name not in sums:
                    sums[name], seen[name] = RDFAccumulator(atoms.numbers, r_max, bins, smoothing, volume), 0
                if not np.array_equal(atoms.numbers, sums[name].numbers):
                    raise DataError(
                        f"{atoms.symbols} are not the atoms of the first frame of {name!r}, in their order; give "
                        "frames of different structures an info['structure_id'], or files of their own"
                    )
                early = int(atoms.info.get("step", first_step)) < first_step
                if not early and seen[name] >= skip and (seen[name] - skip) % every == 0:
                    sums[name].add(atoms.positions, atoms.cell[:], atoms.pbc)
            except DataError as error:
                raise DataError(f"{path}, frame {k}: {error}") from None
            seen[name] += 1
    if not sums:
        raise DataError(f"{source} holds no frames")
    return {name: each.result() for name, each in sums.items()}


def _files(source: Path) -> list[Path]:
    if source.is_dir():
        return sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
    if not source.exists():
        raise DataError(f"there is no reference trajectory {source}")
    return [source]


def _frames(path: Path) -> Iterator[Atoms]:
    k = 0
    try:
        for atoms in ase.io.iread(path, index=":", do_not_split_by_at_sign=True):
            yield atoms
            k += 1
    except Exception as error:  # readers raise anything
        raise DataError(f"{path} cannot be read after {k} frames ({type(error).__name__}: {error})") from None

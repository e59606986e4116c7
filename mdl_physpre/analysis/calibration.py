"""What the spread of a committee says of its error: on structures whose truth is known.

Of each atom i the spread of forces σ_i and the error ε_i = |F_i − F_i,true| of the mean, of each structure those of the
energy per atom. A spread is worth something if large errors have large spreads, which Spearman's correlation tells, and
is calibrated if the root mean square of the errors at a given spread is that spread (D. Levi, L. Gispan, N. Giladi,
E. Fetaya, Sensors 22, 5540 (2022)): the curve of both, in bins of as many points each, lies on the diagonal. The factor

    s = sqrt( Σ ε² / Σ σ² )

brings it there on the average. It is above 1 where members share an error, which no spread shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from mdl_physpre.analysis.batches import numbers
from mdl_physpre.analysis.errors import Errors, prediction_errors
from mdl_physpre.errors import DataError
from mdl_physpre.potentials.base import Potential, Predictions
from mdl_physpre.structures.graph import AtomGraph, GraphDataset
from mdl_physpre.utils.record import Record
from mdl_physpre.utils.text_table import aligned, shown

BINS, LEAST = 10, 5
"""Points of a curve at most, and values behind each at least."""


class Calibration(Record):
    """Spread and error of one quantity; in eV/Å for forces, in eV/atom for energies.

    n : atoms or structures compared. rms_spread, rms_error : root mean squares over all.
    spearman : rank correlation of spread and error; ``None`` with fewer than three, or where one of them is constant.
    factor : by which the spread has to be multiplied to have the error's root mean square; ``None`` for no spread.
    spread, error, counts : the curve: root mean squares in bins of growing spread, and how many values each holds.
    """

    n: int
    rms_spread: float
    rms_error: float
    spearman: float | None
    factor: float | None
    spread: tuple[float, ...]
    error: tuple[float, ...]
    counts: tuple[int, ...]


class CommitteeErrors(Record):
    """Errors of the mean of a committee on a set of structures, and how its spread is calibrated there.

    forces, energy : ``None`` where no structure carries the label.
    """

    errors: Errors
    forces: Calibration | None = None
    energy: Calibration | None = None


def committee_errors(potential: Potential, data: GraphDataset | Sequence[Atoms], **options: Any) -> CommitteeErrors:
    """Errors and calibration of a committee on labelled structures.

    Parameters
    ----------
    potential : one that gives a spread: a :class:`~mdl_physpre.potentials.Committee`.
    data, options : as :func:`~mdl_physpre.analysis.prediction_errors` takes them.

    Raises
    ------
    DataError : a potential without a spread, and as :func:`~mdl_physpre.analysis.prediction_errors`.
    """
    if not potential.gives_spread:
        raise DataError(f"{type(potential).__name__} gives no spread; take a committee, RUN/ARM or committee:a.pt,b.pt")
    forces: list[tuple[np.ndarray, np.ndarray]] = []
    energies: list[tuple[np.ndarray, np.ndarray]] = []

    def see(graph: AtomGraph, found: Predictions) -> None:
        if found.forces is not None and found.force_spread is not None:
            error = np.linalg.norm(numbers(found.forces) - numbers(graph.forces), axis=1)
            forces.append((numbers(found.force_spread), error))
        if found.energy_spread is not None:
            error, n_atoms = np.abs(numbers(found.energies) - numbers(graph.energy)), numbers(graph.n_atoms)
            energies.append((numbers(found.energy_spread) / n_atoms, error / n_atoms))

    errors = prediction_errors(potential, data, see=see, **options)
    return CommitteeErrors(errors=errors, forces=_of_batches(forces), energy=_of_batches(energies))


def _of_batches(batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> Calibration | None:
    spread, error = (np.concatenate(part) for part in zip(*batches)) if batches else (np.zeros(0), np.zeros(0))
    known = np.isfinite(error)  # NaN where there is no label
    return calibration(spread[known], error[known]) if known.any() else None


def calibration(spread: np.ndarray, error: np.ndarray) -> Calibration:
    """How spreads (n,) and absolute errors (n,) belong together; n at least 1."""
    from scipy.stats import spearmanr

    def rms(values: np.ndarray) -> float:
        return float(np.sqrt(np.mean(values**2)))

    varied = len(spread) > 2 and np.ptp(spread) > 0 and np.ptp(error) > 0
    order = np.argsort(spread, kind="stable")
    bins = np.array_split(order, min(BINS, max(1, len(order) // LEAST)))
    return Calibration(
        n=len(spread),
        rms_spread=rms(spread),
        rms_error=rms(error),
        spearman=float(spearmanr(spread, error).statistic) if varied else None,
        factor=rms(error) / rms(spread) if spread.any() else None,
        spread=tuple(rms(spread[own]) for own in bins),
        error=tuple(rms(error[own]) for own in bins),
        counts=tuple(map(len, bins)),
    )


HEAD = ("quantity", "values", "rms error", "rms spread", "factor", "rank correlation")


def calibration_rows(found: CommitteeErrors) -> list[list[str]]:
    """What is found in words and numbers, a row for each quantity, under ``HEAD``."""
    kinds = (("force, eV/Å, by atom", found.forces, 1.0), ("energy, meV/atom, by structure", found.energy, 1000.0))
    return [
        [
            name, f"{one.n:,}", f"{scale * one.rms_error:.4g}", f"{scale * one.rms_spread:.4g}",
            shown(one.factor, "{:.3g}"), shown(one.spearman, "{:.2f}"),
        ]
        for name, one, scale in kinds if one is not None
    ]  # fmt: skip


def format_calibration(found: Mapping[str, CommitteeErrors]) -> str:
    """A text table: how the spread of committees belongs to their error, by name."""
    rows = [["spread of", *HEAD]]
    for name, one in found.items():
        rows += [[name, *row] for row in calibration_rows(one)]
    said = "factor: by which the spread has to be multiplied to have the root mean square of the error"
    return "\n".join([*aligned(rows, words=2), said])

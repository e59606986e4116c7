"""Training, validation and test sets; and how many structures of each carry each label."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from mdl_physpre.errors import ConfigError, DataError, nearest
from mdl_physpre.structures.check import describe
from mdl_physpre.structures.labels import LABELS
from mdl_physpre.utils.text_table import MISSING, aligned

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Indices of the structures of each set, ascending; no structure is in two of them."""

    train: list[int]
    val: list[int]
    test: list[int]


def split_structures(
    structures: Sequence[Atoms],
    test: float | int = 0.05,
    val: float | int = 0.1,
    by: str | None = None,
    seed: int = 0,
    fraction: float = 1.0,
) -> Split:
    """Split structures at random into training, validation and test set.

    n_test = ⌊test·N⌋ of all, n_val = ⌊val·(N − n_test)⌋ of the rest, n_train what is left; of the training and of the
    validation set ⌊fraction·n⌋ are kept. This gives the set sizes of the paper (silica 10 %: 244 + 27 of 2864;
    phosphorus 5 %: 205 + 22 of 4798; Li-Mn-O-P 10 %: 448 + 23 of 4965, with val = 0.05). For one seed the test set does
    not depend on ``fraction``, and the sets of a smaller fraction lie within those of a larger one.

    Parameters
    ----------
    structures : the structures.
    test, val : a fraction (float, below 1) or a number of structures (int); 0 for none.
    by : key of ``info``: structures that share its value stay together, in one of the sets. Sizes still count
        structures; groups are drawn at random as long as they bring a set nearer to its size.
    seed : of the random numbers.
    fraction : part of training and validation set that is used, 0 < fraction ≤ 1, drawn over structures.

    Raises
    ------
    ConfigError : sizes out of range.
    DataError : a set comes out empty; a structure lacks the key ``by``.
    """
    _check_size("test", test)
    _check_size("val", val)
    if isinstance(fraction, bool) or not 0 < fraction <= 1:
        raise ConfigError(f"fraction is {fraction!r}; expected a number above 0, at most 1")
    if not len(structures):
        raise DataError("there is no structure to split")
    training, validation, testing = _parts(structures, test, val, by, np.random.default_rng(seed))
    kept = [part[: _count(float(fraction), len(part))] for part in (training, validation)]
    found = (("training", kept[0], training, True), ("validation", kept[1], validation, val > 0))
    for name, part, before, wanted in (*found, ("test", testing, None, test > 0)):
        if wanted and not part:
            raise DataError(
                f"the {name} set comes out empty: test={test}, val={val}, fraction={fraction} of {len(structures)} "
                "structures"
                + (f" by {by!r}" if by else "")
                + (f" ({len(before)} before fraction)" if before is not None else "")
                + "; give larger sizes, a larger fraction, or more structures"
            )
    return Split(sorted(kept[0]), sorted(kept[1]), sorted(testing))


def _parts(
    structures: Sequence[Atoms], test: float | int, val: float | int, by: str | None, rng: np.random.Generator
) -> tuple[list[int], list[int], list[int]]:
    """Training, validation and test set, the first two in random order."""
    n = len(structures)
    n_test = _count(test, n)
    if by is None:
        n_val = _count(val, n - n_test)
        order = rng.permutation(n).tolist()
        return order[n_test + n_val :], order[n_test : n_test + n_val], order[:n_test]
    groups = _groups(structures, by)
    queue = [groups[k] for k in rng.permutation(len(groups))]
    sizes_left = sum(size > 0 for size in (test, val)) + 1
    if len(queue) < sizes_left:
        raise DataError(
            f"split by {by!r}: {len(queue)} group(s) for {sizes_left} sets; split by another key, or at random"
        )
    testing = _draw(queue, n_test, test > 0, keep=1 + (val > 0))
    validation = _draw(queue, _count(val, n - len(testing)), val > 0, keep=1)
    training = [k for group in queue for k in group]
    validation = rng.permutation(validation).tolist()
    return rng.permutation(training).tolist(), validation, testing


def _check_size(name: str, size: float | int) -> None:
    fine = not isinstance(size, bool) and (
        (isinstance(size, (int, np.integer)) and size >= 0)
        or (isinstance(size, (float, np.floating)) and 0 <= size < 1)
    )
    if not fine:
        raise ConfigError(
            f"{name} is {size!r}; expected a fraction (at least 0, below 1) or a number of structures (integer)"
        )


def _count(size: float | int, n: int) -> int:
    """⌊size·n⌋ for a fraction, size itself (at most n) for an integer."""
    if isinstance(size, (int, np.integer)):
        return min(int(size), n)
    return min(n, math.floor(size * n + 1e-9))  # 0.29 * 100 is 28.999…


def _groups(structures: Sequence[Atoms], by: str) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for index, atoms in enumerate(structures):
        if by not in atoms.info:
            raise DataError(
                f"split by {by!r}: structure {describe(atoms, index)} has no such entry in info; "
                f"{nearest(by, atoms.info)}"
            )
        groups.setdefault(str(atoms.info[by]), []).append(index)
    return list(groups.values())


def _draw(queue: list[list[int]], size: int, wanted: bool, keep: int) -> list[int]:
    """Take groups out of ``queue``, in order, while each brings the total nearer to ``size``; ``keep`` stay."""
    if not wanted:
        return []
    taken: list[list[int]] = []
    total = 0
    for group in list(queue):
        if len(queue) <= keep:
            break
        if abs(total + len(group) - size) < abs(total - size):
            queue.remove(group)
            taken.append(group)
            total += len(group)
    if not taken and size > 0:  # every group is more than twice as large as asked for
        smallest = min(queue, key=len)
        queue.remove(smallest)
        taken.append(smallest)
    return [k for group in taken for k in group]


def format_label_counts(counts: Mapping[str, Mapping[str, int]]) -> str:
    """A table for the log: one line for each set, "–" where no structure carries the label."""
    columns = ("structures", *LABELS)
    rows: list[tuple[str, ...]] = [("", *columns)]
    rows += [(name, *(str(c.get(k) or MISSING) for k in columns)) for name, c in counts.items()]
    return "\n".join(aligned(rows))

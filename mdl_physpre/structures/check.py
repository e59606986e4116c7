"""Checks of structures and labels before anything is computed from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from ase import Atoms

from mdl_physpre.errors import DataError
from mdl_physpre.structures.label_sources import label_names
from mdl_physpre.structures.labels import LABELS, get_labels, label_counts
from mdl_physpre.structures.neighbours import complete_cell, expected_neighbours, pairs_within

SAME_PLACE = 0.1  # Å: closer than any two nuclei in a calculation that converged
MOST_NEIGHBOURS = 10_000  # of an atom within SEARCH; a crystal has about ten
SEARCH = 2.0  # Å: the neighbour search is fastest here; shorter radii cost more cells than they save pairs


def check_structures(
    structures: Sequence[Atoms],
    source: str = "structures",
    *,
    indices: Iterable[int] | None = None,
    same_place: float = SAME_PLACE,
) -> None:
    """Raise on the first structure that no potential can be trained or evaluated on.

    Parameters
    ----------
    structures : the structures, with labels as calculator results.
    source : where they come from, for the message.
    indices : their positions in ``source``, if not 0, 1, 2, …
    same_place : Å, distance below which two atoms (or an atom and its own image) count as being in one place; 0 for no
        such check.

    Raises
    ------
    DataError : no atoms, an atomic number that is no element, positions, cell or labels that are not finite, forces of
        the wrong shape, a periodic cell without volume, two atoms in one place; source, index and id are named.
    """
    for index, atoms in zip(indices if indices is not None else range(len(structures)), structures):
        try:
            _check(atoms, same_place)
        except DataError as error:
            raise DataError(f"{source}: structure {describe(atoms, index)}: {error}") from error


def describe(atoms: Atoms, index: int) -> str:
    """Index and, where it says more, id of a structure."""
    name = atoms.info.get("structure_id")
    return f"{index}" if name is None or str(name) == str(index) else f"{index} ({name})"


def _check(atoms: Atoms, same_place: float) -> None:
    if len(atoms) == 0:
        raise DataError("has no atoms")
    if atoms.numbers.min() < 1 or atoms.numbers.max() > 118:
        odd = next(int(z) for z in atoms.numbers if not 1 <= z <= 118)
        raise DataError(f"holds atomic number {odd}, which is no element; expected 1 to 118")
    _finite("positions", atoms.positions, "atom")
    _finite("cell", atoms.cell[:], "vector")
    labels = get_labels(atoms)
    if labels.energy is not None and not np.isfinite(labels.energy):
        raise DataError(f"energy is {labels.energy}; expected a number in eV (leave the label out where there is none)")
    if labels.forces is not None:
        if labels.forces.shape != (len(atoms), 3):
            raise DataError(f"forces have shape {labels.forces.shape}; expected ({len(atoms)}, 3)")
        _finite("forces", labels.forces, "atom")
    if labels.stress is not None:
        _finite("stress", labels.stress, "row")
    if atoms.pbc.any():
        complete_cell(atoms.cell[:], atoms.pbc)
    if same_place > 0:
        _check_coincident(atoms, same_place)


def _finite(name: str, array: np.ndarray, row: str) -> None:
    if not np.isfinite(array).all():
        where = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        values = " ".join(f"{x:g}" for x in array[where])
        raise DataError(f"{name} of {row} {where} are [{values}]; expected finite numbers")


def _check_coincident(atoms: Atoms, same_place: float) -> None:
    radius = max(SEARCH, same_place)
    # before the search: the pairs of a collapsed cell might not fit into memory
    mean = expected_neighbours(len(atoms), atoms.cell[:], atoms.pbc, radius)
    if mean > MOST_NEIGHBOURS:
        raise DataError(f"an atom has about {mean:.3g} neighbours within {radius:g} Å; the cell is too small")
    i, j, distances = pairs_within(atoms, radius)
    if not len(i) or distances.min() >= same_place:
        return
    closest = int(distances.argmin())
    a, b, d = int(i[closest]), int(j[closest]), float(distances[closest])
    if a == b:
        raise DataError(
            f"atom {a} and its own periodic image are {d:.4f} Å apart; the cell {atoms.cell[:].tolist()} is too small"
        )
    raise DataError(
        f"atoms {a} ({atoms.symbols[a]}) and {b} ({atoms.symbols[b]}) are in one place ({d:.4f} Å apart, periodic "
        f"images included; at least {same_place:g} Å expected); remove one of them"
    )


def require_labels(
    structures: Sequence[Atoms], weights: Mapping[str, float] | Iterable[str], source: str = "structures"
) -> None:
    """Raise if a label that is asked for is carried by no structure.

    Parameters
    ----------
    weights : loss weight of each label (those of weight 0 are not asked for), or the labels asked for.

    Raises
    ------
    DataError : names the label, and the entries that could be meant.
    """
    wanted = [k for k, w in weights.items() if w] if isinstance(weights, Mapping) else list(weights)
    have = label_counts(structures)
    missing = [name for name in wanted if not have[name]]
    if not missing:
        return
    other = [n for n in label_names(structures) if n not in LABELS]
    raise DataError(
        f"{source}: none of {len(structures)} structures has {' or '.join(missing)}"
        + (" (no label at all)" if not any(have[name] for name in LABELS) else "")
        + "; expected calculator results, REF_<label>, or a key given in keys"
        + (f" (numeric entries found: {', '.join(other[:12])})" if other else "")
        + f"; set the loss weight of {' and '.join(missing)} to 0"
        + (" (optim.weight_stress)" if missing == ["stress"] else "")
        + ", or give the key"
    )

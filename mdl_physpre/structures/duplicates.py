"""Structures that are suspected to be the same, wherever they stand, however turned, shifted, sorted or repeated.

Two structures of one reduced formula are suspected where, element by element, mean and standard deviation of the
distances to the k-th nearest neighbour (k = 1 … 8, within 5 Å, images included) all agree within 0.005 Å, and the
energies per atom, where both are known, within 1 meV/atom. Snapshots of one hot run stay apart at these values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from scipy.spatial import cKDTree

from mdl_physpre.structures.check import describe
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.structures.neighbours import pairs_within

RADIUS = 5.0  # Å: neighbours within it describe a structure
N_NEIGHBOURS = 8
SAME_DISTANCE = 0.005  # Å
SAME_ENERGY = 1e-3  # eV/atom


def descriptor(atoms: Atoms, i: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Mean and standard deviation, over the atoms of each element, of the distance to the k-th neighbour.

    Shape (n_elements · 2 · 8,), Å; RADIUS where an atom has fewer neighbours.
    """
    n = len(atoms)
    order = np.lexsort((distances, i))
    counts = np.bincount(i, minlength=n)
    rank = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = rank < N_NEIGHBOURS
    nearest = np.full((n, N_NEIGHBOURS), RADIUS)
    nearest[i[order][kept], rank[kept]] = distances[order][kept]
    parts = [nearest[atoms.numbers == z] for z in np.unique(atoms.numbers)]
    return np.concatenate([np.zeros(0), *(row for part in parts for row in (part.mean(axis=0), part.std(axis=0)))])


def suspected_pairs(
    everything: Sequence[tuple[str, int, Atoms]],
    descriptors: Sequence[np.ndarray],
    same_distance: float = SAME_DISTANCE,
    same_energy: float = SAME_ENERGY,
) -> Iterator[tuple[int, int]]:
    """Places of two structures, the earlier first, that are suspected to be the same."""
    by_formula: dict[str, list[int]] = defaultdict(list)
    for position, (_, _, atoms) in enumerate(everything):
        by_formula[atoms.symbols.formula.reduce()[0].format("hill")].append(position)
    energies = [np.nan if (e := get_labels(a).energy) is None else e / max(1, len(a)) for _, _, a in everything]
    for members in by_formula.values():
        if len(members) < 2:
            continue
        tree = cKDTree(np.array([descriptors[m] for m in members]))
        for a, b in sorted(tree.query_pairs(same_distance, p=np.inf)):
            one, two = members[a], members[b]
            if not abs(energies[one] - energies[two]) > same_energy:  # NaN, unknown, is not above
                yield one, two


def find_duplicates(
    everything: Sequence[tuple[str, int, Atoms]],
    descriptors: Sequence[np.ndarray],
    names: Sequence[str],
    same_distance: float,
    same_energy: float,
) -> list[dict[str, Any]]:
    """How many structures of one set are suspected in another, with examples; each structure counts once."""
    found: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    for one, two in suspected_pairs(everything, descriptors, same_distance, same_energy):
        found[everything[one][0], everything[two][0]].setdefault(two, one)
    table = []
    for (first, second), partners in sorted(found.items(), key=lambda item: [names.index(n) for n in item[0]]):
        pairs = [(one, two) for two, one in list(partners.items())[:5]]
        examples = [[describe(everything[k][2], everything[k][1]) for k in pair] for pair in pairs]
        table.append({"sets": [first, second], "number": len(partners), "examples": examples})
    return table


def also_in_training(train: Sequence[Atoms], others: Mapping[str, Sequence[Atoms]]) -> dict[str, list[int]]:
    """By set, the places of structures that are suspected to be among the training structures."""
    everything = [("", k, a) for k, a in enumerate(train)]
    everything += [(name, k, a) for name, part in others.items() for k, a in enumerate(part)]
    described = []
    for _, _, atoms in everything:
        i, _, distances = pairs_within(atoms, RADIUS)
        described.append(descriptor(atoms, i, distances))
    found: dict[str, set[int]] = defaultdict(set)
    for one, two in suspected_pairs(everything, described):
        if one < len(train) <= two:
            found[everything[two][0]].add(everything[two][1])
    return {name: sorted(places) for name, places in found.items()}

"""What is in a set of structures: counts, elements, label ranges, closest pairs, suspected duplicates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from mdl_physpre.structures.check import describe
from mdl_physpre.structures.duplicates import RADIUS, SAME_DISTANCE, SAME_ENERGY, descriptor, find_duplicates
from mdl_physpre.structures.label_sources import look_like_labels
from mdl_physpre.structures.labels import LABELS, get_labels, label_counts, largest_force
from mdl_physpre.structures.neighbours import closest_by_elements, pairs_within
from mdl_physpre.structures.splits import format_label_counts
from mdl_physpre.structures.state import is_unconverged
from mdl_physpre.utils.progress import progress

FAR_RADIUS = 10.0  # Å: where a pair of elements is looked for that does not meet within RADIUS
_Closest = dict[tuple[int, int], tuple[float, int]]  # distance, Å, and place of the structure, by pair of elements


def inspect_structures(
    structures: Sequence[Atoms] | Mapping[str, Sequence[Atoms]],
    *,
    same_distance: float = SAME_DISTANCE,
    same_energy: float = SAME_ENERGY,
) -> dict[str, Any]:
    """Describe one set of structures, or several by name (splits, files).

    Suspected duplicates are pairs of structures of the same reduced formula for which, element by element, mean and
    standard deviation of the distances to the k-th nearest neighbour (k = 1 … 8, within 5 Å, images included) all agree
    within ``same_distance`` (0.005 Å), and the energies per atom, where both are known, within ``same_energy``
    (1 meV/atom). Both are unchanged by translation, rotation, order of atoms and repetition of the cell. Snapshots of
    one hot run stay apart at these values; at 0.02 Å and 5 meV/atom many no longer do. Each structure counts once.

    Returns
    -------
    {"sets": {name: {"structures", "atoms", "atoms_per_structure" [min, median, max], "elements" {symbol: structures},
    "periodic", "labels", "ranges", "info", "columns",
    "other results", "unread labels"}}, "closest_pairs": [{"pair", "distance" (Å, None beyond 10 Å), "set",
    "structure"}], "duplicates": [{"sets", "number", "examples"}]}; all of it can be written as JSON.
    """
    sets: dict[str, Sequence[Atoms]] = (
        dict(structures) if isinstance(structures, Mapping) else {"structures": structures}
    )
    everything = [(name, index, atoms) for name, part in sets.items() for index, atoms in enumerate(part)]
    closest: _Closest = {}
    descriptors: list[np.ndarray] = []
    for position, (_, _, atoms) in enumerate(progress(everything, description="measuring distances")):
        i, j, distances = pairs_within(atoms, RADIUS)
        _note(closest, closest_by_elements(atoms.numbers, i, j, distances), position)
        descriptors.append(descriptor(atoms, i, distances))
    return {
        "sets": {name: _describe_set(part) for name, part in sets.items()},
        "closest_pairs": _closest_pairs(everything, closest),
        "duplicates": find_duplicates(everything, descriptors, list(sets), same_distance, same_energy),
    }


def _note(closest: _Closest, found: Mapping[tuple[int, int], float], position: int) -> None:
    for pair, distance in found.items():
        closest[pair] = min(closest.get(pair, (np.inf, -1)), (distance, position))


def _closest_pairs(everything: Sequence[tuple[str, int, Atoms]], closest: _Closest) -> list[dict[str, Any]]:
    contents = [frozenset(int(z) for z in atoms.numbers) for _, _, atoms in everything]
    pairs = sorted({p for c in set(contents) for p in combinations_with_replacement(sorted(c), 2)})
    missing = {pair for pair in pairs if pair not in closest}
    for position, (_, _, atoms) in enumerate(everything):
        if any(contents[position].issuperset(pair) for pair in missing):
            far = closest_by_elements(atoms.numbers, *pairs_within(atoms, FAR_RADIUS))
            _note(closest, {pair: far[pair] for pair in missing & set(far)}, position)
    table = []
    for pair in pairs:
        row: dict[str, Any] = {"pair": "-".join(chemical_symbols[z] for z in pair)}
        row |= {"distance": None, "set": None, "structure": None}
        if pair in closest:
            distance, position = closest[pair]
            name, index, atoms = everything[position]
            row |= {"distance": distance, "set": name, "structure": describe(atoms, index)}
        table.append(row)
    return table


def _describe_set(structures: Sequence[Atoms]) -> dict[str, Any]:
    sizes = [len(a) for a in structures] or [0]
    elements = Counter(s for a in structures for s in set(a.symbols))
    keys = Counter(str(k) for a in structures for k in a.info if k != "structure_id")
    columns = Counter(str(k) for a in structures for k in a.arrays if k not in ("numbers", "positions"))
    results = Counter(str(k) for a in structures if a.calc is not None for k in getattr(a.calc, "results", ()))
    return {
        "structures": len(structures),
        "atoms": int(sum(sizes)),
        "atoms_per_structure": [int(min(sizes)), float(np.median(sizes)), int(max(sizes))],
        "one_atom": sum(size == 1 for size in sizes) if len(structures) else 0,
        "unconverged": sum(is_unconverged(a) for a in structures),
        "elements": {s: elements[s] for s in sorted(elements, key=chemical_symbols.index)},
        "periodic": sum(bool(a.pbc.any()) for a in structures),
        "labels": label_counts(structures),
        "ranges": _ranges(structures),
        "info": dict(keys.most_common(20)),
        "columns": dict(columns.most_common(20)),
        "other results": {k: n for k, n in results.items() if k not in LABELS},
        "unread labels": look_like_labels(structures),
    }


def _ranges(structures: Sequence[Atoms]) -> dict[str, list[float]]:
    """[smallest, median, largest] of each label and of the volume per atom."""
    found: dict[str, list[float]] = defaultdict(list)
    for atoms in structures:
        labels = get_labels(atoms)
        if labels.energy is not None:
            found["energy (eV)"].append(labels.energy)
            found["energy per atom (eV)"].append(labels.energy / max(1, len(atoms)))
        if labels.forces is not None and len(atoms):
            found["largest force (eV/Å)"].append(largest_force(labels))
        if labels.stress is not None:
            found["pressure (eV/Å³)"].append(-float(np.trace(labels.stress)) / 3)
        if atoms.pbc.all() and len(atoms):
            found["volume per atom (Å³)"].append(abs(float(np.linalg.det(atoms.cell[:]))) / len(atoms))
    return {name: [float(min(v)), float(np.median(v)), float(max(v))] for name, v in found.items()}


def format_inspection(result: Mapping[str, Any]) -> str:
    """The result of ``inspect_structures`` as text for a terminal."""
    lines: list[str] = []
    for name, part in result["sets"].items():
        low, median, high = part["atoms_per_structure"]
        lines += [
            f"{name}: {part['structures']} structures, {part['atoms']} atoms ({low} to {high} per structure, "
            f"median {median:g}), {part['periodic']} periodic"
            + (f", {part['one_atom']} of one atom" if part["one_atom"] else "")
            + (f", {part['unconverged']} with electrons that did not converge" if part["unconverged"] else ""),
            "  elements (structures): " + ", ".join(f"{s} {n}" for s, n in part["elements"].items()),
        ]
        lines += [
            f"  {key:<22} {low:>12.4f} {mid:>12.4f} {high:>12.4f}   (smallest, median, largest)"
            for key, (low, mid, high) in part["ranges"].items()
        ]
        for key in ("info", "columns", "other results"):
            if part[key]:
                lines.append(f"  {key}: " + ", ".join(f"{k} ({n})" for k, n in part[key].items()))
        for entry, label in part["unread labels"].items():
            lines.append(f"  {entry} looks like {label} and is not read: --key {label}={entry}, or dataset.keys")
    lines += ["", "labels", format_label_counts({name: part["labels"] for name, part in result["sets"].items()})]
    lines += ["", "closest pairs (periodic images included)"]
    for row in result["closest_pairs"]:
        where = (
            f"{row['distance']:.3f} Å   {row['set']}, structure {row['structure']}"
            if row["distance"] is not None
            else (f"–         none within {FAR_RADIUS:g} Å")
        )
        lines.append(f"  {row['pair']:<7} {where}")
    lines += ["", "suspected duplicates"]
    for row in result["duplicates"]:
        first, second = row["sets"]
        where = f"within {first}" if first == second else f"between {first} and {second}"
        pairs = "; ".join(f"{a} ~ {b}" for a, b in row["examples"])
        lines.append(f"  {where}: {row['number']} structures, e.g. {pairs}")
    if not result["duplicates"]:
        lines.append("  none")
    return "\n".join(lines)

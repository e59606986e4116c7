"""Checks of what must not change a potential: moving, turning, renumbering, repeating, and asking twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from scipy.stats import special_ortho_group

from mdl_physpre.potential_checks.subject import (
    NOT_APPLICABLE,
    PASSED,
    WARNING,
    Check,
    Results,
    Subject,
    is_periodic,
    moved,
    worst,
)
from mdl_physpre.structures.state import of_copies, put_state, repeated


@dataclass
class Transformed:
    """A structure that must have the same energy, and how forces and stress change from the original to it."""

    atoms: Atoms
    rotation: np.ndarray
    order: np.ndarray


def symmetry_checks(subject: Subject) -> Iterator[Check]:
    """E(T x) = E(x), F(T x) = F(x) R with atoms in their new order, σ(T x) = Rᵀ σ(x) R for each change T."""
    before = subject.predict(subject.structures, stress=True)
    for name, (change, text) in CHANGES.items():
        made = [change(atoms, subject.random(name, k)) for k, atoms in enumerate(subject.structures)]
        kept = [k for k, new in enumerate(made) if new is not None]
        if not kept:
            yield Check(name, NOT_APPLICABLE, text="no structure is periodic in enough directions")
            continue
        new = [t for t in made if t is not None]
        after = subject.predict([t.atoms for t in new], stress=True)
        forces = [before.forces[k][t.order] @ t.rotation for k, t in zip(kept, new)]
        expected = Results(before.energies[kept], forces)
        limits, where = (subject.bounds.energy, subject.bounds.force), [f"structure {k}" for k in kept]
        yield from _compare(name, after, expected, limits, text, where)
        whole = [n for n, k in enumerate(kept) if is_periodic(subject.structures[k])]
        if name != ROTATION or not whole:
            continue
        if after.stress is None or before.stress is None:
            verdict, reason = (before if before.stress is None else after).no_stress
            yield Check(f"{name}: stress", verdict, text=reason)
            continue
        stress = [new[n].rotation.T @ before.stress[kept[n]] @ new[n].rotation for n in whole]
        differences = [_largest(after.stress[n] - s) for n, s in zip(whole, stress)]
        bounds = [subject.bounds.stress * max(1.0, _largest(s)) for s in stress]
        yield worst(f"{name}: stress", differences, bounds, "eV/Å³", text, [where[n] for n in whole])


def _compare(
    name: str, found: Results, expected: Results, limits: tuple[float, float], text: str, where: list[str]
) -> Iterator[Check]:
    """Energies for each atom, and forces, within ``limits`` for values up to 1 and in proportion to larger ones."""
    sizes = np.array([len(f) for f in found.forces])
    differences = np.abs(found.energies - expected.energies) / sizes
    bounds = limits[0] * np.maximum(1.0, np.abs(expected.energies) / sizes)
    yield worst(f"{name}: energy", differences, bounds, "eV/atom", text, where)
    differences = [_largest(a - b) for a, b in zip(found.forces, expected.forces)]
    bounds = [limits[1] * max(1.0, _largest(f)) for f in expected.forces]
    yield worst(f"{name}: forces", differences, bounds, "eV/Å", text, where)


def _largest(array: np.ndarray) -> float:
    return float(np.abs(array).max(initial=0.0)) if np.isfinite(array).all() else np.nan


def _plain(atoms: Atoms) -> Transformed:
    return Transformed(atoms, np.eye(3), np.arange(len(atoms)))


def _translated(atoms: Atoms, rng: np.random.Generator) -> Transformed:
    return _plain(moved(atoms, rng.uniform(-5, 5, 3)))


def turned(atoms: Atoms, rotation: np.ndarray) -> Atoms:
    """A copy with positions and cell vectors v → v R, R (3, 3): forces become F R, stress Rᵀ σ R."""
    other = atoms.copy()
    other.set_cell(atoms.cell[:] @ rotation)
    other.positions = atoms.positions @ rotation
    return other


def _rotated(atoms: Atoms, rng: np.random.Generator) -> Transformed:
    rotation = special_ortho_group.rvs(3, random_state=rng)
    return Transformed(turned(atoms, rotation), rotation, np.arange(len(atoms)))


def _mirrored(atoms: Atoms, rng: np.random.Generator) -> Transformed:
    mirror = special_ortho_group.rvs(3, random_state=rng) @ np.diag([-1.0, 1.0, 1.0])
    made = turned(atoms, mirror)
    made.set_cell(made.cell[:] * [[-1.0], [1.0], [1.0]])  # the same lattice, as right-handed as before
    return Transformed(made, mirror, np.arange(len(atoms)))


def _renumbered(atoms: Atoms, rng: np.random.Generator) -> Transformed | None:
    if len(atoms) < 2:
        return None
    order = rng.permutation(len(atoms))
    return Transformed(atoms[order], np.eye(3), order)


def _one_atom_in_another_cell(atoms: Atoms, rng: np.random.Generator) -> Transformed | None:
    if not atoms.pbc.any():
        return None
    shift = np.zeros((len(atoms), 3))
    shift[rng.integers(len(atoms))] = (rng.choice([-3, -2, -1, 1, 2, 3], 3) * atoms.pbc) @ atoms.cell[:]
    return _plain(moved(atoms, shift))


def _wrapped(atoms: Atoms, rng: np.random.Generator) -> Transformed | None:
    if not atoms.pbc.any():
        return None
    other = moved(atoms, rng.uniform(-5, 5, 3))
    other.wrap()
    return _plain(other)


def _other_cell(atoms: Atoms, rng: np.random.Generator) -> Transformed | None:
    directions = np.flatnonzero(atoms.pbc)
    if len(directions) < 2:
        return None
    a, b = rng.permutation(directions)[:2]
    cell = atoms.cell[:].copy()
    cell[a] += cell[b]
    other = atoms.copy()
    other.set_cell(cell)
    return _plain(other)


ROTATION = "rotation"
Change = Callable[[Atoms, np.random.Generator], "Transformed | None"]
CHANGES: dict[str, tuple[Change, str]] = {
    "translation": (_translated, "all atoms moved by one vector"),
    ROTATION: (_rotated, "structure and cell turned together"),
    "mirror image": (_mirrored, "structure and cell reflected together"),
    "permutation": (_renumbered, "atoms in another order"),
    "lattice translation of one atom": (_one_atom_in_another_cell, "one atom moved by lattice vectors"),
    "wrapping": (_wrapped, "atoms translated, then wrapped into the cell"),
    "other cell of the lattice": (_other_cell, "one lattice vector replaced by its sum with another"),
}


def net_force_check(subject: Subject) -> Iterator[Check]:
    """Σ_i F_i = 0: nothing pushes a structure as a whole."""
    found = subject.predict(subject.structures)
    yield worst(
        "net force",
        [_largest(f.sum(0)) for f in found.forces],
        [subject.bounds.force * len(f) * max(1.0, _largest(f)) for f in found.forces],
        "eV/Å",
        "sum of the forces on all atoms",
        [f"structure {k}" for k in range(len(found.forces))],
    )


def supercell_checks(subject: Subject) -> Iterator[Check]:
    """E of n cells is n E of one, with the same forces on every copy."""
    base = subject.predict(subject.structures)
    made, names, energies, forces = [], [], [], []
    for k, atoms in enumerate(subject.structures):
        for repeats in ((2, 1, 1), (1, 2, 2)):
            times = np.where(atoms.pbc, repeats, 1)
            n = int(times.prod())
            if n > 1:
                made.append(repeated(atoms, times))
                names.append(f"structure {k}, {' x '.join(map(str, times))} cells")
                energies.append(n * base.energies[k])
                forces.append(np.tile(base.forces[k], (n, 1)))
    if not made:
        yield Check("supercell", NOT_APPLICABLE, text="no structure is periodic")
        return
    expected, limits = Results(np.array(energies), forces), (subject.bounds.energy, subject.bounds.force)
    yield from _compare("supercell", subject.predict(made), expected, limits, "supercell less so many cells", names)


def far_copies_check(subject: Subject) -> Iterator[Check]:
    """Two copies of a cluster, far apart, have twice its energy."""
    clusters = [put_state(Atoms(atoms.numbers, atoms.positions), atoms) for atoms in subject.structures]
    pairs = []
    for cluster in clusters:
        pairs.append(cluster + moved(cluster, np.array([subject.far + np.ptp(cluster.positions[:, 0]), 0.0, 0.0])))
        pairs[-1].info = of_copies(cluster.info, 2)
    one, two = subject.predict(clusters), subject.predict(pairs)
    sizes = np.array([len(cluster) for cluster in clusters])
    yield worst(
        "two far copies: energy",
        np.abs(two.energies - 2 * one.energies) / (2 * sizes),
        subject.bounds.energy * np.maximum(1.0, np.abs(one.energies) / sizes),
        "eV/atom",
        f"two copies of the atoms of a cell, {subject.far:g} Å apart, less twice one",
        [f"structure {k}" for k in range(len(clusters))],
    )


def determinism_checks(subject: Subject) -> Iterator[Check]:
    """The same numbers twice, and the same in a batch as alone."""
    together, again = subject.predict(subject.structures), subject.predict(subject.structures)
    alone = [subject.predict([atoms]) for atoms in subject.structures]
    single = Results(np.array([r.energies[0] for r in alone]), [r.forces[0] for r in alone])
    same, close = subject.bounds.repeat, (subject.bounds.energy, subject.bounds.force)
    text, where = "difference of the two", [f"structure {k}" for k in range(len(subject.structures))]
    yield from _compare("asked twice", again, together, (same, same), text, where)
    yield from _compare("alone or in a batch", single, together, close, text, where)


def precision_check(subject: Subject) -> Iterator[Check]:
    """max |F(single) − F(double)|: what rounding costs in molecular dynamics; a warning, because forces stay usable."""
    name = "single against double precision"
    if not subject.converted:
        kept = "double" if subject.double else "single"
        yield Check(name, NOT_APPLICABLE, text=f"the potential computes in {kept} precision and in no other")
        return
    exact = subject.predict(subject.structures)
    rounded = subject.predict(subject.structures, potential=subject.given)
    scale = [max(1.0, _largest(f)) for f in exact.forces]
    found = worst(
        name,
        [_largest(a - b) for a, b in zip(rounded.forces, exact.forces)],
        [1e-3 * s for s in scale],
        "eV/Å",
        "forces of the potential as it is stored, less those of its copy in double precision",
        [f"structure {k}" for k in range(len(scale))],
    )
    verdict = found.verdict if found.verdict == PASSED or found.number is None else WARNING
    yield Check(name, verdict, found.number, found.unit, found.bound, found.text)

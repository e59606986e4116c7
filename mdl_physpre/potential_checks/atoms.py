"""Checks of the smallest systems: one atom, atoms without neighbours, two atoms that are too close, and pair curves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols

from mdl_physpre.analysis.energy_curves import pair_name
from mdl_physpre.potential_checks.subject import (
    FAILED,
    NOT_APPLICABLE,
    PASSED,
    WARNING,
    Check,
    Results,
    Subject,
    worst,
)
from mdl_physpre.potentials.eam.covalent_radii import covalent_radius
from mdl_physpre.potentials.zbl import nuclear_repulsion

CLOSE = 0.3  # Å, where the curves begin
HEIGHT_AT = 0.5  # Å
SPACING = 0.02  # Å, of the curves
WALL = 10.0  # eV above the minimum
RANGE = 6.0  # Å, where the cutoff is not known


def lone_atom_check(subject: Subject) -> Iterator[Check]:
    """One atom in space has an energy and no force."""
    names = _symbols(subject)
    found = subject.predict([Atoms([z], [[0.3, 0.2, 0.1]]) for z in subject.elements])
    told = ", ".join(f"{n} {e:.6g}" for n, e in zip(names, found.energies))
    text = f"largest force on it; energies in eV: {told}"
    yield worst("one atom alone", _sizes(found), [subject.bounds.force] * len(names), "eV/Å", text, names)


def periodic_atom_check(subject: Subject) -> Iterator[Check]:
    """One atom with nothing but its own images has no force."""
    names = _symbols(subject)
    shape = np.array([[1.0, 0, 0], [0.2, 1.1, 0], [-0.3, 0.1, 1.2]])
    cells = [2.2 * covalent_radius(z) * shape for z in subject.elements]
    found = subject.predict(
        [Atoms([z], [[0.3, 0.2, 0.1]], cell=cell, pbc=True) for z, cell in zip(subject.elements, cells)]
    )
    text = "largest force on an atom with nothing but its own images"
    yield worst("one atom in a periodic cell", _sizes(found), [subject.bounds.force] * len(names), "eV/Å", text, names)


def no_neighbours_checks(subject: Subject) -> Iterator[Check]:
    """Two atoms beyond any edge have the energies of each alone, and no forces."""
    elements, pairs = subject.elements, subject.pairs
    alone = dict(zip(elements, subject.predict([Atoms([z], [[0.3, 0.2, 0.1]]) for z in elements]).energies))
    apart = subject.predict([_dimer(a, b, subject.far) for a, b in pairs])
    both = [alone[a] + alone[b] for a, b in pairs]
    names = [pair_name((a, b)) for a, b in pairs]
    text = f"energy of two atoms {subject.far:g} Å apart, less that of each alone"
    limits = [subject.bounds.energy * max(1.0, abs(e)) for e in both]
    yield worst("no neighbours: energy", [abs(e - s) for e, s in zip(apart.energies, both)], limits, "eV", text, names)
    text = f"largest force on two atoms {subject.far:g} Å apart"
    limits = [subject.bounds.force] * len(pairs)
    yield worst("no neighbours: forces", _sizes(apart), limits, "eV/Å", text, names)


def close_pair_check(subject: Subject) -> Iterator[Check]:
    """Two atoms at 0.3 Å must have finite energy and be pushed apart."""
    pairs = subject.pairs
    found = subject.predict([_dimer(a, b, CLOSE) for a, b in pairs])
    outward = np.array([0.5 * (f[1, 0] - f[0, 0]) for f in found.forces])
    finite = np.isfinite(found.energies) & np.isfinite(outward)
    name = f"two atoms at {CLOSE} Å"
    text = "smallest force that pushes the two apart"
    if not finite.all():
        lost = ", ".join(pair_name(p) for p, f in zip(pairs, finite) if not f)
        yield Check(name, FAILED, None, "eV/Å", 0.0, f"not finite: {lost}", True)
        return
    k = int(np.argmin(outward))
    pulled = [pair_name(p) for p, f in zip(pairs, outward) if f <= 0]
    told = f"; pulled together: {', '.join(pulled)}" if pulled else f"; {pair_name(pairs[k])}"
    yield Check(name, FAILED if pulled else PASSED, float(outward[k]), "eV/Å", 0.0, text + told, True)


@dataclass(frozen=True)
class PairCurve:
    """Energy of two atoms alone, less that of the two far apart.

    distances (n,) Å, rising from 0.3 Å; energies (n,) eV; ``minimum`` index of the lowest energy at distances that
    atoms have (from 0.7 of the sum of covalent radii); ``level`` eV above it that counts as the wall.
    """

    pair: tuple[int, int]
    distances: np.ndarray
    energies: np.ndarray
    minimum: int
    level: float

    @property
    def rise(self) -> np.ndarray:
        """Energy above the minimum, (n,), eV."""
        return self.energies - self.energies[self.minimum]

    def wall(self) -> float | None:
        """Largest distance below the minimum at which the energy is ``level`` above it, Å; ``None`` without a wall."""
        inside = self.rise[: self.minimum + 1]
        high = np.flatnonzero(inside >= self.level)
        if not len(high):
            return None
        k = int(high[-1])
        if k == self.minimum:
            return float(self.distances[k])
        part = (inside[k] - self.level) / (inside[k] - inside[k + 1])
        return float(self.distances[k] + part * (self.distances[k + 1] - self.distances[k]))

    def drop(self, tolerance: float) -> tuple[float, float | None, float]:
        """Largest fall of energy on the way in from the minimum, eV; where the first begins, and how high above it."""
        inward = self.rise[: self.minimum + 1][::-1]
        highest = np.maximum.accumulate(inward)
        falls = highest - inward
        first = np.flatnonzero(falls > tolerance)
        if not len(first):
            return float(falls.max()), None, np.inf
        top = int(np.argmax(inward[: first[0] + 1]))
        return float(falls.max()), float(self.distances[self.minimum - top]), float(inward[top])


def pair_curves(subject: Subject) -> list[PairCurve]:
    """The curve of every pair of elements, from 0.3 Å to the cutoff."""
    end = subject.cutoff or RANGE
    distances = np.arange(CLOSE, end + SPACING / 2, SPACING)
    curves = []
    for a, b in subject.pairs:
        energies = subject.predict([_dimer(a, b, r) for r in [*distances, subject.far]], forces=False).energies
        energies = energies[:-1] - energies[-1]
        bonded = 0.7 * (covalent_radius(a) + covalent_radius(b))
        first = min(int(np.searchsorted(distances, bonded)), len(distances) - 1)
        # two nuclei of hydrogen repel each other by less than the wall at any distance that matters
        level = min(WALL, 0.2 * float(nuclear_repulsion(a, b, torch.tensor(HEIGHT_AT))))
        minimum = first + int(np.argmin(np.where(np.isfinite(energies[first:]), energies[first:], np.inf)))
        curves.append(PairCurve((a, b), distances, energies, minimum, level))
    return curves


def pair_curve_checks(subject: Subject) -> Iterator[Check]:
    """For each pair: where the wall stands, its height at 0.5 Å, and whether it rises all the way in."""
    for curve in pair_curves(subject):
        name = f"pair {pair_name(curve.pair)}"
        if not np.isfinite(curve.energies).all():
            lost = curve.distances[~np.isfinite(curve.energies)]
            yield Check(f"{name}: wall", FAILED, text=f"energy not finite from {lost.min():.2f} to {lost.max():.2f} Å")
            continue
        at, depth = curve.distances[curve.minimum], curve.energies[curve.minimum]
        lowest = f"minimum {depth:.3g} eV at {at:.2f} Å"
        wall = curve.wall()
        if wall is None:
            top = int(np.argmax(curve.rise[: curve.minimum + 1]))
            text = (
                f"no wall of {curve.level:.3g} eV: {curve.rise[top]:.3g} eV at {curve.distances[top]:.2f} Å; {lowest}"
            )
            yield Check(f"{name}: wall", FAILED, None, "Å", CLOSE, text, True)
        else:
            text = f"distance at which it is {curve.level:.3g} eV above the minimum; {lowest}"
            yield Check(f"{name}: wall", PASSED, wall, "Å", CLOSE, text, True)
        yield _height(name, curve)
        yield _monotonic(subject, name, curve)


def _height(name: str, curve: PairCurve) -> Check:
    name, height = f"{name}: height at {HEIGHT_AT} Å", float(np.interp(HEIGHT_AT, curve.distances, curve.rise))
    bond = sum(covalent_radius(z) for z in curve.pair)
    if HEIGHT_AT > 0.6 * bond:
        return Check(name, NOT_APPLICABLE, height, "eV", text=f"within a bond of these elements ({bond:.2f} Å)")
    verdict = PASSED if height >= curve.level else FAILED
    return Check(name, verdict, height, "eV", curve.level, "energy above the minimum", True)


def _monotonic(subject: Subject, name: str, curve: PairCurve) -> Check:
    bound = subject.bounds.drop
    drop, where, height = curve.drop(bound)
    text = f"largest fall of energy on the way in from the minimum to {CLOSE} Å"
    verdict = PASSED
    if where is not None:
        text += f"; it first falls from {height:.3g} eV at {where:.2f} Å"
        verdict = WARNING if height >= curve.level else FAILED
    return Check(f"{name}: rises inwards", verdict, drop, "eV", bound, text)


def _dimer(a: int, b: int, distance: float) -> Atoms:
    return Atoms([a, b], [[0, 0, 0], [distance, 0, 0]])


def _symbols(subject: Subject) -> list[str]:
    return [chemical_symbols[z] for z in subject.elements]


def _sizes(found: Results) -> list[float]:
    """Largest force component of each structure; NaN where energy or forces are not finite."""
    return [
        float(np.abs(f).max()) if np.isfinite(e) and np.isfinite(f).all() else np.nan
        for e, f in zip(found.energies, found.forces)
    ]

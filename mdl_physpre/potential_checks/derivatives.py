"""Checks of forces and stress against finite differences of the energy, and of smoothness at the cutoff."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from ase import Atoms

from mdl_physpre.analysis.energy_curves import pair_name
from mdl_physpre.potential_checks.subject import (
    FAILED,
    NOT_APPLICABLE,
    PASSED,
    Check,
    Subject,
    is_periodic,
    moved,
    worst,
)
from mdl_physpre.structures.neighbours import neighbour_list

NOISE = 20.0  # resolutions of the energy that a finite difference may be off
SAMPLES = 12  # force components of each structure
STENCIL = np.array([-2, -1, 1, 2])
WEIGHTS = np.array([1, -8, 8, -1]) / 12.0


def derivative_checks(subject: Subject) -> Iterator[Check]:
    """F = −dE/dr and σ = (1/V) dE/dε against (8[E(h) − E(−h)] − [E(2h) − E(−2h)])/12h.

    A difference across which an edge enters or leaves the cutoff is left out: that is what smoothness is checked by.
    """
    yield _forces(subject)
    yield _stress(subject)


def _forces(subject: Subject) -> Check:
    step = subject.bounds.step
    differences, bounds, where, crossed = [], [], [], 0
    found = subject.predict(subject.structures)
    for k, atoms in enumerate(subject.structures):
        rng = subject.random("force", k)
        components = rng.permutation(3 * len(atoms))[:SAMPLES]
        tried = [displaced(atoms, c, s * step) for c in components for s in STENCIL]
        found_slopes, kept = _slopes(subject, atoms, tried, step)
        crossed += int((~kept).sum())
        bound = subject.bounds.force_slope * float(np.abs(found.forces[k]).max()) + NOISE * subject.resolution / step
        for c, slope in zip(components[kept], found_slopes[kept]):
            differences.append(abs(slope + found.forces[k].reshape(-1)[c]))
            bounds.append(bound)
            where.append(f"structure {k}, atom {c // 3}, {'xyz'[c % 3]}")
    text = f"largest of {len(differences)} force components, finite differences of {step:g} Å{_left_out(crossed)}"
    return worst("forces are the slope of the energy", differences, bounds, "eV/Å", text, where)


def _stress(subject: Subject) -> Check:
    name = "stress is the slope of the energy"
    whole = [(k, atoms) for k, atoms in enumerate(subject.structures) if is_periodic(atoms)]
    if not whole:
        return Check(name, NOT_APPLICABLE, text="no structure has a full periodic cell")
    found = subject.predict([atoms for _, atoms in whole], stress=True)
    if found.stress is None:
        verdict, reason = found.no_stress
        return Check(name, verdict, text=reason)
    step = subject.bounds.strain
    differences, bounds, where, crossed = [], [], [], 0
    pairs = [(a, b) for a in range(3) for b in range(a, 3)]
    for (k, atoms), stress in zip(whole, found.stress):
        tried = [strained(atoms, a, b, s * step) for a, b in pairs for s in STENCIL]
        found_slopes, kept = _slopes(subject, atoms, tried, step)
        crossed += int((~kept).sum())
        noise = NOISE * subject.resolution / (step * atoms.get_volume())
        for (a, b), slope, keep in zip(pairs, found_slopes / atoms.get_volume(), kept):
            if keep:
                differences.append(abs(slope - stress[a, b]))
                bounds.append(subject.bounds.stress_slope * float(np.abs(stress).max()) + noise)
                where.append(f"structure {k}, {'xyz'[a]}{'xyz'[b]}")
    text = f"largest of {len(differences)} components, finite strains of {step:g}{_left_out(crossed)}"
    return worst(name, differences, bounds, "eV/Å³", text, where)


def _left_out(crossed: int) -> str:
    return f"; {crossed} left out, where an edge crosses the cutoff" if crossed else ""


def displaced(atoms: Atoms, component: int, by: float) -> Atoms:
    """A copy with one coordinate, counted through all atoms (x, y, z of the first, …), changed by so many Å."""
    other = atoms.copy()
    other.positions[component // 3, component % 3] += by
    return other


def strained(atoms: Atoms, a: int, b: int, by: float) -> Atoms:
    """A copy under the strain ε_ab = ε_ba = ``by``/2, or ε_aa = ``by``; the slope dE/d(by) is V σ_ab."""
    strain = np.eye(3)
    strain[a, b] += by / 2
    strain[b, a] += by / 2
    other = atoms.copy()
    other.set_cell(atoms.cell[:] @ strain)
    other.positions = atoms.positions @ strain
    return other


def slopes(energies: np.ndarray, step: float) -> np.ndarray:
    """dE/dx (n,) from energies (n, 4) at the multiples ``STENCIL`` of ``step``; the error is of fourth order."""
    return energies @ WEIGHTS / step


def _slopes(subject: Subject, atoms: Atoms, tried: Sequence[Atoms], step: float) -> tuple[np.ndarray, np.ndarray]:
    """Slopes by the stencil, and which of them no edge crosses; all where there are no others."""
    energies = subject.predict(tried, forces=False).energies.reshape(-1, len(STENCIL))
    edges = subject.count_edges([atoms, *tried])
    kept = (edges[1:].reshape(-1, len(STENCIL)) == edges[0]).all(1)
    return slopes(energies, step), kept if kept.any() else np.ones_like(kept)


def smoothness_checks(subject: Subject) -> Iterator[Check]:
    """Jumps of energy and forces where a pair of atoms comes to the cutoff, alone and inside a structure.

    J(h) = f(r_c + h) − f(r_c − h); 2 J(h/2) − J(h) has no slope in it, and is the jump.
    """
    if not subject.cutoff:
        yield Check(
            "smooth at the cutoff", NOT_APPLICABLE, text="the potential does not say where its cutoff is; name it"
        )
        return
    cutoffs = {"cutoff": subject.cutoff}
    inner = getattr(subject.potential, "threebody_cutoff", None)
    if isinstance(inner, float) and 0 < inner < subject.cutoff:
        cutoffs["three-body cutoff"] = inner
    for name, radius in cutoffs.items():
        apart = np.array([[0, 0, 0], [0, 0, 1.0]])
        dimers = [(Atoms(list(pair), radius * apart), apart, pair_name(pair)) for pair in subject.pairs]
        yield from _jumps(subject, f"smooth at the {name}, two atoms", dimers)
        inside = [_crossing(atoms, radius, k) for k, atoms in enumerate(subject.structures)]
        yield from _jumps(subject, f"smooth at the {name}, in a structure", [c for c in inside if c is not None])


def _crossing(atoms: Atoms, radius: float, number: int) -> tuple[Atoms, np.ndarray, str] | None:
    """The structure with one atom moved so that a pair is ``radius`` apart, and the direction that parts the two."""
    i, j, shifts = neighbour_list(atoms.positions, atoms.cell[:], atoms.pbc, radius + 0.6)
    vectors = atoms.positions[j] - atoms.positions[i] + shifts @ atoms.cell[:]
    distances = np.linalg.norm(vectors, axis=1)
    others = np.flatnonzero(i != j)
    if not len(others):
        return None
    pair = others[np.argmin(np.abs(distances[others] - radius))]
    direction = np.zeros((len(atoms), 3))
    direction[j[pair]] = vectors[pair] / distances[pair]
    placed = moved(atoms, direction * (radius - distances[pair]))
    return placed, direction, f"structure {number}, atoms {i[pair]} and {j[pair]}"


def _jumps(subject: Subject, name: str, places: Sequence[tuple[Atoms, np.ndarray, str]]) -> Iterator[Check]:
    if not places:
        yield Check(name, NOT_APPLICABLE, text="no two atoms of a structure come to the cutoff")
        return
    gap = subject.bounds.gap
    steps = [-gap, -gap / 2, gap / 2, gap]
    found = subject.predict([moved(atoms, s * direction) for atoms, direction, _ in places for s in steps])
    energies, energy_bounds, forces, force_bounds = [], [], [], []
    for n in range(len(places)):
        e, f = found.energies[4 * n : 4 * n + 4], found.forces[4 * n : 4 * n + 4]
        energies.append(abs(2 * (e[2] - e[1]) - (e[3] - e[0])))
        forces.append(float(np.abs(2 * (f[2] - f[1]) - (f[3] - f[0])).max()))
        scale = max(1.0, float(np.abs(f).max()))
        energy_bounds.append(subject.bounds.energy_jump * scale)
        force_bounds.append(subject.bounds.force_jump * scale)
    where = [place for _, _, place in places]
    text = f"jump between {gap:g} Å inside and outside of the cutoff, less the slope"
    yield worst(f"{name}: energy", energies, energy_bounds, "eV", text, where)
    yield worst(f"{name}: forces", forces, force_bounds, "eV/Å", text, where)


def finite_check(subject: Subject) -> Iterator[Check]:
    """Whether all energies, forces and stress of the structures are numbers."""
    try:
        found = subject.predict(subject.structures, stress=True)
    except NotImplementedError as error:  # a reason to leave out another check; but without forces nothing can move
        yield Check("finite numbers", FAILED, text=f"forces are not implemented: {error}")
        return
    bad = []
    for k, atoms in enumerate(subject.structures):
        numbers = [found.energies[k : k + 1], found.forces[k].reshape(-1)]
        if found.stress is not None and is_periodic(atoms):
            numbers.append(found.stress[k].reshape(-1))
        if not all(np.isfinite(n).all() for n in numbers):
            bad.append(k)
    text = f"structures with NaN or infinity among {len(subject.structures)}" + (f": {bad}" if bad else "")
    yield Check("finite numbers", FAILED if bad else PASSED, float(len(bad)), "structures", 0.0, text)

"""Checks of derivatives, symmetries, sums and limits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms

from mdl_physpre.potential_checks.derivatives import STENCIL, displaced, strained
from mdl_physpre.potential_checks.symmetry import CHANGES
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import build_graph
from mdl_physpre.testing.comparison import (
    STEP,
    Structures,
    chosen_structures,
    energy_slopes,
    force_scale,
    hold,
    hold_slope,
    in_double,
    numbers_of,
    one_by_one,
    predict,
    size_of,
    told,
)

NAMES = ("energies", "forces", "stress")


def check_forces(potential: Potential, structures: Structures | None = None, *, training: bool = False) -> None:
    """F_i = −dE/dr_i, by finite differences; with ``training`` in the form that is differentiable once more."""
    potential, structures = in_double(potential), chosen_structures(potential, structures)
    for atoms, found in zip(structures, one_by_one(potential, structures, training)):
        moves = [displaced(atoms, c, h * STEP) for c in range(3 * len(atoms)) for h in STENCIL]
        expected = -energy_slopes(potential, moves, training).reshape(-1, 3)
        hold_slope(f"forces on {told(atoms)}, against finite differences", found.forces, expected, found)


def check_stress(potential: Potential, structures: Structures | None = None, *, training: bool = False) -> None:
    """σ = (1/V) dE/dε of a symmetric strain ε, by finite differences; NaN for a structure without a cell."""
    potential, structures = in_double(potential), chosen_structures(potential, structures)
    for atoms, found in zip(structures, one_by_one(potential, structures, training) if potential.gives_stress else ()):
        what = f"stress of {told(atoms)}"
        if atoms.cell.rank < 3:
            hold(what, found.stress, np.full((1, 3, 3), np.nan), 0.0)
            continue
        moves = [strained(atoms, a, b, h * STEP) for a in range(3) for b in range(3) for h in STENCIL]
        expected = energy_slopes(potential, moves, training).reshape(1, 3, 3) / atoms.get_volume()
        hold_slope(f"{what}, against finite differences", found.stress, expected, found, atoms.get_volume())


def check_invariances(potential: Potential, structures: Structures | None = None, seed: int = 0) -> None:
    """E, F and σ under rotation, reflection, translation, permutation, other images of an atom and other cells."""
    potential, structures = in_double(potential), chosen_structures(potential, structures)
    rng = np.random.default_rng(seed)
    for atoms in structures:
        before, volume = predict(potential, [atoms]), atoms.cell.rank == 3
        scale, forces = force_scale(before), numbers_of(before.forces)
        hold(f"sum of the forces on {told(atoms)}", forces.sum(0), np.zeros(3), 1e-10 * scale * len(atoms))
        if before.stress is not None and volume:
            stress = numbers_of(before.stress)
            hold(f"stress of {told(atoms)}, transposed", stress, stress.transpose(0, 2, 1), 1e-10 * scale)
        for name, (change, _) in CHANGES.items():
            made = change(atoms, rng)
            if made is None:
                continue
            after, what = predict(potential, [made.atoms]), f"of {told(atoms)} after a change ({name})"
            energy = numbers_of(before.energies)
            hold(f"energy {what}", after.energies, energy, 1e-10 * scale + 1e-12 * np.abs(energy).max())
            hold(f"forces {what}", after.forces, forces[made.order] @ made.rotation, 1e-9 * scale)
            if before.stress is not None and volume:
                hold(f"stress {what}", after.stress, made.rotation.T @ stress @ made.rotation, 1e-9 * scale)


def check_extensive(potential: Potential, structures: Structures | None = None) -> None:
    """n cells have n times the energy of one, the same forces and the same stress; distant clusters add up."""
    potential, structures = in_double(potential), chosen_structures(potential, structures)
    for atoms in structures:
        times = np.where(atoms.pbc, (2, 1, 3), 1)
        n, one = int(times.prod()), predict(potential, [atoms])
        many, what = predict(potential, [atoms.repeat(times)]), f"of {n} cells of {told(atoms)}"
        energy, scale = n * numbers_of(one.energies), force_scale(one)
        hold(f"energy {what}", many.energies, energy, 1e-11 * np.abs(energy).max() + 1e-11)
        hold(f"forces {what}", many.forces, np.tile(numbers_of(one.forces), (n, 1)), 1e-10 * scale)
        if one.stress is not None and times[atoms.pbc].size == 3:
            hold(f"stress {what}", many.stress, one.stress, 1e-10 * scale)
    first, second = (Atoms(a.numbers, a.positions) for a in (structures[0], structures[-1]))
    second.positions += [10 * potential.cutoff + np.ptp(np.vstack([first.positions, second.positions]), 0).max(), 0, 0]
    found, both = predict(potential, [first, second]), predict(potential, [first + second])
    energy = numbers_of(found.energies).sum(keepdims=True)
    hold("energy of two distant clusters", both.energies, energy, 1e-11 * np.abs(energy).max() + 1e-11)
    hold("forces on two distant clusters", both.forces, found.forces, 1e-10 * force_scale(found))


def check_batches(potential: Potential, structures: Structures | None = None, *, training: bool = False) -> None:
    """A batch gives what its structures give one by one; and the same with ``training`` as without."""
    potential, structures = in_double(potential), chosen_structures(potential, structures)
    together, single = predict(potential, structures, training), one_by_one(potential, structures, training)
    for name in NAMES if potential.gives_stress else NAMES[:2]:
        expected = np.concatenate([numbers_of(getattr(p, name)) for p in single])
        size = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
        hold(f"{name} of a batch, against one by one", getattr(together, name), expected, 1e-12 * size + 1e-11)


def check_no_edges(potential: Potential, structures: Structures | None = None, *, training: bool = False) -> None:
    """An atom without neighbours has one energy in any box, no force and no stress; such energies add up."""
    potential = in_double(potential)
    numbers = sorted({int(z) for atoms in chosen_structures(potential, structures) for z in atoms.numbers})
    box = 3 * potential.cutoff + 9.0
    for z, other in zip(numbers, numbers[::-1]):
        free, boxed, second = Atoms([z]), Atoms([z], cell=[box] * 3, pbc=True), Atoms([other])
        found = predict(potential, [free, boxed, second], training)
        pair = Atoms([z, other], positions=[[0, 0, 0], [box, 0, 0]])
        energies = numbers_of(found.energies)
        what = f"energy of {told(free)}"
        hold(f"{what} in a box, against free", energies[1], energies[0], 1e-12 * abs(energies[0]))
        apart = predict(potential, [pair], training)
        hold(f"energy of distant {told(pair)}", apart.energies[0], energies[0] + energies[2], 1e-11 * size_of(energies))
        for one in (found, apart):
            hold("forces on atoms without neighbours", one.forces, 0 * numbers_of(one.forces), 0.0)
        if found.stress is not None:
            hold("stress of an atom in an empty box", found.stress[1], np.zeros((3, 3)), 0.0)
            hold("stress without a cell", found.stress[[0, 2]], np.full((2, 3, 3), np.nan), 0.0)


def check_what_is_asked(potential: Potential, structures: Structures | None = None, *, training: bool = False) -> None:
    """Forces and stress are there where they are asked for, ``None`` where not; the energies stay the same."""
    potential, structures = in_double(potential), chosen_structures(potential, structures)
    graph, expected = build_graph(structures, potential.cutoff), predict(potential, structures)
    for forces, stress in ((True, False), (False, potential.gives_stress), (False, False)):
        found = evaluate(potential, graph, forces=forces, stress=stress, create_graph=training)
        what = f"asked for forces={forces}, stress={stress}"
        given = (found.forces is not None, found.stress is not None)
        assert given == (forces, stress), f"{what}; found {given}"
        hold(f"energies, {what}", found.energies, expected.energies, 1e-5 + 1e-5 * size_of(expected.energies))


def check_edges_beyond_cutoff(potential: Potential, structures: Structures | None = None) -> None:
    """Edges at or beyond ``cutoff`` count nothing: neighbour lists in dynamics are longer than the cutoff."""
    potential, structures = in_double(potential), chosen_structures(potential, structures)
    found = evaluate(potential, build_graph(structures, potential.cutoff + 1.0), stress=potential.gives_stress)
    expected = predict(potential, structures)
    for name in NAMES if potential.gives_stress else NAMES[:2]:
        value = getattr(expected, name)
        hold(f"{name} with edges beyond the cutoff", getattr(found, name), value, 1e-9 + 1e-9 * size_of(value))


def check_smooth_at_cutoff(
    potential: Potential,
    structures: Structures | None = None,
    *,
    cutoffs: Sequence[float] | None = None,
    curvature: bool = False,
) -> None:
    """Energy and forces, and with ``curvature`` their slopes, are continuous where a term ends.

    Two atoms pass through each distance of ``cutoffs`` (Å; ``potential.cutoff`` where ``None``) beside a third.
    """
    potential = in_double(potential)
    numbers = sorted({int(z) for atoms in chosen_structures(potential, structures) for z in atoms.numbers})
    a, b = numbers[-1], numbers[-2] if len(numbers) > 1 else numbers[-1]

    def along(r: float, steps: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        places = [[[0, 0, 0], [r + h, 0, 0], [0.4 * (r + h), 1.9, 0]] for h in steps]
        found = predict(potential, [Atoms([a, b, b], positions=place) for place in places])
        return numbers_of(found.energies), numbers_of(found.forces).reshape(-1, 3, 3)

    for r in [potential.cutoff] if cutoffs is None else cutoffs:
        for what, k, floor in (("energy", 0, 1e-10), ("forces", 1, 1e-9)):
            near, far = (float(np.abs(np.diff(along(r, [-h, h])[k], axis=0)).max()) for h in (1e-5, 1e-2))
            assert far > 1e-7, f"{what} near {r} Å: change by {far:.2g}, too little to check anything"
            assert near < 0.01 * far + floor, f"{what} jump at {r} Å: by {near:.3g} over 2e-5 Å, {far:.3g} over 0.02 Å"
        if curvature:
            kinks = [np.abs(np.diff(along(r, h * np.arange(-2, 3))[1][:, 1, 0], 2)).max() / h for h in (1e-4, 1e-3)]
            assert kinks[0] < 0.3 * kinks[1] + 1e-7, f"the curvature jumps at {r} Å: by {kinks[0]:.3g} eV/Å²"

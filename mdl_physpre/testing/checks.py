"""Checks that a potential of your own should pass, for its tests; with pytest or without.

Each takes a :class:`~mdl_physpre.potentials.Potential`, and structures where those of :func:`check_potential` do not
fit. It returns ``None``, or raises AssertionError with what was found and what was expected. The potential is examined
in double precision and stays as it is. ``mdl_physpre.potential_checks.examine`` (command ``physpre doctor``) measures
the same on a trained potential, and reports where this raises.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from mdl_physpre.errors import DataError
from mdl_physpre.potential_checks.derivatives import STENCIL, WEIGHTS, displaced, strained
from mdl_physpre.potential_checks.symmetry import CHANGES
from mdl_physpre.potentials.adapters.ase_calculator import PotentialCalculator
from mdl_physpre.potentials.base import AtomicPotential, Backbone, Potential, evaluate
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.potentials.energy_reference import N_ELEMENTS
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


def check_potential(potential: Potential, structures: Structures | None = None) -> None:
    """Every check of this module that applies.

    Parameters
    ----------
    potential : with parameters that give forces well above rounding. Not every check applies to every potential: one
        without stress, without a cutoff, without training or without ``hyperparameters`` passes those by.
    structures : small ones, out of equilibrium, some of them periodic. Where ``None``, rattled crystals of the
        potential's elements and a cluster.

    Raises
    ------
    AssertionError : a check does not hold.
    DataError : no structures for a potential that takes any element, or more than eight.
    """
    chosen = chosen_structures(potential, structures)
    for check in (check_forces, check_stress, check_invariances, check_extensive, check_batches, check_no_edges,
                  check_what_is_asked, check_edges_beyond_cutoff, check_ase_calculator):  # fmt: skip
        check(potential, chosen)
    check_unknown_element(potential)
    if potential.cutoff > 0:
        check_smooth_at_cutoff(potential, chosen)
    if isinstance(potential, AtomicPotential) and any(p.requires_grad for p in potential.parameters()):
        check_gradients_for_training(potential, chosen)
    if isinstance(potential, Backbone):
        check_reference_energies(potential, chosen)
    if type(potential).hyperparameters is not Potential.hyperparameters:
        check_save_and_load(potential, chosen)


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


def check_gradients_for_training(potential: AtomicPotential, structures: Structures | None = None) -> None:
    """The gradient in the parameters of a loss of energies, forces and stress, by finite differences.

    Along one random direction for each parameter; before that, training must give the numbers of prediction.
    """
    potential = copy.deepcopy(potential).double().eval()
    structures = chosen_structures(potential, structures)
    predicted, trained_on = predict(potential, structures), predict(potential, structures, True)
    for name, value in vars(predicted).items():
        if value is not None:
            hold(f"{name} in training", getattr(trained_on, name), value, 1e-5 * size_of(value))
    graph, generator = build_graph(structures, potential.cutoff), torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        found = evaluate(potential, graph, stress=potential.gives_stress, create_graph=True)
        numbers = torch.cat([v[v.isfinite()].double() for v in vars(found).values() if v is not None])
        return torch.cos(torch.arange(len(numbers), device=numbers.device, dtype=numbers.dtype)) @ numbers

    trained = {name: p for name, p in potential.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss(), list(trained.values()), materialize_grads=True, allow_unused=True)
    assert any(bool((g != 0).any()) for g in gradients), "the loss has no gradient in any parameter"
    for (name, parameter), gradient in zip(trained.items(), gradients):
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype).to(parameter.device)
        direction /= direction.norm().clamp(min=1e-300)
        start, step, values = parameter.detach().clone(), 1e-3 * max(0.1, float(parameter.detach().abs().max())), []
        for h in STENCIL:
            parameter.data.copy_(start + float(h) * step * direction)
            values.append(float(loss().detach()))
        parameter.data.copy_(start)
        expected, noise = float(np.array(values) @ WEIGHTS) / step, 1e-13 * size_of(np.array(values)) / step
        bound = 1e-5 * float(gradient.norm()) + 1e-6 + noise
        hold(f"gradient of a loss in {name}", (gradient * direction).sum(), np.array(expected), bound)


def check_save_and_load(
    potential: Potential, structures: Structures | None = None, folder: str | Path | None = None
) -> None:
    """``load_potential(save_potential(…))`` gives the same class, hyperparameters and, to the last bit, results."""
    structures, given = chosen_structures(potential, structures), copy.deepcopy(potential).eval()
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        loaded = load_potential(save_potential(Path(inside) / "potential.pt", given))
    assert type(loaded) is type(given), f"loaded a {type(loaded).__name__}, expected {type(given).__name__}"
    assert not loaded.training, "the loaded potential is in training mode"
    for what in ("cutoff", "elements"):
        a, b = getattr(loaded, what), getattr(given, what)
        assert a == b, f"{what} after loading: {a}, expected {b}"
    assert loaded.hyperparameters() == given.hyperparameters(), (
        f"hyperparameters after loading: {loaded.hyperparameters()}, expected {given.hyperparameters()}"
    )
    found, expected = (predict(p, structures) for p in (loaded, given))
    for name, value in vars(expected).items():
        if value is not None:
            hold(f"{name} after loading", getattr(found, name), value, 0.0)


def check_reference_energies(potential: Backbone, structures: Structures | None = None) -> None:
    """``shift_reference`` moves energies by the sum over the atoms, and no forces."""
    potential, structures = copy.deepcopy(potential).double().eval(), chosen_structures(potential, structures)
    shift, before = torch.linspace(-2.0, 0.25, N_ELEMENTS, dtype=torch.float64), predict(potential, structures)
    potential.shift_reference(shift)
    after = predict(potential, structures)
    expected = numbers_of(before.energies) + [float(shift[atoms.numbers].sum()) for atoms in structures]
    hold("energies after shift_reference", after.energies, expected, 1e-9 + 1e-12 * size_of(expected))
    hold("forces after shift_reference", after.forces, before.forces, 1e-12 * force_scale(before))


def check_ase_calculator(potential: Potential, structures: Structures | None = None) -> None:
    """``PotentialCalculator`` gives the same energy, forces and stress; no stress where there is no cell."""
    potential = in_double(potential)
    for atoms in chosen_structures(potential, structures):
        found, atoms, what = predict(potential, [atoms]), atoms.copy(), f"of {told(atoms)} from ASE"
        atoms.calc = PotentialCalculator(potential)
        energy, scale = atoms.get_potential_energy(), force_scale(found)
        hold(f"energy {what}", energy, found.energies[0], 1e-12 * size_of(found.energies))
        assert atoms.get_potential_energy(force_consistent=True) == energy, f"free energy {what} is not the energy"
        hold(f"forces {what}", atoms.get_forces(), found.forces, 1e-9 * scale)
        if found.stress is not None and atoms.cell.rank == 3:
            expected = full_3x3_to_voigt_6_stress(numbers_of(found.stress[0]))
            hold(f"stress {what}", atoms.get_stress(), expected, 1e-10 * scale)
        else:
            assert "stress" not in atoms.calc.results, f"stress {what}: there is one, expected none"


def check_unknown_element(potential: Potential) -> None:
    """A structure with an element that the potential does not know raises DataError."""
    known = potential.known_elements()
    strange = next((z for z in range(1, N_ELEMENTS) if known is not None and z not in known), None)
    if strange is None:
        return
    try:
        evaluate(potential, build_graph(Atoms([strange]), potential.cutoff), stress=False)
    except DataError:
        return
    raise AssertionError(f"atomic number {strange} is not among the potential's elements; expected DataError")

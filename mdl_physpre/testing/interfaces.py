"""Checks of training, files, reference energies, the ASE calculator and what is refused."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from mdl_physpre.errors import DataError
from mdl_physpre.potential_checks.derivatives import STENCIL, WEIGHTS
from mdl_physpre.potentials.adapters.ase_calculator import PotentialCalculator
from mdl_physpre.potentials.base import AtomicPotential, Backbone, Potential
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.potentials.energy_reference import N_ELEMENTS
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import build_graph
from mdl_physpre.testing.comparison import (
    Structures,
    chosen_structures,
    force_scale,
    hold,
    in_double,
    numbers_of,
    predict,
    size_of,
    told,
)


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

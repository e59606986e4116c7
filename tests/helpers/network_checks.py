"""What the tests of several networks have in common, beside the checks of every potential."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read

from mdl_physpre.potential_checks.derivatives import STENCIL, displaced, slopes, strained
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.kernels.c_code import CCode
from mdl_physpre.structures.graph import AtomGraph, build_graph
from tests.helpers.small_cells import WithoutShortcuts, predict

IMPLEMENTATIONS = ("tensor operations", "C")


def use_implementation(which: str, code: CCode, monkeypatch) -> str:
    """Let C code do what it can, in both precisions, or nothing."""
    names = {torch.float32: "float", torch.float64: "double"} if which == "C" else {}
    if any(code.library(real) is None for real in names.values()):
        pytest.skip("there is no C compiler here")
    monkeypatch.setattr(code, "dtypes", names)
    return which


def check_slopes_on_kept_edges(potential: Potential, atoms: Atoms, route: str, step: float, atol: float) -> None:
    """Forces and stress against finite differences of the same route's energy, ``atol`` times the largest of each.

    The neighbour list is kept, because without an envelope the energy jumps where an edge enters.
    """
    found = predict(potential, atoms, route)
    graph = build_graph(atoms, cutoff=potential.cutoff)
    wrapped = WithoutShortcuts(potential) if route == "autograd" else potential

    def slopes_of(moves):
        energies = []
        for made in moves:
            cell = torch.tensor(made.cell[:])[None]
            moved = AtomGraph.from_tensors(graph, pos=torch.tensor(made.positions), cell=cell)
            energies.append(evaluate(wrapped, moved, forces=False, stress=False).energies.item())
        return slopes(np.array(energies).reshape(-1, len(STENCIL)), step)

    forces = -slopes_of(displaced(atoms, c, h * step) for c in range(3 * len(atoms)) for h in STENCIL).reshape(-1, 3)
    strains = [strained(atoms, a, b, h * step) for a in range(3) for b in range(3) for h in STENCIL]
    stress = slopes_of(strains).reshape(3, 3) / atoms.get_volume()
    assert np.abs(forces).max() > 0.05  # the test sees something
    assert np.abs(stress).max() > 1e-3
    for one, expected in ((found.forces, forces), (found.stress[0], stress)):
        np.testing.assert_allclose(one.detach().numpy(), expected, rtol=1e-6, atol=atol * np.abs(expected).max())


def _loss(found):
    """Of energies, forces and stress at once."""
    target = torch.linspace(-1, 1, found.forces.shape[1]).double()
    value = found.energies.square().sum() + (found.forces - target).pow(2).sum()
    if found.stress is None:
        return value
    return value + (found.stress - 0.3)[torch.isfinite(found.stress)].pow(2).sum()


def check_routes_agree(potential: Potential, structures: list[Atoms], **within: tuple[float, float]) -> None:
    """Each route against autograd on tensor operations, in predictions and in the gradient of a loss on all of them.

    ``within`` : relative and absolute tolerances of energies, forces, stress, and of gradients, whose second is times
    the largest of a parameter's, and at least of 1.
    """
    reference = predict(potential, structures, "autograd")
    for route in ("prediction", "training"):
        found = predict(potential, structures, route)
        for name in ("energies", "forces", "stress"):
            rtol, atol = within[name]
            torch.testing.assert_close(
                getattr(found, name), getattr(reference, name), rtol=rtol, atol=atol, equal_nan=True
            )

    def gradients(total):
        potential.zero_grad()
        total.backward()
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in potential.parameters()]

    one_by_one = [predict(potential, a, "autograd", True, a.cell.rank == 3, train=True) for a in structures]
    expected = gradients(sum(_loss(found) for found in one_by_one))
    found = gradients(_loss(predict(potential, structures, "training")))
    rtol, atol = within["gradients"]
    for (name, _), one, other in zip(potential.named_parameters(), found, expected, strict=True):
        size = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol * size, msg=lambda m, n=name: f"{n}: {m}")


def check_threads_change_nothing(
    potential: Potential,
    structures: list[Atoms],
    threads: int,
    gradients: tuple[float, float],
    rtol: float,
    atol: float,
) -> None:
    """Gradients of a loss within ``gradients``, relative and times the largest of them, and forces."""

    def gradient():
        potential.zero_grad()
        found = predict(potential, structures, "training")
        (found.energies.square().sum() + found.forces.square().sum() + found.stress.square().sum()).backward()
        return torch.cat([p.grad.flatten() for p in potential.parameters() if p.grad is not None]), found

    one, before = gradient()
    used = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        other, after = gradient()
    finally:
        torch.set_num_threads(used)
    torch.testing.assert_close(other, one, rtol=gradients[0], atol=gradients[1] * float(one.abs().max()))
    torch.testing.assert_close(after.forces, before.forces, rtol=rtol, atol=atol)


def check_jump_at_cutoff(potential: Potential) -> None:
    """The energy jumps where a second atom leaves, beside a third that is always a neighbour of the first."""

    def energy(distance):
        atoms = Atoms("SiOO", positions=[[0, 0, 0], [distance, 0, 0], [0, 1.5, 0]])
        return predict(potential, atoms, "prediction", False, False).energies.item()

    assert abs(energy(potential.cutoff - 1e-6) - energy(potential.cutoff + 1e-6)) > 1e-4


def real_structures() -> list[Atoms]:
    """Small ones of the real data, or skip the test."""
    if (folder := os.environ.get("PHYSPRE_DATA")) is None:
        pytest.skip("PHYSPRE_DATA does not name the folder with the real data")
    structures = []
    for name, index, largest in (("phosphorus/p_gap_20", "0:400:40", 60), ("li-mn-o-p/li_mn_o", "0:100:25", 40)):
        with gzip.open(Path(folder) / f"{name}.extxyz.gz", "rt") as file:
            structures += [a for a in read(file, index=index, format="extxyz") if len(a) < largest]
    return structures

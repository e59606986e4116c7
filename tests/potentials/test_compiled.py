"""Compiled potentials against the same without compilation."""

from __future__ import annotations

import shutil

import pytest
import torch
from ase.build import bulk

from mdl_physpre import build_graph, evaluate
from mdl_physpre.potentials import CGCNN, EAMInteraction, HybridPotential, M3GNet, TorchMDET
from mdl_physpre.potentials.compiled import CompiledPotential, padded, padded_size
from mdl_physpre.potentials.kernels.c_code import tensor_operations
from tests.helpers.small_cells import alone, crystal, left_handed, slab

ELEMENTS, CUTOFF = ["H", "O", "Si"], 4.0
NETWORKS = {
    "CGCNN": lambda: CGCNN(ELEMENTS, CUTOFF, dim1=5, dim2=4, gc_count=2, post_fc_count=1, edge_dim=7),
    "ET": lambda: TorchMDET(
        ELEMENTS, CUTOFF, hidden_channels=6, num_layers=2, num_heads=3, num_rbf=7, num_post_layers=1,
        post_hidden_channels=4,
    ),
    "M3GNet": lambda: M3GNet(ELEMENTS, num_blocks=2, units=4, max_n=2, max_l=2, cutoff=CUTOFF, threebody_cutoff=3.0),
    "EAM": lambda: EAMInteraction(ELEMENTS, cutoff=CUTOFF, n_basis=3, short_range="zbl"),
    "hybrid": lambda: HybridPotential(NETWORKS["CGCNN"](), EAMInteraction(ELEMENTS, cutoff=3.0, n_basis=2)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def forgotten():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def loss(found) -> torch.Tensor:
    stress = found.stress[found.stress.isfinite()]
    return found.energies.square().sum() + found.forces.square().sum() + stress.square().sum()


def gradient(potential, found) -> torch.Tensor:
    potential.zero_grad()
    loss(found).backward()
    parameters = (p for p in potential.parameters() if p.requires_grad)
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_numbers_traced_as_a_whole(name):
    """Energies, forces, stress and the training gradient, in one graph each without a break, as Inductor gets them."""
    torch.manual_seed(0)
    potential = NETWORKS[name]().double()
    compiled = CompiledPotential(potential, backend="aot_eager")
    graph = build_graph([crystal(0), alone("Si"), slab(), left_handed()], CUTOFF)
    found, of_compiled = evaluate(compiled, graph), gradient(compiled, evaluate(compiled, graph, create_graph=True))
    with tensor_operations():  # without tables
        expected, of_potential = (
            evaluate(potential, graph),
            gradient(potential, evaluate(potential, graph, create_graph=True)),
        )
    for one in ("energies", "forces", "stress"):
        torch.testing.assert_close(getattr(found, one), getattr(expected, one), rtol=1e-9, atol=1e-10, equal_nan=True)
    alone_forces = evaluate(compiled, graph, stress=False)
    assert alone_forces.stress is None
    torch.testing.assert_close(alone_forces.forces, expected.forces, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(of_compiled, of_potential, rtol=1e-7, atol=1e-9)


TINY = {
    "CGCNN": lambda: CGCNN(["Si", "O"], 3.0, dim1=4, dim2=4, gc_count=1, post_fc_count=0, edge_dim=5),
    "ET": lambda: TorchMDET(
        ["Si", "O"], 3.0, hidden_channels=4, num_layers=1, num_heads=2, num_rbf=5, num_post_layers=0
    ),
    "M3GNet": lambda: M3GNet(["Si", "O"], num_blocks=1, units=4, max_n=2, max_l=2, cutoff=3.0, threebody_cutoff=2.5),
}


@pytest.mark.parametrize("name", TINY)
def test_inductor_s_code_gives_the_same_numbers(name, caplog):
    torch.manual_seed(0)
    potential = TINY[name]()
    graph = build_graph([crystal(0), left_handed()], 3.0, dtype=torch.float32)
    compiled = CompiledPotential(potential)
    found = evaluate(compiled, graph, create_graph=True)  # its code for predictions is part of that for training
    if "cannot be compiled" in caplog.text and shutil.which("g++") is None:
        pytest.skip("Inductor makes no code here: there is no C++ compiler")
    expected = evaluate(potential, graph, create_graph=True)
    predictions = [found] if name != "CGCNN" else [found, evaluate(compiled, graph)]
    for one in predictions:
        torch.testing.assert_close(one.energies, expected.energies, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(one.forces, expected.forces, rtol=1e-4, atol=1e-5)
    one, other = gradient(compiled, found), gradient(potential, expected)
    assert (one - other).abs().max() < 1e-5 * other.abs().max()
    assert "cannot be compiled" not in caplog.text


def test_a_potential_that_looks_at_values_runs_without_compilation_and_says_so(caplog):
    class Looks(CGCNN):
        def atomic_energies(self, graph):
            found = super().atomic_energies(graph)
            return found * 2 if float(found.sum()) > 0 else found

    potential = Looks(["Si", "O"], 3.0, dim1=4, dim2=4, gc_count=1, post_fc_count=0, edge_dim=5)
    graph = build_graph([crystal(0)], 3.0, dtype=torch.float32)
    compiled = CompiledPotential(potential, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(evaluate(compiled, graph).forces, evaluate(potential, graph).forces)
    assert caplog.text.count("Looks cannot be compiled and runs operation by operation") == 1


def test_batches_of_nearly_the_same_size_are_compiled_once():
    potential = NETWORKS["EAM"]().double()
    runs = []

    def backend(module, inputs):
        runs.append(1)
        return module.forward

    compiled = CompiledPotential(potential, backend=backend)
    for seed in range(3):
        graph = build_graph([crystal(seed), crystal(seed + 5)], CUTOFF)
        evaluate(compiled, graph, stress=False)
    sizes = {padded(build_graph([crystal(k), crystal(k + 5)], CUTOFF), CUTOFF).edge_index.shape[1] for k in range(3)}
    assert len(runs) == len(sizes) < 3


def test_padding_adds_a_structure_that_counts_nothing():
    graph = build_graph([crystal(0), alone("O")], CUTOFF)
    more = padded(graph, CUTOFF)
    for field, n in (("z", len(graph.z)), ("n_atoms", 2), ("edge_index", graph.edge_index.shape[1])):
        now = getattr(more, field).shape[-1]
        assert now > n and now == padded_size(now)
    assert int(more.n_atoms.sum()) == len(more.z)
    centre = more.edge_index[0]
    assert not bool((centre[1:] < centre[:-1]).any())
    added = more.edge_index[:, graph.edge_index.shape[1] :]
    assert int(added.min()) >= len(graph.z) and int(added.max()) < len(more.z)


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 100, 1000, 68_088])
def test_few_sizes_and_none_far_above(n):
    size = padded_size(n)
    assert n <= size <= max(n + 1, 1.125 * n + 1)
    assert padded_size(size) == size


def test_a_sum_with_a_calculator_is_predicted_by_its_parts(caplog):
    from ase.calculators.emt import EMT

    from mdl_physpre.potentials import CalculatorPotential, SumPotential

    both = SumPotential(base=CalculatorPotential(EMT()), repulsion=None)
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    graph = build_graph(atoms, 0.0)
    found, expected = (evaluate(p, graph) for p in (CompiledPotential(both, backend="aot_eager"), both))
    torch.testing.assert_close(found.forces, expected.forces)

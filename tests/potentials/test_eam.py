"""The embedded-atom potential against independent sums, finite differences and automatic differentiation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.potentials.eam.potential import EAMInteraction, operators, pair_curve
from mdl_physpre.potentials.eam.radial import PairParameters, curvatures, radial_functions
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.kernels.c_code import tensor_operations
from mdl_physpre.structures.graph import AtomGraph, build_graph

SYMBOLS = ("Si", "O", "Li")


def random_potential(seed: int, cutoff: float = 4.0, symbols=SYMBOLS, n_basis: int = 3):
    potential = EAMInteraction(symbols, cutoff=cutoff, n_basis=n_basis)
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for name, p in potential.named_parameters():
            p.mul_(torch.from_numpy(generator.uniform(0.6, 1.4, p.shape)))
            if name == "E0":
                p.copy_(torch.from_numpy(generator.normal(size=p.shape)))
    return potential


def random_structure(seed: int, n_atoms: int = 4, symbols=SYMBOLS, pbc=True) -> Atoms:
    generator = np.random.default_rng(seed)
    cell = 3.6 * np.eye(3) + generator.uniform(-0.5, 0.5, (3, 3))
    atoms = Atoms(generator.choice(symbols, n_atoms), cell=cell, pbc=pbc)
    atoms.set_scaled_positions(generator.uniform(-0.5, 1.5, (n_atoms, 3)))
    return atoms


def direct_sum(potential: EAMInteraction, atoms: Atoms) -> float:
    """The energy from the formula, image by image, in plain numpy."""
    get = {name: p.detach().numpy() for name, p in potential.named_parameters()}
    names = [frozenset(pair) for pair in itertools.combinations(potential.elements, 2)]
    names += [frozenset([z]) for z in potential.elements]
    rc, inner = potential.cutoff, 0.66 * potential.cutoff
    heights = atoms.cell.volume / np.array(
        [np.linalg.norm(np.cross(atoms.cell[a], atoms.cell[b])) for a, b in ((1, 2), (2, 0), (0, 1))]
    )
    spread = np.ptp(atoms.get_scaled_positions(wrap=False), axis=0)
    reach = [int(np.ceil(rc / h + s)) if p else 0 for h, s, p in zip(heights, spread, atoms.pbc)]
    total = 0.0
    for i, zi in enumerate(atoms.numbers):
        rho = 0.0
        for j, zj in enumerate(atoms.numbers):
            p = names.index(frozenset([zi, zj]))
            for shift in itertools.product(*(range(-n, n + 1) for n in reach)):
                d = np.linalg.norm(atoms.positions[j] + np.array(shift) @ atoms.cell[:] - atoms.positions[i])
                if (i == j and shift == (0, 0, 0)) or d >= rc:
                    continue
                x = (d - inner) / (rc - inner)
                f = 1.0 if x <= 0 else 1.0 - 10 * x**3 + 15 * x**4 - 6 * x**5
                morse = get["D"][p] * (1 - np.exp(-get["alpha"][p] * (d - get["r_e"][p]))) ** 2 - get["D"][p]
                total += 0.5 * f * morse
                rho += f * np.sum(get["A"][p] * np.exp(-get["beta"][p] * d))
        e = potential.elements.index(zi)
        total += abs(get["b"][e]) * (rho - get["rho0"][e]) ** 2 + get["E0"][e]
    return total


@pytest.mark.parametrize("pbc", [True, False, (True, False, True)])
@pytest.mark.parametrize("seed", [0, 1])
def test_energy_is_the_sum_over_all_images(seed, pbc):
    atoms, potential = random_structure(seed, pbc=pbc), random_potential(seed)
    found = evaluate(potential, build_graph(atoms, 4.0), forces=False, stress=False).energies
    assert float(found[0].detach()) == pytest.approx(direct_sum(potential, atoms), rel=1e-12)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_forces_are_differences_of_the_energy(seed):
    atoms, potential = random_structure(seed), random_potential(seed)
    forces = evaluate(potential, build_graph(atoms, 4.0)).forces.numpy()

    def energy(k, x, step):
        moved = atoms.copy()
        moved.positions[k, x] += step
        return float(evaluate(potential, build_graph(moved, 4.0), forces=False, stress=False).energies[0])

    scale = max(1.0, np.abs(forces).max())
    for k, x in itertools.product(range(len(atoms)), range(3)):
        h = 1e-4
        slope = (8 * (energy(k, x, h) - energy(k, x, -h)) - (energy(k, x, 2 * h) - energy(k, x, -2 * h))) / (12 * h)
        assert abs(forces[k, x] + slope) < 1e-6 * scale


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10_000))
def test_stress_is_the_derivative_with_strain(seed):
    atoms, potential = random_structure(seed), random_potential(seed)
    stress = evaluate(potential, build_graph(atoms, 4.0)).stress[0].numpy()
    np.testing.assert_allclose(stress, stress.T, atol=1e-12 * np.abs(stress).max())

    def energy(a, b, step):
        strain = np.eye(3)
        strain[a, b] += step / 2
        strain[b, a] += step / 2
        moved = atoms.copy()
        moved.set_cell(atoms.cell[:] @ strain)
        moved.positions = atoms.positions @ strain
        return float(evaluate(potential, build_graph(moved, 4.0), forces=False, stress=False).energies[0])

    scale = np.abs(stress).max()
    for a, b in itertools.product(range(3), range(3)):
        h = 1e-4
        slope = (8 * (energy(a, b, h) - energy(a, b, -h)) - (energy(a, b, 2 * h) - energy(a, b, -2 * h))) / (12 * h)
        assert abs(stress[a, b] - slope / atoms.get_volume()) < 1e-6 * scale


def test_derivatives_in_c_agree_with_automatic_ones():
    structures = [random_structure(k, n) for k, n in enumerate((4, 1, 7))] + [random_structure(9, 5, pbc=False)]
    structures[-1].cell[:] = 0.0
    ours = random_potential(3)
    graph = build_graph(structures, 4.0)
    for found in (evaluate(ours, graph), evaluate(ours, graph, create_graph=True)):
        with tensor_operations():
            expected = evaluate(ours, graph)
        for name in ("energies", "forces", "stress"):
            values = (getattr(found, name), getattr(expected, name))
            torch.testing.assert_close(*values, rtol=1e-11, atol=1e-11, equal_nan=True)
    assert evaluate(ours, graph).stress[-1].isnan().all()


def test_gradient_in_the_parameters_agrees_with_differences():
    graph = build_graph([random_structure(k) for k in range(3)], 4.0)
    potential = random_potential(5)

    def loss() -> torch.Tensor:
        found = evaluate(potential, graph, create_graph=True)
        return found.energies.square().sum() + found.forces.square().sum() + found.stress.square().sum()

    loss().backward()
    for name, parameter in potential.named_parameters():
        direction = torch.randn_like(parameter)
        values = []
        with torch.no_grad():
            for step in (-2e-4, -1e-4, 1e-4, 2e-4):
                parameter.add_(step * direction)
                values.append(float(loss()))
                parameter.sub_(step * direction)
        slope = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / 12e-4
        assert slope == pytest.approx(float((parameter.grad * direction).sum()), rel=1e-6, abs=1e-6), name


def pairs_at(distances, symbols=("Si", "O")) -> list[Atoms]:
    return [Atoms(symbols, [[0, 0, 0], [0.48 * d, 0.64 * d, 0.6 * d]]) for d in distances]


def test_table_in_single_precision_matches_the_exact_functions_at_all_distances():
    potential = random_potential(7, cutoff=8.0, n_basis=10)
    structures = pairs_at(np.concatenate([np.geomspace(0.05, 1.0, 40), np.linspace(1.0, 8.2, 300)]))
    exact = evaluate(potential, build_graph(structures, 8.0))
    table = evaluate(potential, build_graph(structures, 8.0, dtype=torch.float32))
    e0 = float(potential.E0[:2].detach().sum())
    for name in ("energies", "forces"):
        expected, found = getattr(exact, name).double(), getattr(table, name).double()
        scale = (expected - (e0 if name == "energies" else 0.0)).abs() + 1e-1
        assert float(((found - expected).abs() / scale).max()) < 2e-5
    assert table.forces.dtype == torch.float32
    assert table.energies.dtype == torch.float64


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("short_range", [None, "zbl"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_c_and_tensor_operations_agree(dtype, tolerance, short_range, threads, monkeypatch):
    """Forces and virials in C against exact radial functions by tensor operations; also cells of a single atom, narrow
    cells, no cell and no edges."""
    if operators.CODE.library("double") is None:
        pytest.skip("there is no C compiler here")
    potential = EAMInteraction(SYMBOLS, cutoff=7.0, n_basis=10, short_range=short_range)
    structures = [random_structure(k, n) for k, n in enumerate((30, 1, 7))] + [random_structure(9, 5, pbc=False)]
    structures += [Atoms("Si"), Atoms("Li", cell=np.eye(3) * 2.2, pbc=True)]
    graph = build_graph(structures, 7.0, dtype=dtype)
    assert graph.edge_index.shape[1] > 2000  # so that threads take part
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = evaluate(potential, graph)
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(operators.CODE, "dtypes", {})
    exact = evaluate(potential, build_graph(structures, 7.0))
    for one in (found, evaluate(potential, graph)):
        for name in ("energies", "forces", "stress"):
            ours, expected = getattr(one, name), getattr(exact, name)
            assert ours.dtype == (torch.float64 if name == "energies" else dtype)
            assert ours.isnan().equal(expected.isnan())
            assert (ours - expected).nan_to_num().abs().max() < tolerance * expected.nan_to_num().abs().max(), name


def test_graphs_that_were_not_made_here(monkeypatch):
    """Edges in another order, narrower integers, and tensors of another precision give what the usual graph gives."""
    potential = random_potential(3)
    graph = build_graph([random_structure(1, 6), random_structure(2, 5)], 4.0)
    expected = evaluate(potential, graph)
    order = torch.randperm(graph.edge_index.shape[1], generator=torch.Generator().manual_seed(0))
    alone = build_graph(random_structure(1, 6), 4.0)
    order = order[order < alone.edge_index.shape[1]]
    edges, offsets = alone.edge_index[:, order], alone.cell_offsets[order]
    shuffled = AtomGraph.from_tensors(alone, edge_index=edges, cell_offsets=offsets)
    torch.testing.assert_close(evaluate(potential, shuffled).forces, expected.forces[:6])
    other = AtomGraph.from_tensors(
        graph, edge_index=graph.edge_index.int(), batch=graph.batch.int(), cell_offsets=graph.cell_offsets.float()
    )
    torch.testing.assert_close(evaluate(potential, other).forces, expected.forces)
    with torch.inference_mode():
        fresh = build_graph([random_structure(1, 6), random_structure(2, 5)], 4.0)
        for one in (graph, fresh):
            torch.testing.assert_close(evaluate(potential, one).forces, expected.forces)


def test_curvatures_of_the_radial_functions():
    potential = random_potential(7, cutoff=6.0, n_basis=4)
    parameters = PairParameters(*(p.detach() for p in potential.pair_parameters(torch.float64)))
    r = torch.linspace(0.3, 6.0, 200, dtype=torch.float64).requires_grad_(True)
    for number in range(len(potential.pairs)):
        pair = torch.full((200,), number)
        _, dphi, _, drho = radial_functions(r, pair, parameters, 6.0)
        for slope, found in zip((dphi, drho), curvatures(r, pair, parameters, 6.0)):
            (expected,) = torch.autograd.grad(slope.sum(), r, retain_graph=True)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_position_that_is_no_number_gives_forces_that_are_none():
    potential = random_potential(1)
    graph = build_graph([random_structure(1), random_structure(2)], 4.0)
    graph.pos[0, 0] = torch.nan
    found = evaluate(potential, graph)
    assert found.energies.isfinite().tolist() == [False, True]
    assert found.forces[0].isnan().all() and found.forces[4:].isfinite().all()


def test_table_follows_its_parameters():
    potential = random_potential(1)
    graph = build_graph(random_structure(1), 4.0, dtype=torch.float32)
    before = evaluate(potential, graph).energies
    with torch.no_grad():
        potential.D.add_(0.5)
    after = evaluate(potential, graph).energies
    exact = evaluate(potential, build_graph(random_structure(1), 4.0)).energies
    assert abs(float(after - before)) > 0.1
    assert float(after) == pytest.approx(float(exact), rel=1e-5)


def test_energy_is_smooth_at_the_cutoff_and_zero_beyond():
    potential = random_potential(2)
    r = np.array([3.999, 3.9999, 4.0, 4.5])
    curve = pair_curve(potential, "Si", "O", r).detach().numpy()
    assert abs(curve[0]) < 1e-7
    assert abs(curve[1]) < abs(curve[0]) / 100
    assert curve[2] == curve[3] == 0.0
    far = evaluate(potential, build_graph(pairs_at([4.5]), 6.0))  # a graph with longer edges changes nothing
    assert far.forces.abs().max() == 0.0


def test_pair_curve_is_a_dimer_less_two_atoms():
    potential = random_potential(4)
    for symbols in (("Si", "O"), ("O", "O"), ("Li", "Si")):
        graph = build_graph([*pairs_at([0.7, 1.5, 3.0], symbols), Atoms(symbols[0]), Atoms(symbols[1])], 4.0)
        energies = evaluate(potential, graph, forces=False, stress=False).energies
        expected = energies[:3] - energies[3] - energies[4]
        torch.testing.assert_close(pair_curve(potential, *symbols, [0.7, 1.5, 3.0]), expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(ConfigError, match="does not know P"):
        pair_curve(potential, "P", "O", [1.0])


def test_one_atom_and_no_edges():
    potential = random_potential(0)
    found = evaluate(potential, build_graph([Atoms("Si"), Atoms("O", cell=np.eye(3) * 20.0, pbc=True)], 4.0))
    b, rho0, e0 = (p.detach() for p in (potential.B, potential.rho0, potential.E0))
    torch.testing.assert_close(found.energies, (b * rho0**2 + e0)[:2])
    assert found.forces.abs().max() == 0.0
    assert found.stress[0].isnan().all()
    assert found.stress[1].abs().max() == 0.0
    single = build_graph(Atoms("Si"), 4.0, dtype=torch.float32)
    assert float(evaluate(potential, single).energies) == pytest.approx(float(found.energies[0]))


def test_own_images_press_and_pull_a_single_atom():
    atoms = Atoms("Si", cell=[[2.1, 0, 0], [0.4, 2.3, 0], [0.1, 0.2, 2.2]], pbc=True)
    potential = random_potential(6)
    found = evaluate(potential, build_graph(atoms, 4.0))
    assert float(found.energies[0]) == pytest.approx(direct_sum(potential, atoms), rel=1e-12)
    assert found.forces.abs().max() < 1e-12
    assert found.stress.abs().max() > 1e-3


def test_unknown_element_is_named():
    with pytest.raises(DataError, match="Fe"):
        evaluate(random_potential(0), build_graph(Atoms("FeO", [[0, 0, 0], [0, 0, 2]]), 4.0))


def test_start_of_the_reference():
    potential = EAMInteraction(["Li", "Mn", "O", "P"], init="reference")
    assert potential.pair_names() == [
        "Li-Mn", "Li-O", "Li-P", "Mn-O", "Mn-P", "O-P", "Li-Li", "Mn-Mn", "O-O", "P-P",
    ]  # fmt: skip
    for name in ("A", "beta", "D", "alpha", "B", "rho0", "E0"):
        assert bool((getattr(potential, name) == 1.0).all())
    r_e = dict(zip(potential.pair_names(), potential.r_e.tolist()))
    expected = {"Li-O": 1.96, "Mn-O": 1.82, "O-P": 1.74, "P-P": 2.22, "O-O": 1.26}  # sums of Pyykkö's radii
    assert {name: r_e[name] for name in expected} == pytest.approx(expected)


def test_spread_start_separates_the_exponentials():
    potential = EAMInteraction(["Si", "O"])
    assert potential.A.shape == (3, 10)
    assert bool((potential.beta.diff(dim=1) > 0).all())
    reference = EAMInteraction(["Si", "O"], init="reference")
    graph = build_graph(random_structure(0, symbols=("Si", "O")), 8.0)
    spreads = []
    for p in (potential, reference):
        evaluate(p, graph, create_graph=True).forces.abs().sum().backward()
        spreads.append(float(p.A.grad.std(dim=1).max() / p.A.grad.abs().max()))
    assert spreads[0] > 1e-2
    assert spreads[1] < 1e-12


def test_embedding_keeps_its_sign_unless_told_otherwise():
    for signed, expected in ((False, 0.5), (True, -0.5)):
        potential = EAMInteraction(["Si"], signed_embedding=signed)
        with torch.no_grad():
            potential.b.fill_(-0.5)
        assert float(potential.B.detach()[0]) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"elements": ["Si", "Si"]}, "once"),
        ({"elements": []}, "at least one"),
        ({"elements": ["Sy"]}, "'Sy' is no element"),
        ({"elements": ["Si"], "init": "random"}, "spread, reference"),
        ({"elements": ["Si"], "cutoff": -1.0}, "positive"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        EAMInteraction(**arguments)


def test_checkpoint_gives_the_same_potential(tmp_path):
    potential = random_potential(8)
    graph = build_graph([random_structure(1), random_structure(2)], 4.0)
    expected = evaluate(potential, graph)
    loaded = load_potential(save_potential(tmp_path / "eam.pt", potential))
    found = evaluate(loaded, graph)
    for name in ("energies", "forces", "stress"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    graph = build_graph([random_structure(1), random_structure(2)], 4.0, dtype=torch.float32)
    single = evaluate(loaded.to(torch.float32), graph)
    torch.testing.assert_close(single.forces.double(), expected.forces, rtol=1e-4, atol=1e-4)


def test_rigid_motion_and_order_of_atoms_change_nothing():
    potential, atoms = random_potential(11), random_structure(11, n_atoms=6)
    turned = atoms.copy()
    turned.rotate(37.0, (1, 2, 3), rotate_cell=True)
    turned.positions += [0.3, -5.0, 11.0]
    order = np.random.default_rng(0).permutation(len(atoms))
    first = evaluate(potential, build_graph(atoms, 4.0))
    second = evaluate(potential, build_graph(turned[order], 4.0))
    torch.testing.assert_close(first.energies, second.energies, rtol=1e-10, atol=1e-10)
    axes = atoms.copy()
    axes.positions = first.forces.numpy()
    axes.rotate(37.0, (1, 2, 3))
    np.testing.assert_allclose(second.forces.numpy(), axes.positions[order], atol=1e-9)

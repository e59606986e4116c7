from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from scipy.special import eval_legendre

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials.backbones.m3gnet import operators
from mdl_physpre.potentials.backbones.m3gnet.basis import (
    RadialSeries,
    harmonics,
    monomials,
    smooth_bessel,
    spherical_bessel,
)
from mdl_physpre.potentials.backbones.m3gnet.network import M3GNet
from mdl_physpre.potentials.backbones.registry import build_backbone
from mdl_physpre.potentials.base import edge_vectors
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.potentials.energy_reference import EnergyReference
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.kernels.c_code import tensor_operations
from mdl_physpre.potentials.kernels.edge_op import derivatives_in_geometry
from mdl_physpre.structures.graph import AtomGraph, build_graph
from tests.helpers.network_checks import (
    IMPLEMENTATIONS,
    check_routes_agree,
    check_threads_change_nothing,
    use_implementation,
)  # fmt: skip
from tests.helpers.small_cells import BATCHES, crystal, predict, slab

CUTOFF, THREEBODY = 4.0, 3.0
OPERATORS = ("block", "by_geometry", "by_parameters", "second")


@pytest.fixture(autouse=True, params=IMPLEMENTATIONS)
def operations(request, monkeypatch):
    """Every test runs with both implementations of the operations on edges."""
    return use_implementation(request.param, operators.CODE, monkeypatch)


def small(seed: int = 0, **other) -> M3GNet:
    """A small network in float64, with weights large enough for forces that round-off does not drown."""
    torch.manual_seed(seed)
    reference = EnergyReference({8: -3.0, 14: -5.0})
    sizes = dict(num_blocks=2, units=16, max_n=3, max_l=4, cutoff=CUTOFF, threebody_cutoff=THREEBODY, max_z=20)
    potential = M3GNet(reference=reference, **{**sizes, **other}).double()
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.mul_(1.6).add_(0.02 * torch.randn_like(parameter))
        potential.atom_embedding.weight.mul_(6.0)
        potential.normalizer.scale.copy_(0.5 + torch.rand(potential.max_z + 1))
    return potential


def energy(potential: M3GNet, atoms) -> float:
    return predict(potential, atoms, "prediction", False, False).energies.item()


SIZES = {
    "default": {},
    "one block": {"num_blocks": 1, "max_n": 2, "max_l": 3},
    "equal cutoffs": {"units": 8, "max_n": 4, "max_l": 1, "threebody_cutoff": CUTOFF},
    "odd units": {"units": 6, "max_n": 1, "max_l": 2},
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("sizes", SIZES)
def test_all_routes_agree_in_predictions_and_parameter_gradients(batch, sizes):
    tight = (1e-9, 1e-12)
    check_routes_agree(
        small(**SIZES[sizes]), BATCHES[batch](), energies=(1e-12, 1e-12), forces=tight, stress=tight,
        gradients=(1e-8, 1e-10),
    )  # fmt: skip


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads):
    structures = [crystal(k) * (4, 3, 2) for k in range(2)]
    check_threads_change_nothing(small(), structures, threads, (1e-10, 1e-12), rtol=1e-10, atol=1e-12)


def test_batches_under_way_at_the_same_time_do_not_disturb_each_other():
    """Memory is used again between batches, so two that overlap must not share it."""
    potential, first, second = small(), [crystal(0)], [crystal(1) * (2, 1, 1), slab()]

    def loss(structures):
        found = predict(potential, structures, "training")
        return found.energies.square().sum() + found.forces.square().sum()

    def gradients(*losses):
        return torch.autograd.grad(sum(losses), list(potential.parameters()))

    alone = [gradients(loss(first)), gradients(loss(second))]
    one, other = loss(first), loss(second)
    predict(potential, crystal(7), "prediction")
    together = [gradients(one), gradients(other)]
    for a, b in zip(alone, together, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


def test_memory_of_edges_is_used_again_once_it_is_free(operations):
    like = torch.zeros(0, dtype=torch.float64)
    operators._idle.clear()
    first, second = operators.rows(like, 5, 16), operators.rows(like, 5, 16)
    places = {first.data_ptr(), second.data_ptr()}
    assert len(places) == 2 and not any(p % 64 for p in places) and not operators._idle
    view = first[1:]
    del first
    assert not operators._idle  # the view holds it
    del view
    third = operators.rows(like, 4, 16)
    assert third.data_ptr() in places - {second.data_ptr()} and third.shape == (4, 16)
    operators.rows(like.float(), 5, 16)
    assert len(operators._idle) == 1
    operators.rows(like, 50, 16)
    assert [len(a) for a in operators._idle.values()] == [800 + 64]


def test_edges_in_another_order(operations):
    """C code wants them sorted by their centre, and leaves others to tensor operations."""
    potential, graph = small(), build_graph(crystal(), CUTOFF)
    order = torch.randperm(graph.edge_index.shape[1], generator=torch.Generator().manual_seed(0))
    other = AtomGraph.from_tensors(graph, edge_index=graph.edge_index[:, order], cell_offsets=graph.cell_offsets[order])
    torch.testing.assert_close(evaluate(potential, other).forces, evaluate(potential, graph).forces)


@pytest.fixture
def arguments(operations, monkeypatch):
    """Arguments of each operator in a step of training, in two blocks: without vectors of the edges, and with them."""
    if operations != "C":
        pytest.skip("the operators are in C")
    found: dict[str, list] = {}
    for name in OPERATORS:
        operator = getattr(operators, name)

        def record(*given, name=name, operator=operator):
            found.setdefault(name, []).append(given)
            return operator(*given)

        monkeypatch.setattr(operators, name, record)
    total = predict(small(), [crystal(), slab()], "training")
    (total.energies.square().sum() + total.forces.square().sum()).backward()
    monkeypatch.undo()
    monkeypatch.setattr(operators.CODE, "dtypes", {torch.float64: "double"})
    return found


def copied(given: tuple, gradients: bool = True) -> tuple:
    """The same arguments, real numbers with a gradient."""
    return tuple(
        t.detach().clone().requires_grad_(gradients and t.is_floating_point()) if isinstance(t, torch.Tensor) else t
        for t in given
    )


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_sound(name, arguments):
    assert len(arguments[name]) == 2
    for given in arguments[name]:
        given = copied(given, gradients=name in ("block", "by_geometry"))
        torch.library.opcheck(getattr(operators, name), given)


@pytest.mark.parametrize("has_edges", [False, True])
def test_operators_are_differentiated_as_finite_differences_say(has_edges, arguments):
    """Derivatives of a block in parameters, a and y among its results, those of e² and m in geometry, and of the latter
    in parameters."""
    (given,) = (g for g in arguments["block"] if (g[3] is not None) == has_edges)
    given = copied(given)
    nodes = [k for k in (0, 1, 2, 3) if given[k] is not None]  # P, Q, q, e

    def run(places, some):
        return operators.block(*(some[places.index(k)] if k in places else t for k, t in enumerate(given)))

    def slopes(*some):
        with derivatives_in_geometry():
            inputs = [*some[: len(nodes)], given[4]]
            return torch.autograd.grad(run([*nodes, 5], some)[:2], inputs, seeds, create_graph=True)

    of_parameters = tuple(given[k] for k in (*nodes, 5))
    given[4].requires_grad_(False)
    assert torch.autograd.gradcheck(lambda *some: run([*nodes, 5], some), of_parameters, fast_mode=True)
    given[4].requires_grad_(True)
    given[5].requires_grad_(False)
    with derivatives_in_geometry():
        of_geometry = tuple(given[k] for k in (*nodes, 4))
        assert torch.autograd.gradcheck(lambda *some: run([*nodes, 4], some)[:2], of_geometry, fast_mode=True)
    given[5].requires_grad_(True)
    seeds = [torch.cos(torch.arange(r.numel()).double()).view_as(r) for r in run([], ())[:2]]
    assert torch.autograd.gradcheck(slopes, of_parameters, fast_mode=True)


def test_an_isolated_atom_has_no_force_and_the_energy_of_the_network_without_neighbours():
    potential = small()
    found = predict(potential, [Atoms("Si"), Atoms("O", cell=[9, 9, 9], pbc=True)])
    z, none = torch.tensor([14, 8]), torch.zeros(0, dtype=torch.int64)
    outputs = potential.outputs(z, torch.zeros(0, 3, dtype=torch.float64), none, none)
    expected = potential.normalizer.scale[z] * outputs + potential.normalizer.shift[z]
    assert (expected - potential.normalizer.shift[z]).abs().min() > 1e-4
    torch.testing.assert_close(found.energies, expected.detach())
    assert found.forces.abs().max() == 0
    assert found.stress[0].isnan().all()
    assert found.stress[1].abs().max() == 0


def test_three_body_sums_against_all_triplets():
    """The sums over edges by the addition theorem equal the sums over pairs of edges that define them."""
    potential, graph = small(max_n=3, max_l=4), build_graph([crystal(0), slab()], CUTOFF)
    vectors = edge_vectors(graph)
    distances, centre = vectors.norm(dim=1), graph.edge_index[0]
    near = torch.nonzero(distances < THREEBODY)[:, 0]
    all_edges = potential.basis.features(vectors, distances, centre, len(graph.z)).three_body
    found = potential.basis.features(vectors, distances, centre, len(graph.z), near).three_body
    torch.testing.assert_close(all_edges[near], found)
    assert all_edges.count_nonzero() == found.count_nonzero()
    r, u, i = distances[near].numpy(), (vectors[near] / distances[near, None]).numpy(), centre[near].numpy()
    radial = spherical_bessel(r, 3, 4, CUTOFF)
    x = r / THREEBODY
    envelope = 1 - 6 * x**5 + 15 * x**4 - 10 * x**3
    expected = np.zeros((len(near), 12))
    for a in range(len(near)):
        for b in range(len(near)):
            if i[a] == i[b] and a != b:
                legendre = np.array([eval_legendre(p // 3, u[a] @ u[b]) for p in range(12)])
                expected[a] += envelope[a] * envelope[b] * radial[b] * legendre
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-12)


def test_harmonics_obey_the_addition_theorem():
    rng = np.random.default_rng(0)
    u, v = (torch.tensor(x / np.linalg.norm(x, axis=1, keepdims=True)) for x in rng.normal(size=(2, 7, 3)))
    products = (monomials(u, 4) @ harmonics(4)) * (monomials(v, 4) @ harmonics(4))
    for degree in range(4):
        found = products[:, degree**2 : (degree + 1) ** 2].sum(1)
        np.testing.assert_allclose(found.numpy(), eval_legendre(degree, (u * v).sum(1).numpy()), atol=1e-14)


def test_radial_functions():
    """Spherical Bessel functions are orthonormal with the weight r²; the smooth ones vanish twice at the cutoff."""
    r = np.linspace(1e-9, 5.0, 200_001)
    bessel = spherical_bessel(r, 4, 4, 5.0)[:, 8:12] * np.sqrt(4 * np.pi / 5)  # l = 2, without the factor of Y_20
    overlap = np.trapezoid(bessel[:, :, None] * bessel[:, None] * r[:, None, None] ** 2, r, axis=0)
    np.testing.assert_allclose(overlap, np.eye(4), atol=1e-8)
    smooth = smooth_bessel(r, 4, 5.0)
    overlap = np.trapezoid(smooth[:, :, None] * smooth[:, None] * r[:, None, None] ** 2, r, axis=0)
    np.testing.assert_allclose(overlap, np.eye(4), atol=1e-8)
    ends = smooth_bessel(np.array([5.0, 4.99, 4.98]), 4, 5.0)
    np.testing.assert_allclose(ends[0], 0.0, atol=1e-14)
    np.testing.assert_allclose(ends[2] / ends[1], 8.0, rtol=0.1)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 3e-6), (torch.float64, 1e-13)])
def test_series_give_values_and_slopes_at_every_distance(dtype, tolerance):
    """Short distances included, where quotients of sines and powers lose their digits."""
    series = RadialSeries(lambda r: spherical_bessel(r, 4, 4, 5.0), 5.0, 1e-8 if dtype == torch.float32 else 1e-15)
    r = torch.linspace(0.02, 4.99, 400, dtype=dtype).requires_grad_(True)
    exact = spherical_bessel(r.detach().numpy().astype(float), 4, 4, 5.0)
    np.testing.assert_allclose(series(r).detach().numpy(), exact, atol=tolerance)
    slope = torch.autograd.grad(series(r)[:, -1].sum(), r)[0].numpy()
    h = 1e-5
    ends = [spherical_bessel(r.detach().numpy().astype(float) + s, 4, 4, 5.0)[:, -1] for s in (h, -h)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * h), atol=max(20 * tolerance, 1e-8))


def test_single_precision_at_the_size_of_mattersim():
    torch.manual_seed(0)
    potential = M3GNet()
    assert sum(p.numel() for p in potential.parameters()) == 890_034
    single = predict(potential, [crystal(0), crystal(1)])
    double = predict(potential.double(), [crystal(0), crystal(1)])
    torch.testing.assert_close(single.energies, double.energies, rtol=1e-5, atol=1e-6)
    scale = double.forces.abs().max().item()
    torch.testing.assert_close(single.forces.double(), double.forces, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(single.stress.double(), double.stress, rtol=0, atol=1e-5 * double.stress.abs().max())


def test_saved_and_loaded(tmp_path):
    potential = build_backbone("M3GNet", elements=["Si", "O"], num_blocks=1, units=8, max_z=20, energy_scale=0.5)
    energies = torch.zeros(119, dtype=torch.float64)
    energies[8] = -432.123456789
    potential.shift_reference(energies)
    torch.testing.assert_close(potential.reference_energies(), energies)
    again = load_potential(save_potential(tmp_path / "m.pt", potential))
    assert isinstance(again, M3GNet)
    assert again.hyperparameters() == potential.hyperparameters()
    assert again.normalizer.shift[8].item() == -432.123456789
    assert again.normalizer.scale[8].item() == 0.5
    one, other = predict(potential, crystal()), predict(again, crystal())
    assert torch.equal(one.energies, other.energies)
    assert torch.equal(one.forces, other.forces)


def test_what_it_refuses():
    for keys, word in (
        ({"max_n": 5}, "max_n is 5"),
        ({"threebody_cutoff": 6.0}, "threebody_cutoff is 6.0"),
        ({"units": 0}, "units is 0"),
        ({"max_z": 200}, "max_z is 200"),
        ({"elements": ["Xx"]}, "'Xx'"),
        ({"elements": ["U"], "max_z": 20}, "'U'.*H to Ca"),
        ({"elements": []}, "empty"),
    ):
        with pytest.raises(ConfigError, match=word):
            M3GNet(**keys)
    with pytest.raises(DataError, match=r"holds Fe, .* knows H to Ca"):
        predict(small(), Atoms("Fe"))
    with pytest.raises(DataError, match="holds Si"):
        predict(small(elements=["O"]), crystal())


def test_derivatives_outside_evaluate():
    """In positions and parameters at once, and second ones in positions, as tensor operations have them."""
    potential, graph = small(), build_graph(crystal(), CUTOFF)

    def derivatives():
        positions = graph.pos.clone().requires_grad_(True)
        total = potential.atomic_energies(AtomGraph.from_tensors(graph, pos=positions)).sum()
        parameters = [p for p in potential.parameters()]
        first = torch.autograd.grad(total, [positions, *parameters], create_graph=True)
        seed = torch.cos(torch.arange(first[0].numel()).double()).view_as(first[0])
        return first, torch.autograd.grad((first[0] * seed).sum(), [positions, *parameters])

    found = derivatives()
    torch.testing.assert_close(-found[0][0], evaluate(potential, graph).forces, rtol=1e-9, atol=1e-11)
    with tensor_operations():
        expected = derivatives()
    for one, other in zip(found, expected):
        for x, y in zip(one, other, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)

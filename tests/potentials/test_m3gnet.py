from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import eval_legendre

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials import m3gnet_native, m3gnet_sweeps
from mdl_physpre.potentials.base import edge_vectors, evaluate
from mdl_physpre.potentials.checkpoints import build_backbone, load_potential, save_potential
from mdl_physpre.potentials.m3gnet import M3GNet
from mdl_physpre.potentials.m3gnet_basis import (
    RadialSeries,
    cutoff_polynomial,
    harmonics,
    smooth_bessel,
    spherical_bessel,
)
from mdl_physpre.potentials.reference import EnergyReference
from mdl_physpre.structures.graph import AtomGraph, build_graph

CUTOFF, THREEBODY = 4.0, 3.0
ROUTES = ["by hand", "training", "autograd"]


@pytest.fixture(autouse=True, params=["tensor operations", "C"])
def operations(request, monkeypatch):
    """Every test runs with both implementations of the operations on edges, in pieces of few edges."""
    names = {torch.float32: "float", torch.float64: "double"} if request.param == "C" else {}
    if names and any(m3gnet_native.library(real) is None for real in names.values()):
        pytest.skip("there is no C compiler here")
    monkeypatch.setattr(m3gnet_native, "DTYPES", names)
    monkeypatch.setattr(m3gnet_sweeps, "PIECE", 60)
    return request.param


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


def crystal(seed: int = 0) -> Atoms:
    """A triclinic Si-O cell, narrower than the cutoff, unwrapped, out of equilibrium."""
    rng = np.random.default_rng(seed)
    cell = np.diag([3.1, 3.6, 4.4]) + 0.7 * rng.uniform(-1, 1, (3, 3))
    fractions = np.array([[0, 0, 0], [0.5, 0.45, 0.1], [0.1, 0.5, 0.55], [1.6, -0.4, 0.5]])
    fractions += 0.05 * rng.uniform(-1, 1, (4, 3))
    return Atoms("SiO2Si", scaled_positions=fractions, cell=cell, pbc=True)


def left_handed() -> Atoms:
    atoms = crystal(3)
    return Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell[[1, 0, 2]], pbc=True)


def slab() -> Atoms:
    atoms = crystal(4)
    atoms.pbc = [True, True, False]
    return atoms


class WithoutShortcuts(torch.nn.Module):
    """The same potential with nothing but its atomic energies, so that evaluate differentiates them by autograd."""

    def __init__(self, potential: M3GNet) -> None:
        super().__init__()
        self.cutoff, self.elements = potential.cutoff, potential.elements
        self.atomic_energies = potential.atomic_energies


def predict(potential: M3GNet, atoms, route: str = "by hand", forces: bool = True, stress: bool = True):
    graph = build_graph(atoms, cutoff=potential.cutoff, dtype=potential.edge_encoder.weight.dtype)
    wrapped = WithoutShortcuts(potential) if "autograd" in route else potential
    return evaluate(wrapped, graph, forces=forces, stress=stress, create_graph="training" in route)


def energy(potential: M3GNet, atoms) -> float:
    return predict(potential, atoms, "by hand", False, False).energies.item()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("structure", [crystal, left_handed, slab])
def test_forces_and_stress_are_derivatives_of_the_energy(structure, route):
    potential, atoms, step = small(), structure(), 1e-3
    found = predict(potential, atoms, route)

    def derivative(move):
        a, b, c, d = (energy(potential, move(k * step)) for k in (-2, -1, 1, 2))
        return (a - 8 * b + 8 * c - d) / (12 * step)

    def shifted(i, k):
        def move(h):
            moved = atoms.copy()
            moved.positions[i, k] += h
            return moved

        return move

    def strained(a, b):
        def move(h):
            strain = np.zeros((3, 3))
            strain[a, b] += 0.5 * h
            strain[b, a] += 0.5 * h
            moved = atoms.copy()
            moved.set_cell(atoms.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
            return moved

        return move

    forces = np.array([[-derivative(shifted(i, k)) for k in range(3)] for i in range(len(atoms))])
    stress = np.array([[derivative(strained(a, b)) for b in range(3)] for a in range(3)]) / atoms.get_volume()
    assert np.abs(forces).max() > 0.05  # the test sees something
    assert np.abs(stress).max() > 1e-3
    np.testing.assert_allclose(found.forces.detach().numpy(), forces, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.stress[0].detach().numpy(), stress, rtol=1e-6, atol=1e-8)


BATCHES = {
    "mixed": lambda: [crystal(0), Atoms("Si", cell=[9, 9, 9], pbc=True), molecule("H2O"), slab(), left_handed()],
    "one": lambda: [crystal(1)],
    "no edges": lambda: [Atoms("O", cell=[9, 9, 9], pbc=True), Atoms("Si")],
    "own images only": lambda: [bulk("Si", "sc", a=2.6)],
    "no three-body terms": lambda: [Atoms("SiO", positions=[[0, 0, 0], [3.5, 0, 0]], cell=[9, 9, 9], pbc=True)],
}
SIZES = {
    "default": {},
    "one block": {"num_blocks": 1, "max_n": 2, "max_l": 3},
    "equal cutoffs": {"units": 8, "max_n": 4, "max_l": 1, "threebody_cutoff": CUTOFF},
    "odd units": {"units": 6, "max_n": 1, "max_l": 2},
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("sizes", SIZES)
def test_all_routes_agree_in_predictions_and_parameter_gradients(batch, sizes):
    """Derivatives by hand against autograd's double backward, for a loss on energies, forces and stress at once."""
    potential, structures = small(**SIZES[sizes]), BATCHES[batch]()

    def gradients(route):
        potential.zero_grad()
        found = predict(potential, structures, route)
        weights = torch.sin(torch.arange(3 * len(found.forces)).double()).view(-1, 3)
        stress = found.stress[torch.isfinite(found.stress)] - 0.3
        (found.energies.square().sum() + (weights * found.forces).sum() + stress.pow(2).sum()).backward()
        return found, {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in potential.named_parameters()}

    reference = predict(potential, structures, "autograd")
    inference = predict(potential, structures, "by hand")
    found, by_hand = gradients("training")
    for one in (inference, found):
        torch.testing.assert_close(one.energies, reference.energies, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.forces, reference.forces, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(one.stress, reference.stress, rtol=1e-9, atol=1e-12, equal_nan=True)
    by_hand = {name: value.clone() for name, value in by_hand.items()}
    _, expected = gradients("autograd training")
    for name, value in expected.items():
        torch.testing.assert_close(by_hand[name], value, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_and_pieces_change_nothing(threads, monkeypatch):
    potential, structures = small(), [crystal(k) * (2, 1, 1) for k in range(2)]

    def gradient():
        potential.zero_grad()
        found = predict(potential, structures, "training")
        (found.energies.square().sum() + found.forces.square().sum() + found.stress.square().sum()).backward()
        return torch.cat([p.grad.flatten() for p in potential.parameters()]), found

    one, before = gradient()
    monkeypatch.setattr(m3gnet_sweeps, "PIECE", 200)
    monkeypatch.setattr(m3gnet_native, "THREAD_ROWS", 7)
    used = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        other, after = gradient()
    finally:
        torch.set_num_threads(used)
    torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(after.forces, before.forces, rtol=1e-10, atol=1e-12)


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
    predict(potential, crystal(7), "by hand")
    together = [gradients(one), gradients(other)]
    for a, b in zip(alone, together, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("of", ["energies", "forces"])
def test_a_second_backward_pass_is_refused(of):
    total = getattr(predict(small(), crystal(), "training"), of).square().sum()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once only|second time"):
        total.backward()


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_only_what_is_asked_for(wanted):
    potential, structures = small(), [crystal(0), crystal(1)]
    everything = predict(potential, structures)
    for route in ROUTES:
        found = predict(potential, structures, route, *wanted)
        torch.testing.assert_close(found.energies, everything.energies)
        assert (found.forces is not None, found.stress is not None) == wanted
        if route == "training":
            potential.zero_grad()
            sum(v.square().sum() for v in (found.energies, found.forces, found.stress) if v is not None).backward()
            assert potential.edge_encoder.weight.grad.abs().max() > 0


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_invariances(seed):
    """Rotation and mirror, translation, order of atoms, another image of an atom, another choice of cell."""
    potential, atoms, rng = small(), crystal(seed), np.random.default_rng(seed)
    before = predict(potential, atoms)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turned = Atoms(atoms.numbers, positions=atoms.positions @ rotation, cell=atoms.cell[:] @ rotation, pbc=True)
    after = predict(potential, turned)
    turn = torch.tensor(rotation)
    torch.testing.assert_close(after.energies, before.energies, rtol=0, atol=1e-10)
    torch.testing.assert_close(after.forces, before.forces @ turn, rtol=0, atol=1e-9)
    torch.testing.assert_close(after.stress[0], turn.T @ before.stress[0] @ turn, rtol=0, atol=1e-9)
    order = rng.permutation(len(atoms))
    changed = atoms[order]
    changed.positions += rng.normal(size=3) + rng.integers(-2, 3, (len(atoms), 3)) @ atoms.cell[:]
    changed.set_cell(np.array([[1, 0, 0], [1, 1, 0], [0, -1, 1]]) @ atoms.cell[:])
    after = predict(potential, changed)
    torch.testing.assert_close(after.energies, before.energies, rtol=0, atol=1e-10)
    torch.testing.assert_close(after.forces, before.forces[order], rtol=0, atol=1e-9)
    torch.testing.assert_close(after.stress, before.stress, rtol=0, atol=1e-9)
    assert before.forces.sum(0).abs().max() < 1e-10


def test_extensive_and_a_batch_equals_its_structures_one_by_one():
    potential, structures = small(), [crystal(0), slab(), crystal(2) * (2, 1, 2), Atoms("O", cell=[9, 9, 9], pbc=True)]
    together = predict(potential, structures)
    alone = [predict(potential, a) for a in structures]
    torch.testing.assert_close(together.energies, torch.cat([p.energies for p in alone]), rtol=1e-12, atol=0)
    torch.testing.assert_close(together.forces, torch.cat([p.forces for p in alone]), rtol=0, atol=1e-11)
    torch.testing.assert_close(together.stress, torch.cat([p.stress for p in alone]), rtol=0, atol=1e-11)
    one = predict(potential, crystal(2))
    assert alone[2].energies.item() == pytest.approx(4 * one.energies.item(), rel=1e-12)
    torch.testing.assert_close(alone[2].forces, one.forces.repeat(4, 1), rtol=0, atol=1e-10)
    torch.testing.assert_close(alone[2].stress, one.stress, rtol=0, atol=1e-10)


def test_an_isolated_atom_has_no_force_and_the_energy_of_the_network_without_neighbours():
    potential = small()
    found = predict(potential, [Atoms("Si"), Atoms("O", cell=[9, 9, 9], pbc=True)])
    z = torch.tensor([14, 8])
    expected = potential.scaled(potential.final(potential.embed(z))[:, 0], z)
    torch.testing.assert_close(found.energies, expected.detach())
    assert found.forces.abs().max() == 0
    assert found.stress[0].isnan().all()
    assert found.stress[1].abs().max() == 0


def chain(distance: float) -> Atoms:
    """Two atoms at ``distance`` beside a third that is always a neighbour of the first."""
    return Atoms("SiOO", positions=[[0, 0, 0], [distance, 0, 0], [-0.8, 1.3, 0]])


@pytest.mark.parametrize("cutoff", [CUTOFF, THREEBODY])
def test_smooth_at_both_cutoffs(cutoff):
    """Energy and its first two derivatives pass through the cutoff; what the edge adds vanishes with a third power."""
    potential, step = small(), 1e-3
    inside, outside = (predict(potential, chain(cutoff + shift)) for shift in (-1e-5, 1e-5))
    assert abs(inside.energies.item() - outside.energies.item()) < 1e-5 * (inside.forces.abs().max() + 1)
    assert (inside.forces - outside.forces).abs().max() < 1e-4
    forces = [predict(potential, chain(cutoff + k * step)).forces[1, 0].item() for k in (-2, -1, 0, 1, 2)]
    curvature = np.diff(forces) / step
    assert np.abs(np.diff(curvature)).max() < 0.02 * (1 + np.abs(curvature).max())
    if cutoff == CUTOFF:
        far = energy(potential, chain(cutoff + 1.0))
        gaps = [energy(potential, chain(cutoff - k * 0.01)) - far for k in (1, 2)]
        assert abs(gaps[0]) > 1e-13  # the edge matters further in
        assert abs(gaps[1] / gaps[0]) > 7.0
        assert forces[-1] == 0.0


def test_three_body_sums_against_all_triplets():
    """The sums over edges by the addition theorem equal the sums over pairs of edges that define them."""
    potential, graph = small(max_n=3, max_l=4), build_graph([crystal(0), slab()], CUTOFF)
    vectors = edge_vectors(graph)
    distances, centre = vectors.norm(dim=1), graph.edge_index[0]
    near = torch.nonzero(distances < THREEBODY)[:, 0]
    found = potential.basis.features(vectors, distances, centre, near, len(graph.z)).three_body
    r, u, i = distances[near].numpy(), (vectors[near] / distances[near, None]).numpy(), centre[near].numpy()
    radial = spherical_bessel(r, 3, 4, CUTOFF)
    envelope = cutoff_polynomial(distances[near], THREEBODY).numpy()
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
    products = harmonics(u, 4) * harmonics(v, 4)
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


def test_edges_beyond_the_cutoff_do_not_count():
    potential, atoms = small(), crystal()
    found = evaluate(potential, build_graph(atoms, CUTOFF + 1.0))
    expected = predict(potential, atoms)
    torch.testing.assert_close(found.energies, expected.energies, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=1e-12)


def test_saved_and_loaded(tmp_path):
    potential = build_backbone("M3GNet", elements=["Si", "O"], num_blocks=1, units=8, max_z=20, energy_scale=0.5)
    energies = torch.zeros(119, dtype=torch.float64)
    energies[8] = -432.123456789
    assert potential.shift_reference(energies)
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
    with pytest.raises(DataError, match=r"1 to 20; found 26 \(Fe\)"):
        predict(small(), Atoms("Fe"))
    with pytest.raises(DataError, match="holds Si"):
        predict(small(elements=["O"]), crystal())


def test_gradients_with_respect_to_positions_are_those_of_autograd():
    """Training needs one backward pass; a caller who needs more differentiates the atomic energies."""
    potential, graph = small(), build_graph(crystal(), CUTOFF)
    positions = graph.pos.clone().requires_grad_(True)
    total = potential.atomic_energies(AtomGraph.from_tensors(graph, pos=positions)).sum()
    (slope,) = torch.autograd.grad(total, positions)
    torch.testing.assert_close(-slope, evaluate(potential, graph).forces, rtol=1e-9, atol=1e-11)

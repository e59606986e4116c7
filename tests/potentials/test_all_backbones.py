"""One set of tests for every potential: docs/conventions.md, and what molecular dynamics and training take for granted.

A further potential is one entry in ``CASES``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.stress import full_3x3_to_voigt_6_stress

from mdl_physpre import PotentialCalculator, build_graph
from mdl_physpre.errors import DataError
from mdl_physpre.potentials import CGCNN, EAMInteraction, HybridPotential, M3GNet, TorchMDET
from mdl_physpre.potentials.base import Potential, evaluate
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.potentials.energy_reference import N_ELEMENTS, EnergyReference
from tests.helpers import small_cells
from tests.helpers.small_cells import ROUTES, WithoutShortcuts, alone, crystal, left_handed, slab

CUTOFF = 4.0
ELEMENTS = ["H", "O", "Si"]
REFERENCE = {1: -2.0, 8: -3.0, 14: -5.0}


@dataclass(frozen=True)
class Case:
    """A potential to test.

    build : it, small, with random parameters.
    cutoffs : distances at which an edge or a term of it ends, Å.
    curvature : whether second derivatives are continuous there, too.
    native : module whose ``CODE.dtypes`` say where C code replaces tensor operations; every test runs with both.
    table : relative error of what is read off a table in place of being calculated.
    """

    name: str
    build: Callable[[], Potential]
    cutoffs: tuple[float, ...] = (CUTOFF,)
    curvature: bool = True
    native: str | None = None
    table: float = 0.0

    def potential(self, seed: int = 0) -> Potential:
        """In float64, with parameters large enough for forces that round-off does not drown."""
        torch.manual_seed(seed)
        return self.build().double().eval()


def scaled(potential: Potential, factor: float, noise: float = 0.0, keep: str = "-") -> Potential:
    with torch.no_grad():
        for name, parameter in potential.named_parameters():
            if keep not in name:
                parameter.mul_(factor).add_(noise * torch.randn_like(parameter))
    return potential


def cgcnn(cutoff: float = CUTOFF) -> Potential:
    sizes = dict(dim1=10, dim2=8, gc_count=2, post_fc_count=1, edge_dim=9)
    return scaled(CGCNN(ELEMENTS, cutoff, reference=EnergyReference(REFERENCE), **sizes), 3.0)


def transformer() -> Potential:
    sizes = dict(hidden_channels=12, num_layers=2, num_heads=3, num_rbf=9, num_post_layers=1, post_hidden_channels=8)
    return scaled(TorchMDET(ELEMENTS, CUTOFF, reference=EnergyReference(REFERENCE), **sizes), 1.3, 0.2, keep="betas")


def m3gnet() -> Potential:
    sizes = dict(num_blocks=2, units=8, max_n=2, max_l=3, threebody_cutoff=3.0, max_z=20)
    potential = scaled(
        M3GNet(elements=ELEMENTS, cutoff=CUTOFF, reference=EnergyReference(REFERENCE), **sizes), 1.6, 0.02
    )
    with torch.no_grad():
        potential.atom_embedding.weight.mul_(6.0)
        potential.normalizer.scale.copy_(0.5 + torch.rand(potential.max_z + 1))
    return potential


def eam(cutoff: float = CUTOFF, **other) -> EAMInteraction:
    potential = EAMInteraction(ELEMENTS, cutoff=cutoff, n_basis=3, **other)
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.mul_(0.7 + 0.6 * torch.rand_like(parameter))
        potential.E0.copy_(torch.tensor(list(REFERENCE.values())))
    return potential


CASES = [
    Case("CGCNN", cgcnn, native="cgcnn_native"),
    Case("ET", transformer, curvature=False, native="torchmd_et_native", table=2e-6),
    Case("M3GNet", m3gnet, cutoffs=(CUTOFF, 3.0), native="m3gnet_native"),
    Case("EAM", eam),
    Case("EAM+ZBL", lambda: eam(short_range="zbl", short_range_radii={"Si-O": 2.5}), cutoffs=(CUTOFF, 2.5, 2.5 / 3)),
    Case("hybrid", lambda: HybridPotential(cgcnn(3.5), eam()), cutoffs=(CUTOFF, 3.5), native="cgcnn_native"),
]
VARIANTS = [(case, code) for case in CASES for code in (("tensor operations", "C") if case.native else ("",))]


@pytest.fixture(params=VARIANTS, ids=lambda v: f"{v[0].name}{', ' * bool(v[1])}{v[1]}")
def case(request, monkeypatch) -> Case:
    found, code = request.param
    if found.native:
        module = import_module(f"mdl_physpre.potentials.{found.native}")
        names = {torch.float32: "float", torch.float64: "double"} if code == "C" else {}
        if any(module.CODE.library(real) is None for real in names.values()):
            pytest.skip("there is no C compiler here")
        monkeypatch.setattr(module.CODE, "dtypes", names)
    return found


def predict(potential: Potential, atoms, route: str = "prediction", forces: bool = True, stress: bool = True):
    found = small_cells.predict(potential, atoms, route, forces, stress)
    for name in ("energies", "forces", "stress"):
        value = getattr(found, name)
        setattr(found, name, None if value is None else value.detach())
    return found


def derivatives(potential: Potential, moves: list, route: str, step: float = 1e-3) -> np.ndarray:
    """dE/dh of the structure ``move(h)`` for each of ``moves``, by the five-point formula."""
    structures = [move(k * step) for move in moves for k in (-2, -1, 1, 2)]
    energies = predict(potential, structures, route, False, False).energies.numpy().reshape(len(moves), 4)
    return energies @ np.array([1, -8, 8, -1]) / (12 * step)


def displaced(atoms: Atoms, i: int, x: int) -> Callable[[float], Atoms]:
    def move(h: float) -> Atoms:
        moved = atoms.copy()
        moved.positions[i, x] += h
        return moved

    return move


def strained(atoms: Atoms, a: int, b: int) -> Callable[[float], Atoms]:
    def move(h: float) -> Atoms:
        strain = np.eye(3)
        strain[a, b] += h / 2
        strain[b, a] += h / 2
        return Atoms(atoms.numbers, positions=atoms.positions @ strain, cell=atoms.cell[:] @ strain, pbc=atoms.pbc)

    return move


@pytest.mark.parametrize(
    ("structure", "route"), [*((crystal, route) for route in ROUTES), (left_handed, "training"), (slab, "prediction")]
)
def test_forces_and_stress_are_derivatives_of_the_energy(case, structure, route):
    """F = −dE/dr and σ = +(1/V) dE/dε of a symmetric strain, by finite differences of the same route's energy."""
    potential, atoms = case.potential(), structure()
    found = predict(potential, atoms, route)
    moves = [displaced(atoms, i, x) for i in range(len(atoms)) for x in range(3)]
    forces = -derivatives(potential, moves, route).reshape(-1, 3)
    moves = [strained(atoms, a, b) for a in range(3) for b in range(3)]
    stress = derivatives(potential, moves, route).reshape(3, 3) / atoms.get_volume()
    largest, most_stressed = np.abs(forces).max(), np.abs(stress).max()
    assert largest > 0.02 and most_stressed > 1e-3  # the test sees something
    np.testing.assert_allclose(found.forces.numpy(), forces, rtol=1e-6, atol=1e-6 * largest)
    np.testing.assert_allclose(found.stress[0].numpy(), stress, rtol=1e-6, atol=1e-6 * most_stressed)


def test_routes_agree(case):
    potential, structures = case.potential(), [crystal(0), alone("Si"), molecule("H2O"), slab(), left_handed()]
    exact = predict(potential, structures, "autograd")
    for route in ("prediction", "training"):
        found = predict(potential, structures, route)
        for name in ("energies", "forces", "stress"):
            value = getattr(exact, name)
            tolerance = max(case.table, 1e-9) * float(value[value.isfinite()].abs().max())
            torch.testing.assert_close(getattr(found, name), value, rtol=0, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("seed", range(4))
def test_invariant_and_equivariant(case, seed):
    """Rotation and mirror, translation, order of atoms, another image of an atom, another choice of a skew cell."""
    potential, atoms, rng = case.potential(seed), crystal(seed), np.random.default_rng(seed)
    before = predict(potential, atoms)
    scale = max(1.0, float(before.forces.abs().max()))
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turned = Atoms(atoms.numbers, positions=atoms.positions @ rotation, cell=atoms.cell[:] @ rotation, pbc=True)
    order = rng.permutation(len(atoms))
    changed = atoms[order]
    changed.positions += rng.normal(size=3) + rng.integers(-2, 3, (len(atoms), 3)) @ atoms.cell[:]
    changed.set_cell(np.array([[1, 0, 0], [1, 1, 0], [0, -1, 1]]) @ atoms.cell[:])
    turn = torch.tensor(rotation)
    expected = [(before.forces @ turn, turn.T @ before.stress[0] @ turn), (before.forces[order], before.stress[0])]
    for other, (forces, stress) in zip((turned, changed), expected):
        after = predict(potential, other)
        torch.testing.assert_close(after.energies, before.energies, rtol=1e-12, atol=1e-10 * scale)
        torch.testing.assert_close(after.forces, forces, rtol=0, atol=1e-9 * scale)
        torch.testing.assert_close(after.stress[0], stress, rtol=0, atol=1e-9 * scale)
    assert before.forces.sum(0).abs().max() < 1e-10 * scale
    torch.testing.assert_close(before.stress[0], before.stress[0].T, rtol=0, atol=1e-10 * scale)


def test_extensive_also_in_cells_narrower_than_the_cutoff(case):
    potential, atoms = case.potential(), crystal(2)
    one, many = predict(potential, atoms), predict(potential, atoms * (2, 1, 3))
    scale = max(1.0, float(one.forces.abs().max()))
    assert float(many.energies) == pytest.approx(6 * float(one.energies), rel=1e-11)
    torch.testing.assert_close(many.forces, one.forces.repeat(6, 1), rtol=0, atol=1e-10 * scale)
    torch.testing.assert_close(many.stress, one.stress, rtol=0, atol=1e-10 * scale)


def test_two_structures_far_apart_add_up(case):
    potential, first, second = case.potential(), molecule("H2O"), Atoms("SiO", [[0, 0, 0], [1.7, 0, 0]])
    second.positions += 30.0
    found = predict(potential, [first, second, first + second])
    assert float(found.energies[2]) == pytest.approx(float(found.energies[:2].sum()), rel=1e-12)
    torch.testing.assert_close(found.forces[5:], found.forces[:5], rtol=0, atol=1e-11)


@pytest.mark.parametrize("route", ROUTES)
def test_a_batch_equals_its_structures_one_by_one(case, route):
    potential, structures = case.potential(), [crystal(0), slab(), Atoms("O"), crystal(5) * (2, 1, 1), alone("O")]
    together, single = predict(potential, structures, route), [predict(potential, a, route) for a in structures]
    for name in ("energies", "forces", "stress"):
        values = torch.cat([getattr(p, name) for p in single])
        scale = float(values[values.isfinite()].abs().max())
        torch.testing.assert_close(getattr(together, name), values, rtol=0, atol=1e-12 * scale + 1e-11, equal_nan=True)


def test_isolated_atoms_and_graphs_without_edges(case):
    """One energy for each element in any box; no forces, no stress, and a molecule has no stress at all."""
    potential = case.potential()
    structures = [Atoms("Si"), alone("O"), alone("Si"), Atoms("O"), Atoms("SiO", [[0, 0, 0], [30, 0, 0]])]
    found = predict(potential, structures)
    silicon, oxygen = (float(e) for e in found.energies[:2])
    expected = [silicon, oxygen, silicon, oxygen, silicon + oxygen]
    assert abs(silicon - oxygen) > 1e-3
    np.testing.assert_allclose(found.energies.numpy(), expected, rtol=1e-12)
    assert found.forces.abs().max() == 0
    assert found.stress[[0, 3, 4]].isnan().all()
    assert found.stress[[1, 2]].abs().max() == 0
    for route in ROUTES:  # a batch without a single edge
        edgeless = predict(potential, structures[:2], route)
        np.testing.assert_allclose(edgeless.energies.numpy(), expected[:2], rtol=1e-9)
        assert edgeless.forces.abs().max() == 0


def test_own_images_press_on_a_single_atom(case):
    potential, atoms = case.potential(), bulk("Si", "sc", a=2.6)
    found, many = predict(potential, atoms), predict(potential, atoms * (2, 2, 2))
    assert found.forces.abs().max() < 1e-10
    assert found.stress.abs().max() > 1e-4
    assert float(many.energies) == pytest.approx(8 * float(found.energies), rel=1e-11)


def pair_and_third(distance: float) -> Atoms:
    """Two atoms at ``distance`` beside a third that is a neighbour of both."""
    return Atoms("SiOO", positions=[[0, 0, 0], [distance, 0, 0], [0.4 * distance, 1.9, 0]])


@pytest.mark.parametrize("route", ["prediction", "autograd"])
def test_smooth_at_every_cutoff(case, route):
    """Energy and forces, and mostly curvatures, pass through each distance at which a term ends."""
    potential = case.potential()
    for cutoff in case.cutoffs:

        def jump(h, at=cutoff):
            found = predict(potential, [pair_and_third(at - h), pair_and_third(at + h)], route)
            forces = found.forces.reshape(2, 3, 3)
            return float((found.energies[1] - found.energies[0]).abs()), float((forces[1] - forces[0]).abs().max())

        near, far = jump(1e-5), jump(1e-2)
        assert far[0] > 1e-7 and far[1] > 1e-7  # the structures differ
        assert near[0] < 0.01 * far[0] + 1e-10, f"the energy jumps at {cutoff} Å"
        assert near[1] < 0.01 * far[1] + 1e-9, f"a force jumps at {cutoff} Å"
        if case.curvature:

            def kink(h, at=cutoff):
                structures = [pair_and_third(at + k * h) for k in (-2, -1, 0, 1, 2)]
                along = predict(potential, structures, route).forces.reshape(5, 3, 3)[:, 1, 0].numpy()
                return np.abs(np.diff(along, 2)).max() / h  # of slopes from one step to the next

            assert kink(1e-4) < 0.3 * kink(1e-3) + 1e-7, f"the curvature jumps at {cutoff} Å"


def test_edges_beyond_the_cutoff_do_not_count(case):
    potential, atoms = case.potential(), crystal()
    found, expected = evaluate(potential, build_graph(atoms, CUTOFF + 1.0)), predict(potential, atoms)
    for name in ("energies", "forces", "stress"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-9)


def test_float32_against_float64(case):
    potential, structures = case.potential(), [crystal(1) * (2, 1, 1), slab(), molecule("H2O")]
    expected = predict(potential, structures, "autograd")
    single = potential.float()
    for route in ("prediction", "training"):
        found = predict(single, structures, route)
        assert found.energies.dtype == torch.float64 and found.forces.dtype == torch.float32
        for name in ("energies", "forces", "stress"):
            value = getattr(expected, name)
            tolerance = (2e-5 + 10 * case.table) * float(value[value.isfinite()].abs().max())
            torch.testing.assert_close(getattr(found, name).double(), value, rtol=0, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saved_and_loaded(case, dtype, tmp_path):
    potential = case.potential(seed=7).to(dtype)
    loaded = load_potential(save_potential(tmp_path / "potential.pt", potential))
    assert type(loaded) is type(potential) and not loaded.training
    assert loaded.hyperparameters() == potential.hyperparameters()
    assert (loaded.cutoff, loaded.elements) == (potential.cutoff, potential.elements)
    one, other = (predict(p, [crystal(), slab()]) for p in (potential, loaded))
    for name in ("energies", "forces", "stress"):
        assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_only_what_is_asked_for(case, wanted):
    potential, structures = case.potential(), [crystal(0), crystal(1)]
    everything = predict(potential, structures)
    for route in ROUTES:
        found = predict(potential, structures, route, *wanted)
        torch.testing.assert_close(found.energies, everything.energies, rtol=1e-5, atol=1e-5)
        assert (found.forces is not None, found.stress is not None) == wanted


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True), (False, False)])
def test_gradients_of_a_loss_are_those_of_autograd(case, wanted):
    """Of energies, forces and stress, in every parameter that is trained."""
    potential = case.potential()
    graph = build_graph([crystal(0), crystal(1)], potential.cutoff)

    def gradients(model):
        potential.zero_grad()
        found = evaluate(model, graph, forces=wanted[0], stress=wanted[1], create_graph=True)
        loss = 0.01 * found.energies.square().sum()
        for value in (found.forces, found.stress):
            if value is not None:
                loss = loss + torch.sin(torch.arange(value.numel()).double() @ value.reshape(-1) / value.numel())
        loss.backward()
        return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in potential.named_parameters()}

    found, expected = gradients(potential), gradients(WithoutShortcuts(potential))
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-3
    for name, one in found.items():
        size = max(1e-4, float(expected[name].abs().max()))
        torch.testing.assert_close(one, expected[name], rtol=0, atol=(1e-8 + 30 * case.table) * size, msg=name)


def test_training_lowers_the_loss(case):
    potential = case.potential().float().train()
    graph = build_graph([crystal(k) for k in range(3)], potential.cutoff, dtype=torch.float32)
    optimiser = torch.optim.Adam([p for p in potential.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(12):
        found = evaluate(potential, graph, create_graph=True)
        loss = found.forces.square().mean() + 10 * found.stress.square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


def test_the_reference_moves_energies_alone(case):
    potential = case.potential()
    before, shift = predict(potential, [crystal(), molecule("H2O")]), torch.zeros(N_ELEMENTS)
    shift[8], shift[14] = 0.25, -2.0
    potential.shift_reference(shift)
    after = predict(potential, [crystal(), molecule("H2O")])
    np.testing.assert_allclose((after.energies - before.energies).numpy(), [-3.5, 0.25], rtol=0, atol=1e-9)
    torch.testing.assert_close(after.forces, before.forces, rtol=0, atol=1e-12)


def test_the_calculator_says_the_same(case):
    potential, atoms = case.potential(), crystal()
    found = predict(potential, atoms)
    atoms.calc = PotentialCalculator(potential)
    assert atoms.get_potential_energy() == pytest.approx(float(found.energies[0]), rel=1e-12)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_forces(), found.forces.numpy(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(atoms.get_stress(), full_3x3_to_voigt_6_stress(found.stress[0].numpy()), atol=1e-10)
    water = molecule("H2O")
    water.calc = PotentialCalculator(potential)
    assert np.isfinite(water.get_forces()).all() and "stress" not in water.calc.results


def test_an_unknown_element_is_named(case):
    with pytest.raises(DataError, match=r"holds Fe, which this potential does not know \(it knows"):
        predict(case.potential(), bulk("Fe"))


@pytest.mark.parametrize("build", [cgcnn, transformer, m3gnet, lambda: HybridPotential(cgcnn(3.5), eam())])
def test_matrix_products_in_bfloat16_cost_digits_and_nothing_else(build):
    """As ``optim.precision: bf16`` has it in steps of training; where C code is asked for, it stands back."""
    torch.manual_seed(0)
    potential = build().float()
    graph = build_graph([crystal(), slab()], potential.cutoff, dtype=torch.float32)
    gradients = []
    for half in (False, True):
        potential.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = evaluate(potential, graph, create_graph=True)
        found.forces.square().sum().backward()
        parameters = [p for p in potential.parameters() if p.grad is not None]
        gradients.append(torch.cat([p.grad.flatten() for p in parameters]))
        assert found.forces.dtype == torch.float32 and all(p.grad.dtype == torch.float32 for p in parameters)
    exact, rounded = gradients
    assert 0 < (exact - rounded).abs().max() < 0.2 * exact.abs().max()


def test_parts_that_are_computed_again_are_rounded_as_the_first_time(monkeypatch):
    potential, rounded = cgcnn().float(), []
    inner = potential.atomic_energies

    def watched(graph):
        rounded.append(torch.is_autocast_enabled("cpu"))
        return inner(graph)

    monkeypatch.setattr(potential, "atomic_energies", watched)
    graph = build_graph([crystal(), slab()], potential.cutoff, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = evaluate(potential, graph, create_graph=True, recompute_edges=10)
    found.forces.square().sum().backward()
    assert rounded == [True] * 4  # each of two parts, and once more for its gradient

"""One set of tests for every potential: docs/conventions.md, and what molecular dynamics and training take for granted.

A further potential is one entry in ``CASES``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from mdl_physpre import build_graph, testing
from mdl_physpre.errors import DataError
from mdl_physpre.potentials import (
    CGCNN,
    ZBL,
    AngularEAM,
    EAMInteraction,
    HybridPotential,
    M3GNet,
    RepulsivePotential,
    TorchMDET,
)
from mdl_physpre.potentials.backbones.mace import MACE
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.energy_reference import EnergyReference
from mdl_physpre.potentials.evaluation import evaluate
from tests.helpers import small_cells
from tests.helpers.network_checks import IMPLEMENTATIONS, use_implementation
from tests.helpers.small_cells import WithoutShortcuts, alone, crystal, left_handed, slab

CUTOFF = 4.0
NATIVE = "mdl_physpre.potentials.backbones.{}.operators"
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


def mace() -> Potential:
    pytest.importorskip("mace", reason="MACE is not installed: pip install mace-torch")
    sizes = dict(num_channels=3, max_L=1, max_ell=1, correlation=2, num_radial_basis=4, MLP_irreps="4x0e")
    return MACE(ELEMENTS, CUTOFF, reference=EnergyReference(REFERENCE), radial_MLP=[6], avg_num_neighbors=4.0, **sizes)


def eam(cutoff: float = CUTOFF, **other) -> EAMInteraction:
    potential = EAMInteraction(ELEMENTS, cutoff=cutoff, n_basis=3, **other)
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.mul_(0.7 + 0.6 * torch.rand_like(parameter))
        potential.E0.copy_(torch.tensor(list(REFERENCE.values())))
    return potential


def angular_eam() -> Potential:
    potential = AngularEAM(ELEMENTS, CUTOFF, n_pair=4, n_radial=2, radii={"Si-O": 1.3})
    torch.nn.init.normal_(potential.coefficients, std=0.1)
    potential.shift_reference(EnergyReference(REFERENCE).energies)
    return potential


CASES = [
    Case("CGCNN", cgcnn, native=NATIVE.format("cgcnn")),
    Case("ET", transformer, curvature=False, native=NATIVE.format("torchmd_et"), table=2e-6),
    Case("M3GNet", m3gnet, cutoffs=(CUTOFF, 3.0), native=NATIVE.format("m3gnet")),
    Case("MACE", mace),
    Case("EAM", eam),
    Case("EAM+ZBL", lambda: eam(short_range="zbl", short_range_radii={"Si-O": 2.5}), cutoffs=(CUTOFF, 2.5, 2.5 / 3)),
    Case("EAM with angles", angular_eam, cutoffs=(CUTOFF, 1.3, 1.3 / 3)),
    Case("network+ZBL", lambda: RepulsivePotential(cgcnn(), ZBL(ELEMENTS, {"Si-O": 1.3})), (CUTOFF, 1.3, 1.3 / 3)),
    Case("hybrid", lambda: HybridPotential(cgcnn(3.5), eam()), cutoffs=(CUTOFF, 3.5), native=NATIVE.format("cgcnn")),
    Case("hybrid with angles", lambda: HybridPotential(cgcnn(3.5), angular_eam()), (CUTOFF, 3.5, 1.3, 1.3 / 3)),
]
VARIANTS = [(case, code) for case in CASES for code in (IMPLEMENTATIONS if case.native else ("",))]


@pytest.fixture(params=VARIANTS, ids=lambda v: f"{v[0].name}{', ' * bool(v[1])}{v[1]}")
def case(request, monkeypatch) -> Case:
    found, code = request.param
    if found.native:
        use_implementation(code, import_module(found.native).CODE, monkeypatch)
    return found


def predict(potential: Potential, atoms, route: str = "prediction", forces: bool = True, stress: bool = True):
    found = small_cells.predict(potential, atoms, route, forces, stress)
    for name in ("energies", "forces", "stress"):
        value = getattr(found, name)
        setattr(found, name, None if value is None else value.detach())
    return found


def routes(potential: Potential) -> list[tuple[Potential, bool]]:
    """The potential as it predicts, as it is trained, and differentiated by autograd alone."""
    return [(potential, False), (potential, True), (WithoutShortcuts(potential), False)]


def test_the_structures_have_forces_and_stress(case):
    """Large enough for the checks to see something, and other energies for other elements."""
    potential = case.potential()
    for atoms in (crystal(), left_handed(), slab()):
        found = predict(potential, atoms)
        assert found.forces.abs().max() > 0.02 and found.stress.abs().max() > 1e-3
    energies = predict(potential, [Atoms("Si"), Atoms("O")]).energies
    assert abs(float(energies[0] - energies[1])) > 1e-3


def test_forces_and_stress_are_derivatives_of_the_energy(case):
    """Of the same route's energy."""
    potential = case.potential()
    structures = {0: [crystal(), slab(), molecule("H2O")], 1: [crystal(), left_handed()], 2: [crystal()]}
    for k, (route, training) in enumerate(routes(potential)):
        testing.check_forces(route, structures[k], training=training)
        testing.check_stress(route, structures[k], training=training)


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
    testing.check_invariances(case.potential(seed), [crystal(seed), slab(), molecule("H2O")], seed)


def test_extensive_also_in_cells_narrower_than_the_cutoff(case):
    testing.check_extensive(case.potential(), [crystal(2), molecule("H2O"), slab()])


def test_a_batch_its_parts_and_what_is_asked_for(case):
    structures = [crystal(0), slab(), Atoms("O"), crystal(5) * (2, 1, 1), alone("O")]
    for route, training in routes(case.potential()):
        testing.check_batches(route, structures, training=training)
        testing.check_what_is_asked(route, [crystal(0), crystal(1)], training=training)
        testing.check_no_edges(route, [Atoms("OSi")], training=training)


@pytest.mark.parametrize("route", ["prediction", "autograd"])
def test_smooth_at_every_cutoff(case, route):
    potential = case.potential()
    of_route = potential if route == "prediction" else WithoutShortcuts(potential)
    testing.check_smooth_at_cutoff(of_route, [crystal()], cutoffs=case.cutoffs, curvature=case.curvature)


def test_the_calculator_the_reference_and_unknown_elements(case):
    potential, structures = case.potential(), [crystal(), molecule("H2O")]
    testing.check_ase_calculator(potential, structures)
    testing.check_reference_energies(potential, structures)
    testing.check_edges_beyond_cutoff(potential, structures)
    testing.check_unknown_element(potential)
    with pytest.raises(DataError, match=r"holds Fe, which this potential does not know \(it knows"):
        predict(potential, bulk("Fe"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saved_and_loaded(case, dtype, tmp_path):
    testing.check_save_and_load(case.potential(seed=7).to(dtype), [crystal(), slab()], tmp_path)


def test_own_images_press_on_a_single_atom(case):
    potential, atoms = case.potential(), bulk("Si", "sc", a=2.6)
    found, many = predict(potential, atoms), predict(potential, atoms * (2, 2, 2))
    assert found.forces.abs().max() < 1e-10
    assert found.stress.abs().max() > 1e-4
    assert float(many.energies) == pytest.approx(8 * float(found.energies), rel=1e-11)


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

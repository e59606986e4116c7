from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch.nn import functional

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials.backbones.cgcnn import operators
from mdl_physpre.potentials.backbones.cgcnn.network import CGCNN
from mdl_physpre.potentials.base import edge_vectors
from mdl_physpre.potentials.derivatives import sum_by_structure
from mdl_physpre.potentials.energy_reference import EnergyReference
from mdl_physpre.potentials.envelopes import smoothstep
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import build_graph
from tests.helpers.network_checks import (
    IMPLEMENTATIONS,
    check_jump_at_cutoff,
    check_routes_agree,
    check_slopes_on_kept_edges,
    check_threads_change_nothing,
    real_structures,
    use_implementation,
)  # fmt: skip
from tests.helpers.small_cells import BATCHES, ROUTES, crystal, left_handed, predict, slab

CUTOFF = 4.0


@pytest.fixture(autouse=True, params=IMPLEMENTATIONS)
def sweeps(request, monkeypatch):
    """Every test runs with both implementations of the sweeps over the edges."""
    return use_implementation(request.param, operators.CODE, monkeypatch)


def small(envelope: bool = True, seed: int = 0, **other) -> CGCNN:
    """A small network in float64, with weights large enough for forces that round-off does not drown."""
    torch.manual_seed(seed)
    settings = dict(cutoff=CUTOFF, dim1=12, dim2=9, gc_count=3, post_fc_count=2, edge_dim=11)
    reference = EnergyReference({8: -3.0, 14: -5.0})
    potential = CGCNN(envelope=envelope, reference=reference, **{**settings, **other}).double()
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.mul_(3.0)
    return potential


def energy(potential: CGCNN, atoms) -> float:
    return predict(potential, atoms, "prediction", False, False).energies.item()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("structure", [crystal, left_handed, slab])
def test_forces_and_stress_are_derivatives_of_the_energy_without_an_envelope(structure, route):
    check_slopes_on_kept_edges(small(envelope=False), structure(), route, step=1e-4, atol=1e-7)


@pytest.mark.parametrize("envelope", [True, False])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("other", [{}, dict(pre_fc_count=0), dict(pre_fc_count=2, post_fc_count=0, gc_count=1)])
def test_all_routes_agree_in_predictions_and_parameter_gradients(batch, envelope, other):
    tight = (1e-9, 1e-12)
    check_routes_agree(
        small(envelope, **other), BATCHES[batch](), energies=(1e-12, 1e-12), forces=tight, stress=tight,
        gradients=(1e-8, 1e-10),
    )  # fmt: skip


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads):
    if operators.CODE.library("float") is None:
        pytest.skip("there is no C compiler here")
    structures = [crystal(k) * (3, 2, 1) for k in range(2)]
    check_threads_change_nothing(small().float(), structures, threads, (1e-4, 1e-5), rtol=1e-5, atol=1e-5)


def test_frozen_parameters_get_no_gradient():
    potential = small()
    for parameter in potential.conv_list[0].parameters():
        parameter.requires_grad_(False)
    predict(potential, crystal(), "training").forces.square().sum().backward()
    assert potential.conv_list[0].lin_f.weight.grad is None
    assert potential.conv_list[1].lin_f.weight.grad.abs().max() > 0


@pytest.mark.parametrize("envelope", [True, False])
def test_extensive(envelope):
    potential, atoms = small(envelope), crystal(2)
    one, many = predict(potential, atoms, "prediction"), predict(potential, atoms * (2, 1, 3), "prediction")
    assert many.energies.item() == pytest.approx(6 * one.energies.item(), rel=1e-12)
    torch.testing.assert_close(many.forces, one.forces.repeat(6, 1), rtol=0, atol=1e-10)
    torch.testing.assert_close(many.stress, one.stress, rtol=0, atol=1e-10)


def test_an_isolated_atom_has_no_force_and_the_energy_of_the_network_without_neighbours():
    potential = small()
    found = predict(potential, [Atoms("Si"), Atoms("O", cell=[9, 9, 9], pbc=True)], "prediction")
    z = torch.tensor([14, 8])
    none = torch.zeros(0, dtype=torch.int64)
    expected = potential.reference(z) + potential.outputs(z, torch.zeros(0, 3, dtype=torch.float64), none, none)
    torch.testing.assert_close(found.energies, expected.detach())
    assert found.forces.abs().max() == 0
    assert found.stress[0].isnan().all()
    assert found.stress[1].abs().max() == 0


def test_without_the_envelope_the_energy_jumps_as_the_host_s_does():
    check_jump_at_cutoff(small(envelope=False))


def test_the_envelope_is_the_quintic_smoothstep():
    r = torch.tensor([0.0, 1.9, 2.0, 3.0, 4.0, 4.1], dtype=torch.float64)
    torch.testing.assert_close(smoothstep(r, 2.0, 4.0), torch.tensor([1, 1, 1, 0.5, 0, 0], dtype=torch.float64))


@pytest.mark.parametrize("wide", [False, True])
def test_pyg_cgconv_gives_the_same_energy_and_forces(wide):
    """The host's network, put together from PyG's own convolution, with the same state dictionary."""
    from torch_geometric.nn import CGConv, global_add_pool

    sizes = dict(dim1=100, dim2=150, gc_count=4, post_fc_count=3, edge_dim=50) if wide else {}
    potential = small(envelope=False, **sizes)
    convolutions = torch.nn.ModuleList(
        CGConv(potential.dim1, potential.edge_dim, aggr="mean", batch_norm=False) for _ in potential.conv_list
    ).double()
    convolutions.load_state_dict(potential.conv_list.state_dict())
    graph = build_graph([crystal(0), slab()], cutoff=CUTOFF)
    graph.pos.requires_grad_(True)
    distances = edge_vectors(graph).norm(dim=1)
    centres = torch.linspace(0, CUTOFF, potential.edge_dim).double()
    gaussians = torch.exp(-0.5 * ((distances[:, None] - centres) / (0.2 * CUTOFF)) ** 2)
    h = functional.one_hot(graph.z - 1, 100).double()
    for linear in potential.pre_lin_list:
        h = functional.silu(linear(h))
    for convolution in convolutions:
        h = convolution(h, graph.edge_index.flip(0), gaussians)  # PyG sums at the second row
    for linear in potential.post_lin_list:
        h = functional.silu(linear(h))
    network = global_add_pool(potential.lin_out(h), graph.batch)[:, 0]
    forces = -torch.autograd.grad(network.sum(), graph.pos)[0]
    graph.pos.requires_grad_(False)
    found = evaluate(potential, graph)
    expected = network + sum_by_structure(potential.reference(graph.z), graph)
    torch.testing.assert_close(found.energies, expected.detach(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.forces, forces, rtol=1e-7, atol=1e-9)


def test_parameter_names_and_shapes_are_the_host_s():
    shapes = {name: tuple(p.shape) for name, p in CGCNN().named_parameters()}
    expected = {"pre_lin_list.0.weight": (100, 100), "pre_lin_list.0.bias": (100,)}
    for k in range(4):
        for part in ("lin_f", "lin_s"):
            expected[f"conv_list.{k}.{part}.weight"] = (100, 250)
            expected[f"conv_list.{k}.{part}.bias"] = (100,)
    for k, width in enumerate((100, 150, 150)):
        expected[f"post_lin_list.{k}.weight"] = (150, width)
        expected[f"post_lin_list.{k}.bias"] = (150,)
    expected |= {"lin_out.weight": (1, 150), "lin_out.bias": (1,)}
    assert shapes == expected
    assert sum(np.prod(s) for s in shapes.values()) == 271_501
    assert CGCNN().state_dict()["distance_expansion.offset"].shape == (50,)


@pytest.mark.parametrize("envelope", [True, False])
def test_float32_against_float64(envelope):
    torch.manual_seed(1)
    single = CGCNN(cutoff=6.0, envelope=envelope, reference=EnergyReference({8: -430.0, 14: -160.0}))
    structures = [crystal(1) * (2, 2, 1), bulk("Si", cubic=True)]
    structures[1].rattle(0.2, seed=1)
    low, low_training = predict(single, structures, "prediction"), predict(single, structures, "training")
    high = predict(single.double(), structures, "autograd")
    for found in (low, low_training):
        assert (found.energies - high.energies).abs().max() < 2e-5
        assert (found.forces - high.forces).abs().max() < 1e-5 * max(1, high.forces.abs().max())
        assert (found.stress - high.stress).abs().max() < 1e-6 * max(1, high.stress.abs().max())


def test_energies_and_scale_add_to_the_reference():
    potential = small()
    network = energy(potential, crystal()) - 2 * (-3.0 - 5.0)
    potential.energy_scale = 3.0
    assert energy(potential, crystal()) == pytest.approx(3 * network - 16.0, rel=1e-12)


@pytest.mark.parametrize(
    ("key", "value"),
    [("batch_norm", True), ("dropout_rate", 0.1), ("act", "relu"), ("pool", "global_mean_pool"),
     ("pool_order", "early"), ("cutoff", 0.0), ("cutoff", float("nan")), ("gc_count", 0), ("edge_dim", 1),
     ("envelope_start", 1.0),
     ("pre_fc_count", -1), ("energy_scale", 0.0), ("elements", ["Xx"]), ("elements", [101]), ("elements", [])],
)  # fmt: skip
def test_unsupported_values_are_refused(key, value):
    with pytest.raises(ConfigError, match=key):
        CGCNN(**{key: value})


def test_the_host_s_own_values_are_accepted():
    CGCNN(batch_norm=False, batch_track_stats=True, act="silu", dropout_rate=0, pool_order="late")


def test_elements_by_symbol_and_number():
    assert CGCNN(elements=["Si", 8]).elements == (8, 14)
    potential = CGCNN(elements=["O"], cutoff=3.0)
    with pytest.raises(DataError, match="Si"):
        evaluate(potential, build_graph(bulk("Si"), cutoff=3.0, dtype=torch.float32))
    with pytest.raises(DataError, match="holds Md, .* knows H to Fm"):
        evaluate(CGCNN(cutoff=3.0), build_graph(Atoms("Md"), cutoff=3.0, dtype=torch.float32))


def test_real_structures_on_all_routes():
    potential, structures = small(cutoff=5.0), real_structures()
    found, expected = predict(potential, structures, "prediction"), predict(potential, structures, "autograd")
    torch.testing.assert_close(found.energies, expected.energies, rtol=1e-11, atol=1e-9)
    torch.testing.assert_close(found.forces, expected.forces, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.stress, expected.stress, rtol=1e-8, atol=1e-11, equal_nan=True)

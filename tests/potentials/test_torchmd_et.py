from __future__ import annotations

import copy

import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch.utils._python_dispatch import TorchDispatchMode

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials.backbones.torchmd_et import operators, radial
from mdl_physpre.potentials.backbones.torchmd_et.network import TorchMDET
from mdl_physpre.potentials.backbones.torchmd_et.radial import ExponentialNormalBasis, cosine_cutoff
from mdl_physpre.potentials.base import check_elements, edge_vectors
from mdl_physpre.potentials.energy_reference import EnergyReference
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.kernels.c_code import tensor_operations
from mdl_physpre.potentials.kernels.edge_op import energies_for_derivatives
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
from tests.helpers.small_cells import BATCHES, ROUTES, WithoutShortcuts, crystal, left_handed, predict, slab

CUTOFF = 4.0


@pytest.fixture(autouse=True, params=IMPLEMENTATIONS)
def sums(request, monkeypatch):
    """Every test runs with both implementations of the sums over the edges."""
    return use_implementation(request.param, operators.CODE, monkeypatch)


@pytest.fixture
def fine_table(monkeypatch):
    """Radial functions on a finer table, so that the table's error drowns in that of the comparison."""
    monkeypatch.setattr(radial, "NODES_PER_WIDTH", 12.0)


def small(envelope: bool = True, seed: int = 0, **other) -> TorchMDET:
    """A small network in float64, with biases, and weights large enough for forces that round-off does not drown."""
    torch.manual_seed(seed)
    sizes = dict(hidden_channels=12, num_layers=3, num_heads=3, num_rbf=11, num_post_layers=1, post_hidden_channels=9)
    reference = EnergyReference({8: -3.0, 14: -5.0})
    potential = TorchMDET(cutoff=CUTOFF, envelope=envelope, reference=reference, **{**sizes, **other}).double()
    with torch.no_grad():
        for name, parameter in potential.named_parameters():
            if name != "distance_expansion.betas":
                parameter.mul_(1.3).add_(0.2 * torch.randn_like(parameter))
    return potential


def energy(potential: TorchMDET, atoms) -> float:
    return predict(potential, atoms, "prediction", False, False).energies.item()


def replace(graph, **fields):
    return type(graph).from_tensors(graph, **fields)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("structure", [crystal, left_handed, slab])
def test_forces_and_stress_are_derivatives_of_the_energy_without_an_envelope(structure, route):
    """Of the same route's energy, which on a table is not quite that of the others."""
    check_slopes_on_kept_edges(small(envelope=False), structure(), route, step=1e-3, atol=1e-6)


SIZES = [
    {},
    dict(num_layers=1, num_post_layers=0),
    dict(num_layers=2, num_heads=8, hidden_channels=16, num_post_layers=2),
    dict(num_layers=4, num_heads=1, hidden_channels=5),
]


@pytest.mark.parametrize("envelope", [True, False])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("sizes", SIZES)
def test_all_routes_agree_in_predictions_and_parameter_gradients(batch, envelope, sizes, fine_table):
    check_routes_agree(
        small(envelope, **sizes), BATCHES[batch](), energies=(1e-8, 1e-9), forces=(1e-7, 1e-8), stress=(1e-7, 1e-9),
        gradients=(1e-5, 1e-6),
    )  # fmt: skip


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads, sums):
    if sums != "C":
        pytest.skip("it is the C code that divides the atoms among threads")
    structures = [crystal(k) * (4, 3, 2) for k in range(2)]
    check_threads_change_nothing(small(), structures, threads, (1e-9, 1e-9), rtol=1e-10, atol=1e-12)


def test_predictions_follow_the_parameters_however_they_change():
    """What depends on parameters alone is kept between predictions, and must be made again when they change."""
    potential, atoms = small(), crystal()

    def check():
        fast, exact = (predict(potential, atoms, route).forces for route in ("prediction", "autograd"))
        torch.testing.assert_close(fast, exact, rtol=1e-4, atol=1e-4 * exact.abs().max().item())
        return exact.double()

    seen = [check()]
    with torch.no_grad():
        potential.attention_layers[1].dk_proj.bias.add_(0.3)
    seen.append(check())
    potential.load_state_dict(small(seed=1).state_dict())
    seen.append(check())
    potential.attention_layers[0].q_proj.weight.data = 2.0 * potential.attention_layers[0].q_proj.weight.data
    seen.append(check())
    potential.load_state_dict(small(seed=2).state_dict(), assign=True)
    seen.append(check())
    assert all((a - b).abs().max() > 1e-2 * a.abs().max() for a, b in zip(seen, seen[1:]))
    potential.float()
    torch.testing.assert_close(check(), seen[-1], rtol=1e-3, atol=1e-4)
    assert copy.deepcopy(potential).kept is None


def test_second_derivatives_in_positions_come_from_the_atomic_energies(sums):
    """Hessians are exact there; the C code, which lacks further derivatives, refuses rather than give wrong ones."""
    potential, graph = small(num_layers=2), build_graph(crystal(), cutoff=CUTOFF)

    def forces(positions):
        return evaluate(WithoutShortcuts(potential), replace(graph, pos=positions), stress=False).forces

    positions = graph.pos.clone().requires_grad_(True)
    total = potential.atomic_energies(replace(graph, pos=positions)).sum()
    (slope,) = torch.autograd.grad(total, positions, create_graph=True)
    (row,) = torch.autograd.grad(slope[1, 0], positions)
    shift = torch.zeros_like(graph.pos)
    shift[1, 0] = 1e-4
    numeric = -(forces(graph.pos + shift) - forces(graph.pos - shift)) / 2e-4
    torch.testing.assert_close(row, numeric, rtol=1e-5, atol=1e-6 * numeric.abs().max().item())
    if sums != "C":
        return
    loss = predict(potential, crystal(), "training").forces.square().sum()
    with pytest.raises(RuntimeError):
        (slope,) = torch.autograd.grad(loss, [potential.embedding.weight], create_graph=True)
        torch.autograd.grad(slope.sum(), [potential.embedding.weight])


@pytest.mark.parametrize("layer", ["start", "first", "middle", "last"])
def test_the_operators_are_registered_as_torch_asks(layer, sums):
    if sums != "C":
        pytest.skip("the operators are those of the C code")
    potential, graph = small(), build_graph(crystal(), cutoff=CUTOFF)
    i, j = graph.edge_index
    with energies_for_derivatives(True):
        found = potential._messages(edge_vectors(graph), i, j, len(graph.z))
    n, width = len(graph.z), found.tables.layout.channels
    random = {k: torch.randn(n, k * width).double() for k in (1, 3, 5)}
    vec = random[3].view(n, 3, width) if layer == "middle" else None
    if layer == "start":
        values = found.tables.layout.padded(torch.randn(n, potential.hidden_channels).double())
        given = [values, None, found.tables.start, *found.edges_of_start, 0, False]
    else:
        heads = found.tables.layout.padded_heads
        given = [random[5], vec, found.tables.layers[0], *found.edges, heads, layer != "last"]
    given = [t.detach() if isinstance(t, torch.Tensor) else t for t in given]
    for k in (0, 1, 2, 3, 4):
        if given[k] is not None:
            given[k].requires_grad_(True)
    torch.library.opcheck(operators.sums, tuple(given))
    adjoints = [torch.randn_like(t) for t in operators.sums(*given)]
    torch.library.opcheck(operators.by_geometry, (*adjoints, *given))
    without = [t.detach() if isinstance(t, torch.Tensor) else t for t in given]
    torch.library.opcheck(operators.by_table, (*adjoints, *without))
    rates = [torch.randn_like(t) for t in operators.by_geometry(*adjoints, *without)]
    torch.library.opcheck(operators.second, (*rates, *adjoints, *without))


@pytest.mark.parametrize("envelope", [True, False])
def test_edges_at_and_beyond_the_cutoff_count_nothing(envelope):
    potential, atoms = small(envelope=envelope), [crystal(0), slab()]
    atoms[1].cell[0] = [CUTOFF, 0, 0]  # images at the cutoff itself
    long, exact = (build_graph(atoms, cutoff) for cutoff in (1.4 * CUTOFF, CUTOFF))
    assert long.edge_index.shape[1] > 1.5 * exact.edge_index.shape[1]
    found, expected = (evaluate(potential, graph, create_graph=True) for graph in (long, exact))
    for name in ("energies", "forces", "stress"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-11, atol=1e-11)


def gradient_of_a_loss(potential: TorchMDET, graph, **how) -> torch.Tensor:
    potential.zero_grad()
    found = evaluate(potential, graph, create_graph=True, **how)
    (found.energies.square().sum() + found.forces.square().sum() + found.stress.square().sum()).backward()
    return torch.cat([p.grad.flatten() for p in potential.parameters() if p.grad is not None])


def test_recomputation_changes_no_gradient():
    potential, graph = small(), build_graph([crystal(0), crystal(1), slab()], CUTOFF)
    parts = graph.edge_index.shape[1] // 3 + 20
    whole, in_parts = gradient_of_a_loss(potential, graph), gradient_of_a_loss(potential, graph, recompute_edges=parts)
    torch.testing.assert_close(in_parts, whole, rtol=1e-9, atol=1e-10 * whole.abs().max().item())


class Kernels(TorchDispatchMode):
    """Counts what would be a kernel on a GPU: all operations but views and allocations."""

    FREE = {"view", "_unsafe_view", "detach", "alias", "expand", "transpose", "permute", "slice", "select", "unsqueeze",
            "squeeze", "t", "as_strided", "unbind", "split", "split_with_sizes", "empty", "empty_like", "new_empty",
            "empty_strided", "new_empty_strided", "diagonal"}  # fmt: skip
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[-1]
        assert name not in ("nonzero", "_unique2", "unique_dim", "_local_scalar_dense", "masked_select")
        self.count += name not in self.FREE
        return function(*args, **(kwargs or {}))


def test_a_training_step_is_few_kernels_however_many_structures():
    torch.manual_seed(0)
    potential = TorchMDET(cutoff=CUTOFF, hidden_channels=16, post_hidden_channels=16)
    counts = []
    for n in (1, 4):
        graph = build_graph([crystal(k) for k in range(n)], CUTOFF, dtype=torch.float32)
        potential.zero_grad()
        vectors = edge_vectors(graph).requires_grad_(True)
        with tensor_operations(), Kernels() as kernels:
            total = potential.outputs(graph.z, vectors, *graph.edge_index).sum()
            (slope,) = torch.autograd.grad(total, vectors, create_graph=True)
            (total + slope.square().sum()).backward()
        counts.append(kernels.count)
    assert counts[0] == counts[1] <= 3600


def test_frozen_parameters_get_no_gradient():
    potential = small()
    for parameter in potential.attention_layers[0].parameters():
        parameter.requires_grad_(False)
    predict(potential, crystal(), "training").forces.square().sum().backward()
    assert potential.attention_layers[0].q_proj.weight.grad is None
    assert potential.attention_layers[1].q_proj.weight.grad.abs().max() > 0


def test_without_the_envelope_own_images_are_missing_as_in_the_host():
    potential, atoms = small(envelope=False), bulk("Si", "sc", a=2.6)
    assert abs(energy(potential, atoms * (2, 2, 2)) - 8 * energy(potential, atoms)) > 1e-4


def test_without_the_envelope_the_energy_jumps_as_the_host_s_does():
    check_jump_at_cutoff(small(envelope=False))


def test_the_cosine_cutoff():
    r = torch.tensor([0.0, 1.0, 2.0, 4.0, 4.1], dtype=torch.float64)
    expected = torch.tensor([1, 0.5 + 0.5 * 2**-0.5, 0.5, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(cosine_cutoff(r, 4.0), expected)


@pytest.mark.parametrize("cutoff", [3.0, 5.0, 8.0])
def test_the_table_interpolates_the_radial_functions_and_their_slopes(cutoff):
    basis = ExponentialNormalBasis(cutoff, 50).double()
    grid = basis.grid()
    r = torch.linspace(0.0, cutoff - 1e-9, 4001, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        table = grid.table(basis(grid.distances, grid.cutoff_values))
    row, spline = grid.place(r.detach())
    weights, slopes = spline.split(6, dim=1)
    rows = table[row[:, None] + torch.arange(6)]
    exact = basis(r, cosine_cutoff(r, cutoff))
    assert ((weights[:, :, None] * rows).sum(1) - exact).abs().max() < 2e-6
    along = torch.stack([torch.autograd.grad(exact[:, k].sum(), r, retain_graph=True)[0] for k in range(50)], dim=1)
    assert ((slopes[:, :, None] * rows).sum(1) - along).abs().max() < 2e-5 * along.abs().max()
    step = 1e-6  # and the slopes are those of the interpolating functions
    after, before = (grid.place((r.detach() + h).clamp(0, cutoff)) for h in (step, -step))
    moved = [(w[:, :6, None] * table[k[:, None] + torch.arange(6)]).sum(1) for k, w in (after, before)]
    numeric = (moved[0] - moved[1])[1:-1] / (2 * step)
    assert (grid.place(torch.tensor([cutoff, 1.2 * cutoff]))[0] == -1).all()  # which count nothing
    assert (numeric - (slopes[:, :, None] * rows).sum(1)[1:-1]).abs().max() < 1e-6 * along.abs().max()


def test_the_table_follows_functions_that_become_sharper():
    potential, structures = small(), [crystal(0)]
    rows = potential.distance_expansion.grid().n_rows
    with torch.no_grad():
        potential.distance_expansion.betas.mul_(30.0)
    assert potential.distance_expansion.grid().n_rows > 2 * rows
    exact, found = predict(potential, structures, "autograd"), predict(potential, structures, "prediction")
    torch.testing.assert_close(found.forces, exact.forces, rtol=1e-4, atol=1e-5)


def test_parameter_names_and_shapes_are_the_host_s():
    shapes = {name: tuple(p.shape) for name, p in TorchMDET().named_parameters()}
    expected = {"embedding.weight": (100, 128), "distance_expansion.means": (50,), "distance_expansion.betas": (50,)}
    expected |= {"neighbor_embedding.embedding.weight": (100, 128)}
    linear = {"neighbor_embedding.distance_proj": (128, 50), "neighbor_embedding.combine": (128, 256)}
    for k in range(8):
        layer = f"attention_layers.{k}"
        expected |= {f"{layer}.layernorm.weight": (128,), f"{layer}.layernorm.bias": (128,)}
        linear |= {f"{layer}.q_proj": (128, 128), f"{layer}.k_proj": (128, 128), f"{layer}.v_proj": (384, 128)}
        linear |= {f"{layer}.o_proj": (384, 128), f"{layer}.dk_proj": (128, 50), f"{layer}.dv_proj": (384, 50)}
        expected[f"{layer}.vec_proj.weight"] = (384, 128)
    expected |= {"out_norm.weight": (128,), "out_norm.bias": (128,)}
    linear |= {"post_lin_list.0": (128, 128), "post_lin_list.1": (128, 128), "post_lin_list.2": (1, 128)}
    for name, shape in linear.items():
        expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    assert shapes == expected


@pytest.mark.parametrize("envelope", [True, False])
def test_float32_against_float64(envelope):
    torch.manual_seed(1)
    reference = EnergyReference({8: -430.0, 14: -160.0})
    single = TorchMDET(cutoff=5.0, num_layers=3, envelope=envelope, reference=reference)
    structures = [crystal(1) * (2, 1, 1), bulk("Si", cubic=True)]
    structures[1].rattle(0.2, seed=1)
    low, low_training = predict(single, structures, "prediction"), predict(single, structures, "training")
    high = predict(single.double(), structures, "autograd")
    for found in (low, low_training):
        assert (found.energies - high.energies).abs().max() < 2e-5
        assert (found.forces - high.forces).abs().max() < 2e-5 * max(1, high.forces.abs().max())
        assert (found.stress - high.stress).abs().max() < 2e-6 * max(1, high.stress.abs().max())


def test_scale_and_reference():
    potential = small()
    before = predict(potential, crystal(), "prediction")
    network = before.energies.item() - 2 * (-3.0 - 5.0)
    potential.energy_scale = 3.0
    after = predict(potential, crystal(), "prediction")
    assert after.energies.item() == pytest.approx(3 * network - 16.0, rel=1e-12)
    torch.testing.assert_close(after.forces, 3 * before.forces)
    torch.testing.assert_close(after.stress, 3 * before.stress)


@pytest.mark.parametrize(
    ("key", "value"),
    [("rbf_type", "gauss"), ("activation", "relu"), ("attn_activation", "tanh"), ("pool", "global_mean_pool"),
     ("pool_order", "early"), ("aggr", "mean"), ("neighbor_embedding", False), ("distance_influence", "keys"),
     ("trainable_rbf", False), ("cutoff", 0.0), ("cutoff", float("nan")), ("num_layers", 0), ("num_rbf", 1),
     ("num_heads", 7), ("num_post_layers", -1), ("energy_scale", 0.0), ("elements", ["Xx"]), ("elements", [100]),
     ("elements", [])],
)  # fmt: skip
def test_unsupported_values_are_refused(key, value):
    with pytest.raises(ConfigError, match=key):
        TorchMDET(**{key: value})


def test_elements_by_symbol_and_number():
    assert TorchMDET(elements=["Si", 8], num_layers=1).elements == (8, 14)
    with pytest.raises(DataError, match="Si"):
        check_elements(TorchMDET(elements=["O"], cutoff=3.0, num_layers=1), build_graph(bulk("Si"), 3.0))
    with pytest.raises(DataError, match="holds Fm.*knows H to Es"):
        check_elements(TorchMDET(cutoff=3.0, num_layers=1), build_graph(Atoms("Fm"), 3.0))


class GivenEdges(torch.nn.Module):
    """The edges of a graph in place of TorchMD-NET's neighbour list, which has no small cells and adds self-loops."""

    def __init__(self, graph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, positions, *_):
        vectors = edge_vectors(replace(self.graph, pos=positions))
        return self.graph.edge_index, vectors.norm(dim=1), vectors.clone()  # which it scales in place


@pytest.mark.parametrize("envelope", [True, False])
def test_torchmd_net_gives_the_same_energy_and_forces(envelope):
    """TorchMD-NET's own network on the same edges, with and without its cutoff of vectors."""
    pytest.importorskip("torchmdnet", reason="torchmd-net is not installed")
    from torchmdnet.models.torchmd_et import TorchMD_ET

    sizes = dict(hidden_channels=24, num_layers=3, num_heads=4, num_rbf=12)
    potential = small(envelope=envelope, num_post_layers=1, post_hidden_channels=8, **sizes)
    host = TorchMD_ET(cutoff_upper=CUTOFF, vector_cutoff=envelope, dtype=torch.float64, **sizes)
    own = {name: p for name, p in potential.state_dict().items() if not name.startswith(("post", "reference"))}
    assert not host.load_state_dict(own, strict=False).unexpected_keys
    atoms = bulk("NaCl", "rocksalt", 5.6, cubic=True)  # wide enough that no atom meets an image of its own
    atoms.rattle(0.1, seed=0)
    graph = build_graph(atoms, cutoff=CUTOFF)
    host.distance = GivenEdges(graph)
    positions = graph.pos.clone().requires_grad_(True)
    x = host(graph.z, positions, graph.batch)[0]
    outputs = potential.post_lin_list[1](torch.nn.functional.silu(potential.post_lin_list[0](x)))
    forces = -torch.autograd.grad(outputs.sum(), positions)[0]
    found = predict(potential, atoms, "autograd")
    torch.testing.assert_close(found.energies[0], outputs.sum().detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.forces, forces, rtol=1e-7, atol=1e-9)


def test_real_structures_on_all_routes():
    potential, structures = small(), real_structures()
    found, expected = predict(potential, structures, "prediction"), predict(potential, structures, "autograd")
    torch.testing.assert_close(found.energies, expected.energies, rtol=1e-7, atol=1e-6)
    torch.testing.assert_close(found.forces, expected.forces, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.stress, expected.stress, rtol=1e-5, atol=1e-6, equal_nan=True)

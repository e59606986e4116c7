"""The stand-in for a GPU notices what a GPU would suffer from, has the right values, and runs what training needs."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from ase.build import bulk
from torch.utils.checkpoint import checkpoint

from mdl_physpre import build_graph, evaluate
from mdl_physpre.potentials import EAMInteraction
from tests.helpers.gpu_stand_in import DEVICE, GPUTensor, counting

WAITING = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool((x > 0).all()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "copy": lambda x: torch.zeros(4).copy_(x),
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "mask": lambda x: x[x > 0],
    "set by mask": lambda x: x.clone().__setitem__(x > 0, x[0]),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.ones(4, dtype=torch.int64, device=DEVICE)),
    "solve": lambda x: torch.linalg.solve(torch.eye(4, device=DEVICE), x),
}
FREE = {
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "index_add": lambda x: x.index_add(0, torch.arange(4, device=DEVICE), x),
    "scatter_reduce": lambda x: x.scatter_reduce(0, torch.arange(4, device=DEVICE), x, "amax"),
    "scalar of the host": lambda x: x * torch.tensor(2.0),
    "det": lambda x: torch.linalg.det(x.expand(4, 4)),
    "sorted": lambda x: x.sort().values.cumsum(0),
}
CLASHES = {
    "sum": lambda x: x + torch.ones(4),
    "index_select": lambda x: x.index_select(0, torch.tensor([1])),
    "index_add": lambda x: torch.zeros(4).index_add(0, torch.arange(4), x),
    "cat": lambda x: torch.cat([x, torch.ones(1)]),
    "indices of the device": lambda x: torch.ones(4)[x.argsort()],
    "assigned": lambda x: x.clone().__setitem__(torch.tensor([0, 1], device=DEVICE), torch.ones(2)),
}


def numbers() -> torch.Tensor:
    return torch.tensor([3.0, 1.0, -2.0, 4.0]).to(DEVICE)


@pytest.mark.parametrize("name", WAITING)
def test_waits_are_counted(name):
    x = numbers()
    with counting() as counts:
        WAITING[name](x)
    assert counts.waited == 1 and not counts.clashes


@pytest.mark.parametrize("name", FREE)
def test_work_on_the_device_waits_for_nothing(name):
    x = numbers()
    with counting() as counts:
        made = FREE[name](x)
    assert isinstance(made, GPUTensor) and made.device == DEVICE
    assert counts.waited == 0 and not counts.clashes and not counts.uploads and counts.kernels > 0


@pytest.mark.parametrize("name", CLASHES)
def test_clashes_are_noticed(name):
    x = numbers()
    with counting() as counts:
        CLASHES[name](x)
    assert counts.clashes.total() == 1


def test_a_clash_is_named_with_its_line():
    graph = build_graph(bulk("MgO", "rocksalt", 4.2, cubic=True), 5.0)
    mixed = graph.on(DEVICE)
    mixed.cell_offsets = graph.cell_offsets
    with counting() as counts:
        evaluate(EAMInteraction(elements=["Mg", "O"], cutoff=5.0, n_basis=2).to(DEVICE), mixed)
    assert any(where.startswith("potentials/") and ".py:" in where for _, where in counts.clashes)


def test_kernels_and_uploads():
    with counting() as counts:
        x = torch.tensor([1.0, 2.0]).to(DEVICE)
        assert (counts.kernels, counts.uploads.total()) == (0, 1)
        x.view(1, 2).expand(3, 2).t()[0].detach()  # no work
        assert counts.kernels == 0
        (x + 1) @ x
        assert counts.names == {"add": 1, "dot": 1}
        x[[0, 1]]
        assert counts.uploads.total() == 2
        torch.zeros(3, device=DEVICE)
        torch.arange(3, device=DEVICE)
        assert counts.kernels == 5
    x + x
    assert counts.kernels == 5


def test_code_on_the_host_cannot_have_the_values():
    for take in (np.asarray, lambda x: x.numpy(), lambda x: x.data_ptr()):
        with pytest.raises((TypeError, RuntimeError)):
            take(numbers())


def test_a_potential_gives_the_values_of_the_cpu():
    torch.manual_seed(0)
    atoms = bulk("MgO", "rocksalt", 4.2, cubic=True)
    atoms.rattle(0.1, seed=0)
    potential = EAMInteraction(elements=["Mg", "O"], cutoff=5.0, n_basis=2)
    graph = build_graph(atoms, 5.0)
    here, there = evaluate(potential, graph), evaluate(copy.deepcopy(potential).to(DEVICE), graph.on(DEVICE))
    for name in ("energies", "forces", "stress"):
        assert getattr(there, name).device == DEVICE
        torch.testing.assert_close(getattr(there, name).cpu(), getattr(here, name), rtol=1e-10, atol=1e-10)


def trained(device, path: bool) -> list[torch.Tensor]:
    """Weights after two steps with second derivatives, recomputation, clipping and the fused optimiser."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 1)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, fused=True)
    x = torch.linspace(-1, 1, 12).reshape(3, 4).to(device)
    for _ in range(2):
        optimizer.zero_grad()
        x = x.detach().requires_grad_(True)
        out = checkpoint(network, x, use_reentrant=False) if path else network(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        slope.square().sum().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        optimizer.step()
    return [p.detach().cpu() for p in network.parameters()]


@pytest.mark.parametrize("recomputed", [False, True])
def test_training_gives_the_weights_of_the_cpu(recomputed):
    torch.testing.assert_close(trained(DEVICE, recomputed), trained("cpu", False))


def test_derivatives_of_functions():
    x, y = numbers(), numbers().cpu()
    value, gradient = torch.func.vjp(lambda v: (v.sin() * v).sum(), x)
    expected = torch.func.grad(lambda v: (v.sin() * v).sum())(y)
    torch.testing.assert_close(gradient(torch.ones_like(value))[0].cpu(), expected)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def test_functions_with_gradients_of_their_own():
    x = numbers().requires_grad_(True)
    Doubled.apply(x).sum().backward()
    assert x.grad.tolist() == [2.0] * 4


@torch.library.custom_op("gpu_stand_in::sine", mutates_args=(), device_types="cpu")
def sine(x: torch.Tensor) -> torch.Tensor:
    raise AssertionError("the code for the CPU")


def test_operators_run_their_code_for_gpus():
    with pytest.raises(NotImplementedError, match="CUDA"):
        torch.ops.gpu_stand_in.sine(numbers())
    sine.register_kernel("cuda")(lambda x: x.sin())
    with counting() as counts:
        found = torch.ops.gpu_stand_in.sine(numbers())
    assert counts.names == {"sin": 1}
    torch.testing.assert_close(found.cpu(), numbers().cpu().sin())


def test_random_numbers():
    generator = torch.Generator(device=DEVICE).manual_seed(3)
    assert generator.device == DEVICE and isinstance(torch.default_generator, torch.Generator)
    drawn = torch.randn(4, generator=generator, device=DEVICE)
    torch.testing.assert_close(drawn.cpu(), torch.randn(4, generator=torch.Generator().manual_seed(3)))
    with torch.random.fork_rng(devices=[0], device_type=DEVICE.type):
        inside = torch.rand(2, device=DEVICE)
    torch.testing.assert_close(torch.rand(2), inside.cpu())


def test_what_is_stored_can_be_read():
    network = torch.nn.Linear(3, 2).to(DEVICE)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    network(torch.ones(1, 3, device=DEVICE)).sum().backward()
    optimizer.step()
    file = io.BytesIO()
    torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    stored = torch.load(file, map_location="cpu", weights_only=True)
    other = copy.deepcopy(network)
    other.load_state_dict(stored["network"])
    optimizer.load_state_dict(stored["optimizer"])
    assert stored["network"]["weight"].device.type == "cpu" and other.weight.device == DEVICE
    assert optimizer.state_dict()["state"][0]["exp_avg"].device == DEVICE
    assert torch.equal(other.to("cpu").weight, stored["network"]["weight"])


def test_questions_about_the_device():
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=True):
        assert torch.is_autocast_enabled(DEVICE.type)
        torch.nn.functional.linear(numbers(), torch.eye(4, device=DEVICE))
    assert torch.ones(2).pin_memory().to(DEVICE, non_blocking=True).device == DEVICE
    x = numbers()[:, None].clone()
    assert x.squeeze_(1).unsqueeze_(0).tolist() == [[3.0, 1.0, -2.0, 4.0]]

"""What one GPU gives: the numbers of the CPU, speed against batch size, comparisons, and the paper's costs.

    same        energies, forces, stress and the gradient in the parameters against the CPU in float64
    repeatable  whether the same call gives the same bits again
    training    structures/s, memory, kernels and waits of the host against batch size, eager and compiled
    dynamics    atom-steps/s against the number of structures, at constant volume and pressure, eager and compiled
    autograd    a training step against plain automatic differentiation of the same network
    others      TorchSim with the same model, torchmd-net, mattersim, as far as they are installed
    paper       what the paper's work would take, extrapolated from rates measured here

Each section has at most the minutes that ``MINUTES`` gives it, 20 in all, is caught on its own, and is written to
``--out`` row by row; sections run in several commands with the same ``--out`` are collected there. Structures are
72-atom cells like quartz, networks are untrained and have the paper's sizes.

    python benchmarks/gpu.py --section training --out gpu.json
    python benchmarks/gpu.py --device cpu --small        # a dry run
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import math
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import environment, print_table
from torch import Tensor, nn

from mdl_physpre import label
from mdl_physpre.potentials import CGCNN, EAMInteraction, M3GNet, TorchMDET
from mdl_physpre.potentials.base import Backbone, Potential, Predictions, edge_vectors
from mdl_physpre.potentials.derivatives import sum_by_structure
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import AtomGraph, GraphDataset
from mdl_physpre.training.loss import label_errors, total_loss
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.utils.memory import PeakMemory
from mdl_physpre.workflow import benchmark
from mdl_physpre.workflow.throughput import (
    running,
    seconds_of,
    silica_like,
    synchronise,
    timed_steps,
    training_step,
)

ELEMENTS = ["Si", "O"]
CASES = [("cgcnn", 8.0), ("torchmd_et", 5.0), ("torchmd_et", 8.0), ("m3gnet", 5.0)]
CLASSES: dict[str, type[Backbone]] = {
    "cgcnn": CGCNN, "torchmd_et": TorchMDET, "m3gnet": M3GNet, "eam": EAMInteraction
}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "cgcnn": {"dim1": 8, "dim2": 8, "gc_count": 2},
    "torchmd_et": {"hidden_channels": 8, "post_hidden_channels": 8, "num_layers": 2, "num_heads": 2},
    "m3gnet": {"units": 8, "num_blocks": 1},
    "eam": {"n_basis": 2},
}
MINUTES = {"same": 1.5, "repeatable": 0.5, "training": 6, "dynamics": 5, "autograd": 2, "others": 2.5, "paper": 2.5}
PAPER_STRUCTURES, PAPER_EPOCHS, PAPER_STEPS = 11_775, 50, 5000
Row = dict[str, Any]


class Bench:
    """What the sections share: the device, sizes, and how much time is left."""

    def __init__(self, device: str, small: bool) -> None:
        self.device, self.small = torch.device(device), small
        self.cases = [(n, 4.0) for n in ("cgcnn", "torchmd_et", "m3gnet")] if small else CASES
        self.structures = silica_like(2 if small else 16, (1, 1, 1) if small else (2, 2, 2))
        self.seconds = 0.0 if small else 2.0  # of a rate
        self.end = math.inf

    def modes(self) -> list[str]:
        return ["eager", "compiled"] if benchmark.compiles_on(self.device) else ["eager"]

    def potential(self, name: str, cutoff: float, device: Any = None, dtype: torch.dtype = torch.float32) -> Backbone:
        torch.manual_seed(0)
        made = CLASSES[name](elements=ELEMENTS, cutoff=cutoff, **(SMALL[name] if self.small else {}))  # type: ignore[call-arg]
        return made.to(self.device if device is None else device, dtype)

    def batch(self, n: int, cutoff: float, device: Any = None, dtype: torch.dtype = torch.float32) -> AtomGraph:
        data = GraphDataset(self.structures, cutoff, dtype=dtype, workers=1)
        return data.batch([k % len(data) for k in range(n)]).on(self.device if device is None else device)

    def late(self) -> bool:
        return time.monotonic() > self.end


def used(potential: Potential, mode: str) -> Potential:
    """The potential as ``mode`` evaluates it."""
    return benchmark.compiled(potential) if mode == "compiled" else potential


def difference(found: Tensor, expected: Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    a, b = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((a - b).norm() / b.norm())


def derivatives(potential: Potential, graph: AtomGraph, mode: str = "eager") -> dict[str, Tensor]:
    """Energies, forces, stress, and the gradient of the loss in all parameters."""
    potential.train()
    settings = TrainingSettings()
    found = evaluate(used(potential, mode), graph, create_graph=True)
    total_loss(label_errors(found, graph, settings), settings).backward()
    gradient = torch.cat([p.grad.flatten() for p in potential.parameters() if p.grad is not None])
    assert found.forces is not None and found.stress is not None
    return {"energies": found.energies, "forces": found.forces, "stress": found.stress, "gradient": gradient}


def same(b: Bench) -> Iterator[Row]:
    for name, cutoff in [*b.cases, ("eam", b.cases[0][1])]:
        potential = b.potential(name, cutoff, "cpu", torch.float64)
        with torch.no_grad():  # float32 has the same weights
            for p in potential.parameters():
                p.copy_(p.float())
        expected = derivatives(copy.deepcopy(potential), b.batch(2, cutoff, "cpu", torch.float64))
        for dtype in (torch.float64, torch.float32):
            for mode in b.modes() if name != "eam" else ["eager"]:
                row: Row = {"network": name, "cutoff": cutoff, "dtype": str(dtype).split(".")[1], "mode": mode}
                there = copy.deepcopy(potential).to(b.device, dtype)
                found = derivatives(there, b.batch(2, cutoff, None, dtype), mode)
                yield row | {what: difference(found[what], expected[what]) for what in expected}


def repeatable(b: Bench) -> Iterator[Row]:
    for name, cutoff in b.cases:
        for mode in b.modes():
            one, two = (derivatives(b.potential(name, cutoff), b.batch(2, cutoff), mode) for _ in range(2))
            yield {"network": name, "cutoff": cutoff, "mode": mode} | {
                what: "same bits" if torch.equal(one[what], two[what]) else difference(one[what], two[what])
                for what in one
            }


def profiled(call: Callable[[], object], device: torch.device) -> Row:
    """Kernels, CUDA graphs and waits of the host in one call, on a GPU."""
    if device.type != "cuda":
        return {}
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        call()
    events = profile.key_averages()

    def count(*names: str) -> int:
        return sum(e.count for e in events if any(e.key.startswith(n) for n in names))

    waits = count("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")
    return {"kernels": count("cudaLaunchKernel", "cuLaunchKernel"), "graphs": count("cudaGraphLaunch"), "waits": waits}


def timed_training(b: Bench, step: Callable[[AtomGraph], None], n: int, cutoff: float) -> Row:
    graph, memory = b.batch(n, cutoff), PeakMemory(trim=True)
    began = time.monotonic()
    step(graph)
    synchronise(b.device)
    first = time.monotonic() - began
    seconds = seconds_of(lambda: step(graph), b.device, b.seconds)
    memory_gb = memory.on(b.device) / 1e9
    row = {"structures_per_s": n / seconds, "ms": 1e3 * seconds, "memory_gb": memory_gb, "first_step_s": first}
    return row | profiled(lambda: step(graph), b.device)


def training(b: Bench) -> Iterator[Row]:
    for mode in b.modes():
        for name, cutoff in b.cases:
            potential = b.potential(name, cutoff)
            step = training_step(used(potential, mode), potential)
            for n in (2,) if b.small else (1, 4, 16, 64):
                row: Row = {"network": name, "cutoff": cutoff, "mode": mode, "batch": n}
                if b.late():
                    yield row | {"error": "no time left"}
                    break
                try:
                    yield row | timed_training(b, step, n, cutoff)
                except torch.OutOfMemoryError:
                    yield row | {"error": "out of memory"}
                    break


def timed_dynamics(b: Bench, potential: Potential, n: int, ensemble: str, seconds: float) -> Row:
    with running(potential, [b.structures[k % len(b.structures)] for k in range(n)], ensemble) as run:
        lists = run.lists.rebuilds
        rate, step = timed_steps(run, b.device, seconds)
        row = {"atom_steps_per_s": rate, "ms": 1e3 * step, "lists": run.lists.rebuilds - lists}
        return row | profiled(run.advance, b.device)


def dynamics(b: Bench) -> Iterator[Row]:
    for mode in b.modes():
        for name, cutoff in b.cases:
            potential = used(b.potential(name, cutoff), mode)
            sizes = (2,) if b.small else (1, 8, 32, 128)
            for ensemble, n in [*(("nvt", n) for n in sizes), ("npt", min(32, sizes[-1]))]:
                row: Row = {"network": name, "cutoff": cutoff, "mode": mode, "ensemble": ensemble, "structures": n}
                if b.late():
                    yield row | {"error": "no time left"}
                    break
                yield row | timed_dynamics(b, potential, n, ensemble, b.seconds)


class Concatenated(nn.Module):
    """A CGCNN of PyG's CGConv, which multiplies [h_i, h_j, g_ij] on every edge; no envelope, weights of its own."""

    def __init__(self, potential: CGCNN) -> None:
        from torch_geometric.nn import CGConv

        super().__init__()
        self.potential = potential
        self.convolutions = nn.ModuleList(CGConv(potential.dim1, potential.edge_dim) for _ in potential.conv_list)

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        distances, h = edge_vectors(graph).norm(dim=1), self.potential.element_vectors()[graph.z]
        for convolution in self.convolutions:
            h = convolution(h, graph.edge_index.flip(0), self.potential.distance_expansion(distances))
        for linear in self.potential.post_lin_list:
            h = nn.functional.silu(linear(h))
        return self.potential.lin_out(h)[:, 0]


def differentiated(atomic_energies: Callable[[AtomGraph], Tensor], graph: AtomGraph) -> Predictions:
    """Energies, forces and stress by automatic differentiation of atomic energies, nothing else."""
    positions = graph.pos.detach().requires_grad_(True)
    strain = torch.zeros_like(graph.cell).requires_grad_(True)
    deformation = 0.5 * (strain + strain.transpose(1, 2))
    moved = positions + torch.einsum("nx,nxy->ny", positions, deformation[graph.batch])
    strained = AtomGraph.from_tensors(graph, pos=moved, cell=graph.cell + graph.cell @ deformation)
    energies = sum_by_structure(atomic_energies(strained), graph)
    by_position, by_strain = torch.autograd.grad(energies.sum(), (positions, strain), create_graph=True)
    return Predictions(energies, -by_position, by_strain / torch.linalg.det(graph.cell).abs()[:, None, None])


def step_by(find: Callable[[AtomGraph], Predictions], network: nn.Module) -> Callable[[AtomGraph], None]:
    """Loss, gradient and AdamW of whatever gives predictions."""
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], fused=True)
    settings = TrainingSettings()

    def step(graph: AtomGraph) -> None:
        optimizer.zero_grad(set_to_none=True)
        total_loss(label_errors(find(graph), graph, settings), settings).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1e3)
        optimizer.step()

    return step


def autograd(b: Bench) -> Iterator[Row]:
    n = 2 if b.small else 16
    for name, cutoff in b.cases:
        potential = b.potential(name, cutoff)
        sides = {
            mode: step_by(partial(evaluate, used(potential, mode), create_graph=True), potential) for mode in b.modes()
        }
        sides["autograd of atomic energies"] = step_by(partial(differentiated, potential.atomic_energies), potential)
        if isinstance(potential, CGCNN):
            plain = Concatenated(potential).to(b.device)
            sides["autograd of PyG's CGConv"] = step_by(partial(differentiated, plain.atomic_energies), plain)
        for side, step in sides.items():
            row: Row = {"network": name, "cutoff": cutoff, "batch": n, "side": side}
            try:
                yield row | ({"error": "no time left"} if b.late() else timed_training(b, step, n, cutoff))
            except torch.OutOfMemoryError:
                yield row | {"error": "out of memory"}


def torchsim_dynamics(b: Bench, potential: Potential, n: int) -> Row:
    import torch_sim

    from mdl_physpre.potentials.adapters.torchsim import TorchSimModel

    model = TorchSimModel(potential, b.device, compute_stress=False)
    atoms = [b.structures[k % len(b.structures)] for k in range(n)]

    def seconds(steps: int) -> float:
        state = torch_sim.initialize_state(atoms, model.device, model.dtype)
        start = time.perf_counter()
        torch_sim.integrate(
            system=state, model=model, integrator=torch_sim.integrators.nvt_langevin, n_steps=steps, temperature=300,
            timestep=0.001, autobatcher=False,
        )  # fmt: skip
        synchronise(b.device)
        return time.perf_counter() - start

    seconds(1)  # the first run pays for what is made once
    first, steps = seconds(1), 21
    return {"atom_steps_per_s": sum(map(len, atoms)) * (steps - 1) / (seconds(steps) - first)}


def torchmd_net_training(b: Bench, potential: TorchMDET, n: int) -> Row:
    from et_training import torchmd_net

    with b.device:
        network, find = torchmd_net(potential)
        step = step_by(lambda g: Predictions(*find(g)), network.to(b.device))
        return timed_training(b, step, n, potential.cutoff)


def mattersim_training(b: Bench, potential: M3GNet, n: int) -> Row:
    from mattersim.datasets.utils.build import build_dataloader
    from mattersim.forcefield.potential import Potential as Host
    from mattersim.forcefield.potential import batch_to_dict

    from mdl_physpre.potentials import write_mattersim_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        write_mattersim_checkpoint(Path(folder) / "m3gnet.pth", potential)
        host = Host.from_checkpoint(str(Path(folder) / "m3gnet.pth"), device=str(b.device), load_training_state=False)
    host.train()
    atoms = [b.structures[k % len(b.structures)] for k in range(n)]
    (batch,) = build_dataloader(atoms, only_inference=True, batch_size=n)

    def find(graph: AtomGraph) -> Predictions:
        fields = batch_to_dict(batch, device=str(b.device))
        fields["atom_pos"] = fields["atom_pos"].detach().clone()
        found = host(fields, include_forces=True, include_stresses=True)
        return Predictions(found["total_energy"].double(), found["forces"], found["stresses"] / 160.21766208)

    return timed_training(b, step_by(find, host.model), n, potential.cutoff)


def others(b: Bench) -> Iterator[Row]:
    """Another program beside this one, each on the same structures in the same call."""
    train_n, move_n = (2, 2) if b.small else (16, 32)
    (_, cgcnn_cutoff), et_cutoff = b.cases[0], 4.0 if b.small else 5.0
    cgcnn = b.potential("cgcnn", cgcnn_cutoff)
    et, m3gnet = b.potential("torchmd_et", et_cutoff), b.potential("m3gnet", et_cutoff)
    pairs: list[tuple[str, str, Potential, Callable[[], Row], Callable[[], Row]]] = [
        ("torch_sim", "dynamics", cgcnn, lambda: torchsim_dynamics(b, cgcnn, move_n),
         lambda: timed_dynamics(b, cgcnn, move_n, "nvt", b.seconds)),
        ("torchmdnet", "training", et, lambda: torchmd_net_training(b, et, train_n),
         lambda: timed_training(b, training_step(et), train_n, et.cutoff)),
        ("mattersim", "training", m3gnet, lambda: mattersim_training(b, m3gnet, train_n),
         lambda: timed_training(b, training_step(m3gnet), train_n, m3gnet.cutoff)),
    ]  # fmt: skip
    for package, work, potential, theirs, ours in pairs:
        if importlib.util.find_spec(package) is None:
            yield {"work": work, "network": type(potential).__name__, "side": package, "error": "not installed"}
            continue
        for side, measure in ((package, theirs), ("here, eager", ours)):
            row: Row = {"work": work, "network": type(potential).__name__, "side": side}
            try:
                yield row | ({"error": "no time left"} if b.late() else measure())
            except Exception as error:  # another program's trouble is no reason to lose the rest
                yield row | {"error": f"{type(error).__name__}: {error}"[:300]}


def paper(b: Bench) -> Iterator[Row]:
    """Hours for the paper's amounts of work on these structures: measured on a part, and multiplied."""
    n = 4 if b.small else 512
    structures = [b.structures[k % len(b.structures)] for k in range(n)]
    teacher = b.potential("eam", b.cases[0][1])
    label(structures[:2], teacher, workers=1, progress=False)
    start = time.perf_counter()
    label(structures, teacher, workers=1, progress=False)
    spent = time.perf_counter() - start
    yield {
        "work": f"labels of {PAPER_STRUCTURES} structures by the EAM, lists in one process", "network": "eam",
        "cutoff": teacher.cutoff, "measured": f"{n} structures",
        "extrapolated_hours": spent / n * PAPER_STRUCTURES / 3600,
    }  # fmt: skip
    mode = b.modes()[-1]
    batch, several = (2, 2) if b.small else (16, 100)
    for name, cutoff in b.cases:
        if b.late():
            yield {"work": "training and dynamics", "network": name, "cutoff": cutoff, "error": "no time left"}
            continue
        potential = b.potential(name, cutoff)
        potential_used = used(potential, mode)
        trained = timed_training(b, training_step(potential_used, potential), batch, cutoff)
        moved = timed_dynamics(b, potential_used, several, "nvt", b.seconds)
        shared = {"network": name, "cutoff": cutoff}
        yield {
            "work": f"pretraining, {PAPER_STRUCTURES} structures x {PAPER_EPOCHS} epochs", **shared,
            "measured": f"steps of {batch}, {mode}",
            "extrapolated_hours": PAPER_STRUCTURES * PAPER_EPOCHS / trained["structures_per_s"] / 3600,
        }  # fmt: skip
        yield {
            "work": f"dynamics, {several} structures x {PAPER_STEPS} steps", **shared,
            "measured": f"nvt at 300 K, {mode}", "extrapolated_hours": moved["ms"] / 1e3 * PAPER_STEPS / 3600,
        }  # fmt: skip


SECTIONS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "same": same, "repeatable": repeatable, "training": training, "dynamics": dynamics, "autograd": autograd,
    "others": others, "paper": paper,
}  # fmt: skip


def run_section(name: str, b: Bench, keep: Callable[[Row], None]) -> Row:
    """All rows of a section, each kept as soon as it is there, or what it ended with."""
    start, rows, result = time.monotonic(), [], {"rows": []}
    b.end = start + 60 * MINUTES[name]
    result["rows"] = rows
    try:
        for row in SECTIONS[name](b):
            rows.append(row)
            result["seconds"] = time.monotonic() - start
            keep(result)
    except Exception as error:  # one section must not take the others with it
        result["error"] = f"{type(error).__name__}: {error}"[:500]
        traceback.print_exc()
    result["seconds"] = time.monotonic() - start
    keep(result)
    return result


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", action="append", choices=SECTIONS, help="repeat; all if not given")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny networks and structures: whether it runs at all")
    parser.add_argument("--out", type=Path, help="JSON file; sections that it holds already are kept")
    given = parser.parse_args(arguments)
    b = Bench(given.device, given.small)
    content: dict[str, Any] = {"benchmark": "gpu", "sections": {}}
    if given.out and given.out.exists():
        content = json.loads(given.out.read_text())
    content |= {
        "device": benchmark.device_name(b.device), "environment": environment(), "small": given.small,
    }  # fmt: skip

    for name in given.section or SECTIONS:

        def keep(result: Row, name: str = name) -> None:
            content["sections"][name] = result
            if given.out:
                part = given.out.with_suffix(".part")
                part.write_text(json.dumps(content, indent=1) + "\n")
                part.replace(given.out)

        result = run_section(name, b, keep)
        if result["rows"]:
            print_table(f"{name}, {content['device']}, {result['seconds']:.0f} s", result["rows"])
        if "error" in result:
            print(f"\n{name} ended with {result['error']}")
    return content


if __name__ == "__main__":
    main()

"""CGCNN training on energies, forces and stress: structures per second and peak memory.

Both sides do the same work in one run, with the same weights, edges, batches and loss:

    plain   PyG's CGConv on concatenated node and edge vectors, forces and stress by automatic differentiation, and
            their gradient by a second automatic differentiation
    here    mdl_physpre's CGCNN through evaluate(…, create_graph=True)

Each side runs in a process of its own, so that peak memory can be told apart; rounds alternate, one process works at a
time. Wall time needs a quiet machine; processor time, given beside it, is less sensitive. The loss and its gradient in
the parameters are compared as well.

    PHYSPRE_DATA=… python benchmarks/cgcnn_training.py --threads 2 --out cgcnn_training.json
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from typing import Any

import torch
from ase import Atoms
from common import PeakMemory, data_structures, environment, training_loss, write_json
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import CGConv

from mdl_physpre.potentials.backbones.cgcnn.network import CGCNN
from mdl_physpre.potentials.base import edge_vectors
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import AtomGraph, GraphDataset

FILES = {"silica": "silica/si_zeo_22_sample.extxyz.gz", "li-mn-o": "li-mn-o-p/li_mn_o.extxyz.gz"}


class PlainCGCNN(nn.Module):
    """The same network from PyG's parts, without an envelope."""

    def __init__(self, potential: CGCNN) -> None:
        super().__init__()
        self.pre_lin_list, self.post_lin_list = potential.pre_lin_list, potential.post_lin_list
        self.lin_out = potential.lin_out
        self.conv_list = nn.ModuleList(
            CGConv(potential.dim1, potential.edge_dim, aggr="mean") for _ in potential.conv_list
        )
        self.conv_list.load_state_dict(potential.conv_list.state_dict())
        self.register_buffer("centres", torch.linspace(0.0, potential.cutoff, potential.edge_dim))
        self.width = 0.2 * potential.cutoff

    def evaluate(self, graph: AtomGraph) -> tuple[Tensor, Tensor, Tensor]:
        strain = torch.zeros_like(graph.cell, requires_grad=True)
        deformation = torch.eye(3) + 0.5 * (strain + strain.transpose(1, 2))
        positions = graph.pos.detach().requires_grad_(True)
        moved = torch.bmm(positions[:, None], deformation[graph.batch])[:, 0]
        vectors = edge_vectors(AtomGraph.from_tensors(graph, pos=moved, cell=torch.bmm(graph.cell, deformation)))
        gaussians = torch.exp(-0.5 * ((vectors.norm(dim=1)[:, None] - self.centres) / self.width) ** 2)
        h = functional.one_hot(graph.z - 1, 100).to(graph.pos.dtype)
        for linear in self.pre_lin_list:
            h = functional.silu(linear(h))
        towards_centre = graph.edge_index.flip(0)
        for convolution in self.conv_list:
            h = convolution(h, towards_centre, gaussians)
        for linear in self.post_lin_list:
            h = functional.silu(linear(h))
        energies = torch.zeros(len(graph.n_atoms)).index_add(0, graph.batch, self.lin_out(h)[:, 0])
        by_position, by_strain = torch.autograd.grad(energies.sum(), (positions, strain), create_graph=True)
        return energies, -by_position, by_strain / torch.linalg.det(graph.cell).abs()[:, None, None]


def structures(arguments: argparse.Namespace) -> list[Atoms]:
    """The first structures whose number of atoms lies within a quarter of the wanted one."""
    found = data_structures(FILES[arguments.data])
    chosen = [a for a in found if 4 * abs(len(a) - arguments.atoms) <= arguments.atoms][: arguments.structures]
    if len(chosen) < arguments.structures:
        sys.exit(f"only {len(chosen)} structures of about {arguments.atoms} atoms in {FILES[arguments.data]}")
    return chosen


def worker(side: str, arguments: argparse.Namespace, frames: list[Atoms], pipe: Any) -> None:
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    data, size = GraphDataset(frames, arguments.cutoff, labels=False), arguments.batch_size
    graphs = [data.batch(range(k, min(k + size, len(data)))) for k in range(0, len(data), size)]
    potential = CGCNN(cutoff=arguments.cutoff, envelope=side == "here, envelope")
    module: nn.Module = PlainCGCNN(potential) if side == "plain" else potential
    pipe.send([sum(len(g.z) for g in graphs), sum(g.edge_index.shape[1] for g in graphs)])

    def step(graph: AtomGraph) -> float:
        if isinstance(module, PlainCGCNN):
            energies, forces, stress = module.evaluate(graph)
        else:
            found = evaluate(potential, graph, create_graph=True)
            energies, forces, stress = found.energies, found.forces, found.stress
        module.zero_grad()
        loss = training_loss(energies, forces, stress)
        loss.backward()
        return loss.item()

    memory = PeakMemory()
    while (message := pipe.recv()) == "round":
        with memory:
            start, processor_start = time.perf_counter(), time.process_time()
            losses = [step(graph) for graph in graphs]
            seconds, processor = time.perf_counter() - start, time.process_time() - processor_start
        gradient = torch.cat([p.grad.flatten() for name, p in sorted(module.named_parameters())])
        pipe.send([seconds, memory.added, losses, gradient.numpy(), processor])
    assert message == "stop"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=FILES, default="silica")
    parser.add_argument("--atoms", type=int, default=37, help="structures nearest to this size are taken")
    parser.add_argument("--structures", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--cutoff", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3, help="timed passes; the fastest counts")
    parser.add_argument("--out", help="JSON file")
    arguments = parser.parse_args()

    sides = ["plain", "here", "here, envelope"]
    frames = structures(arguments)
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for side in sides:
        pipes[side], other = context.Pipe()
        processes.append(context.Process(target=worker, args=(side, arguments, frames, other)))
        processes[-1].start()
    sizes = [pipes[side].recv() for side in sides][0]
    found: dict[str, list] = {side: [] for side in sides}
    for _ in range(arguments.rounds + 1):
        for side in sides:
            pipes[side].send("round")
            found[side].append(pipes[side].recv())
    for side, process in zip(sides, processes):
        pipes[side].send("stop")
        process.join()

    result: dict[str, Any] = {
        "benchmark": "cgcnn_training",
        "machine": environment(),
        "settings": vars(arguments),
        "atoms_per_structure": sizes[0] / arguments.structures,
        "neighbours_per_atom": sizes[1] / sizes[0],
        "sides": {},
    }  # fmt: skip
    print(f"{arguments.structures} structures ({arguments.data}), {result['atoms_per_structure']:.0f} atoms each, "
          f"{result['neighbours_per_atom']:.0f} neighbours per atom, batch {arguments.batch_size}, "
          f"{arguments.threads} threads, float32\n")  # fmt: skip
    print(f"{'':16}{'structures/s':>14}{'median':>10}{'per core-second':>18}{'peak memory':>14}")
    for side in sides:
        timed = found[side][1:]  # the first pass warms up
        seconds = [r[0] for r in timed]
        entry = {
            "structures_per_second": arguments.structures / min(seconds),
            "structures_per_second_median": arguments.structures / statistics.median(seconds),
            "structures_per_core_second": arguments.structures / min(r[4] for r in timed),
            "peak_memory_bytes": max(r[1] for r in found[side]),
            "seconds": seconds,
        }
        result["sides"][side] = entry
        print(f"{side:16}{entry['structures_per_second']:14.1f}{entry['structures_per_second_median']:10.1f}"
              f"{entry['structures_per_core_second']:18.1f}{entry['peak_memory_bytes'] / 1e9:11.2f} GB")  # fmt: skip
    for name, key in (("speedup", "structures_per_second"), ("speedup_processor_time", "structures_per_core_second")):
        result[name] = result["sides"]["here"][key] / result["sides"]["plain"][key]
    losses = [found[side][-1][2] for side in ("here", "plain")]
    gradients = [found[side][-1][3] for side in ("here", "plain")]
    result["loss_difference"] = max(abs(a - b) / abs(b) for a, b in zip(*losses))
    result["gradient_difference"] = float(abs(gradients[0] - gradients[1]).max() / abs(gradients[1]).max())
    print(f"\n{result['speedup']:.1f} times as fast by wall time, {result['speedup_processor_time']:.1f} by processor "
          f"time; relative difference of losses {result['loss_difference']:.1e}, "
          f"of gradients {result['gradient_difference']:.1e}")  # fmt: skip
    write_json(arguments.out, result)


if __name__ == "__main__":
    main()

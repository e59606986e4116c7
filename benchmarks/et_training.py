"""Training the equivariant transformer on energies, forces and stress: seconds and peak memory for each step.

Every side does the same work in one run, on the same weights, edges, batch and loss; each in a process of its own, so
that peak memory can be told apart, and one at a time:

    here                 mdl_physpre's TorchMDET through evaluate(…, create_graph=True), sums over edges in C
    here, no compiler    the same on tensor operations
    torchmd-net          TorchMD-NET's network on complete edges, if ``torchmdnet`` is installed
    matdeeplearn         MatDeepLearn's torchmd_etEarly, where it is installed or MATDEEPLEARN_HOME names a
                         checkout; it finds its edges itself, in less than one per cent of its time

The loss and its gradient in the parameters are compared as well; MatDeepLearn's network has no cutoff of vectors, so
its gradient is not quite that of the others. Wall time needs a quiet machine; processor time, given beside it, is less
sensitive.

    PHYSPRE_DATA=… python benchmarks/et_training.py --threads 1 --out et_training.json
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from ase import Atoms
from common import PeakMemory, data_structures, environment, print_table, training_loss, write_json
from torch import Tensor, nn

from mdl_physpre.hosts.locate import HOSTS, put_on_path, root_of
from mdl_physpre.potentials.backbones.torchmd_et import operators
from mdl_physpre.potentials.backbones.torchmd_et.network import TorchMDET
from mdl_physpre.potentials.base import edge_vectors
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import AtomGraph, build_graph

FILES = {
    "silica": "silica/si_zeo_22_sample.extxyz.gz",
    "phosphorus": "phosphorus/p_gap_20.extxyz.gz",
    "li-mn-o": "li-mn-o-p/li_mn_o.extxyz.gz",
}
Found = tuple[Tensor, Tensor, Tensor]


def by_autograd(energies: Callable[[AtomGraph], Tensor], graph: AtomGraph) -> Found:
    """Energies, forces and stress of a network that gives energies of structures."""
    strain = torch.zeros_like(graph.cell, requires_grad=True)
    deformation = torch.eye(3) + 0.5 * (strain + strain.transpose(1, 2))
    positions = graph.pos.detach().requires_grad_(True)
    moved = torch.bmm(positions[:, None], deformation[graph.batch])[:, 0]
    total = energies(AtomGraph.from_tensors(graph, pos=moved, cell=torch.bmm(graph.cell, deformation)))
    by_position, by_strain = torch.autograd.grad(total.sum(), (positions, strain), create_graph=True)
    return total, -by_position, by_strain / torch.linalg.det(graph.cell).abs()[:, None, None]


class GivenEdges(nn.Module):
    """The edges of a graph in place of TorchMD-NET's own search, which knows no cell smaller than twice the cutoff."""

    graph: AtomGraph

    def forward(self, positions: Tensor, *_: Any) -> Found:
        vectors = edge_vectors(self.graph)
        return self.graph.edge_index, vectors.norm(dim=1), vectors.clone()


def torchmd_net(potential: TorchMDET) -> tuple[nn.Module, Callable[[AtomGraph], Found]]:
    from torchmdnet.models.torchmd_et import TorchMD_ET

    host = TorchMD_ET(
        hidden_channels=potential.hidden_channels, num_layers=potential.num_layers, num_rbf=potential.num_rbf,
        num_heads=potential.num_heads, cutoff_upper=potential.cutoff, max_z=potential.max_z, vector_cutoff=True,
    )  # fmt: skip
    host.distance = GivenEdges()
    network = nn.ModuleDict({"network": host, "post_lin_list": potential.post_lin_list})
    state = {name: p for name, p in potential.state_dict().items() if not name.startswith(("post", "reference"))}
    host.load_state_dict(state, strict=False)

    def energies(graph: AtomGraph) -> Tensor:
        host.distance.graph = graph
        x = host(graph.z, graph.pos, graph.batch)[0]
        for linear in potential.post_lin_list[:-1]:
            x = torch.nn.functional.silu(linear(x))
        by_atom = potential.post_lin_list[-1](x)[:, 0]
        return torch.zeros(len(graph.n_atoms)).index_add(0, graph.batch, by_atom)

    return network, lambda graph: by_autograd(energies, graph)


def matdeeplearn(potential: TorchMDET) -> tuple[nn.Module, Callable[[AtomGraph], Found]]:
    put_on_path(HOSTS["matdeeplearn"])
    from matdeeplearn.models.torchmd_etEarly import TorchMD_ET_Early
    from torch_geometric.data import Batch, Data

    names = ("hidden_channels", "num_layers", "num_rbf", "num_heads", "num_post_layers", "post_hidden_channels")
    host = TorchMD_ET_Early(
        node_dim=100, edge_dim=50, output_dim=1, cutoff_radius=potential.cutoff, n_neighbors=250, num_offsets=2,
        graph_method="ocp", otf_edge_index=True, otf_edge_attr=True, otf_node_attr=True, gradient=True,
        prediction_level="graph", pool="global_add_pool", pool_order="late", aggr="add",
        **{name: getattr(potential, name) for name in names},
    )  # fmt: skip
    host.load_state_dict({n: p for n, p in potential.state_dict().items() if not n.startswith("reference")})

    def step(graph: AtomGraph) -> Found:
        parts = torch.split(torch.arange(len(graph.z)), graph.n_atoms.tolist())
        batch = Batch.from_data_list([
            Data(pos=graph.pos[p], z=graph.z[p], cell=graph.cell[k][None], n_atoms=torch.tensor([len(p)]))
            for k, p in enumerate(parts)
        ])  # fmt: skip
        found = host(batch)
        return found["output"][:, 0], found["pos_grad"], found["cell_grad"]

    return host, step


def ours(potential: TorchMDET) -> tuple[nn.Module, Callable[[AtomGraph], Found]]:
    def step(graph: AtomGraph) -> Found:
        found = evaluate(potential, graph, create_graph=True)
        return found.energies, found.forces, found.stress  # type: ignore[return-value]

    return potential, step


def worker(side: str, arguments: argparse.Namespace, frames: list[Atoms], pipe: Any) -> None:
    torch.set_num_threads(arguments.threads)
    if side == "here, no compiler":
        operators.CODE.dtypes = {}
    torch.manual_seed(0)
    potential = TorchMDET(cutoff=arguments.cutoff, num_layers=arguments.layers, hidden_channels=arguments.channels)
    module, step = {"torchmd-net": torchmd_net, "matdeeplearn": matdeeplearn}.get(side, ours)(potential)
    module.train()
    graph = build_graph(frames, arguments.cutoff, dtype=torch.float32)
    pipe.send([len(graph.z), graph.edge_index.shape[1]])
    memory = PeakMemory()
    while pipe.recv() == "step":
        with memory:
            start, processor_start = time.perf_counter(), time.process_time()
            loss = training_loss(*step(graph))
            module.zero_grad()
            loss.backward()
            seconds, processor = time.perf_counter() - start, time.process_time() - processor_start
        gradient = {
            name.removeprefix("network."): p.grad.numpy() for name, p in module.named_parameters() if p.grad is not None
        }
        pipe.send([seconds, processor, memory.added, loss.item(), gradient])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=FILES, default="silica")
    parser.add_argument("--atoms", type=int, default=72, help="the structures nearest to this size are taken")
    parser.add_argument("--structures", type=int, default=8, help="in the batch")
    parser.add_argument("--cutoff", type=float, default=5.0)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=2, help="timed steps after the first; the fastest counts")
    parser.add_argument("--sides", nargs="*", help="some of them")
    parser.add_argument("--out", help="JSON file")
    arguments = parser.parse_args()

    frames = sorted(data_structures(FILES[arguments.data]), key=lambda a: abs(len(a) - arguments.atoms))
    sides = ["here", "here, no compiler"]
    sides += ["torchmd-net"] if importlib.util.find_spec("torchmdnet") else []
    sides += ["matdeeplearn"] if root_of(HOSTS["matdeeplearn"]) else []
    sides = [side for side in sides if not arguments.sides or side in arguments.sides]
    context = multiprocessing.get_context("spawn")
    found: dict[str, list] = {}
    for side in sides:
        pipe, other = context.Pipe()
        process = context.Process(target=worker, args=(side, arguments, frames[: arguments.structures], other))
        process.start()
        n_atoms, n_edges = pipe.recv()
        found[side] = []
        for _ in range(arguments.rounds + 1):
            pipe.send("step")
            found[side].append(pipe.recv())
        pipe.send("stop")
        process.join()

    rows = []
    for side in sides:
        timed = found[side][1:] or found[side]
        first, last = found[sides[0]][-1], found[side][-1]
        shared = [name for name in first[4] if name in last[4]]
        worst = max(abs(first[4][n] - last[4][n]).max() for n in shared) / max(abs(first[4][n]).max() for n in shared)
        rows.append({
            "side": side, "seconds": min(t[0] for t in timed), "processor seconds": min(t[1] for t in timed),
            "peak memory, GB": max(t[2] for t in found[side]) / 1e9, "loss": last[3],
            "gradient differs by": float(worst),
        })  # fmt: skip
    print_table(
        f"One step: {arguments.structures} structures ({arguments.data}), {n_atoms} atoms, {n_edges} edges at "
        f"{arguments.cutoff} Å, {arguments.layers} x {arguments.channels}, {arguments.threads} threads, float32", rows,
    )  # fmt: skip
    for row in rows[1:]:
        print(f"\nhere {row['processor seconds'] / rows[0]['processor seconds']:.1f} times as fast as {row['side']} by "
              f"processor time, {row['seconds'] / rows[0]['seconds']:.1f} by wall time, with "
              f"{rows[0]['peak memory, GB'] / row['peak memory, GB']:.2f} of its memory")  # fmt: skip
    write_json(arguments.out, {
        "benchmark": "et_training", "environment": environment(), "settings": vars(arguments), "atoms": n_atoms,
        "edges": n_edges, "sides": rows,
    })  # fmt: skip


if __name__ == "__main__":
    main()

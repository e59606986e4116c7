"""Training in MatDeepLearn and here: structures per second and peak memory, same network, weights, data and batches.

    MatDeepLearn   its network, loader, on-the-fly graph, ForceStressLoss, clipping and AdamW
    engine         mdl_physpre's network of the same name: graphs built once, the rest alike

Each side runs in a process of its own, so that peak memory can be told apart; rounds alternate, one process works at a
time. Weights go from one to the other through a checkpoint of MatDeepLearn, and the first losses are compared.

    PHYSPRE_DATA=… MATDEEPLEARN_HOME=… python benchmarks/hosts.py --model CGCNN --threads 2 --out hosts.json

Needs MatDeepLearn with torch-scatter (docs/matdeeplearn.md). Wall time needs a quiet machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from ase import Atoms
from common import PeakMemory, data_structures, environment, print_table, write_json
from torch import Tensor, nn

from mdl_physpre import evaluate, label
from mdl_physpre.potentials import CGCNN, EAMInteraction, TorchMDET
from mdl_physpre.potentials.checkpoints.matdeeplearn import read_matdeeplearn_checkpoint, write_matdeeplearn_checkpoint
from mdl_physpre.potentials.checkpoints.matdeeplearn_models import LATE
from mdl_physpre.structures import GraphDataset
from mdl_physpre.training.loss import label_errors, total_loss
from mdl_physpre.training.settings import TrainingSettings

FILES = {"silica": "silica/si_zeo_22_sample.extxyz.gz", "li-mn-o": "li-mn-o-p/li_mn_o.extxyz.gz"}
SIDES = ("MatDeepLearn", "engine")


def potential(arguments: argparse.Namespace) -> CGCNN | TorchMDET:
    """The network, with the paper's sizes unless told otherwise, without an envelope, which MatDeepLearn lacks."""
    if arguments.model == "CGCNN":
        return CGCNN(cutoff=arguments.cutoff, envelope=False)
    return TorchMDET(
        cutoff=arguments.cutoff, envelope=False, hidden_channels=arguments.width, num_layers=arguments.layers
    )


def frames(arguments: argparse.Namespace) -> list[Atoms]:
    """The structures nearest to the wanted size, with energies, forces and stress of an embedded-atom potential."""
    found = data_structures(FILES[arguments.data])
    found = sorted(found, key=lambda atoms: abs(len(atoms) - arguments.atoms))[: arguments.structures]
    elements = sorted({s for atoms in found for s in atoms.symbols})
    return label(found, EAMInteraction(elements, 5.0), progress=False)


def engine(structures: list[Atoms], checkpoint: Path, arguments: argparse.Namespace) -> tuple[nn.Module, Any]:
    """The network, and a function that gives the losses of one pass, batch by batch."""
    network = read_matdeeplearn_checkpoint(checkpoint).train()
    data, settings = GraphDataset(structures, arguments.cutoff, workers=1), TrainingSettings()

    def losses() -> Iterator[Tensor]:
        for start in range(0, len(data), arguments.batch_size):
            graph = data.batch(range(start, min(start + arguments.batch_size, len(data))))
            yield total_loss(label_errors(evaluate(network, graph, create_graph=True), graph, settings), settings)

    return network, losses


def matdeeplearn(structures: list[Atoms], checkpoint: Path, arguments: argparse.Namespace) -> tuple[nn.Module, Any]:
    """As :func:`engine`, in MatDeepLearn."""
    from torch_geometric.loader import DataLoader

    from mdl_physpre.hosts.matdeeplearn.calculator import setup_models
    from mdl_physpre.hosts.matdeeplearn.checks import images_needed
    from mdl_physpre.hosts.matdeeplearn.data import as_data, host_items
    from mdl_physpre.hosts.matdeeplearn.names import host

    setup_models()
    keys = yaml.safe_load(checkpoint.with_suffix(".yml").read_text())
    graph = keys["dataset"]["preprocess_params"]
    network = host().registry.get_model_class(keys["model"]["name"])(
        node_dim=graph["node_dim"],
        edge_dim=graph["edge_dim"],
        output_dim=1,
        cutoff_radius=arguments.cutoff,
        n_neighbors=10_000,
        graph_method="ocp",
        num_offsets=images_needed(structures, arguments.cutoff),
        **{k: v for k, v in keys["model"].items() if k not in ("name", "model_ensemble")},
    )
    network.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    items = host_items(structures, np.zeros(119), ("energy", "forces", "stress"))
    data = [as_data(item) for item in items]
    loader = DataLoader(data, batch_size=arguments.batch_size)
    weights = {"weight_energy": 0.01, "weight_force": 50.0, "weight_stress": 50.0}
    loss = host().registry.get_loss_class("ForceStressLoss")(**weights)

    def losses() -> Iterator[Tensor]:
        for batch in loader:
            yield loss(network(batch), batch)

    return network, losses


def worker(side: str, arguments: argparse.Namespace, structures: list[Atoms], checkpoint: Path, pipe: Any) -> None:
    torch.set_num_threads(arguments.threads)
    build: Callable[..., tuple[nn.Module, Any]] = engine if side == "engine" else matdeeplearn
    network, losses = build(structures, checkpoint, arguments)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    memory = PeakMemory()
    pipe.send("ready")
    while pipe.recv() == "round":
        with memory:
            start, processor, found = time.perf_counter(), time.process_time(), []
            for loss in losses():
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
                optimizer.step()
                found.append(loss.item())
            seconds, processor = time.perf_counter() - start, time.process_time() - processor
        pipe.send([seconds, processor, memory.added, found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("CGCNN", "torchmd_etEarly"), default="CGCNN")
    parser.add_argument("--data", choices=FILES, default="silica")
    parser.add_argument("--atoms", type=int, default=36, help="structures nearest to this size are taken")
    parser.add_argument("--structures", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--cutoff", type=float, help="Å; 8 for CGCNN, 5 for the transformer if not given")
    parser.add_argument("--width", type=int, default=128, help="channels of the transformer")
    parser.add_argument("--layers", type=int, default=8, help="layers of the transformer")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3, help="timed passes; the fastest counts")
    parser.add_argument("--out", help="JSON file")
    arguments = parser.parse_args()
    arguments.cutoff = arguments.cutoff or (8.0 if arguments.model == "CGCNN" else 5.0)

    structures = frames(arguments)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "same.pt"
        torch.manual_seed(0)
        write_matdeeplearn_checkpoint(checkpoint, potential(arguments))
        config = checkpoint.with_suffix(".yml")  # with atomic energies, as here, whatever the version of MatDeepLearn
        config.write_text(config.read_text().replace("name: torchmd_etEarly", f"name: {LATE}"))
        pipes, processes = {}, []
        for side in SIDES:
            pipes[side], other = context.Pipe()
            processes.append(context.Process(target=worker, args=(side, arguments, structures, checkpoint, other)))
            processes[-1].start()
            other.close()
            pipes[side].recv()
        found: dict[str, list] = {side: [] for side in SIDES}
        for _ in range(arguments.rounds + 1):
            for side in SIDES:
                pipes[side].send("round")
                found[side].append(pipes[side].recv())
        for side, process in zip(SIDES, processes):
            pipes[side].send("stop")
            process.join()
    rows = []
    for side in SIDES:
        timed = found[side][1:]  # the first pass warms up
        rows.append(
            {
                "side": side,
                "structures/s": len(structures) / min(r[0] for r in timed),
                "structures/s of processor time": len(structures) / min(r[1] for r in timed),
                "peak memory, GB": max(r[2] for r in found[side]) / 1e9,
                "first loss": found[side][0][3][0],
            }
        )
    atoms = sum(len(a) for a in structures) / len(structures)
    print_table(
        f"{arguments.model}, {len(structures)} structures of {atoms:.0f} atoms ({arguments.data}), "
        f"{arguments.cutoff:g} Å, batch {arguments.batch_size}, {arguments.threads} threads",
        rows,
    )
    first, second = (row["first loss"] for row in rows)
    difference = abs(first - second) / abs(first)
    print(f"\nrelative difference of the first losses {difference:.1e}")
    settings = {k: v for k, v in vars(arguments).items() if k != "out"}
    content = {"benchmark": "hosts", "settings": settings, "sides": rows, "first_loss_difference": difference}
    write_json(arguments.out, {**content, "environment": environment()})


if __name__ == "__main__":
    main()

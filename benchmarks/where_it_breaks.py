"""Where arms break on real DFT data: heating and compression, with intervals and tests, and a ZBL core as the rival.

    PHYSPRE_DATA=/path/to/data python benchmarks/where_it_breaks.py silicon --out runs/breaking --processes 2

A small equivariant transformer is trained in four arms on a small part of each set, several networks each; test
structures are heated, and compressed. ``baseline + ZBL`` is each plain network with the repulsion of the nuclei added
afterwards, which ends at the shortest distance of each pair of elements in the training data, where it does not touch
the errors. Everything is kept in ``--out``; called again, it goes on. ``--quick`` shows that all of it runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from known_truth import WITH_CORE, shortest_distances

from mdl_physpre import load_potential
from mdl_physpre.dynamics.verdicts.log_rank import compare_breaking
from mdl_physpre.dynamics.verdicts.survival import Observation, breaking_statistics
from mdl_physpre.potentials import ZBL, SumPotential
from mdl_physpre.report.tables.breaking import median_words, p_number, reasons_words
from mdl_physpre.runs.summary import Summary
from mdl_physpre.stress_tests import StressResult, run_stress_tests
from mdl_physpre.workflow.config.file import parse_config
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.data import load_data
from mdl_physpre.workflow.run import run
from mdl_physpre.workflow.stages.stress import of_network

SETS: dict[str, dict[str, Any]] = {
    "silicon": {"src": {"train": "mlearn/Si_training.extxyz.gz", "test": "mlearn/Si_test.extxyz.gz"},
                "fraction": 0.15, "split": {"val": 0.15}, "end": 8000},
    "molybdenum": {"src": {"train": "mlearn/Mo_training.extxyz.gz", "test": "mlearn/Mo_test.extxyz.gz"},
                   "fraction": 0.15, "split": {"val": 0.15}, "end": 15_000},
    "li-mn-o": {"src": "li-mn-o-p/li_mn_o.extxyz.gz", "fraction": 0.2,
                "split": {"test": 0.1, "val": 0.15, "by": "group"}, "end": 8000},
    "zeolites": {"src": "silica/si_zeo_22_sample.extxyz.gz", "fraction": 0.03,
                 "split": {"test": 0.05, "val": 0.1, "by": "config_type"}, "end": 10_000},
    "phosphorus": {"src": "phosphorus/p_gap_20.extxyz.gz", "fraction": 0.02, "split": {"test": 0.05, "val": 0.1},
                   "end": 5000},
}  # fmt: skip
TESTS = ("heating", "compression")
ARMS = ("baseline", "pretrain", "replay", "hybrid")


def configuration(
    name: str, data: Path, replicas: int, processes: int, tests: Sequence[str] = TESTS, quick: bool = False
) -> Config:
    """The run of a set: training of four arms, then stress tests."""
    of_set = SETS[name]
    src = of_set["src"]
    files = {k: str(data / v) for k, v in src.items()} if isinstance(src, dict) else str(data / src)
    network = {"hidden_channels": 16, "num_layers": 1} if quick else {"hidden_channels": 64, "num_layers": 3}
    end, rate = (600, 50_000) if quick else (of_set["end"], 5000)
    return parse_config({
        "task": {"identifier": name, "seed": 12345678, "threads": 1, "processes": processes},
        "dataset": {"src": files, "fraction": of_set["fraction"], "split": of_set["split"]},
        "model": {"name": "torchmd_etEarly", "cutoff": 5.0, "num_heads": 4, "num_rbf": 24, **network},
        "optim": {
            "max_epochs": 2 if quick else 200, "lr": 1e-3, "batch_size": 4, "loss": "mae", "weight_energy": 30.0,
            "energy_per_atom": True, "weight_force": 50, "weight_stress": 0, "clip_grad_norm": 10,
            "refit_reference": True,
        },
        "physpre": {
            "arms": list(ARMS), "n_networks": replicas, "eam": {"epochs": 5 if quick else 200},
            "perturbation": {"n_aug": 1 if quick else 10, "n_pairs": 2, "pull": [1.0, 0.0], "n_sites": 5,
                             "perturb": [0.5, 0.0], "max_force": 200},
            "pretrain": {"max_epochs": 1 if quick else 20, "lr": 1e-3, "batch_size": 8, "force_tail": 10},
            "dynamics": {"n_structures": 0}, "report": {"formats": []},
            "stress": {
                "tests": list(tests), "n_structures": 2 if quick else 12,
                "min_atoms": 8 if quick else 64,
                "heating": {"temperature_end": end, "rate": rate},
            },
        },
    })  # fmt: skip


def with_core(config: Config, folder: Path, summary: Summary) -> dict[str, list[StressResult]]:
    """The stress tests of the plain networks with a ZBL core that ends at the shortest distances in training."""
    data, section = load_data(config), config.physpre.stress
    structures = data.drawn_tests(section.n_structures, section.min_atoms, config.task.seed)
    shortest = shortest_distances(data.train)
    core = ZBL(data.elements, radii=shortest)
    found: dict[str, list[StressResult]] = {}
    for network in summary.arms["baseline"].networks:
        total = SumPotential(network=load_potential(folder / network.checkpoint), core=core).eval()
        tests = {name: of_network(chosen, network.seed, False) for name, chosen in section.chosen().items()}
        for name, result in run_stress_tests(total, structures, tests, folder / "zbl" / network.name).items():
            found.setdefault(name, []).append(result)
    return found


def tables(summary: Summary, others: dict[str, list[StressResult]]) -> str:
    """A table in Markdown for each test: medians, counts and reasons of each arm, each against the plain one."""
    lines = []
    for test in others:
        points: dict[str, list[Observation]] = {
            arm: [o for n in result.networks for o in n.breaking_points(test)] for arm, result in summary.arms.items()
        }
        points[WITH_CORE] = [o for k, r in enumerate(others[test]) for o in r.observations(f"{WITH_CORE}-{k}")]
        unit, quantity = others[test][0].unit, others[test][0].quantity
        lines += [f"\n| {test} | median, {unit} (95 %) | of each network | broken | by | p, networks | p, structures |"]
        lines += ["|---|---|---|---:|---|---:|---:|"]
        for arm, observed in points.items():
            found = breaking_statistics(observed, quantity, unit)
            each = "; ".join("–" if m is None else f"{m:.0f}" for m in found.median_each)
            row = [arm, median_words(found, unit=False), each, f"{found.broken} of {found.n}", reasons_words(found)]
            pair = compare_breaking(points["baseline"], observed, ("baseline", arm)) if arm != "baseline" else None
            row += ["–" if p is None else p_number(p) for p in (pair and pair.p_networks, pair and pair.p_structures)]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sets", nargs="+", choices=SETS)
    parser.add_argument("--out", type=Path, default=Path("runs/breaking"))
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--tests", nargs="+", default=TESTS, choices=TESTS)
    parser.add_argument("--quick", action="store_true", help="everything small")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    data = Path(os.environ["PHYSPRE_DATA"])
    for name in given.sets:
        folder = given.out / name
        config = configuration(name, data, given.replicas, given.processes, given.tests, given.quick)
        summary = run(config, out=folder)
        others = with_core(config, folder, summary)
        errors = {arm: r.errors["test"].plain() for arm, r in summary.arms.items()}
        (folder / "errors.json").write_text(json.dumps(errors, indent=1))
        text = tables(summary, others)
        (folder / "where_it_breaks.md").write_text(text)
        print(f"{name}\n{text}")


if __name__ == "__main__":
    main()

"""Small sets of DFT structures: errors of recipes and arms, the time of training, and where their networks break.

    PHYSPRE_DATA=/path/to/data python benchmarks/small_data.py silicon molybdenum --out runs/small \\
        --arms baseline pretrain zbl --replicas 3 --stress heating compression --try "half: dataset.fraction=0.075"

Each ``--try "NAME: KEY=VALUE ..."`` is a run under ``recipe: default`` with keys changed; ``recipe=paper`` takes the
other recipe, with the network of ``recipe: default`` unless ``model.name=...`` says which. ``--stress`` adds tables of
stress tests: test structures are heated, or compressed, until they break. Everything is kept in ``--out/SET/NAME``;
called again, it goes on, and what is done is only told. ``--quick`` shows that all of it runs.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mdl_physpre.dynamics.verdicts.log_rank import compare_breaking
from mdl_physpre.dynamics.verdicts.survival import breaking_statistics
from mdl_physpre.report.tables.breaking import median_words, medians_each, p_number, reasons_words
from mdl_physpre.runs.summary import Summary
from mdl_physpre.workflow.config.file import load_config
from mdl_physpre.workflow.config.recipes import NETWORKS, RECIPES
from mdl_physpre.workflow.run import run

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
ERRORS = {
    "energy_mae_mev_per_atom": ("energy, meV/atom", 1),
    "forces_mae": ("forces, eV/Å", 4),
    "stress_mae_gpa": ("stress, GPa", 3),
}
WITHOUT_STRESS = ("zeolites",)
QUICK = (
    "optim.max_steps=4", "physpre.pretrain.max_steps=2", "physpre.perturbation.n_aug=1",
    "physpre.hot_frames.n=1", "physpre.hot_frames.steps=20",
    "model.hidden_channels=16", "model.num_layers=1",
)  # fmt: skip
QUICK_STRESS = (
    "physpre.stress.n_structures=2", "physpre.stress.min_atoms=8",
    "physpre.stress.heating.temperature_end=600", "physpre.stress.heating.rate=50000",
)  # fmt: skip


def configuration(
    name: str, data: Path, arms: Sequence[str], replicas: int, processes: int, stress: Sequence[str], model: str | None
) -> dict[str, Any]:
    """The run of a set under ``recipe: default``, as a file has it, with its network or the one named ``model``."""
    of_set = SETS[name]
    src = of_set["src"]
    network = model or RECIPES["default"]["model"]["name"]
    tests = {"tests": list(stress), "n_structures": 12, "min_atoms": 64}
    return {
        "recipe": "default",
        "task": {"seed": 12345678, "threads": 1, "processes": processes},
        "dataset": {
            "src": {k: str(data / v) for k, v in src.items()} if isinstance(src, dict) else str(data / src),
            "fraction": of_set["fraction"],
            "split": of_set["split"],
        },
        "model": {"name": network, **NETWORKS["default"].get(network, {})},
        "optim": {"weight_stress": 0} if name in WITHOUT_STRESS else {},
        "physpre": {
            "arms": list(arms),
            "n_networks": replicas,
            "dynamics": {"n_structures": 0},
            "report": {"formats": []},
        }
        | ({"stress": tests | {"heating": {"temperature_end": of_set["end"], "rate": 5000}}} if stress else {}),
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    """A table in Markdown; its first columns, so many, hold words."""
    lines = [head, ["---"] * words + ["---:"] * (len(head) - words), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def errors(recipe: str, summary: Summary) -> list[list[str]]:
    """A row for each arm: mean ± standard deviation over the networks, and the seconds of one of them."""
    found = []
    for arm, result in summary.arms.items():
        cells = []
        for key, (_, digits) in ERRORS.items():
            mean = getattr(result.errors["test"], key)
            spread = getattr(result.deviation["test"], key) if result.deviation else None
            told = "–" if mean is None else f"{mean:.{digits}f}"
            cells.append(told if spread is None else f"{told} ± {spread:.{digits}f}")
        seconds = [sum(stage.seconds for stage in network.training.values()) for network in result.networks]
        found.append([recipe, arm, str(len(result.networks)), *cells, f"{sum(seconds) / len(seconds):.0f}"])
    return found


def breaking(recipe: str, test: str, summary: Summary) -> list[list[str]]:
    """A row for each arm: where its structures broke, by what, and its difference from the first arm."""
    points = {arm: [o for n in r.networks for o in n.breaking_points(test)] for arm, r in summary.arms.items()}
    first = next(iter(points))
    found = []
    for arm, observed in points.items():
        result = next(iter(summary.arms[arm].networks)).stress[test]
        of_arm = breaking_statistics(observed, result.quantity, result.unit)
        pair = compare_breaking(points[first], observed, (first, arm)) if arm != first else None
        tests = ["–" if p is None else p_number(p) for p in (pair and pair.p_networks, pair and pair.p_structures)]
        row = [recipe, arm, median_words(of_arm), medians_each(of_arm), f"{of_arm.broken} of {of_arm.n}"]
        found.append([*row, reasons_words(of_arm), *tests])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sets", nargs="+", choices=SETS)
    parser.add_argument("--out", type=Path, default=Path("runs/small-data"))
    parser.add_argument("--arms", nargs="+", default=["baseline", "pretrain"])
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--stress", nargs="+", default=[], choices=["heating", "compression"])
    parser.add_argument("--try", dest="tries", action="append", metavar='"NAME: KEY=VALUE ..."')
    parser.add_argument("--quick", action="store_true", help="everything small")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    data = Path(os.environ["PHYSPRE_DATA"])
    of_errors = ["recipe", "arm", "networks", *(title for title, _ in ERRORS.values()), "training, s"]
    of_breaking = ["recipe", "arm", "breaks at, median (95 %)", "of each network", "broken", "by"]
    of_breaking += ["p, networks permuted", "p, structures as independent"]
    quick = (*QUICK, *(QUICK_STRESS if given.stress else ())) if given.quick else ()
    for name in given.sets:
        rows: dict[str, list[list[str]]] = {"errors": [], **{test: [] for test in given.stress}}
        for one in given.tries or ["default:"]:
            recipe, _, overrides = (part.strip() for part in one.partition(":"))
            file = given.out / name / f"{recipe}.yml"
            file.parent.mkdir(parents=True, exist_ok=True)
            model = dict(one.split("=", 1) for one in overrides.split()).get("model.name")
            asked = configuration(name, data, given.arms, given.replicas, given.processes, given.stress, model)
            file.write_text(yaml.safe_dump(asked))
            summary = run(load_config(file, [*quick, *overrides.split()]), out=file.with_suffix(""))
            rows["errors"] += errors(recipe, summary)
            for test in given.stress:
                rows[test] += breaking(recipe, test, summary)
            texts = [table(of_errors, rows["errors"], 2)]
            texts += [f"{test}\n\n{table(of_breaking, rows[test], 6)}" for test in given.stress]
            text = "\n\n".join(texts)
            (file.parent / "small_data.md").write_text(text + "\n")
        print(f"\n{name}\n\n{text}", flush=True)


if __name__ == "__main__":
    main()

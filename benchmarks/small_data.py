"""Errors of recipes on small sets of DFT structures: arms × networks, with the time that training took.

    PHYSPRE_DATA=/path/to/data python benchmarks/small_data.py silicon molybdenum --out runs/small \\
        --arms baseline pretrain --replicas 3 --try "default:" --try "longer: optim.max_steps=6000 optim.lr=5e-4"

Each ``--try "NAME: KEY=VALUE ..."`` is a run under ``recipe: default`` with keys changed; ``recipe=paper`` takes the
other recipe, with the network of ``recipe: default`` unless ``model.name=...`` says which. Everything is kept in
``--out/SET/NAME``; called again, it goes on, and what is done is only told. ``--quick`` shows that all of it runs.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from where_it_breaks import SETS

from mdl_physpre.runs.summary import Summary
from mdl_physpre.workflow.config.file import load_config
from mdl_physpre.workflow.config.recipes import NETWORKS, RECIPES
from mdl_physpre.workflow.run import run

ERRORS = {
    "energy_mae_mev_per_atom": ("energy, meV/atom", 1),
    "forces_mae": ("forces, eV/Å", 4),
    "stress_mae_gpa": ("stress, GPa", 3),
}
WITHOUT_STRESS = ("zeolites",)
QUICK = (
    "optim.max_steps=4", "physpre.pretrain.max_steps=2", "physpre.perturbation.n_aug=1", "physpre.eam.epochs=3",
    "model.hidden_channels=16", "model.num_layers=1",
)  # fmt: skip


def configuration(name: str, data: Path, arms: Sequence[str], replicas: int, processes: int) -> dict[str, Any]:
    """The run of a set under ``recipe: default``, as a file has it."""
    of_set = SETS[name]
    src = of_set["src"]
    network = RECIPES["default"]["model"]["name"]
    return {
        "recipe": "default",
        "task": {"seed": 12345678, "threads": 1, "processes": processes},
        "dataset": {
            "src": {k: str(data / v) for k, v in src.items()} if isinstance(src, dict) else str(data / src),
            "fraction": of_set["fraction"],
            "split": of_set["split"],
        },
        "model": {"name": network, **NETWORKS["default"][network]},
        "optim": {"weight_stress": 0} if name in WITHOUT_STRESS else {},
        "physpre": {
            "arms": list(arms),
            "n_networks": replicas,
            "dynamics": {"n_structures": 0},
            "report": {"formats": []},
        },
    }


def rows(name: str, summary: Summary) -> list[str]:
    """A row in Markdown for each arm: mean ± standard deviation over the networks, and the seconds of one of them."""
    found = []
    for arm, result in summary.arms.items():
        cells = []
        for key, (_, digits) in ERRORS.items():
            mean = getattr(result.errors["test"], key)
            spread = getattr(result.deviation["test"], key) if result.deviation else None
            told = "–" if mean is None else f"{mean:.{digits}f}"
            cells.append(told if spread is None else f"{told} ± {spread:.{digits}f}")
        seconds = [sum(stage.seconds for stage in network.training.values()) for network in result.networks]
        row = [name, arm, str(len(result.networks)), *cells, f"{sum(seconds) / len(seconds):.0f}"]
        found.append(f"| {' | '.join(row)} |")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sets", nargs="+", choices=SETS)
    parser.add_argument("--out", type=Path, default=Path("runs/small-data"))
    parser.add_argument("--arms", nargs="+", default=["baseline", "pretrain"])
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--try", dest="tries", action="append", metavar='"NAME: KEY=VALUE ..."')
    parser.add_argument("--quick", action="store_true", help="everything small")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    data = Path(os.environ["PHYSPRE_DATA"])
    head = ["recipe", "arm", "networks", *(title for title, _ in ERRORS.values()), "training, s"]
    for name in given.sets:
        lines = [f"| {' | '.join(head)} |", "|---|---|" + "---:|" * (len(head) - 2)]
        for one in given.tries or ["default:"]:
            recipe, _, overrides = one.partition(":")
            file = given.out / name / f"{recipe.strip()}.yml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(yaml.safe_dump(configuration(name, data, given.arms, given.replicas, given.processes)))
            config = load_config(file, [*(QUICK if given.quick else ()), *overrides.split()])
            lines += rows(recipe.strip(), run(config, out=file.with_suffix("")))
            text = "\n".join(lines)
            (file.parent / "small_data.md").write_text(text + "\n")
        print(f"\n{name}\n{text}", flush=True)


if __name__ == "__main__":
    main()

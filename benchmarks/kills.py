"""Kill ``physpre run``, ``md`` and ``stress`` at random points, again and again: what they find in the end is the same.

    python benchmarks/kills.py [--kills 20] [--seed 0]

Each command is run once without being disturbed. Then it is begun anew and killed (SIGKILL) at random times until it
has had its share of the kills, and run to its end by the same command. Its results, times and memory aside, must be
those of the undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT

from mdl_physpre import label
from mdl_physpre.structures.write import write_structures

CONFIG = """
task: {{identifier: kills, seed: 1}}
dataset: {{src: {data}, split: {{val: 4, test: 4}}}}
model: {{name: CGCNN, cutoff: 4.0, dim1: 8, dim2: 8, gc_count: 1, post_fc_count: 1}}
optim: {{max_epochs: 6, batch_size: 4}}
physpre:
  arms: [baseline, pretrain]
  eam: {{epochs: 6, n_basis: 3}}
  perturbation: {{n_aug: 2}}
  pretrain: {{max_epochs: 4}}
  dynamics: {{n_structures: 3, steps: 400, checkpoint_steps: 50}}
  stress: {{tests: [heating], n_structures: 2, heating: {{temperature_end: 900, dynamics: {{checkpoint_steps: 30}}}}}}
  report: {{formats: []}}
"""
TIMES = ("second", "memory", "processor", "speed", "started", "cost")


def without_times(content: Any) -> Any:
    """The content of a file of results without what differs from one run to the next."""
    if isinstance(content, dict):
        return {k: without_times(v) for k, v in content.items() if not any(word in k for word in TIMES)}
    return [without_times(v) for v in content] if isinstance(content, list) else content


def results(folder: Path, files: list[str]) -> Any:
    """What a command found."""
    return [without_times(json.loads((folder / name).read_text())) for name in files]


def start(arguments: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """The command, with its output in a file."""
    command = [sys.executable, "-m", "mdl_physpre.cli.main", *arguments, "--out", str(folder)]
    with open(folder.parent / "output.txt", "ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, place = random.Random(given.seed), Path(tempfile.mkdtemp(prefix="kills-"))
    shaken = []
    for k in range(24):
        atoms = bulk("Cu", "fcc", 3.6 + 0.01 * k, cubic=True)
        atoms.rattle(0.1, rng=np.random.default_rng(k))
        shaken.append(atoms)
    write_structures(place / "cu.extxyz", label(shaken, EMT, progress=False))
    (place / "kills.yml").write_text(CONFIG.format(data=place / "cu.extxyz"))
    whole = place / "run-whole"
    potential, data = str(whole / "3-networks/baseline/finetune/best.pt"), str(place / "cu.extxyz")
    few = ["--n-structures", "4"]
    heating = ["--tests", "heating", "--set", "heating.temperature_end=900", "--set", "heating.rate=1000"]
    heating += ["--set", "heating.dynamics={checkpoint_steps: 50}"]
    commands = {
        "run": (["run", str(place / "kills.yml")], ["summary.json"]),
        "md": (["md", potential, data, *few, "--steps", "1500", "checkpoint_steps=50"], ["verdicts.json"]),
        "stress": (["stress", potential, data, *few, *heating], ["heating/result.json"]),
    }
    failed = False
    for number, (name, (arguments, files)) in enumerate(commands.items()):
        folder, began = place / f"{name}-whole", time.monotonic()
        if start(arguments, folder).wait() != 0:
            sys.exit(f"{name} failed: {(place / 'output.txt').read_text()[-2000:]}")
        seconds = time.monotonic() - began
        share, killed = given.kills // 3 + (number < given.kills % 3), 0
        folder = place / f"{name}-killed"
        while killed < share:
            process = start(arguments, folder)
            try:
                process.wait(timeout=rng.uniform(0.2, 0.9) * seconds)
                shutil.rmtree(folder)  # it came to its end: from the beginning
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                killed += 1
        same = start(arguments, folder).wait() == 0 and results(folder, files) == results(
            place / f"{name}-whole", files
        )
        failed |= not same
        print(
            f"{name}: {killed} kills, {seconds:.0f} s undisturbed: {'the same' if same else 'NOT the same'}", flush=True
        )
    if failed:
        sys.exit(f"see {place}")
    shutil.rmtree(place)


if __name__ == "__main__":
    main()

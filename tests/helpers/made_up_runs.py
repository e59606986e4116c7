"""Folders of runs that were never run: as many structures, arms and networks as a test needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from ase import Atoms

from mdl_physpre.dynamics.running.storage import TrajectoryFiles, write_verdicts
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts.statistics import summarise_networks
from mdl_physpre.dynamics.verdicts.verdict import make_verdict

SETTINGS = DynamicsSettings(temperature=1000.0, steps=5000)


def verdict(index: int, step: int | None, reason: str = "overlap", name: str = "") -> dict:
    return make_verdict(
        structure_id=name or f"s{index}",
        index=index,
        formula="SiO2",
        n_atoms=3,
        failures={} if step is None else {reason: (step, "too near")},
        not_applicable={},
        steps_run=SETTINGS.steps if step is None else step,
        steps_asked=SETTINGS.steps,
        timestep=1.0,
        conditions={},
        metrics={"min_distance": 1.0, "lindemann_max_local": 0.1, "lindemann_global": 0.05},
    )


def verdicts(n: int, fraction: float, seed: int, names: Sequence[str] = ()) -> list[dict]:
    """``n`` structures, of which about this fraction fails at steps drawn at random."""
    rng = np.random.default_rng(seed)
    reasons = ("overlap", "lindemann_local", "temperature")
    made = []
    for k in range(n):
        step = int(rng.integers(1, 50)) * 100 if rng.random() < fraction else None
        made.append(verdict(k, step, reasons[k % 3], names[k] if k < len(names) else ""))
    return made


def errors(forces: float, n: int = 50) -> dict:
    return {
        "n_structures": n, "n_atoms": 3 * n, "counts": {"energy": n, "forces": n, "stress": 0}, "energy_mae": 0.5,
        "energy_mae_mev_per_atom": 20.0, "forces_mae": forces, "stress_mae": None, "stress_mae_gpa": None,
        "total": 50 * forces, "total_of": ["energy", "forces"],
        "weights": {"energy": 0.01, "forces": 50.0, "stress": 50.0},
    }  # fmt: skip


def make_run(
    folder: Path,
    failures: dict[str, Sequence[Sequence[dict]]],
    forces: dict[str, Sequence[float]] | None = None,
    name: str = "made up",
    frames: bool = True,
) -> Path:
    """A finished run: arm → the verdicts of each of its networks, and arm → the force error of each."""
    folder.mkdir(parents=True, exist_ok=True)
    networks = max(map(len, failures.values()))
    config = {
        "task": {"identifier": name, "seed": 1},
        "model": {"name": "CGCNN"},
        "optim": {"max_epochs": 10},
        "dataset": {"src": "gone.extxyz", "preprocess_params": {"cutoff_radius": 5.0}},
        "physpre": {
            "arms": list(failures),
            "n_networks": networks,
            "dynamics": {"n_structures": 1, "steps": SETTINGS.steps},
        },
    }
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    counts = {"structures": 5, "atoms": 15, "labels": {"energy": 5, "forces": 5, "stress": 0}}
    summary: dict = {"data": {"train": counts}, "arms": list(failures), "eam": {"table": [], "errors": {}}}
    summary["pretraining_set"] = {"structures": 10}
    for arm, each in failures.items():
        own = []
        for k, found in enumerate(each):
            place = folder / "4-dynamics" / (arm if k == 0 else f"{arm}-{k + 1}")
            place.mkdir(parents=True)
            write_verdicts(place, "key", SETTINGS, [SETTINGS] * len(found), found)
            error = errors((forces or {}).get(arm, [0.1] * len(each))[k])
            dynamics = {**summarise_networks([found]), "settings": SETTINGS.model_dump(), "seconds": 1.0}
            own.append({"seed": k, "errors": {"test": error}, "checkpoint": f"{arm}-{k}.pt", "dynamics": dynamics})
            if frames:
                _frames(place, found)
        pooled = {**summarise_networks(each), "settings": SETTINGS.model_dump(), "seconds": 1.0}
        summary[arm] = {"networks": own, "errors": own[0]["errors"], "dynamics": pooled}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def _frames(place: Path, found: Sequence[dict]) -> None:
    files = TrajectoryFiles(place / "failing_frames")
    for v in [v for v in found if v["status"] == "failed"][:3]:
        for step, squeeze in ((0, 1.0), (v["first_failing_step"], 0.4)):
            atoms = Atoms("OSiO", [[0, 0, 0], [1.6 * squeeze, 0, 0], [3.2, 0, 0]], cell=[6, 6, 6], pbc=True)
            atoms.info = {"structure_id": v["structure_id"], "step": step}
            files.add(v["index"], atoms)
    files.flush()

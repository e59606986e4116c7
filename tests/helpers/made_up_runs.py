"""Folders of runs that were never run: as many structures, arms and networks as a test needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from ase import Atoms

from mdl_physpre.analysis.errors import Errors
from mdl_physpre.dynamics.running.storage import TrajectoryFiles, write_verdicts
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts.verdict import Verdict, make_verdict, summarise
from mdl_physpre.runs import layout
from mdl_physpre.runs.results import FittedEAM, PretrainingSetResult, SetCounts, TrainingStage
from mdl_physpre.runs.stage import decisive
from mdl_physpre.runs.summary import ArmResult, Dynamics, NetworkResult, Summary
from mdl_physpre.stress_tests.result import BreakingPoint, StressResult

SETTINGS = DynamicsSettings(temperature=1000.0, steps=5000)


def verdict(index: int, step: int | None, reason: str = "overlap", name: str = "") -> Verdict:
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


def verdicts(n: int, fraction: float, seed: int, names: Sequence[str] = ()) -> list[Verdict]:
    """``n`` structures, of which about this fraction fails at steps drawn at random."""
    rng = np.random.default_rng(seed)
    reasons = ("overlap", "lindemann_local", "temperature")
    made = []
    for k in range(n):
        step = int(rng.integers(1, 50)) * 100 if rng.random() < fraction else None
        made.append(verdict(k, step, reasons[k % 3], names[k] if k < len(names) else ""))
    return made


def errors(forces: float, n: int = 50) -> Errors:
    return Errors.model_validate({
        "n_structures": n, "n_atoms": 3 * n, "counts": {"energy": n, "forces": n, "stress": 0}, "energy_mae": 0.5,
        "energy_mae_mev_per_atom": 20.0, "forces_mae": forces, "stress_mae": None, "stress_mae_gpa": None,
        "total": 50 * forces, "total_of": ["energy", "forces"],
        "weights": {"energy": 0.01, "forces": 50.0, "stress": 50.0},
    })  # fmt: skip


def trained(loss: float) -> TrainingStage:
    return TrainingStage(
        best_loss=loss, best_epoch=3, stopped_by="max_epochs", epochs=5, steps=5, gradients=5, structures=5, seconds=1.0
    )


SCALES = {"heating": ("temperature", "K"), "compression": ("pressure", "GPa"), "collisions": ("energy", "eV")}


def stress_result(test: str, values: Sequence[float], end: float, reason: str = "overlap") -> StressResult:
    """A stress test in which structures broke at these values, or did not where those are beyond the end."""
    points = [
        BreakingPoint(
            structure_id=f"s{k}", index=k, formula="SiO2", n_atoms=3, value=min(float(x), end), broken=bool(x < end),
            reason=reason if x < end else None, text="too near" if x < end else "",
        )
        for k, x in enumerate(values)
    ]  # fmt: skip
    quantity, unit = SCALES[test]
    return StressResult(test=test, quantity=quantity, unit=unit, points=tuple(points))


def make_run(
    folder: Path,
    failures: dict[str, Sequence[Sequence[Verdict]]],
    forces: dict[str, Sequence[float]] | None = None,
    name: str = "made up",
    frames: bool = True,
    stress: dict[str, Sequence[dict[str, StressResult]]] | None = None,
    losses: dict[str, Sequence[float]] | None = None,
) -> Path:
    """A finished run: arm → verdicts, force error, stress tests and validation loss of each of its networks."""
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
    arms = {}
    for arm, each in failures.items():
        own = []
        for k, found in enumerate(each):
            name = arm if k == 0 else f"{arm}-{k + 1}"
            place = folder / layout.NETWORKS / name / layout.DYNAMICS
            place.mkdir(parents=True)
            write_verdicts(place, "key", SETTINGS, [SETTINGS] * len(found), list(found))
            own.append(
                NetworkResult(
                    name=name,
                    arm=arm,
                    seed=k,
                    checkpoint=f"{name}.pt",
                    errors={"test": errors((forces or {}).get(arm, [0.1] * len(each))[k])},
                    stress=stress[arm][k] if stress else {},
                    training={layout.FINETUNE: trained(losses[arm][k])} if losses else {},
                    dynamics=Dynamics(
                        counts=summarise(found),
                        failing_steps=tuple(v.first_failing_step for v in found),
                        settings=decisive(SETTINGS),
                        seconds=1.0,
                    ),
                )
            )
            if frames:
                _frames(place, found)
        arms[arm] = ArmResult(networks=tuple(own))
    Summary(
        data={"train": SetCounts(structures=5, atoms=15, labels={"energy": 5, "forces": 5, "stress": 0})},
        eam=FittedEAM(),
        pretraining_set=PretrainingSetResult(structures=10),
        arms=arms,
    ).write(folder)
    return folder


def _frames(place: Path, found: Sequence[Verdict]) -> None:
    files = TrajectoryFiles(place / "failing_frames")
    for v in [v for v in found if v.failed][:3]:
        for step, squeeze in ((0, 1.0), (v.first_failing_step or 0, 0.4)):
            atoms = Atoms("OSiO", [[0, 0, 0], [1.6 * squeeze, 0, 0], [3.2, 0, 0]], cell=[6, 6, 6], pbc=True)
            atoms.info = {"structure_id": v.structure_id, "step": step}
            files.add(v.index, atoms)
    files.flush()

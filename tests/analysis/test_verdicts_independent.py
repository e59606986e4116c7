"""Verdicts of small runs against ``benchmarks/verdicts.py``, which shares no code with the package."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.spacegroup import crystal

from mdl_physpre.dynamics.running.simulate import simulate
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.potentials.eam.potential import EAMInteraction

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "verdicts.py"
CRISTOBALITE = {"spacegroup": 92, "cellpar": [4.972, 4.972, 6.922, 90, 90, 90]}
QUARTZ = {"spacegroup": 152, "cellpar": [4.916, 4.916, 5.405, 90, 90, 120]}


def silica() -> list[Atoms]:
    """Small crystals of silica, rattled and skew; one of them given far outside its cell."""
    cristobalite = crystal(["Si", "O"], [(0.3, 0.3, 0), (0.239, 0.104, 0.179)], **CRISTOBALITE)
    quartz = crystal(["Si", "O"], [(0.470, 0, 0), (0.413, 0.267, 0.119)], **QUARTZ)
    made = [cristobalite, quartz.repeat((2, 1, 1)), cristobalite.repeat((1, 2, 1)), quartz.copy()]
    rng = np.random.default_rng(7)
    for k, atoms in enumerate(made):
        atoms.set_cell(atoms.cell[:] @ (np.eye(3) + rng.uniform(-0.05, 0.05, (3, 3))), scale_atoms=True)
        atoms.rattle(0.05, seed=k)
        atoms.info = {"structure_id": f"silica-{k}"}
    made[3].positions += rng.integers(-2, 3, (len(made[3]), 3)) @ made[3].cell[:]
    return made


BASE: dict[str, Any] = {
    "temperature": 1500.0, "timestep": 2.0, "steps": 100, "seed": 1, "trajectory_interval": 1, "lindemann_interval": 1,
    "lindemann_check_interval": 10, "lindemann_min_steps": 40,
}  # fmt: skip
# what each run is for, and the reasons that have to occur in it
RUNS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "continuous": ({"lindemann_local": 0.2, "lindemann_global": 0.15}, {"lindemann_local", "lindemann_global"}),
    "minimum_image": (
        {"distance": "minimum_image", "lindemann_local": 0.2, "lindemann_global": 0.15, "overlap_ratio": 0.65,
         "stop_on_overlap": False}, {"lindemann_local", "overlap"},
    ),
    "overlap": ({"overlap_ratio": 0.68, "steps": 60}, {"overlap"}),
    "hot": ({"max_temperature": 1500.0, "steps": 60}, {"temperature"}),
    "escaped": ({"max_displacement": 2.0, "steps": 60}, {"escaped"}),
    "every-fifth": (
        {"trajectory_interval": 5, "lindemann_interval": 5, "lindemann_local": 0.2, "overlap_ratio": 0.65},
        {"lindemann_local", "overlap"},
    ),
    "npt": (
        {"ensemble": "npt", "pressure": 50_000.0, "taup": 200.0, "lindemann_local": 0.2, "lindemann_global": 0.15},
        {"lindemann_local"},
    ),
    "npt-minimum_image": (
        {"ensemble": "npt", "pressure": 2e5, "taup": 100.0, "min_volume_ratio": 0.9, "distance": "minimum_image",
         "overlap_ratio": 0.65, "steps": 60}, {"cell_collapsed"},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verdicts_by_brute_force", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def simulated(folder: Path, structures: list[Atoms], **changes: Any) -> Path:
    potential = EAMInteraction(["Si", "O"], cutoff=5.0).double()
    simulate(potential, structures, DynamicsSettings(**{**BASE, **changes}), out=folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated(tmp_path_factory.mktemp("run") / "continuous", silica(), **RUNS["continuous"][0])


@pytest.mark.parametrize("name", RUNS)
def test_agrees_structure_by_structure(script: ModuleType, tmp_path: Path, name: str) -> None:
    changes, expected = RUNS[name]
    folder = simulated(tmp_path, silica(), **changes)
    rows = script.analyse(folder)
    assert [(row["agrees"], row["why"]) for row in rows] == [("yes", [])] * 4
    verdicts = json.loads((folder / "verdicts.json").read_text())["verdicts"]
    seen = {reason for verdict in verdicts for reason in verdict["reasons"]}
    assert expected <= seen, f"the run tests too little: {seen}"
    assert [row["here"] for row in rows] == [verdict["first_failing_step"] for verdict in verdicts]


def test_the_command_shares_no_code_and_says_so_in_its_exit_status(run: Path, tmp_path: Path) -> None:
    code = (
        "import runpy, sys; sys.argv = ['verdicts.py', *sys.argv[1:]]\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as end: status = end.code\n"
        "assert not [m for m in sys.modules if m.startswith(('mdl_physpre', 'torch'))]; sys.exit(status)"
    )

    def command(folder: Path) -> subprocess.CompletedProcess:
        arguments = [sys.executable, "-c", code, str(folder), "--out", str(tmp_path / "agreement.json")]
        return subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)

    done = command(run)
    assert done.returncode == 0, done.stderr
    assert "yes: 4; 4 in all" in done.stdout
    assert "silica-2" in done.stdout
    copy = shutil.copytree(run, tmp_path / "copy")
    stored = json.loads((copy / "verdicts.json").read_text())
    stored["verdicts"][2]["metrics"]["lindemann_global"] += 1e-4
    (copy / "verdicts.json").write_text(json.dumps(stored))
    done = command(copy)
    assert done.returncode == 1, done.stderr
    assert "lindemann_global: 0." in done.stdout
    assert [row["agrees"] for row in json.loads((tmp_path / "agreement.json").read_text())[str(copy)]].count("no") == 1


def test_disagreements_are_found(script: ModuleType, run: Path) -> None:
    stored = json.loads((run / "verdicts.json").read_text())
    settings, verdicts = stored["settings"], stored["verdicts"]
    failed = next(k for k, v in enumerate(verdicts) if "lindemann_local" in v["reasons"])
    found = script.judge(ase.io.read(run / "trajectories" / f"{failed:05d}.extxyz", index=":"), settings)

    def wrong_after(change: Any) -> list[str]:
        verdict = json.loads(json.dumps(verdicts[failed]))
        change(verdict)
        return script.compare(verdict, found, settings)[0]

    def never(verdict: dict) -> None:
        verdict["failures"] = [f for f in verdict["failures"] if f["reason"] != "lindemann_local"]
        verdict["checks"]["lindemann_local"] = "passed"

    def too_late(verdict: dict) -> None:
        for failure in verdict["failures"]:
            failure["step"] += 10

    def overlaps(verdict: dict) -> None:
        verdict["checks"]["overlap"] = "failed"
        verdict["failures"].append({"reason": "overlap", "step": 90})

    assert wrong_after(lambda v: None) == []
    assert any("lindemann_local: never, here from step" in why for why in wrong_after(never))
    assert any("lindemann_local: from step" in why for why in wrong_after(too_late))
    assert wrong_after(overlaps) == ["overlap: from step 90, here never"]
    assert wrong_after(lambda v: v["checks"].update(overlap="n/a")) == ["overlap: n/a, here never"]
    assert wrong_after(lambda v: v.update(steps_run=7)) == ["steps run: 7, here 100"]
    assert wrong_after(lambda v: v["metrics"].update(min_distance=v["metrics"]["min_distance"] + 1e-4))
    assert wrong_after(lambda v: v["metrics"].update(lindemann_max_local=None))


def test_a_trajectory_that_is_another_is_found(script: ModuleType, run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "moved")
    path = folder / "trajectories" / "00001.extxyz"
    frames = ase.io.read(path, index=":")
    close = frames[30].positions
    close[1] = close[0] + [0.3, 0, 0] + frames[30].cell[2]  # through a face of the cell
    ase.io.write(path, frames, format="extxyz")
    rows = script.analyse(folder)
    assert [row["agrees"] for row in rows] == ["yes", "no", "yes", "yes"]
    assert "overlap: never, here from step 30" in rows[1]["why"]


def test_equally_near_images_leave_the_verdict_open(script: ModuleType, tmp_path: Path) -> None:
    """In a perfect crystal rounding decides which image is followed: the indices are intervals then."""
    perfect = crystal(["Si", "O"], [(0.3, 0.3, 0), (0.239, 0.104, 0.179)], **CRISTOBALITE)
    folder = simulated(tmp_path, [perfect], steps=60)
    stored = json.loads((folder / "verdicts.json").read_text())
    row = script.analyse(folder)[0]
    assert row["agrees"] == "yes", "the value lies in the interval, and the bounds do not"
    metrics = stored["verdicts"][0]["metrics"]
    found = script.judge(ase.io.read(folder / "trajectories" / "00000.extxyz", index=":"), stored["settings"])
    low, high = found["measured"]["lindemann_global_continuous"]
    assert low < metrics["lindemann_global"] < high
    assert high - low > 1e-3
    settings = stored["settings"] | {"lindemann_global": 0.5 * (low + high)}
    early, late = script.judge(ase.io.read(folder / "trajectories" / "00000.extxyz", index=":"), settings)["failures"][
        "lindemann_global"
    ]
    assert early is not None
    assert late is None


def test_clusters_single_atoms_and_flat_cells(script: ModuleType, tmp_path: Path) -> None:
    quartz = crystal(["Si", "O"], [(0.470, 0, 0), (0.413, 0.267, 0.119)], **QUARTZ)
    cluster, slab = quartz.copy(), quartz.copy()
    cluster.set_cell(np.zeros((3, 3)))
    cluster.pbc = False
    slab.pbc = (True, True, False)
    slab.cell[2] = 0
    structures = [cluster, Atoms("Si", cell=[5, 5, 5], pbc=True), slab]
    for atoms in structures:
        atoms.rattle(0.02, seed=1)
    rows = script.analyse(simulated(tmp_path, structures, steps=60))
    assert [(row["agrees"], row["why"]) for row in rows] == [("yes", [])] * 3


def test_images_are_all_there(script: ModuleType) -> None:
    rng = np.random.default_rng(0)
    grid = np.array(list(itertools.product(range(-15, 16), repeat=3)))
    for _ in range(60):
        cell = rng.normal(size=(3, 3)) * rng.uniform(1, 5, 3)[:, None]
        if abs(np.linalg.det(cell)) < 0.3 * np.linalg.norm(cell, axis=1).prod():
            continue
        pbc = rng.random(3) < 0.7
        vectors = rng.uniform(-2, 2, (4, 3)) @ cell
        every = np.linalg.norm(vectors[:, None] + (grid * pbc @ cell)[None], axis=2)
        lengths, shifts = script.image_vectors(vectors, cell, pbc)
        np.testing.assert_allclose(lengths.min(axis=1), every.min(axis=1), rtol=1e-12)
        np.testing.assert_allclose(np.linalg.norm(vectors[:, None] + shifts @ cell, axis=2), lengths, rtol=1e-10)
        assert script.image_vectors(vectors, cell, pbc, True)[0].min() == pytest.approx(every.min(), rel=1e-12)


def test_indices_are_the_formula(script: ModuleType) -> None:
    distances = np.random.default_rng(1).uniform(1, 3, (20, 6))
    ends = np.array([5, 20])
    largest, mean = script.lindemann([distances], 4, ends)
    pairs = list(itertools.combinations(range(4), 2))
    for k, end in enumerate(ends):
        q = [
            sum(np.std(distances[:end, p]) / np.mean(distances[:end, p]) for p, ij in enumerate(pairs) if i in ij) / 3
            for i in range(4)
        ]
        assert largest[0, k] < max(q) < largest[1, k]
        assert math.isclose(mean[:, k].mean(), np.mean(q), rel_tol=1e-9)
        assert mean[1, k] - mean[0, k] < 1e-5

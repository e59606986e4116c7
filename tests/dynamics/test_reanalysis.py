"""Verdicts from stored trajectories against those of the observers, and against a brute-force analysis."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import read

from mdl_physpre.dynamics import Verdict
from mdl_physpre.dynamics.running.reanalysis import judge_run, judge_trajectory
from mdl_physpre.dynamics.running.simulate import simulate
from mdl_physpre.errors import DataError
from tests.helpers.pair_potentials import Attraction, Frozen, Morse, NanForGold, RaisesForGold
from tests.helpers.small_structures import clusters, crystals, with_

EXACT = ("status", "reasons", "first_failing_step", "time_fs", "checks", "steps_run", "stopped", "conditions", "notes")


def same_verdicts(found: list[Verdict], want: list[Verdict]) -> None:
    for one, other in zip(found, want, strict=True):
        for name in EXACT:
            assert getattr(one, name) == getattr(other, name), name
        assert [f.step for f in one.failures] == [f.step for f in other.failures]
        for name, value in other.metrics.items():
            if name == "max_displacement" and "neighbours within" in str(other.failures):
                continue  # the run had not got to the end of that step
            tolerance = {"energy_drift": 1e-4, "mean_pressure": 30}.get(name, 1e-6)
            close = value if value is None else pytest.approx(value, rel=1e-5, abs=tolerance)
            assert one.metrics[name] == close, (other.index, name)


@pytest.mark.parametrize(
    ("ensemble", "distance"),
    [("nvt", "minimum_image"), ("npt", "continuous"), ("npt", "minimum_image"), ("nvt_nose_hoover", "continuous")],
)
def test_a_whole_trajectory_gives_the_verdicts_of_the_run(tmp_path: Path, ensemble: str, distance: str) -> None:
    settings = with_(
        ensemble=ensemble, trajectory_interval=1, distance=distance, lindemann_local=0.07, lindemann_global=0.06,
        lindemann_check_interval=7, overlap_ratio=0.84, compressibility=5e-5, pressure_interval=4, taup=200,
    )  # fmt: skip
    own = {"temperature": [200, 900, 1800, 2500, 600, 100], "steps": [120, 130, 110, 140, 103, 120]}
    own |= {"timestep": [2, 1, 3, 2, 2, 4]}
    verdicts = simulate(Morse(), crystals(6), settings, tmp_path, per_structure=own)
    assert len({v.status for v in verdicts}) == 2
    same_verdicts(judge_run(tmp_path), verdicts)


def test_what_breaks_is_stored_as_it_broke(tmp_path: Path) -> None:
    squeezed = with_(ensemble="npt", pressure=5e6, stop_on_overlap=False, max_temperature=1e9)
    cases = {
        "attraction": (Attraction(), clusters(2), with_(steps=300)),
        "nan": (NanForGold(), crystals(2), with_(steps=120)),
        "raises": (RaisesForGold(), crystals(2), with_(steps=120)),
        "hot": (Morse(), crystals(2), with_(temperature=500, max_temperature=100)),
        "gone": (Attraction(), clusters(2), with_(temperature=20_000, max_displacement=0.8, overlap_ratio=0.01)),
        "squeezed": (Frozen(), crystals(2), with_(squeezed, min_volume_ratio=0.5)),
        "flat": (Morse(), [*crystals(2), Atoms("Cu2", cell=np.ones((3, 3)), pbc=True)], with_(steps=10)),
        "neighbours": (Frozen(), crystals(2), with_(squeezed, min_volume_ratio=1e-6, max_neighbours=300)),
    }
    seen = set()
    for name, (potential, structures, settings) in cases.items():
        structures[1].numbers[0] = 79
        verdicts = simulate(potential, structures, with_(settings, trajectory_interval=1), tmp_path / name)
        same_verdicts(judge_run(tmp_path / name), verdicts)
        seen |= {reason for v in verdicts for reason in v.reasons}
    assert {"overlap", "not_finite", "potential_error", "temperature", "escaped"} <= seen
    for name, text in (("squeezed", "the volume is"), ("neighbours", "neighbours within")):
        stored = json.loads((tmp_path / name / "verdicts.json").read_text())["verdicts"]
        assert all(v["failures"][0]["text"].count(text) for v in stored), name


def test_every_seventh_frame_gives_the_verdict_on_those(tmp_path: Path) -> None:
    settings = with_(trajectory_interval=7, temperature=1500, steps=240, lindemann_local=0.05, lindemann_interval=5)
    verdicts = simulate(Morse(), crystals(3), settings, tmp_path)
    for found, want in zip(judge_run(tmp_path), verdicts, strict=True):
        frames = want.steps_run // 7 + 1 + (want.stopped and want.steps_run % 7 > 0)
        assert found.metrics["lindemann_samples"] == frames - want.stopped
        assert found.metrics["lindemann_global"] == pytest.approx(want.metrics["lindemann_global"], rel=0.1)
        assert found.metrics["mean_temperature"] == pytest.approx(want.metrics["mean_temperature"], rel=0.1)
        assert found.metrics["min_distance"] >= want.metrics["min_distance"] - 1e-7
        assert found.metrics["energy_drift"] is not None


def brute_force(frames: list[Atoms], local: float, mean: float, ratio: float) -> dict[str, bool]:
    """Overlap and Lindemann index from all images within reach, written apart from the library."""
    grid = np.array(list(product(range(-2, 3), repeat=3)))
    i, j = np.triu_indices(len(frames[0]), 1)
    smallest, distances, images = [], [], None
    for frame in frames:
        vectors = frame.positions[j] - frame.positions[i]
        every = np.linalg.norm(vectors[:, None] + (grid @ frame.cell[:])[None], axis=2)
        smallest.append(every.min())
        images = grid[every.argmin(axis=1)] if images is None else images
        distances.append(np.linalg.norm(vectors + images @ frame.cell[:], axis=1))
    overlaps = [s <= ratio * smallest[0] for s in smallest]
    sound = np.array(distances)[: -1 if any(overlaps) else None][::5]
    relative = np.sqrt(np.maximum((sound**2).mean(0) - sound.mean(0) ** 2, 0)) / sound.mean(0)
    q = (np.bincount(i, relative, len(frames[0])) + np.bincount(j, relative, len(frames[0]))) / (len(frames[0]) - 1)
    return {"overlap": any(overlaps), "lindemann_local": q.max() > local, "lindemann_global": q.mean() > mean}


@pytest.mark.parametrize("ensemble", ["nvt", "npt"])
def test_verdicts_are_those_of_all_images(tmp_path: Path, ensemble: str) -> None:
    settings = with_(
        ensemble=ensemble, trajectory_interval=1, overlap_ratio=0.85, lindemann_local=0.06, lindemann_global=0.05,
        compressibility=5e-5,
    )  # fmt: skip
    own = {"temperature": [200, 900, 1800, 3000, 600, 2500, 100, 1500]}
    verdicts = simulate(Morse(), crystals(8), settings, tmp_path, per_structure=own)
    for verdict in verdicts:
        frames = read(tmp_path / "trajectories" / f"{verdict.index:05d}.extxyz", ":")
        for reason, failed in brute_force(frames, 0.06, 0.05, 0.85).items():
            if verdict.checks[reason] != "n/a":
                assert verdict.checks[reason] == ("failed" if failed else "passed"), reason
    assert {v.checks["overlap"] for v in verdicts} == {"passed", "failed"}
    assert {v.checks["lindemann_local"] for v in verdicts} >= {"passed", "failed"}


def test_foreign_and_damaged_trajectories(tmp_path: Path) -> None:
    frames = []
    for k in range(130):
        frame = crystals(1)[0]
        frame.positions[0] += [0.002 * k, 0, 0]
        frames.append(frame)
    verdict = judge_trajectory(frames, with_())
    assert verdict.status == "stable"
    assert verdict.steps_run == 129
    assert verdict.metrics["total_energy_end"] is None
    frames[40].positions[3] = np.nan
    assert judge_trajectory(frames, with_()).reasons == ("not_finite",)
    assert judge_trajectory(frames, with_()).first_failing_step == 40
    frames[40].positions[3] = 1e6
    assert judge_trajectory(frames, with_()).reasons == ("escaped",)
    with pytest.raises(DataError, match="no frames"):
        judge_trajectory([])
    with pytest.raises(DataError, match="frame 1 is step 1 of Cu4.* after step 0 of Cu8"):
        judge_trajectory([frames[0], crystals(2)[1]])
    with pytest.raises(DataError, match="cannot be read"):
        judge_trajectory(tmp_path / "nothing.extxyz")
    with pytest.raises(DataError, match="holds no verdicts.json; give a folder"):
        judge_run(tmp_path)
    simulate(Morse(), crystals(1), with_(trajectory_interval=1, steps=30), tmp_path)
    path = tmp_path / "trajectories" / "00000.extxyz"
    path.write_text(path.read_text()[:-700])
    assert judge_trajectory(path, with_()).steps_run == 29

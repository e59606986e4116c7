"""The frames that are kept of structures that fail: their start, and where a bound was first passed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.io import read

from mdl_physpre.analysis.overlap import minimum_distance
from mdl_physpre.dynamics.running.parallel import simulate_parallel
from mdl_physpre.dynamics.running.simulate import simulate
from mdl_physpre.dynamics.running.storage import FAILING
from tests.helpers.pair_potentials import AttractiveGold, Morse
from tests.helpers.small_structures import clusters, crystals, with_


def frames(folder: Path, index: int) -> list:
    return read(folder / FAILING / f"{index:05d}.extxyz", ":")


def doomed() -> list:
    """Crystals that Morse keeps, and one cluster of gold that falls together."""
    structures = crystals(5)
    structures[2] = clusters(3)[2]
    structures[2].numbers[:] = 79
    return structures


def test_an_overlap_leaves_its_start_and_the_step_that_broke_it(tmp_path: Path) -> None:
    structures = doomed()
    verdicts = simulate(AttractiveGold(), structures, with_(), tmp_path)
    assert [v.status for v in verdicts].count("failed") == 1
    assert [p.name for p in (tmp_path / FAILING).iterdir()] == ["00002.extxyz"]
    start, end = frames(tmp_path, 2)
    np.testing.assert_allclose(start.positions, structures[2].positions, atol=1e-8)
    assert (start.info["step"], end.info["step"]) == (0, verdicts[2].first_failing_step)
    assert end.info["structure_id"] == "copper-2"
    closest = minimum_distance(end.positions, end.cell[:], end.pbc, 3.0)
    assert closest == pytest.approx(verdicts[2].metrics["min_distance"], abs=1e-6)


def test_a_lindemann_failure_leaves_the_step_at_which_the_bound_was_passed(tmp_path: Path) -> None:
    settings = with_(
        temperature=1500, lindemann_global=0.04, lindemann_local=0.06, lindemann_min_steps=20, max_temperature=1e9,
        trajectory_interval=1,
    )  # fmt: skip
    verdicts = simulate(Morse(), crystals(4), settings, tmp_path)
    failed = [v for v in verdicts if v.status == "failed"]
    assert failed and all(v.reasons[0].startswith("lindemann") for v in failed)
    assert {int(p.stem) for p in (tmp_path / FAILING).iterdir()} == {v.index for v in failed}
    for verdict in failed:
        kept = frames(tmp_path, verdict.index)
        steps = [frame.info["step"] for frame in kept]
        assert steps[:2] == [0, verdict.first_failing_step]
        assert set(steps[1:]) == {failure.step for failure in verdict.failures}
        every = read(tmp_path / "trajectories" / f"{verdict.index:05d}.extxyz", ":")
        for frame in kept:
            np.testing.assert_allclose(frame.positions, every[frame.info["step"]].positions, atol=1e-8)


def test_a_bound_that_was_passed_for_a_while_leaves_nothing(tmp_path: Path) -> None:
    """The index of the first steps is above the bound, that of the whole run below it."""
    settings = with_(steps=400, lindemann_min_steps=2, lindemann_check_interval=2, lindemann_interval=1)
    free = simulate(Morse(), crystals(3), settings)
    bounds = sorted(v.metrics["lindemann_global"] for v in free)
    settings = with_(settings, lindemann_global=bounds[0] * 1.01, lindemann_local=10.0)
    verdicts = simulate(Morse(), crystals(3), settings, tmp_path)
    passed = {v.index for v in verdicts if v.metrics["lindemann_global_first_exceeded_step"] is not None}
    failed = {v.index for v in verdicts if v.status == "failed"}
    assert {int(p.stem) for p in (tmp_path / FAILING).iterdir()} == failed
    assert failed <= passed


def test_killed_or_shared_among_processes_the_files_are_the_same(tmp_path: Path) -> None:
    settings = with_(checkpoint_steps=10)
    verdicts = simulate(AttractiveGold(), doomed(), settings, tmp_path / "whole")
    kept = (tmp_path / "whole" / FAILING / "00002.extxyz").read_bytes()
    for at in (20, verdicts[2].first_failing_step + 5, 115):
        cut = tmp_path / f"cut{at}"
        with pytest.raises(KeyboardInterrupt):
            simulate(AttractiveGold(at), doomed(), settings, cut)
        simulate(AttractiveGold(), doomed(), settings, cut)
        assert (cut / FAILING / "00002.extxyz").read_bytes() == kept
    stale = tmp_path / "shared" / FAILING / "00004.extxyz"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an earlier run")
    simulate_parallel(AttractiveGold(), doomed(), settings, tmp_path / "shared", processes=2, threads=1)
    assert [p.name for p in (tmp_path / "shared" / FAILING).iterdir()] == ["00002.extxyz"]
    one, other = (frames(tmp_path / name, 2)[1] for name in ("whole", "shared"))
    np.testing.assert_allclose(one.positions, other.positions, atol=1e-6)


def test_only_so_many_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdl_physpre.dynamics.running.batch.FAILING_AT_MOST", 1)
    structures = doomed()
    structures[3] = structures[2].copy()
    verdicts = simulate(AttractiveGold(), structures, with_(), tmp_path)
    assert [v.status for v in verdicts].count("failed") == 2
    assert len(list((tmp_path / FAILING).iterdir())) == 1

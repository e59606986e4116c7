"""One run over several processes: the same results, and what happens when a process dies."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mdl_physpre.dynamics import Verdict
from mdl_physpre.dynamics.running import parallel
from mdl_physpre.dynamics.running.parallel import divide, simulate_parallel
from mdl_physpre.dynamics.running.rdf_sampling import read_rdfs
from mdl_physpre.dynamics.running.simulate import simulate
from mdl_physpre.errors import ConfigError, PhyspreError
from mdl_physpre.utils.processes import run_lock
from tests.helpers.pair_potentials import Dying, Killed, Morse, RaisesAtOnce
from tests.helpers.processes import environment
from tests.helpers.small_structures import crystals, with_


def test_work_is_divided_evenly() -> None:
    work = [5, 1, 1, 1, 1, 1, 3, 3]
    parts = divide(work, 3)
    assert sorted(k for part in parts for k in part) == list(range(8))
    assert max(sum(work[k] for k in part) for part in parts) <= 6
    assert parts == divide(work, 3)
    assert divide([1, 1], 5) == [[0], [1]]
    assert len([p for p in divide([0.0] * 4, 2) if p]) == 2


def close(found: list[Verdict], want: list[Verdict]) -> None:
    for one, other in zip(found, want, strict=True):
        measured = {"metrics", "failures"}
        assert one.model_dump(exclude=measured) == other.model_dump(exclude=measured)
        for name, value in other.metrics.items():
            assert one.metrics[name] == (value if value is None else pytest.approx(value, rel=1e-6, abs=1e-9)), name


def in_this_process(potential, tasks):
    return [simulate(potential, **{k: v for k, v in t.items() if k not in ("device", "threads")}) for t in tasks]


def test_several_processes_give_what_one_gives_and_outlive_the_death_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    structures = crystals(5)
    structures[3].numbers[0] = 79
    settings = with_(
        ensemble="npt", steps=40, temperature=500, trajectory_interval=10, rdf_interval=10, rdf_bins=20,
        checkpoint_steps=5, lindemann_min_steps=20,
    )  # fmt: skip
    own = {"steps": [40, 30, 40, 40, 20]}
    options = {"per_structure": own, "indices": [7, 3, 1, 0, 2]}
    marker = tmp_path / "died"
    potential = Dying(str(marker))
    out = tmp_path / "many"
    with pytest.raises(
        PhyspreError, match=r"process . of 2, with structures .*0.* died .exit code 9.*same call goes on"
    ):
        simulate_parallel(potential, structures, settings, out, False, processes=2, **options)
    finished = [p for p in (out / "parts").iterdir() if (p / "verdicts.json").exists()]
    assert len(finished) == 1
    assert marker.exists()
    unfinished = next(p for p in (out / "parts").iterdir() if p.is_dir() and p not in finished)
    assert (unfinished / "state.npz").exists()
    monkeypatch.setattr(parallel, "_run", in_this_process)
    # as many processes as it began with, whatever is asked for: the states are theirs
    verdicts = simulate_parallel(potential, structures, settings, out, False, processes=3, **options)
    assert potential.calls <= 72, "the part that died went on from its stored state"
    assert not (out / "parts").exists()
    single = simulate(potential, structures, settings, tmp_path / "one", False, **options)
    close(verdicts, single)
    assert [v.steps_run for v in verdicts] == own["steps"]
    for k in options["indices"]:
        frames = [(folder / "trajectories" / f"{k:05d}.extxyz").read_text() for folder in (out, tmp_path / "one")]
        assert frames[0].count("Lattice") == frames[1].count("Lattice") > 2
    rdfs = [read_rdfs(folder) for folder in (out, tmp_path / "one")]
    assert [r.structure_id for r in rdfs[0].structures] == [a.info["structure_id"] for a in structures]
    for one, other in zip(rdfs[0].structures, rdfs[1].structures, strict=True):
        assert one.frames == other.frames
        np.testing.assert_allclose(one.g["Cu-Cu"], other.g["Cu-Cu"], rtol=1e-6)
    stored = [json.loads((folder / "verdicts.json").read_text()) for folder in (out, tmp_path / "one")]
    assert stored[0]["key"] == stored[1]["key"], "a run in one process finds the result"
    assert stored[0]["per_structure"] == own
    speed = json.loads((out / "speed.json").read_text())
    assert speed["atom_steps"] > 0 and speed["atom_steps_per_second"] > 0


def test_a_run_of_one_process_goes_on_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    structures, settings = crystals(3), with_(steps=30, checkpoint_steps=4)
    with pytest.raises(KeyboardInterrupt):
        simulate(Killed(20), structures, settings, tmp_path)
    monkeypatch.setattr(parallel, "_run", None)
    resumed = Killed(10**9)
    verdicts = simulate_parallel(resumed, structures, settings, tmp_path, False, processes=2, devices=["cpu", "cpu"])
    assert 10**9 - resumed.at < 20, "it must not have begun again"
    assert [v.steps_run for v in verdicts] == [30] * 3
    assert not (tmp_path / "state.npz").exists()


KILLED = """
import sys
from pathlib import Path
from tests.helpers.pair_potentials import Slow
from tests.helpers.small_structures import crystals, with_
from mdl_physpre.dynamics.running.parallel import simulate_parallel
if __name__ == "__main__":
    settings = with_(steps=100_000, checkpoint_steps=5, trajectory_interval=5)
    simulate_parallel(Slow(), crystals(4), settings, Path(sys.argv[1]), False, processes=2, threads=1)
"""


def test_no_process_outlives_a_run_that_was_killed(tmp_path: Path) -> None:
    """Otherwise two would write into one folder when it is started again."""
    script, out = tmp_path / "killed.py", tmp_path / "out"
    script.write_text(KILLED)
    process = subprocess.Popen([sys.executable, str(script), str(out)], env=environment())
    deadline = time.monotonic() + 120
    while len(list(out.glob("parts/*/state.npz"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    with pytest.raises(PhyspreError, match="another process is running there"), run_lock(out):
        pass
    process.kill()
    process.wait()
    for part in out.glob("parts/*-of-2"):
        with run_lock(part, wait=20):  # free: its process is gone
            pass


def test_errors_say_whose_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    structures = crystals(4)
    with monkeypatch.context() as patch:
        patch.setattr(parallel, "_run", in_this_process)
        with pytest.raises(PhyspreError, match="for every structure the potential raised RuntimeError: no way"):
            simulate_parallel(RaisesAtOnce(), structures, with_(steps=3), tmp_path, False, processes=2)
    with pytest.raises(ConfigError, match="processes is 0"):
        simulate_parallel(Morse(), structures, with_(steps=3), processes=0)

    class Local(Morse):
        pass

    with pytest.raises(ConfigError, match="cannot be sent to another process"):
        simulate_parallel(Local(), structures, with_(steps=3), processes=2)
    assert len(simulate_parallel(Local(), structures, with_(steps=3), progress=False, processes=1)) == 4

"""One run over several processes: the same results, and what happens when a process dies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pair_potentials import Dying, Morse, RaisesAtOnce
from small_structures import crystals, with_

from mdl_physpre.dynamics import splitting
from mdl_physpre.dynamics.rdf_sampling import read_rdfs
from mdl_physpre.dynamics.simulation import simulate
from mdl_physpre.dynamics.splitting import divide, simulate_parallel
from mdl_physpre.errors import ConfigError, PhyspreError


def test_work_is_divided_evenly() -> None:
    work = [5, 1, 1, 1, 1, 1, 3, 3]
    parts = divide(work, 3)
    assert sorted(k for part in parts for k in part) == list(range(8))
    assert max(sum(work[k] for k in part) for part in parts) <= 6
    assert parts == divide(work, 3)
    assert divide([1, 1], 5) == [[0], [1]]
    assert len([p for p in divide([0.0] * 4, 2) if p]) == 2


def close(found: list[dict], want: list[dict]) -> None:
    for one, other in zip(found, want, strict=True):
        assert {k: v for k, v in one.items() if k not in ("metrics", "failures")} == {
            k: v for k, v in other.items() if k not in ("metrics", "failures")
        }
        for name, value in other["metrics"].items():
            assert one["metrics"][name] == (value if value is None else pytest.approx(value, rel=1e-6, abs=1e-9)), name


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
    unfinished = next(p for p in (out / "parts").iterdir() if p not in finished)
    assert (unfinished / "state.npz").exists()
    monkeypatch.setattr(splitting, "_run", in_this_process)
    verdicts = simulate_parallel(potential, structures, settings, out, False, processes=2, **options)
    assert potential.calls <= 72, "the part that died went on from its stored state"
    assert not (out / "parts").exists()
    single = simulate(potential, structures, settings, tmp_path / "one", False, **options)
    close(verdicts, single)
    assert [v["steps_run"] for v in verdicts] == own["steps"]
    for k in options["indices"]:
        frames = [(folder / "trajectories" / f"{k:05d}.extxyz").read_text() for folder in (out, tmp_path / "one")]
        assert frames[0].count("Lattice") == frames[1].count("Lattice") > 2
    rdfs = [read_rdfs(folder) for folder in (out, tmp_path / "one")]
    assert [r["structure_id"] for r in rdfs[0]["structures"]] == [a.info["structure_id"] for a in structures]
    for one, other in zip(rdfs[0]["structures"], rdfs[1]["structures"], strict=True):
        assert one["frames"] == other["frames"]
        np.testing.assert_allclose(one["g"]["Cu-Cu"], other["g"]["Cu-Cu"], rtol=1e-6)
    stored = [json.loads((folder / "verdicts.json").read_text()) for folder in (out, tmp_path / "one")]
    assert stored[0]["key"] == stored[1]["key"], "a run in one process finds the result"
    assert stored[0]["per_structure"] == own


def test_errors_say_whose_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    structures = crystals(4)
    with monkeypatch.context() as patch:
        patch.setattr(splitting, "_run", in_this_process)
        with pytest.raises(PhyspreError, match="for every structure the potential raised RuntimeError: no way"):
            simulate_parallel(RaisesAtOnce(), structures, with_(steps=3), tmp_path, False, processes=2)
    with pytest.raises(ConfigError, match="processes is 0"):
        simulate_parallel(Morse(), structures, with_(steps=3), processes=0)

    class Local(Morse):
        pass

    with pytest.raises(ConfigError, match="cannot be sent to another process"):
        simulate_parallel(Local(), structures, with_(steps=3), processes=2)
    assert len(simulate_parallel(Local(), structures, with_(steps=3), progress=False, processes=1)) == 4

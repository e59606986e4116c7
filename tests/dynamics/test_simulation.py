"""Whole simulations: verdicts, batches, breaking structures, and runs that are killed and continued."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import read
from pair_potentials import Abrupt, Attraction, AttractiveGold, Frozen, Killed, Morse, NanForGold, RaisesForGold

from mdl_physpre.analysis.lindemann import lindemann_index
from mdl_physpre.analysis.overlap import minimum_distance, overlap
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.simulation import simulate
from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials.base import evaluate
from mdl_physpre.structures.graph import build_graph


def crystals(n: int = 4) -> list[Atoms]:
    """Crystals of different sizes and cells that Morse keeps together."""
    made = [
        bulk("Cu", "fcc", a=3.5).repeat((2, 2, 2)),
        bulk("Cu", "fcc", a=3.5, cubic=True),
        bulk("Cu", "hcp", a=2.5).repeat((2, 2, 1)),
        bulk("Cu", "bcc", a=2.85).repeat((3, 2, 2)),
    ]
    structures = [made[k % 4].copy() for k in range(n)]
    for k, atoms in enumerate(structures):
        atoms.rattle(0.03, seed=k)
        atoms.info["structure_id"] = f"copper-{k}"
    return structures


def clusters(n: int = 4) -> list[Atoms]:
    """The same pieces in empty space."""
    pieces = crystals(n)
    for atoms in pieces:
        atoms.set_cell(np.zeros((3, 3)))
        atoms.pbc = False
    return pieces


SHORT = DynamicsSettings(temperature=300, timestep=2.0, steps=120, seed=3, skin=0.5, lindemann_check_interval=20)


def with_(settings: DynamicsSettings = SHORT, **changes) -> DynamicsSettings:
    return DynamicsSettings(**{**settings.__dict__, **changes})


def test_a_sound_potential_is_stable() -> None:
    verdicts = simulate(Morse(), crystals(), SHORT)
    assert [v["status"] for v in verdicts] == ["stable"] * 4
    assert [v["structure_id"] for v in verdicts] == [f"copper-{k}" for k in range(4)]
    for verdict in verdicts:
        assert verdict["reasons"] == []
        assert verdict["first_failing_step"] is None
        assert verdict["steps_run"] == 120
        assert set(verdict["checks"].values()) == {"passed"}
        assert 50 < verdict["metrics"]["mean_temperature"] < 700
        assert 0 < verdict["metrics"]["lindemann_global"] < 0.1
    json.dumps(verdicts, allow_nan=False)


def test_constant_attraction_fails_by_overlap_in_every_structure() -> None:
    verdicts = simulate(Attraction(), clusters(), with_(steps=400))
    for atoms, verdict in zip(clusters(), verdicts, strict=True):
        assert verdict["status"] == "failed"
        assert verdict["reasons"][0] == "overlap"
        assert verdict["checks"]["overlap"] == "failed"
        assert verdict["stopped"]
        assert verdict["time_fs"] == 2.0 * verdict["first_failing_step"]
        assert verdict["metrics"]["min_distance"] <= verdict["metrics"]["overlap_threshold"]
        start = minimum_distance(atoms.positions, atoms.cell[:], atoms.pbc)
        assert verdict["metrics"]["overlap_threshold"] == pytest.approx(start / 2)


def test_a_frozen_potential_never_fails() -> None:
    verdicts = simulate(Frozen(), crystals(), with_(temperature=1e-3, steps=150))
    assert [v["status"] for v in verdicts] == ["stable"] * 4
    assert max(v["metrics"]["lindemann_max_local"] for v in verdicts) < 1e-3


def test_nan_stops_one_structure_and_not_the_others() -> None:
    structures = crystals()
    structures[1].numbers[2] = 79
    for potential in (NanForGold(), RaisesForGold()):
        verdicts = simulate(potential, structures, SHORT)
        assert [v["status"] for v in verdicts] == ["stable", "failed", "stable", "stable"]
        reason = "not_finite" if isinstance(potential, NanForGold) else "potential_error"
        assert verdicts[1]["reasons"] == [reason]
        assert verdicts[1]["first_failing_step"] == 3
        assert verdicts[1]["checks"]["lindemann_local"] == "n/a"
        if reason == "potential_error":
            assert "no gold, please" in verdicts[1]["failures"][0]["text"]
        sound = simulate(Morse(), structures, SHORT)
        for k in (0, 2, 3):
            assert verdicts[k]["metrics"]["max_force"] == pytest.approx(sound[k]["metrics"]["max_force"], rel=1e-9)


def test_too_hot_and_escaped_have_names_of_their_own() -> None:
    hot, _ = simulate(Morse(), crystals(2), with_(temperature=400, max_temperature=90))
    assert hot["reasons"] == ["temperature"]
    assert "K, at most" in hot["failures"][0]["text"]
    pair = Atoms("Cu2", [[0, 0, 0], [0, 0, 40.0]])
    gone = simulate(Frozen(), [pair], with_(temperature=9000, max_displacement=0.5))[0]
    assert gone["reasons"] == ["escaped"]
    assert gone["metrics"]["max_displacement"] > 0.5


def test_a_structure_with_too_many_neighbours_ends_with_a_reason() -> None:
    dense = Atoms("H60", np.random.default_rng(0).random((60, 3)) * 2, cell=[2, 2, 2], pbc=True)
    clump = Atoms("H300", np.random.default_rng(0).random((300, 3)) * 2)
    verdicts = simulate(Frozen(), [*crystals(1), dense, clump], with_(max_neighbours=200))
    assert [v["reasons"] for v in verdicts] == [[], ["cell_collapsed"], ["cell_collapsed"]]
    assert verdicts[1]["first_failing_step"] == 0


def test_one_atom_and_far_pairs() -> None:
    alone = Atoms("Cu", cell=[9, 9, 9], pbc=True)
    primitive = bulk("Cu", "fcc", a=3.6)
    far = Atoms("Cu2", [[0, 0, 0], [0, 0, 30.0]])
    verdicts = simulate(Morse(), [alone, primitive, far], SHORT)
    for verdict in verdicts[:2]:
        assert verdict["status"] == "stable"
        for reason in ("overlap", "lindemann_local", "lindemann_global"):
            assert verdict["checks"][reason] == "n/a"
        assert verdict["metrics"]["min_distance"] is None
    assert verdicts[2]["checks"]["overlap"] == "passed"
    assert verdicts[2]["metrics"]["start_min_distance"] == pytest.approx(30)
    assert 25 < verdicts[2]["metrics"]["min_distance"] <= 30


def test_two_atoms_that_meet_from_beyond_the_cutoff_overlap() -> None:
    apart = Atoms("H2", [[0, 0, 0], [0, 0, 24.0]])
    verdict = simulate(Attraction(cutoff=60.0), [apart], with_(temperature=1, max_temperature=1e9))[0]
    assert verdict["reasons"][0] == "overlap"
    near = simulate(Frozen(cutoff=2.0), [apart], with_(temperature=1, steps=3))[0]
    assert near["metrics"]["min_distance"] == pytest.approx(24, abs=0.1)


def test_membership_of_a_batch_does_not_matter() -> None:
    structures = crystals(6)
    settings = with_(steps=60)
    together = simulate(Morse(), structures, settings)
    small = simulate(Morse(), structures, with_(settings, max_edges=300))
    some = simulate(Morse(), [structures[4], structures[1]], settings, indices=[4, 1])
    for one, other in [*zip(together, small, strict=True), (together[4], some[0]), (together[1], some[1])]:
        assert one["index"] == other["index"]
        for name, value in one["metrics"].items():
            assert other["metrics"][name] == (value if value is None else pytest.approx(value, rel=1e-8)), name


@pytest.mark.parametrize("potential", [Morse(), Abrupt()])
@pytest.mark.parametrize("distance", ["continuous", "minimum_image"])
def test_verdicts_agree_with_the_stored_trajectory(tmp_path: Path, potential: Morse, distance: str) -> None:
    settings = with_(temperature=1500, steps=110, trajectory_interval=1, distance=distance, lindemann_interval=1)
    structures = crystals()
    verdicts = simulate(potential, structures, settings, tmp_path)
    for atoms, verdict in zip(structures, verdicts, strict=True):
        frames = read(tmp_path / "trajectories" / f"{verdict['index']:05d}.extxyz", ":")
        assert len(frames) == verdict["steps_run"] + 1
        np.testing.assert_allclose(frames[0].positions, atoms.positions, atol=1e-8)
        assert frames[-1].info["structure_id"] == verdict["structure_id"]
        sound = frames[:-1] if verdict["stopped"] else frames
        stored = lindemann_index(sound, distance)
        metrics = verdict["metrics"]
        assert metrics["lindemann_global"] == pytest.approx(stored.mean, rel=1e-6)
        assert metrics["lindemann_max_local"] == pytest.approx(stored.local.max(), rel=1e-6)
        found = overlap(frames)
        assert metrics["min_distance"] == pytest.approx(found["min_distance"], abs=1e-7)
        assert verdict["checks"]["overlap"] == found["verdict"]
        temperatures = [f.get_temperature() for f in sound[1:]]
        assert metrics["mean_temperature"] == pytest.approx(np.mean(temperatures), rel=1e-6)
        forces = evaluate(potential, build_graph(frames, potential.cutoff)).forces
        assert forces is not None
        assert metrics["max_force"] == pytest.approx(float(forces.norm(dim=1).max()), rel=1e-5)
        displaced = max(
            np.linalg.norm((f - a) - (f - a).mean(0), axis=1).max()
            for f, a in ((f.positions, frames[0].positions) for f in frames)
        )
        assert metrics["max_displacement"] == pytest.approx(displaced, rel=1e-6)


def test_first_failing_step_of_the_lindemann_index() -> None:
    """The end of the shortest run, among those looked at, that would have been judged a failure."""
    settings = with_(temperature=300, lindemann_local=0.035, lindemann_global=0.03, steps=240, lindemann_interval=1)
    verdicts = simulate(Morse(), crystals(), settings)
    failed = [v for v in verdicts if v["checks"]["lindemann_local"] == "failed"]
    assert failed
    for verdict in failed:
        at = next(f["step"] for f in verdict["failures"] if f["reason"] == "lindemann_local")
        assert not verdict["stopped"], "an excess of the index does not stop a run"
        assert at >= settings.lindemann_min_steps
        cut = simulate(Morse(), crystals(), with_(settings, steps=at))[verdict["index"]]
        assert cut["checks"]["lindemann_local"] == "failed"
        if at - 20 >= settings.lindemann_min_steps:
            earlier = simulate(Morse(), crystals(), with_(settings, steps=at - 20))[verdict["index"]]
            assert earlier["checks"]["lindemann_local"] == "passed"


def test_overlap_need_not_stop_a_run() -> None:
    settings = with_(steps=200, max_temperature=1e12, stop_on_overlap=False)
    stopped = simulate(Attraction(), clusters(2), with_(settings, stop_on_overlap=True))
    verdicts = simulate(Attraction(), clusters(2), settings)
    for verdict, short in zip(verdicts, stopped, strict=True):
        assert verdict["steps_run"] == 200 > short["steps_run"]
        assert verdict["first_failing_step"] == short["first_failing_step"]
        assert verdict["checks"]["lindemann_local"] != "n/a"


@pytest.mark.parametrize("at", [1, 37, 95, 110])
def test_an_interrupted_run_continues_to_the_same_verdicts(tmp_path: Path, at: int) -> None:
    settings = with_(temperature=900, checkpoint_steps=10, trajectory_interval=7)
    whole = simulate(Morse(), crystals(5), settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        simulate(Killed(at), crystals(5), settings, tmp_path / "cut")
    # Killed and Morse differ in class alone; a run is only continued with the potential it began with
    assert (tmp_path / "cut" / "state.npz").exists() == (at > 11)
    resumed = Killed(10**9)
    verdicts = simulate(resumed, crystals(5), settings, tmp_path / "cut")
    assert verdicts == whole
    assert 10**9 - resumed.at <= 121 - (at - 12), "it must not have begun again"
    for k in range(5):
        name = f"trajectories/{k:05d}.extxyz"
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "cut" / "state.npz").exists()


def test_structures_that_broke_before_the_kill_keep_their_verdicts(tmp_path: Path) -> None:
    structures = crystals(5)
    structures[2] = clusters(3)[2]
    structures[2].numbers[:] = 79
    settings = with_(checkpoint_steps=10)
    whole = simulate(AttractiveGold(), structures, settings, tmp_path / "whole")
    assert whole[2]["reasons"] == ["overlap"]
    with pytest.raises(KeyboardInterrupt):
        simulate(AttractiveGold(100), structures, settings, tmp_path / "cut")
    assert whole[2]["first_failing_step"] < 90
    assert simulate(AttractiveGold(), structures, settings, tmp_path / "cut") == whole


def test_finished_runs_are_read_and_others_are_not(tmp_path: Path) -> None:
    settings = with_(steps=20)
    first = simulate(Morse(), crystals(2), settings, tmp_path)

    class Counted(Morse):
        calls = 0

        def atomic_energies(self, graph):
            Counted.calls += 1
            return super().atomic_energies(graph)

    stored = json.loads((tmp_path / "verdicts.json").read_text())
    assert stored["settings"]["overlap_ratio"] == 0.5
    assert stored["summary"]["n"] == 2
    simulate(Counted(), crystals(2), settings, tmp_path)
    assert Counted.calls == 21, "another potential: simulated again"
    again = simulate(Counted(), crystals(2), with_(settings, checkpoint_steps=3), tmp_path)
    assert Counted.calls == 21, "the same: read"
    assert again == first
    simulate(Counted(), crystals(2), with_(settings, seed=9), tmp_path)
    assert Counted.calls == 42, "other settings: simulated again"
    (tmp_path / "verdicts.json").write_text("{broken")
    (tmp_path / "state.npz").write_bytes(b"PK broken")
    simulate(Counted(), crystals(2), with_(settings, seed=9), tmp_path)
    assert Counted.calls == 63, "damaged files: simulated again"


def test_a_killed_process_continues(tmp_path: Path) -> None:
    """SIGKILL at an arbitrary moment, then a new process."""
    script = tmp_path / "run.py"
    here = Path(__file__).parent
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(here)!r})\n"
        f"sys.path.insert(0, {str(here.parents[1])!r})\n"
        "import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from ase.build import bulk\n"
        "from pair_potentials import Morse\n"
        "from mdl_physpre.dynamics.simulation import DynamicsSettings, simulate\n"
        "atoms = [bulk('Cu', 'fcc', a=3.5).repeat((2, 2, k)) for k in (1, 2, 3)]\n"
        "settings = DynamicsSettings(temperature=600, steps=400, checkpoint_steps=20)\n"
        "simulate(Morse(), atoms, settings, Path(sys.argv[1]))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(name: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, str(script), str(tmp_path / name)], env=environment)

    killed = start("killed")
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "state.npz").exists():
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "verdicts.json").exists()
    assert start("killed").wait() == 0
    atoms = [bulk("Cu", "fcc", a=3.5).repeat((2, 2, k)) for k in (1, 2, 3)]
    simulate(Morse(), atoms, DynamicsSettings(temperature=600, steps=400, checkpoint_steps=20), tmp_path / "whole")
    assert (tmp_path / "killed" / "verdicts.json").read_bytes() == (tmp_path / "whole" / "verdicts.json").read_bytes()
    left = sorted(p.name for p in (tmp_path / "killed").iterdir() if p.suffix != ".part")
    assert left == ["speed.json", "verdicts.json"]


def test_bad_input_is_named() -> None:
    class OnlyCopper(Morse):
        elements = (29,)

    gold = crystals(2)
    gold[1].numbers[0] = 79
    with pytest.raises(DataError, match="structure 1 .copper-1. holds Au"):
        simulate(OnlyCopper(), gold, SHORT)
    with pytest.raises(DataError, match="structure 0 .0. has no atoms"):
        simulate(Morse(), [Atoms()], SHORT)
    with pytest.raises(ConfigError, match="trajectory_interval"):
        simulate(Morse(), crystals(1), with_(trajectory_interval=5))
    with pytest.raises(ConfigError, match="did you mean 'nvt'"):
        DynamicsSettings(ensemble="nvtt")
    with pytest.raises(ConfigError, match="timestep is 0"):
        DynamicsSettings(timestep=0)
    assert simulate(Morse(), [], SHORT) == []


def test_the_potential_is_left_as_it_was() -> None:
    potential = Morse()
    potential.weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    potential.train()
    simulate(potential, crystals(1), with_(steps=2))
    assert potential.training
    assert potential.weight.requires_grad


def test_real_structures_of_every_kind() -> None:
    """One atom, two atoms in a large box, cells narrower than the cutoff: all get a verdict."""
    folder = os.environ.get("PHYSPRE_DATA")
    path = Path(folder or "") / "phosphorus" / "p_gap_20.extxyz.gz"
    if not folder or not path.exists():
        pytest.skip("PHYSPRE_DATA does not name a folder with phosphorus/p_gap_20.extxyz.gz")
    small: list[Atoms] = []
    others: list[Atoms] = []
    with gzip.open(path, "rt") as file:
        for number in range(1000):  # frame by frame: the whole file takes long
            n = int(file.readline())
            frame = [f"{n}\n", *(file.readline() for _ in range(n + 1))]
            if n == 1 or (n == 2 and len(small) < 2) or (n < 40 and number % 100 == 0):
                (small if n <= 2 else others).append(read(io.StringIO("".join(frame)), format="extxyz"))
    structures = small + others
    verdicts = simulate(Morse(r0=2.2), structures, with_(steps=40, lindemann_min_steps=20, temperature=600))
    for atoms, verdict in zip(structures, verdicts, strict=True):
        assert verdict["status"] in ("stable", "failed")
        if len(atoms) == 1:
            assert verdict["checks"]["overlap"] == "n/a"
        else:
            start = minimum_distance(atoms.positions, atoms.cell[:], atoms.pbc)
            assert verdict["metrics"]["start_min_distance"] == pytest.approx(start)
        json.dumps(verdict, allow_nan=False)

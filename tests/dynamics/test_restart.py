"""Runs that are killed and continued, and results that are read again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk

from mdl_physpre.dynamics.running.simulate import simulate
from mdl_physpre.dynamics.running.storage import RENAMED, run_key
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.potentials import CGCNN, EAMInteraction, M3GNet, TorchMDET
from mdl_physpre.utils.overwrite import WouldDelete
from tests.helpers.pair_potentials import AttractiveGold, Killed, Morse, Slow
from tests.helpers.processes import environment
from tests.helpers.small_structures import clusters, crystals, with_

ALL = ("nvt", "nvt_bussi", "nvt_nose_hoover", "npt", "nve")


def same_files(one: Path, other: Path) -> None:
    """Every file but the speed of the run, and its description, which names the class of the potential."""
    found = [
        {
            str(p.relative_to(folder)): p.read_bytes()
            for p in folder.rglob("*")
            if p.is_file() and p.name not in ("speed.json", "simulation.json")
        }
        for folder in (one, other)
    ]
    assert found[0].keys() == found[1].keys()
    for name, content in found[0].items():
        assert content == found[1][name], name


@pytest.mark.parametrize("ensemble", ALL)
def test_killed_at_any_step_every_ensemble_goes_on_to_the_same_bytes(tmp_path: Path, ensemble: str) -> None:
    """Verdicts, trajectories with cells, momenta, forces and conserved energies, and radial distribution functions."""
    settings = with_(
        ensemble=ensemble, temperature=900, steps=30, checkpoint_steps=4, trajectory_interval=1, pressure_interval=3,
        rdf_interval=5, rdf_bins=20, taut=50, taup=100, pressure=2e4, compressibility=1e-4, skin=0.2,
        lindemann_min_steps=10, lindemann_check_interval=4,
    )  # fmt: skip
    structures, own = crystals(3), {"steps": [30, 17, 25], "temperature": [900, 1200, 600]}
    whole = simulate(Morse(), structures, settings, tmp_path / "whole", per_structure=own)
    assert [v.steps_run for v in whole] == own["steps"]
    evaluations = 60 if ensemble == "npt" else 30
    for at in range(1, evaluations, 7 if ensemble == "npt" else 4):
        cut = tmp_path / f"cut{at}"
        with pytest.raises(KeyboardInterrupt):
            simulate(Killed(at), structures, settings, cut, per_structure=own)
        assert simulate(Killed(10**9), structures, settings, cut, per_structure=own) == whole
        stored = json.loads((cut / "verdicts.json").read_text())
        (cut / "verdicts.json").write_bytes((tmp_path / "whole" / "verdicts.json").read_bytes())
        (cut / "rdf.json").write_text((cut / "rdf.json").read_text().replace(stored["key"], key_of(tmp_path / "whole")))
        same_files(cut, tmp_path / "whole")


def key_of(folder: Path) -> str:
    return json.loads((folder / "verdicts.json").read_text())["key"]


@pytest.mark.parametrize("at", [1, 95])
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
    assert whole[2].reasons == ("overlap",)
    with pytest.raises(KeyboardInterrupt):
        simulate(AttractiveGold(100), structures, settings, tmp_path / "cut")
    assert whole[2].first_failing_step < 90
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
    with pytest.raises(WouldDelete, match="potential: Morse"):
        simulate(Counted(), crystals(2), settings, tmp_path)
    assert Counted.calls == 0
    simulate(Counted(), crystals(2), settings, tmp_path, overwrite=True)
    assert Counted.calls == 21, "another potential: simulated again"
    again = simulate(Counted(), crystals(2), with_(settings, checkpoint_steps=3), tmp_path)
    assert Counted.calls == 21, "the same: read"
    assert again == first
    simulate(Counted(), crystals(2), with_(settings, seed=9), tmp_path, overwrite=True)
    assert Counted.calls == 42, "other settings: simulated again"
    (tmp_path / "verdicts.json").write_text("{broken")
    (tmp_path / "state.npz").write_bytes(b"PK broken")
    simulate(Counted(), crystals(2), with_(settings, seed=9), tmp_path)
    assert Counted.calls == 63, "damaged files: simulated again"


def test_a_killed_process_continues(tmp_path: Path) -> None:
    """SIGKILL at an arbitrary moment, then a new process."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        "import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from ase.build import bulk\n"
        "from tests.helpers.pair_potentials import Morse\n"
        "from mdl_physpre.dynamics import DynamicsSettings, simulate\n"
        "atoms = [bulk('Cu', 'fcc', a=3.5).repeat((2, 2, k)) for k in (1, 2, 3)]\n"
        "settings = DynamicsSettings(temperature=600, steps=200, checkpoint_steps=20)\n"
        "simulate(Morse(), atoms, settings, Path(sys.argv[1]))\n"
    )

    def start(name: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / name)], env=environment(OMP_NUM_THREADS="1")
        )

    killed = start("killed")
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "state.npz").exists():
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "verdicts.json").exists()
    atoms = [bulk("Cu", "fcc", a=3.5).repeat((2, 2, k)) for k in (1, 2, 3)]
    for name in ("killed", "whole"):
        simulate(Morse(), atoms, DynamicsSettings(temperature=600, steps=200, checkpoint_steps=20), tmp_path / name)
    assert (tmp_path / "killed" / "verdicts.json").read_bytes() == (tmp_path / "whole" / "verdicts.json").read_bytes()
    left = sorted(p.name for p in (tmp_path / "killed").iterdir() if p.suffix != ".part" and p.name != ".lock")
    assert left == ["simulation.json", "speed.json", "verdicts.json"]


def test_nothing_of_an_earlier_run_is_taken_for_the_new_one(tmp_path: Path) -> None:
    before = with_(steps=20, trajectory_interval=10, rdf_interval=5, rdf_bins=10)
    simulate(Morse(), crystals(4), before, tmp_path)
    (tmp_path / "trajectories" / "mine.extxyz").write_text("somebody's")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "of the project").write_text("somebody's")
    assert len(list((tmp_path / "trajectories").iterdir())) == 5 and (tmp_path / "rdf.json").exists()
    simulate(Morse(), crystals(2), with_(steps=20, temperature=400, trajectory_interval=10), tmp_path, overwrite=True)
    left = sorted(p.name for p in (tmp_path / "trajectories").iterdir())
    assert left == ["00000.extxyz", "00001.extxyz", "mine.extxyz"]
    assert not (tmp_path / "rdf.json").exists()
    assert (tmp_path / "parts" / "of the project").exists(), "other files are left alone"


def test_two_that_want_the_same_run_do_it_once(tmp_path: Path) -> None:
    settings, calls = with_(steps=30), []

    class Counted(Slow):
        def atomic_energies(self, graph):
            calls.append(threading.get_ident())
            return super().atomic_energies(graph)

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: simulate(Counted(), crystals(2), settings, tmp_path, False), range(2)))
    assert both[0] == both[1] and len(calls) == 31 and len(set(calls)) == 1


def test_what_a_result_depends_on(tmp_path: Path) -> None:
    """Values of single structures, names and masses are part of the run, as settings are."""
    structures, settings = crystals(2), with_(steps=4)

    class Counted(Morse):
        calls = 0

        def atomic_energies(self, graph):
            Counted.calls += 1
            return super().atomic_energies(graph)

    def calls(**changes) -> int:
        before = Counted.calls
        simulate(Counted(), structures, settings, tmp_path, overwrite=True, **changes)
        return Counted.calls - before

    assert calls() == 5
    assert calls() == 0
    assert calls(per_structure={"temperature": [300, 300]}) == 0, "the same in other words"
    assert calls(per_structure={"temperature": [300, 301]}) == 5
    assert json.loads((tmp_path / "verdicts.json").read_text())["per_structure"] == {"temperature": [300, 301]}
    assert calls() == 5
    structures[0].set_masses(np.full(len(structures[0]), 60.0))
    assert calls() == 5
    structures[1].info["structure_id"] = "renamed"
    assert calls() == 5


CELL = {"elements": ["Cu"], "cutoff": 4.0}
STORED = {  # written by version 0.1.0 before its modules moved
    CGCNN: ({"dim1": 4, "dim2": 4, "gc_count": 1, "post_fc_count": 1, "edge_dim": 5}, "aee0bf4ae82d036ad44d4fc3"),
    M3GNet: (
        {"num_blocks": 1, "units": 4, "threebody_cutoff": 3.0, "max_l": 2, "max_n": 2, "max_z": 30},
        "9c05f472aa68bdc64ec860b7",
    ),
    TorchMDET: (
        {
            "hidden_channels": 8, "num_layers": 1, "num_rbf": 4, "num_heads": 2, "post_hidden_channels": 4,
            "num_post_layers": 1, "max_z": 30,
        },
        "43e834d3ba29dd0c2ed3f630",
    ),
    EAMInteraction: ({"n_basis": 2}, "9b7515f712e3701378d3e245"),
}  # fmt: skip


@pytest.mark.parametrize("potential", STORED)
def test_results_of_an_earlier_version_are_known_again(potential):
    hyperparameters, key = STORED[potential]
    made = potential(**CELL, **hyperparameters)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(0.125)
    assert run_key(made, [bulk("Cu")], ["0"], [DynamicsSettings(temperature=600.0, steps=20)], [0]) == key


def test_every_class_of_this_package_keeps_its_name_in_keys():
    for name in RENAMED:
        module, _, cls = name.rpartition(".")
        spec = find_spec(module)  # not imported: some need packages that are not there
        assert spec and spec.origin and f"class {cls}(" in Path(spec.origin).read_text(), name

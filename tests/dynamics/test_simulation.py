"""Whole simulations: verdicts against stored trajectories, batches, and bad input."""

from __future__ import annotations

import gzip
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import read

from mdl_physpre.analysis.lindemann import lindemann_index
from mdl_physpre.analysis.overlap import minimum_distance, overlap
from mdl_physpre.dynamics.running.simulate import simulate
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import build_graph
from tests.helpers.pair_potentials import Abrupt, Attraction, Frozen, Morse
from tests.helpers.small_structures import SHORT, clusters, crystals, with_


def test_a_sound_potential_is_stable() -> None:
    verdicts = simulate(Morse(), crystals(), SHORT)
    assert [v.status for v in verdicts] == ["stable"] * 4
    assert [v.structure_id for v in verdicts] == [f"copper-{k}" for k in range(4)]
    for verdict in verdicts:
        assert verdict.reasons == ()
        assert verdict.first_failing_step is None
        assert verdict.steps_run == 120
        assert {reason for reason, check in verdict.checks.items() if check != "passed"} == {"too_deep"}  # not trained
        assert 50 < verdict.metrics["mean_temperature"] < 700
        assert 0 < verdict.metrics["lindemann_global"] < 0.1
    json.dumps([v.plain() for v in verdicts], allow_nan=False)


def test_one_atom_and_far_pairs() -> None:
    alone = Atoms("Cu", cell=[9, 9, 9], pbc=True)
    primitive = bulk("Cu", "fcc", a=3.6)
    far = Atoms("Cu2", [[0, 0, 0], [0, 0, 30.0]])
    verdicts = simulate(Morse(), [alone, primitive, far], SHORT)
    for verdict in verdicts[:2]:
        assert verdict.status == "stable"
        for reason in ("overlap", "lindemann_local", "lindemann_global"):
            assert verdict.checks[reason] == "n/a"
        assert verdict.metrics["min_distance"] is None
    assert verdicts[2].checks["overlap"] == "passed"
    assert verdicts[2].metrics["start_min_distance"] == pytest.approx(30)
    assert 25 < verdicts[2].metrics["min_distance"] <= 30


def test_two_atoms_that_meet_from_beyond_the_cutoff_overlap() -> None:
    apart = Atoms("H2", [[0, 0, 0], [0, 0, 24.0]])
    verdict = simulate(Attraction(cutoff=60.0), [apart], with_(temperature=1, max_temperature=1e9))[0]
    assert verdict.reasons[0] == "overlap"
    near = simulate(Frozen(cutoff=2.0), [apart], with_(temperature=1, steps=3))[0]
    assert near.metrics["min_distance"] == pytest.approx(24, abs=0.1)


def test_membership_of_a_batch_does_not_matter() -> None:
    structures = crystals(6)
    settings = with_(steps=60)
    together = simulate(Morse(), structures, settings)
    small = simulate(Morse(), structures, with_(settings, max_edges=300))
    some = simulate(Morse(), [structures[4], structures[1]], settings, indices=[4, 1])
    for one, other in [*zip(together, small, strict=True), (together[4], some[0]), (together[1], some[1])]:
        assert one.index == other.index
        for name, value in one.metrics.items():
            assert other.metrics[name] == (value if value is None else pytest.approx(value, rel=1e-8)), name


@pytest.mark.parametrize("potential", [Morse(), Abrupt()])
@pytest.mark.parametrize("distance", ["continuous", "minimum_image"])
def test_verdicts_agree_with_the_stored_trajectory(tmp_path: Path, potential: Morse, distance: str) -> None:
    settings = with_(temperature=1500, steps=110, trajectory_interval=1, distance=distance, lindemann_interval=1)
    structures = crystals()
    verdicts = simulate(potential, structures, settings, tmp_path)
    for atoms, verdict in zip(structures, verdicts, strict=True):
        frames = read(tmp_path / "trajectories" / f"{verdict.index:05d}.extxyz", ":")
        assert len(frames) == verdict.steps_run + 1
        np.testing.assert_allclose(frames[0].positions, atoms.positions, atol=1e-8)
        assert frames[-1].info["structure_id"] == verdict.structure_id
        sound = frames[:-1] if verdict.stopped else frames
        stored = lindemann_index(sound, distance)
        metrics = verdict.metrics
        assert metrics["lindemann_global"] == pytest.approx(stored.mean, rel=1e-6)
        assert metrics["lindemann_max_local"] == pytest.approx(stored.local.max(), rel=1e-6)
        found = overlap(frames)
        assert metrics["min_distance"] == pytest.approx(found.min_distance, abs=1e-7)
        assert verdict.checks["overlap"] == found.verdict
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
    failed = [v for v in verdicts if v.checks["lindemann_local"] == "failed"]
    assert failed
    for verdict in failed:
        at = next(f.step for f in verdict.failures if f.reason == "lindemann_local")
        assert not verdict.stopped, "an excess of the index does not stop a run"
        assert at >= settings.lindemann_min_steps
        cut = simulate(Morse(), crystals(), with_(settings, steps=at))[verdict.index]
        assert cut.checks["lindemann_local"] == "failed"
        if at - 20 >= settings.lindemann_min_steps:
            earlier = simulate(Morse(), crystals(), with_(settings, steps=at - 20))[verdict.index]
            assert earlier.checks["lindemann_local"] == "passed"


def test_overlap_need_not_stop_a_run() -> None:
    settings = with_(steps=200, max_temperature=1e12, stop_on_overlap=False)
    stopped = simulate(Attraction(), clusters(2), with_(settings, stop_on_overlap=True))
    verdicts = simulate(Attraction(), clusters(2), settings)
    for verdict, short in zip(verdicts, stopped, strict=True):
        assert verdict.steps_run == 200 > short.steps_run
        assert verdict.first_failing_step == short.first_failing_step
        assert verdict.checks["lindemann_local"] != "n/a"


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
    with pytest.raises(ConfigError, match="dynamics.timestep: found 0"):
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
        assert verdict.status in ("stable", "failed")
        if len(atoms) == 1:
            assert verdict.checks["overlap"] == "n/a"
        else:
            start = minimum_distance(atoms.positions, atoms.cell[:], atoms.pbc)
            assert verdict.metrics["start_min_distance"] == pytest.approx(start)
        json.dumps(verdict.plain(), allow_nan=False)

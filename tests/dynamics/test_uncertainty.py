"""The spread of a committee along a run: measured, stored, a reason to stop; and nothing of it for other potentials."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.calculators.lj import LennardJones
from ase.io import read
from torch import Tensor

from mdl_physpre import build_graph, evaluate, simulate
from mdl_physpre.dynamics import DynamicsSettings, Verdict, judge_run, simulate_parallel, summarise
from mdl_physpre.dynamics.engine.forces import inference
from mdl_physpre.dynamics.running import batch
from mdl_physpre.dynamics.running.run_state import begin_or_resume
from mdl_physpre.dynamics.running.storage import run_key
from mdl_physpre.dynamics.verdicts import observers
from mdl_physpre.dynamics.verdicts.observer import Observer
from mdl_physpre.dynamics.verdicts.uncertainty import Uncertainty
from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials import ZBL, CalculatorPotential, Committee, Potential, SumPotential
from mdl_physpre.potentials.compiled import CompiledPotential, compiled
from mdl_physpre.runs.stage import decisive, hash_of
from tests.helpers.gpu_stand_in import DEVICE, counting
from tests.helpers.pair_potentials import Killed, Morse
from tests.helpers.small_structures import clusters, crystals, with_
from tests.potentials.test_device_counts import network, silica

HOT = with_(temperature=900.0, steps=60, overlap_ratio=0.3, lindemann_min_steps=20)


class Smooth(Morse):
    """Morse that gives edges beyond the cutoff no weight."""

    def pair(self, r: Tensor) -> Tensor:
        well = self.depth * ((1 - torch.exp(-self.a * (r - self.r0))) ** 2 - 1)
        return well * (1 - (r / self.cutoff) ** 2).clamp(min=0) ** 3


class Nothing(Observer):
    """An observer of somebody else, with something to store."""

    BY_STRUCTURE = ("nothing",)

    def __init__(self, watched) -> None:
        super().__init__(watched)
        self.nothing = torch.zeros_like(watched.sizes)


def committee() -> Committee:
    return Committee([Smooth(5.0, depth=0.4), Smooth(5.0, depth=0.42), Smooth(4.6, depth=0.4, r0=2.52)])


def spreads(verdicts: list[Verdict]) -> list[float]:
    return [v.metrics["max_force_spread"] for v in verdicts]


@pytest.fixture(scope="module")
def free(tmp_path_factory) -> tuple[list[Verdict], Path]:
    """A run without a bound, every step of it stored."""
    out = tmp_path_factory.mktemp("free")
    settings = with_(HOT, trajectory_interval=1)
    return simulate(committee(), [*crystals(3), clusters(1)[0]], settings, out, progress=False), out


def test_the_spread_is_measured_along_the_run(free):
    verdicts, out = free
    for k, verdict in enumerate(verdicts):
        assert "uncertain" not in verdict.checks and verdict.metrics["uncertain_step"] is None
        frames = read(out / "trajectories" / f"{k:05d}.extxyz", ":")
        assert len(frames) == 61
        for frame in (frames[0], frames[7], frames[-1]):
            found = evaluate(committee(), build_graph(frame, 5.0, dtype=torch.float64), stress=False)
            np.testing.assert_allclose(frame.arrays["force_spread"], found.force_spread, atol=2e-6)
            assert frame.info["energy_spread"] == pytest.approx(float(found.energy_spread[0]), abs=1e-5)
        each = np.array([frame.arrays["force_spread"] for frame in frames])
        assert verdict.metrics["max_force_spread"] == pytest.approx(each.max(), abs=1e-7)
        assert verdict.metrics["mean_force_spread"] == pytest.approx(each[1:].mean(), abs=1e-7)
        energies = [frame.info["energy_spread"] for frame in frames]
        assert verdict.metrics["max_energy_spread"] == pytest.approx(max(energies) / len(frames[0]), rel=1e-6)


def test_the_bound_stops_the_structure_that_passes_it(free, tmp_path):
    verdicts, out = free
    bound = float(np.mean(sorted(spreads(verdicts))[1:3]))
    found = simulate(committee(), [*crystals(3), clusters(1)[0]], with_(HOT, max_force_spread=bound), tmp_path, False)
    assert 0 < summarise(found).by_reason["uncertain"].count < 4
    for k, (verdict, before) in enumerate(zip(found, verdicts, strict=True)):
        each = [f.arrays["force_spread"].max() for f in read(out / "trajectories" / f"{k:05d}.extxyz", ":")]
        first = next((step for step, value in enumerate(each) if value > bound), None)
        assert verdict.metrics["uncertain_step"] == first
        if first is None:
            assert verdict.checks["uncertain"] == "passed" and verdict.steps_run == before.steps_run
            continue
        assert verdict.first_failing_step == verdict.steps_run == first and verdict.reasons[0] == "uncertain"
        assert verdict.failures[0].text == (
            f"the forces on an atom are up to {each[first]:.4g} eV/Å apart, at most {bound:g} allowed"
        )
        frames = read(tmp_path / "failing_frames" / f"{k:05d}.extxyz", ":")
        assert [frame.info["step"] for frame in frames] == ([0, first] if first else [0])
        assert frames[-1].arrays["force_spread"].max() == pytest.approx(each[first], abs=1e-6)


def test_a_bound_that_does_not_stop(free, tmp_path):
    verdicts, _ = free
    bound = float(np.mean(sorted(spreads(verdicts))[1:3]))
    told = with_(HOT, max_force_spread=bound, stop_on_uncertain=False)
    stopped = simulate(committee(), [*crystals(3), clusters(1)[0]], with_(HOT, max_force_spread=bound), progress=False)
    found = simulate(committee(), [*crystals(3), clusters(1)[0]], told, tmp_path, progress=False)
    for verdict, before, other in zip(found, verdicts, stopped, strict=True):
        assert verdict.steps_run == before.steps_run
        assert verdict.metrics["max_force_spread"] == pytest.approx(before.metrics["max_force_spread"], rel=1e-12)
        assert verdict.metrics["uncertain_step"] == other.metrics["uncertain_step"]
        assert verdict.checks["uncertain"] == other.checks["uncertain"]
        if (step := verdict.metrics["uncertain_step"]) is not None:
            frames = read(tmp_path / "failing_frames" / f"{verdict.index:05d}.extxyz", ":")
            assert step in [frame.info["step"] for frame in frames]


def test_a_potential_without_spread_cannot_be_judged_by_it():
    (verdict,) = simulate(Smooth(), crystals(1), with_(HOT, max_force_spread=0.1), progress=False)
    assert verdict.checks["uncertain"] == "n/a" and not verdict.failed
    assert "uncertain: the potential gives no spread, as a committee does" in verdict.notes
    assert verdict.metrics["max_force_spread"] is verdict.metrics["uncertain_step"] is None
    (plain,) = simulate(Smooth(), crystals(1), HOT, progress=False)
    assert "uncertain" not in plain.checks and not any("uncertain" in note for note in plain.notes)
    lone = crystals(1)[0]
    lone.set_cell(np.zeros((3, 3)))
    (lost,) = simulate(Smooth(), [lone], with_(HOT, max_force_spread=0.1), progress=False)
    assert lost.checks["uncertain"] == "n/a"
    (lost,) = simulate(Smooth(), [lone], HOT, progress=False)
    assert "uncertain" not in lost.checks and not any("uncertain" in note for note in lost.notes)


def test_of_equal_members_nothing_is_uncertain():
    found = simulate(Committee([Smooth(), Smooth()]), crystals(2), with_(HOT, max_force_spread=1e-12), progress=False)
    alone = simulate(Smooth(), crystals(2), HOT, progress=False)
    for verdict, single in zip(found, alone, strict=True):
        assert verdict.checks["uncertain"] == "passed" and verdict.metrics["max_force_spread"] == 0
        assert verdict.metrics["min_distance"] == single.metrics["min_distance"]


@pytest.mark.parametrize("stops", [True, False])
def test_breaks_that_are_read_late_are_those_of_steps_judged_at_once(free, stops, tmp_path, monkeypatch):
    bound = float(np.mean(sorted(spreads(free[0]))[1:3]))
    settings = with_(HOT, max_force_spread=bound, stop_on_uncertain=stops, trajectory_interval=9)
    at_once = simulate(committee(), [*crystals(3), clusters(1)[0]], settings, tmp_path / "1", progress=False)
    assert any(v.failed for v in at_once)
    monkeypatch.setattr(batch, "steps_between_readings", lambda device: 7)
    assert simulate(committee(), [*crystals(3), clusters(1)[0]], settings, tmp_path / "7", progress=False) == at_once
    for path in (tmp_path / "1").rglob("*.extxyz"):
        assert path.read_bytes() == (tmp_path / "7" / path.relative_to(tmp_path / "1")).read_bytes()


@pytest.mark.parametrize(("ensemble", "at"), [("nvt", 17), ("npt", 30), ("nvt", 31)])
def test_a_killed_run_goes_on_to_the_same_bytes(ensemble, at, tmp_path):
    settings = with_(HOT, ensemble=ensemble, trajectory_interval=3, checkpoint_steps=4, pressure_interval=5)

    def dying(at: int) -> Committee:
        return Committee([Killed(at), Killed(10**9), Morse(depth=0.45)])

    free = sorted(spreads(simulate(dying(10**9), crystals(3), settings, tmp_path / "free", progress=False)))
    settings = with_(settings, max_force_spread=(free[1] + free[2]) / 2)
    whole = simulate(dying(10**9), crystals(3), settings, tmp_path / "whole", progress=False)
    assert sum("uncertain" in v.reasons for v in whole) == 1
    with pytest.raises(KeyboardInterrupt):
        simulate(dying(at), crystals(3), settings, tmp_path / "cut", progress=False)
    assert (tmp_path / "cut" / "state.npz").exists()
    assert simulate(dying(10**9), crystals(3), settings, tmp_path / "cut", progress=False) == whole
    for path in (tmp_path / "whole").rglob("*.extxyz"):
        assert path.read_bytes() == (tmp_path / "cut" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_stored_trajectories_are_judged_by_it_again(tmp_path):
    settings = with_(HOT, max_force_spread=0.1, trajectory_interval=1)
    found = simulate(committee(), crystals(3), settings, tmp_path, progress=False)
    assert any("uncertain" in v.reasons for v in found)
    for again, verdict in zip(judge_run(tmp_path), found, strict=True):
        assert again.reasons == verdict.reasons and again.first_failing_step == verdict.first_failing_step
        assert again.metrics["mean_force_spread"] == pytest.approx(verdict.metrics["mean_force_spread"], abs=1e-7)


def test_a_repulsion_beside_a_committee_keeps_its_spread():
    repulsion = ZBL(elements=["Cu"])
    both = SumPotential(base=committee(), repulsion=repulsion)
    assert both.gives_spread and not SumPotential(repulsion=repulsion).gives_spread
    graph = build_graph(crystals(1)[0], both.cutoff, dtype=torch.float64)
    found, alone = evaluate(both, graph), evaluate(committee(), build_graph(crystals(1)[0], 5.0, dtype=torch.float64))
    assert torch.allclose(found.force_spread, alone.force_spread)
    (verdict,) = simulate(both, crystals(1), HOT, progress=False)
    assert verdict.metrics["max_force_spread"] > 0


def test_several_processes_share_a_committee(tmp_path):
    settings = with_(HOT, steps=10, max_force_spread=10.0)
    found = simulate_parallel(committee(), crystals(2), settings, tmp_path, processes=2)
    alone = simulate(committee(), crystals(2), settings, progress=False)
    assert spreads(found) == pytest.approx(spreads(alone), rel=1e-6)
    assert [v.checks["uncertain"] for v in found] == ["passed"] * 2


def test_a_committee_of_calculators():
    members = [
        CalculatorPotential(lambda e=e: LennardJones(sigma=2.2, epsilon=e, rc=5.0), name=f"{e}") for e in (0.1, 0.2)
    ]
    (verdict,) = simulate(Committee(members), crystals(1), with_(HOT, steps=5), progress=False)
    assert verdict.metrics["max_force_spread"] > 0


def test_the_members_of_a_committee_are_compiled():
    made = compiled(Committee([network("cgcnn"), network("cgcnn")]))
    assert isinstance(made, Committee) and all(isinstance(m, CompiledPotential) for m in made.potentials)
    assert isinstance(compiled(network("cgcnn")), CompiledPotential)
    lj = CalculatorPotential(lambda: LennardJones(), name="lj")
    assert compiled(lj) is lj


def steps_on_device(potential: Potential, monkeypatch, **changes) -> tuple[list[int], list[int], dict]:
    settings = DynamicsSettings(temperature=300.0, timestep=0.5, steps=10_000, **changes)
    kernels, waits, n, potential = [], [], 4, potential.to(DEVICE).eval()
    with counting() as counts, inference(potential):
        run = begin_or_resume(potential, silica(n), list("abcd"), list(range(n)), settings, [settings] * n)
        clashes = dict(counts.clashes)
        for _ in range(16):
            counts.reset()
            run.advance()
            kernels.append(counts.kernels)
            waits.append(counts.waited)
            clashes |= counts.clashes
    assert len(run.active) == n
    return kernels, waits, clashes


def test_on_a_device_the_host_does_not_wait_for_it(monkeypatch):
    both = Committee([network("cgcnn"), network("cgcnn")])
    _, without, clashes = steps_on_device(both, monkeypatch)
    assert clashes == {}
    _, waits, clashes = steps_on_device(both, monkeypatch, max_force_spread=100.0)
    assert clashes == {} and waits == without


def test_for_other_potentials_it_costs_nothing(monkeypatch):
    kernels, waits, _ = steps_on_device(network("cgcnn"), monkeypatch)
    assert Uncertainty in observers.BUILT_IN
    rest = tuple(cls for cls in observers.BUILT_IN if cls is not Uncertainty)
    monkeypatch.setattr(observers, "BUILT_IN", rest)
    assert (kernels, waits) == steps_on_device(network("cgcnn"), monkeypatch)[:2]
    run = begin_or_resume(Morse(), crystals(1), ["a"], [0], HOT, [HOT])
    assert not any("spread" in name for name in run.observers.state())
    assert run.atoms.force_spread is None
    further = HOT.changed(observers=("tests.dynamics.test_uncertainty:Nothing",))
    run = begin_or_resume(Morse(), crystals(1), ["a"], [0], further, [further])
    assert "6_Nothing_nothing" in run.observers.state()  # as before there was one more observer of every run


def test_results_of_before_are_known_again():
    """What is stored of a run without the settings stays its own."""
    plain = DynamicsSettings()
    assert not {"max_force_spread", "stop_on_uncertain"} & set(decisive(plain)) and "temperature" in decisive(plain)
    assert decisive(plain.changed(max_force_spread=0.5))["max_force_spread"] == 0.5
    keys = [run_key(Morse(), crystals(1), ["a"], [s], [0]) for s in (plain, plain.changed(max_force_spread=0.5))]
    assert keys[0] != keys[1]
    assert hash_of(decisive(plain)) != hash_of(decisive(plain.changed(stop_on_uncertain=False)))


def test_what_the_bound_may_be():
    with pytest.raises(ConfigError, match=r"dynamics\.max_force_spread: found -1\.0"):
        DynamicsSettings(max_force_spread=-1.0)
    assert json.loads(DynamicsSettings(max_force_spread=0.5).model_dump_json())["max_force_spread"] == 0.5

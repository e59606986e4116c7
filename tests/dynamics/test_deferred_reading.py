"""Breaks that are read some steps after they happened: verdicts, steps, frames and trajectories must be those of runs
whose every step is judged at once, to the last byte where the neighbour lists are the same, whatever breaks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch import Tensor

from mdl_physpre.dynamics import Verdict
from mdl_physpre.dynamics.engine.cpu_lists import SkinLists
from mdl_physpre.dynamics.engine.device_lists import DeviceLists
from mdl_physpre.dynamics.engine.moving_atoms import MovingAtoms
from mdl_physpre.dynamics.engine.random_numbers import NoiseStreams, structure_generator
from mdl_physpre.dynamics.running import batch, run_state
from mdl_physpre.dynamics.running.batch import BatchRun
from mdl_physpre.dynamics.running.rdf_sampling import RDFSampler
from mdl_physpre.dynamics.running.run_state import begin_or_resume
from mdl_physpre.dynamics.running.simulate import simulate
from mdl_physpre.dynamics.running.windows import NotJudged, Unread
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.structures.graph import AtomGraph
from tests.helpers.pair_potentials import Attraction, Morse
from tests.helpers.small_structures import clusters, crystals, with_


class Smooth(Morse):
    """Morse, and nothing beyond the cutoff; ``trouble`` befalls pairs of gold that are closer than 2.2 Å."""

    def __init__(self, trouble: str = "") -> None:
        super().__init__()
        self.trouble = trouble

    def pair(self, r: Tensor) -> Tensor:
        well = self.depth * ((1 - torch.exp(-self.a * (r - self.r0))) ** 2 - 1)
        return well * (1 - (r / self.cutoff) ** 2).clamp(min=0) ** 3

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        energies, gold = super().atomic_energies(graph), graph.z == 79
        if not bool(gold.any()):
            return energies
        inside = AtomGraph.from_tensors(graph)
        attracted = Attraction(self.cutoff).atomic_energies(_within(inside, 2.9))
        energies = torch.where(gold, 4 * attracted, energies)
        if not self.trouble:
            return energies
        close = _within(inside, 2.2).edge_index[0]
        if self.trouble == "raises" and bool(gold[close].any()):
            raise RuntimeError("too close")
        near = torch.zeros_like(energies).index_add(0, close, torch.ones_like(energies[close])) > 0
        return energies * torch.where(gold & near, torch.nan, 1.0) if self.trouble == "nan" else energies


def _within(graph: AtomGraph, radius: float) -> AtomGraph:
    from mdl_physpre.potentials.base import edge_vectors

    inside = edge_vectors(graph).detach().norm(dim=1) < radius
    fields = {"edge_index": graph.edge_index[:, inside], "cell_offsets": graph.cell_offsets[inside]}
    return AtomGraph.from_tensors(graph, **fields)


def some(gold: bool = False) -> list[Atoms]:
    """Crystals and a cluster, which is of gold where that is asked for, as is a crystal."""
    structures = [*crystals(4), clusters(3)[2]]
    for k, atoms in enumerate(structures):
        atoms.info["structure_id"] = f"number {k}"
    if gold:
        structures[2].numbers[:] = structures[4].numbers[:] = 79
    return structures


HOT = {"temperature": 1500.0, "max_temperature": 1e9}
NEAREST = {"distance": "minimum_image"}
CASES: dict[str, tuple[str, bool, dict]] = {
    "overlap": ("", True, {"overlap_ratio": 0.8}),
    "overlaps that do not stop": ("", True, {"overlap_ratio": 0.9, "stop_on_overlap": False, "steps": 40}),
    "not a number": ("nan", True, {"overlap_ratio": 0.5}),
    "an error": ("raises", True, {"overlap_ratio": 0.5}),
    "an error in the barostat": ("raises", True, {"ensemble": "npt", "taup": 100.0, "pressure": 1e4}),
    "escaped": ("", False, {**HOT, "max_displacement": 0.5}),
    "temperature": ("", True, {"max_temperature": 500.0, "overlap_ratio": 0.01}),
    "volume": ("", False, {"ensemble": "npt", "pressure": 1e4, "taup": 100.0, "min_volume_ratio": 0.85}),
    "neighbours": ("", False, {"ensemble": "npt", "pressure": 1e4, "taup": 100.0, "max_neighbours": 75}),
    "lindemann": ("", False, {**HOT, "lindemann_global": 0.04, "lindemann_min_steps": 20, "lindemann_interval": 3}),
    "nearest images": ("", False, {**HOT, "lindemann_local": 0.03, "lindemann_min_steps": 9, **NEAREST}),
    "bussi": ("", True, {"ensemble": "nvt_bussi"}),
    "nose-hoover": ("", True, {"ensemble": "nvt_nose_hoover"}),
    "none": ("", False, {}),
}  # fmt: skip


def run(case: str, out: Path | None, **changes) -> list[Verdict]:
    trouble, gold, settings = CASES[case]
    own = {"per_structure": {"steps": [60, 60, 60, 33, 60]}} if settings.get("steps") is None else {}
    settings = {"steps": 60, "rdf_interval": 9, "trajectory_interval": 5, "pressure_interval": 4} | settings | changes
    if case in ("volume", "neighbours", "an error in the barostat"):
        own = {"per_structure": {"steps": [60, 60, 60, 33]}}
    structures = some(gold)[: 4 if settings.get("ensemble") == "npt" else 5]
    return simulate(Smooth(trouble), structures, with_(**settings), out, progress=False, **own)


def read_every(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "steps_between_readings", lambda device: steps)


@pytest.mark.parametrize("case", CASES)
def test_verdicts_and_files_are_those_of_steps_judged_at_once(case: str, tmp_path: Path, monkeypatch) -> None:
    at_once = run(case, tmp_path / "at once")
    if case != "none":
        failed = [v for v in at_once if v.status == "failed"]
        assert failed, "the test must see something break"
        assert any(v.first_failing_step % 7 for v in failed), "and not at the end of a window"
    for steps in (7, 50):
        read_every(steps, monkeypatch)
        out = tmp_path / str(steps)
        assert run(case, out) == at_once
        files = {path.relative_to(out) for path in out.rglob("*") if path.is_file()} - {Path("speed.json")}
        assert {path.parts[0] for path in files} >= {"trajectories", "verdicts.json", "rdf.json"}
        for name in files:
            assert (out / name).read_bytes() == (tmp_path / "at once" / name).read_bytes(), name


def same(found: list[Verdict], expected: list[Verdict], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        for name in ("status", "reasons", "first_failing_step", "checks", "steps_run", "stopped", "notes"):
            assert getattr(a, name) == getattr(b, name), name
        assert [(f.reason, f.step) for f in a.failures] == [(f.reason, f.step) for f in b.failures]
        for name, value in b.metrics.items():
            if isinstance(value, float):
                value = pytest.approx(value, rel=tolerance, abs=tolerance)
            assert a.metrics[name] == value, name


@pytest.mark.parametrize("case", CASES)
def test_lists_of_a_device_lead_to_the_same_verdicts(case: str, monkeypatch) -> None:
    """Their sums have other rounding, and edges beyond the cutoff."""
    nothing = {"rdf_interval": 0, "trajectory_interval": 0}
    expected = run(case, None, **nothing)
    monkeypatch.setattr(run_state, "lists_for", lambda device: DeviceLists)
    for steps in (1, 7):
        read_every(steps, monkeypatch)
        same(run(case, None, **nothing), expected, 1e-6)


def started(settings: DynamicsSettings, atoms: list[Atoms]) -> BatchRun:
    names = [str(k) for k in range(len(atoms))]
    return begin_or_resume(Smooth(), atoms, names, list(range(len(atoms))), settings, [settings] * len(atoms))


@pytest.mark.parametrize("ensemble", ["nvt", "npt"])
def test_lists_are_built_ahead_so_that_windows_hold(ensemble: str, monkeypatch) -> None:
    monkeypatch.setattr(run_state, "lists_for", lambda device: DeviceLists)
    read_every(8, monkeypatch)
    again = []
    take_again = BatchRun.take_again
    monkeypatch.setattr(BatchRun, "take_again", lambda run: (again.append(run.step), take_again(run))[1])
    run = started(with_(ensemble=ensemble, temperature=600.0, steps=200), crystals(4))
    for step in range(200):
        run.advance()
        assert run.step == step + 1
    assert run.lists.rebuilds > 3 * 4 and len(again) <= 8
    assert len(run.active) == 0 and len(run.verdicts) == 4


def test_a_run_is_stored_only_where_all_steps_are_judged(tmp_path: Path, monkeypatch) -> None:
    read_every(7, monkeypatch)
    whole = simulate(Smooth(), some(), with_(steps=50), tmp_path / "whole", progress=False)
    stored = []
    monkeypatch.setattr(
        "mdl_physpre.dynamics.running.simulate.store", lambda run: stored.append((run.step, run.window))
    )
    assert simulate(Smooth(), some(), with_(steps=50, checkpoint_steps=10), progress=False) == whole
    assert stored and all(window is None for _, window in stored)
    assert all(10 <= step <= 49 for step, _ in stored)


def test_what_is_unread_says_of_no_structure_that_it_breaks() -> None:
    unread = Unread()
    assert unread.which(torch.tensor([False, True])) == [] and not unread
    assert unread.which(torch.tensor([False, False])) == []
    assert bool(unread.happened())
    with pytest.raises(NotJudged, match="structure 3, overlap"):
        unread.add(3, "overlap", "so near")
    clean = Unread()
    clean.which(torch.tensor([False]))
    assert not bool(clean.happened())


@pytest.mark.parametrize("lists", [SkinLists, DeviceLists])
def test_restart_within_windows(lists: type, tmp_path: Path, monkeypatch) -> None:
    """Killed at any step, within a window or not, a run goes on to the same bytes."""
    monkeypatch.setattr(run_state, "lists_for", lambda device: lists)
    read_every(7, monkeypatch)
    settings = with_(steps=60, trajectory_interval=6, checkpoint_steps=5)
    whole = simulate(Smooth(), some(), settings, tmp_path / "whole", progress=False)
    take_step = BatchRun.take_step
    for at in (9, 23, 41):
        out = tmp_path / str(at)

        def until(run, broken, at=at):
            if run.step >= at:
                raise KeyboardInterrupt
            take_step(run, broken)

        monkeypatch.setattr(BatchRun, "take_step", until)
        with pytest.raises(KeyboardInterrupt):
            simulate(Smooth(), some(), settings, out, progress=False)
        monkeypatch.setattr(BatchRun, "take_step", take_step)
        assert (out / "state.npz").exists()
        assert simulate(Smooth(), some(), settings, out, progress=False) == whole
        for path in (tmp_path / "whole" / "trajectories").iterdir():
            assert (out / "trajectories" / path.name).read_bytes() == path.read_bytes()
        assert np.isfinite(whole[0].metrics["min_distance"])


def test_radial_distribution_functions_counted_on_a_device() -> None:
    structures = [*crystals(3), clusters(2)[1], bulk("NaCl", "rocksalt", a=5.2), bulk("Cu", a=0.3)]
    structures[4].pbc = [True, True, False]
    settings = with_(rdf_interval=1, rdf_smoothing=0.05)
    host, device = (RDFSampler(settings, structures) for _ in range(2))
    for frame, which in enumerate(([0, 1, 2, 3, 4, 5], [0, 2, 4])):
        for atoms in structures[:5]:
            atoms.rattle(0.05, seed=frame)
        atoms = MovingAtoms.of([structures[k] for k in which], torch.device("cpu"))
        host.take(which, atoms)
        device.take_together(which, atoms)
    assert [r.frames for r in host.results()] == [2, 1, 2, 1, 2, 0]
    for name, values in host.state().items():
        np.testing.assert_allclose(device.state()[name], values, rtol=1e-12, err_msg=name)
    for one, other in zip(host.results(), device.results(), strict=True):
        assert one.g.keys() == other.g.keys() and one.not_applicable == other.not_applicable


def test_random_numbers_drawn_ahead_are_the_same(monkeypatch) -> None:
    monkeypatch.setattr(NoiseStreams, "LONGEST", 4)
    sizes = [3, 1, 2]
    expected = NoiseStreams([structure_generator(1, k) for k in range(3)], sizes, torch.device("cpu"))
    ahead = NoiseStreams([structure_generator(1, k) for k in range(3)], sizes, torch.device("cpu"))
    ahead.drawer = ThreadPoolExecutor(1)
    for step in range(30):
        if step in (5, 16):
            for streams in (expected, ahead):
                streams.keep([0, 2] if step == 5 else [1], torch.tensor([0, 1, 2, 4, 5] if step == 5 else [3, 4]))
        if step == 11:
            state = ahead.state()
            assert state == expected.state()
            again = NoiseStreams([structure_generator(0, 0) for _ in range(2)], [3, 2], torch.device("cpu"))
            again.drawer = ThreadPoolExecutor(1)
            again.restore(state)
            ahead = again
        for a, b in zip(ahead.next(), expected.next(), strict=True):
            assert torch.equal(a, b)

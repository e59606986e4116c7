"""Melted is not broken: liquids, and what only looks like one to the Lindemann index."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.cluster import Icosahedron
from torch import Tensor

from mdl_physpre.dynamics import judge_run, simulate, summarise, survival_curve
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts.statistics import pooled_counts
from mdl_physpre.dynamics.verdicts.verdict import Counts, Verdict
from mdl_physpre.potentials.base import AtomicPotential
from mdl_physpre.report.tables.text import counts_table, format_verdicts
from mdl_physpre.structures.graph import AtomGraph
from tests.helpers.pair_potentials import Morse

HOT = DynamicsSettings(
    temperature=5000, timestep=2.0, steps=800, lindemann_local=0.2, lindemann_global=0.15, max_temperature=1e5
)


def copper() -> list[Atoms]:
    return [bulk("Cu", "fcc", a=3.5, cubic=True).repeat((2, 2, 2))]


class Springs(AtomicPotential):
    """Each atom bound to its place in a crystal: nothing can melt."""

    cutoff, elements = 3.0, None

    def __init__(self, stiffness: float = 1.0) -> None:
        super().__init__()
        self.stiffness = stiffness
        self.register_buffer("places", torch.from_numpy(copper()[0].positions))

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        return 0.5 * self.stiffness * (graph.pos - self.places.to(graph.pos)).square().sum(1)


class Repulsion(Morse):
    """Nothing holds the atoms together."""

    def pair(self, r: Tensor) -> Tensor:
        return self.depth * torch.exp(2.5 - r) * (1 - (r / self.cutoff) ** 2) ** 3


def loose() -> Atoms:
    """Atoms scattered in a sphere, which draw together and stick."""
    rng, places = np.random.default_rng(0), []
    while len(places) < 16:
        place = rng.uniform(-6, 6, 3)
        if np.linalg.norm(place) < 6 and all(np.linalg.norm(place - other) > 2.4 for other in places):
            places.append(place)
    return Atoms("Cu16", places)


@pytest.fixture(scope="module")
def liquid() -> Verdict:
    return simulate(Morse(), copper(), HOT, progress=False)[0]


def test_a_liquid_has_melted_and_not_failed(liquid: Verdict) -> None:
    assert liquid.status == "melted"
    assert not liquid.failed
    assert liquid.paper_status == "failed"
    assert set(liquid.reasons) == {"lindemann_local", "lindemann_global"}
    assert liquid.first_failing_step is None
    assert liquid.time_fs is None
    assert liquid.failures[0].step > 0  # when the bound was passed stays known
    m = liquid.metrics
    assert 0.3 < m["diffusion_coefficient"] < 3  # Å²/ps
    assert 0.6 < m["diffusion_exponent"] < 1.5
    assert m["late_temperature"] == pytest.approx(5000, rel=0.2)
    counts = summarise([liquid])
    assert (counts.failed.count, counts.melted.count, counts.paper.count, counts.lindemann.count) == (0, 1, 1, 1)
    assert survival_curve([liquid]).survival == (1.0,)
    assert survival_curve([liquid], ["lindemann_global"]).survival[-1] == 0.0
    told = format_verdicts([liquid], counts)
    assert "melted" in told
    assert "broken 0 of 1" in told
    assert "melted 1 of 1" in told
    assert "broken by the paper's criteria 1 of 1" in told


def test_a_crystal_on_springs_is_no_liquid() -> None:
    """Its index is made to fail; its atoms stay about their places, however wide they swing."""
    hot = HOT.changed(temperature=2000, friction=0.05, overlap_ratio=0.1, lindemann_local=0.02, lindemann_global=0.02)
    for stiffness in (2.0, 5.0):
        verdict = simulate(Springs(stiffness), copper(), hot, progress=False)[0]
        assert verdict.status == "failed"
        assert any(note.startswith("not melted: ") for note in verdict.notes)
    stable = simulate(Springs(3.0), copper(), HOT.changed(temperature=300), progress=False)[0]
    assert stable.status == stable.paper_status == "stable"
    assert stable.melted is False


def test_what_moved_and_then_froze_is_no_liquid() -> None:
    settings = DynamicsSettings(temperature=50, timestep=2.0, steps=3000, friction=0.02)
    verdict = simulate(Morse(cutoff=6.0, depth=0.6, a=1.2), [loose()], settings, progress=False)[0]
    assert verdict.status == "failed"
    assert verdict.first_failing_step == verdict.failures[0].step
    assert any("hardly move any more" in note for note in verdict.notes)


def test_what_flies_apart_is_no_liquid() -> None:
    settings = DynamicsSettings(
        temperature=1500, timestep=2.0, steps=2500, friction=0.005, overlap_ratio=0.3, lindemann_global=0.15
    )
    verdict = simulate(Repulsion(), [Icosahedron("Cu", 2, latticeconstant=3.5)], settings, progress=False)[0]
    assert verdict.status == "failed"
    assert any("times their distance at the start" in note for note in verdict.notes)


def test_a_temperature_that_is_not_held_is_no_liquid() -> None:
    """Without a thermostat that acts, the atoms are half as hot as they began."""
    settings = HOT.changed(friction=0.0, temperature=14000)
    verdict = simulate(Morse(), copper(), settings, progress=False)[0]
    assert verdict.status == "failed"
    assert any("its temperature is" in note for note in verdict.notes)


def test_where_the_thermostat_heats_a_crystal_may_melt() -> None:
    ramp = HOT.changed(temperature=300, temperature_end=9000, steps=600, lindemann_global=0.08, lindemann_local=0.1)
    assert simulate(Morse(), copper(), ramp, progress=False)[0].status == "melted"


def test_a_run_that_was_stopped_and_a_stored_one_say_the_same(
    tmp_path: Path, liquid: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, evaluations = Morse.pair, 0

    def interrupted(self: Morse, r: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        if evaluations == 500:
            raise KeyboardInterrupt
        return real(self, r)

    settings = HOT.changed(trajectory_interval=1, checkpoint_steps=60)
    monkeypatch.setattr(Morse, "pair", interrupted)
    with pytest.raises(KeyboardInterrupt):
        simulate(Morse(), copper(), settings, tmp_path, progress=False)
    assert simulate(Morse(), copper(), settings, tmp_path, progress=False) == [liquid]
    again = judge_run(tmp_path)[0]
    assert again.status == "melted"
    for name in ("diffusion_coefficient", "mean_squared_displacement", "late_temperature"):
        assert again.metrics[name] == pytest.approx(liquid.metrics[name], rel=1e-5)


def test_results_of_earlier_versions_are_judged_as_they_were(liquid: Verdict) -> None:
    plain = json.loads(json.dumps(liquid.plain()))
    plain.pop("melted")
    earlier = Verdict.model_validate(plain)
    assert earlier.status == "failed"
    assert earlier.melted is None
    assert earlier.first_failing_step == liquid.failures[0].step
    counts = summarise([liquid]).plain()
    del counts["melted"], counts["paper"]
    before = Counts.model_validate(counts)
    assert "–" in counts_table([("before", before, None)], "arm")
    assert pooled_counts([before, summarise([liquid])], [None, None], 1.0).melted is None
    assert pooled_counts([summarise([liquid])] * 2, [None, None], 1.0).melted.count == 2

"""Structures that break, potentials that misbehave: a verdict with its reason for each, and the others unaffected."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms

from mdl_physpre.analysis.overlap import minimum_distance
from mdl_physpre.dynamics.running.simulate import simulate
from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials.adapters.from_ase import CalculatorPotential
from mdl_physpre.potentials.evaluation import evaluate
from tests.helpers.pair_potentials import Attraction, Frozen, Morse, NanForGold, RaisesForGold
from tests.helpers.small_structures import SHORT, clusters, crystals, with_

ALL = ("nvt", "nvt_bussi", "nvt_nose_hoover", "npt", "nve")


def test_constant_attraction_fails_by_overlap_in_every_structure() -> None:
    verdicts = simulate(Attraction(), clusters(), with_(steps=400))
    for atoms, verdict in zip(clusters(), verdicts, strict=True):
        assert verdict.status == "failed"
        assert verdict.reasons[0] == "overlap"
        assert verdict.checks["overlap"] == "failed"
        assert verdict.stopped
        assert verdict.time_fs == 2.0 * verdict.first_failing_step
        assert verdict.metrics["min_distance"] <= verdict.metrics["overlap_threshold"]
        start = minimum_distance(atoms.positions, atoms.cell[:], atoms.pbc)
        assert verdict.metrics["overlap_threshold"] == pytest.approx(start / 2)


def test_a_frozen_potential_never_fails() -> None:
    verdicts = simulate(Frozen(), crystals(), with_(temperature=1e-3, steps=150))
    assert [v.status for v in verdicts] == ["stable"] * 4
    assert max(v.metrics["lindemann_max_local"] for v in verdicts) < 1e-3


def test_nan_stops_one_structure_and_not_the_others() -> None:
    structures = crystals()
    structures[1].numbers[2] = 79
    for potential in (NanForGold(), RaisesForGold()):
        verdicts = simulate(potential, structures, SHORT)
        assert [v.status for v in verdicts] == ["stable", "failed", "stable", "stable"]
        reason = "not_finite" if isinstance(potential, NanForGold) else "potential_error"
        assert verdicts[1].reasons == (reason,)
        assert verdicts[1].first_failing_step == 3
        assert verdicts[1].checks["lindemann_local"] == "n/a"
        if reason == "potential_error":
            assert "no gold, please" in verdicts[1].failures[0].text
        sound = simulate(Morse(), structures, SHORT)
        for k in (0, 2, 3):
            assert verdicts[k].metrics["max_force"] == pytest.approx(sound[k].metrics["max_force"], rel=1e-9)


def test_too_hot_and_escaped_have_names_of_their_own() -> None:
    hot, _ = simulate(Morse(), crystals(2), with_(temperature=400, max_temperature=90))
    assert hot.reasons == ("temperature",)
    assert "K, at most" in hot.failures[0].text
    pair = Atoms("Cu2", [[0, 0, 0], [0, 0, 40.0]])
    gone = simulate(Frozen(), [pair], with_(temperature=9000, max_displacement=0.5))[0]
    assert gone.reasons == ("escaped",)
    assert gone.metrics["max_displacement"] > 0.5


def test_a_structure_with_too_many_neighbours_ends_with_a_reason() -> None:
    dense = Atoms("H60", np.random.default_rng(0).random((60, 3)) * 2, cell=[2, 2, 2], pbc=True)
    clump = Atoms("H300", np.random.default_rng(0).random((300, 3)) * 2)
    verdicts = simulate(Frozen(), [*crystals(1), dense, clump], with_(max_neighbours=200))
    assert [v.reasons for v in verdicts] == [(), ("cell_collapsed",), ("cell_collapsed",)]
    assert verdicts[1].first_failing_step == 0


@pytest.mark.parametrize("ensemble", ALL)
def test_frozen_and_attractive_potentials_in_every_ensemble(ensemble: str) -> None:
    cold = 1e-6 if ensemble == "nvt_nose_hoover" else 0.0
    for verdict in simulate(Frozen(), crystals(), with_(ensemble=ensemble, temperature=cold, steps=110)):
        assert verdict.status == "stable"
        assert verdict.checks.pop("too_deep") == "n/a"  # nothing is known of what it was trained on
        assert set(verdict.checks.values()) == {"passed"}
    pulled = crystals() if ensemble == "npt" else clusters()
    settings = with_(ensemble=ensemble, steps=3000, temperature=10, max_temperature=1e6, min_volume_ratio=0.3)
    for verdict in simulate(Attraction(), pulled, settings):
        assert verdict.status == "failed"
        # at constant pressure the cell gives way, too
        assert verdict.reasons[0] in (("overlap", "cell_collapsed") if ensemble == "npt" else ("overlap",))


def test_a_start_from_which_no_step_can_be_taken() -> None:
    lost = crystals(1)[0]
    lost.positions[3] = np.nan
    flat = Atoms("Cu2", [[0, 0, 0], [1, 1, 1]], cell=[[1, 0, 0], [2, 0, 0], [0, 0, 1]], pbc=True)
    tiny = Atoms("Cu2", [[0, 0, 0], [1e-3, 1e-3, 1e-3]], cell=np.eye(3) * 2e-3, pbc=True)
    sliver = Atoms("Cu2", [[0, 0, 0], [0, 0, 1]], cell=[1e-4, 1e-4, 0], pbc=(True, True, False))
    sound = crystals(2)
    for ensemble, odd in (("nvt", [lost, flat, tiny, sliver]), ("npt", [lost, flat, tiny])):
        settings = with_(ensemble=ensemble, steps=60)
        verdicts = simulate(Morse(), [sound[0], *odd, sound[1]], settings)
        assert verdicts[1].reasons == ("not_finite",)
        for verdict in verdicts[2:-1]:
            assert verdict.reasons == ("cell_collapsed",)
        for verdict in verdicts[1:-1]:
            assert verdict.first_failing_step == 0
            assert verdict.steps_run == 0
            assert verdict.checks["overlap"] == "n/a"
            assert verdict.metrics.keys() == verdicts[0].metrics.keys()
        alone = simulate(Morse(), sound, settings, indices=[0, len(odd) + 1])
        for one, other in ((verdicts[0], alone[0]), (verdicts[-1], alone[1])):
            assert one.metrics["max_force"] == pytest.approx(other.metrics["max_force"], rel=1e-9)
        json.dumps([v.plain() for v in verdicts], allow_nan=False)
    assert simulate(Morse(), [flat], SHORT)[0].reasons == ("cell_collapsed",)


def test_an_atom_far_away_costs_nothing() -> None:
    """At the start it is where it is; an atom that is thrown there has escaped, and its fellows have not."""
    far, wrapped = clusters(1)[0], crystals(1)[0]
    far.positions[2] = [1e6, -1e6, 3e5]
    wrapped.positions[2] += 1e6 // 3.5 * wrapped.cell[0]
    calm = with_(steps=30)
    assert [v.status for v in simulate(Morse(), [far, wrapped], calm)] == ["stable", "stable"]

    class Kick(Morse):
        """One atom of element 79 is hit at the fourth evaluation."""

        calls = 0

        def predictions(self, graph, forces, stress):
            self.calls += 1
            found = evaluate(Morse(), graph, stress=stress)
            if self.calls == 4:
                found.forces[graph.z == 79, 0] = 3e9
            return found

    structures = [*crystals(1), *clusters(2), *crystals(1)]
    for k in (1, 3):
        structures[k].numbers[0] = 79
    verdicts = simulate(Kick(), structures, with_(max_temperature=1e30))
    assert [v.reasons[:1] for v in verdicts] == [(), ("escaped",), (), ("escaped",)]
    assert verdicts[1].metrics["max_displacement"] > 1e5


def test_volume_bounds_and_stress_that_is_not_finite() -> None:
    class Pushed(Morse):
        """The stress of gold is not its own."""

        def __init__(self, stress: float, after: int = 3) -> None:
            super().__init__()
            self.wrong, self.after, self.calls = stress, after, 0

        def predictions(self, graph, forces, stress):
            found = evaluate(Morse(), graph, stress=stress)
            self.calls += stress
            if stress and self.calls > self.after:
                gold = torch.zeros(len(graph.n_atoms), dtype=torch.bool)
                gold[graph.batch[graph.z == 79]] = True
                found.stress[gold] = self.wrong * torch.eye(3, dtype=torch.float64)
            return found

    structures = crystals(4)
    structures[2].numbers[:] = 79
    settings = with_(ensemble="npt", stop_on_overlap=False, steps=40)
    sound = simulate(Morse(), structures, settings)
    for stress, reason, text in (
        (torch.nan, "not_finite", "the stress is not finite"),
        (50.0, "cell_collapsed", "0.1 to 10 allowed"),
        (-50.0, "cell_collapsed", "0.1 to 10 allowed"),
        (1e30, "cell_collapsed", "of that at the start"),
        (-1e30, "cell_collapsed", "of that at the start"),
    ):
        verdicts = simulate(Pushed(stress), structures, settings)
        assert [v.status for v in verdicts] == ["stable", "stable", "failed", "stable"]
        assert verdicts[2].reasons == (reason,)
        assert text in verdicts[2].failures[0].text
        for k in (0, 1, 3):
            assert verdicts[k].metrics["max_force"] == pytest.approx(sound[k].metrics["max_force"], rel=1e-9)


def test_constant_pressure_is_refused_where_it_makes_no_sense() -> None:
    with pytest.raises(DataError, match=r"structure 1 \(copper-1\) is periodic along .* three periodic"):
        simulate(Morse(), [crystals(1)[0], clusters(2)[1]], with_(ensemble="npt"))

    class NoStress(Morse):
        gives_stress = False

    with pytest.raises(ConfigError, match="'npt', which needs stress"):
        simulate(NoStress(), crystals(1), with_(ensemble="npt"))
    assert simulate(NoStress(), crystals(1), with_(steps=3))[0].metrics["mean_pressure"] is None


def test_constraints_that_are_not_applied_are_said(caplog: pytest.LogCaptureFixture) -> None:
    structures = crystals(2)
    structures[1].set_constraint(FixAtoms([0]))
    simulate(Morse(), structures, with_(steps=2))
    assert f"constraints of 1 structures ({structures[1].info['structure_id']}, …) are not applied" in caplog.text


def test_an_error_at_the_start_is_raised_only_where_it_is_everybodys() -> None:
    class Picky(Morse):
        def atomic_energies(self, graph):
            if bool((graph.z == 79).any()):
                raise RuntimeError("no gold, please")
            return super().atomic_energies(graph)

    structures = crystals(3)
    structures[1].numbers[0] = 79
    assert [v.reasons for v in simulate(Picky(), structures, with_(steps=5))] == [(), ("potential_error",), ()]
    with pytest.raises(RuntimeError, match="no gold"):
        simulate(Picky(), structures[1:2], with_(steps=5))
    assert simulate(Picky(), structures[1:2], with_(steps=5), raise_at_start=False)[0].reasons == ("potential_error",)


def test_batches_that_do_not_fit_into_memory_are_halved(caplog: pytest.LogCaptureFixture) -> None:
    class Small(Morse):
        largest = 0

        def atomic_energies(self, graph):
            if graph.edge_index.shape[1] > 700:
                raise MemoryError
            Small.largest = max(Small.largest, graph.edge_index.shape[1])
            return super().atomic_energies(graph)

    structures = [*crystals(8), crystals(1)[0].repeat((2, 2, 2))]
    verdicts = simulate(Small(), structures, with_(steps=20))
    assert [v.status for v in verdicts] == ["stable"] * 8 + ["failed"]
    assert verdicts[8].reasons == ("potential_error",)
    assert "MemoryError" in verdicts[8].failures[0].text
    assert "do not fit into memory" in caplog.text
    assert len(caplog.records) < 5, "batches that have been halved fit from then on"
    assert Small.largest > 300, "batches hold more than one structure"


class Moody(Calculator):
    """Lennard-Jones, which raises for gold after a few calls and has no stress."""

    implemented_properties = ["energy", "forces"]

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = LennardJones(sigma=2.2, epsilon=0.3, rc=5.0), 0

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        if self.calls > 9 and 79 in atoms.numbers:
            raise RuntimeError("the calculation did not converge")
        self.inner.calculate(atoms, properties, system_changes)
        self.results = {name: self.inner.results[name] for name in ("energy", "forces")}


def test_any_calculator_runs_and_may_raise() -> None:
    structures = crystals(3)
    structures[1].numbers[0] = 79
    verdicts = simulate(CalculatorPotential(Moody(), name="moody"), structures, with_(steps=30, temperature=50))
    assert [v.reasons for v in verdicts] == [(), ("potential_error",), ()]
    assert "did not converge" in verdicts[1].failures[0].text
    assert verdicts[0].steps_run == 30
    with_stress = CalculatorPotential(LennardJones(sigma=2.2, epsilon=0.3, rc=5.0), name="lj")
    found = simulate(with_stress, crystals(2), with_(ensemble="npt", steps=30, temperature=50))
    assert all(v.metrics["pressure_samples"] == 30 for v in found)


class NoStress(Calculator):
    """Lennard-Jones that promises a stress and raises for it."""

    implemented_properties = ["energy", "forces", "stress"]

    def __init__(self) -> None:
        super().__init__()
        self.inner = LennardJones(sigma=2.2, epsilon=0.3, rc=5.0)

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if "stress" in properties:
            raise RuntimeError("no stress today")
        self.inner.calculate(atoms, properties, system_changes)
        self.results = {name: self.inner.results[name] for name in ("energy", "forces")}


def test_a_stress_that_raises_ends_no_run_at_constant_volume(caplog: pytest.LogCaptureFixture) -> None:
    sound = CalculatorPotential(LennardJones(sigma=2.2, epsilon=0.3, rc=5.0), name="lj")
    settings = with_(steps=30, temperature=50, pressure_interval=10)
    found = simulate(CalculatorPotential(NoStress(), name="no stress"), crystals(2), settings)
    for one, other in zip(found, simulate(sound, crystals(2), settings), strict=True):
        assert one.reasons == () and one.metrics["mean_pressure"] is None
        assert one.metrics["total_energy_end"] == other.metrics["total_energy_end"]
        assert other.metrics["pressure_samples"] == 3
    assert caplog.text.count("no stress today") == 1


def test_ten_thousand_neighbours() -> None:
    """A structure that collapses leaves before its neighbours fill the memory, with overlaps allowed."""
    gas = Atoms("H40", np.random.default_rng(0).random((40, 3)) * 5, cell=[5, 5, 5], pbc=True)
    settings = with_(
        ensemble="npt", stop_on_overlap=False, max_temperature=1e12, min_volume_ratio=1e-9, steps=300,
        max_neighbours=10_000,
    )  # fmt: skip
    first, second = simulate(Frozen(), [gas, crystals(1)[0]], settings, per_structure={"pressure": [3e6, 1.0]})
    assert "cell_collapsed" in first.reasons
    assert "neighbours within" in next(f.text for f in first.failures if f.reason == "cell_collapsed")
    assert second.steps_run == 300

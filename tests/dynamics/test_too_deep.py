"""Too deep: structures that fall into a well that is not there, of which the energies in the training data tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ase import Atoms
from ase.build import bulk

from mdl_physpre import label
from mdl_physpre.dynamics import judge_run, judge_trajectory, simulate
from mdl_physpre.dynamics.running.storage import run_key
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts.verdict import Verdict
from mdl_physpre.potentials import TrainingEnergies
from mdl_physpre.potentials.base import Potential
from mdl_physpre.structures import set_labels
from tests.helpers.pair_potentials import FalseWell, Morse
from tests.helpers.small_structures import crystals

HOT = DynamicsSettings(temperature=1000, timestep=2.0, steps=400, lindemann_interval=20)


def copper(n: int = 2) -> list[Atoms]:
    return [bulk("Cu", "fcc", a=3.5, cubic=True).repeat((2, 2, 2)) for _ in range(n)]


def known_to(potential: Potential, structures: list[Atoms] | None = None) -> Potential:
    """The potential, trained on rattled crystals with energies of Morse."""
    potential.training_energies = TrainingEnergies.of(label(structures or crystals(), Morse()))
    return potential


def test_a_well_that_is_not_there() -> None:
    """Without overlap, and within the Lindemann bounds: stable, where nothing is known of the training data."""
    for verdict in simulate(FalseWell(), copper(), HOT):
        assert verdict.status == "stable"
        assert verdict.checks["too_deep"] == "n/a"
        assert verdict.metrics["lowest_energy"] is None
        assert any(note.startswith("too_deep: the potential does not say") for note in verdict.notes)
    potential = known_to(FalseWell())
    lowest = potential.training_energies.compositions["Cu"].lowest
    for verdict in simulate(potential, copper(), HOT):
        assert verdict.status == "failed"
        assert verdict.reasons == ("too_deep",)
        assert verdict.checks["overlap"] == verdict.checks["lindemann_global"] == "passed"
        m = verdict.metrics
        assert m["lowest_training_energy"] == lowest
        assert m["lowest_energy_allowed"] == pytest.approx(min(lowest, at_start()) - 0.2, abs=1e-6)
        assert m["lowest_energy"] < lowest - 0.5
        assert 0 < verdict.first_failing_step < m["lowest_energy_step"] <= 400
        assert not verdict.stopped
        assert f"{lowest:.4f} is the lowest trained on" in verdict.failures[0].text


def at_start() -> float:
    labelled = label(copper(1), FalseWell())[0]
    return float(labelled.get_potential_energy() / len(labelled))


def test_a_sound_potential_passes() -> None:
    for verdict in simulate(known_to(Morse()), copper(), HOT):
        assert verdict.status == "stable"
        assert verdict.checks["too_deep"] == "passed"


def test_it_can_end_the_run() -> None:
    potential = known_to(FalseWell())
    for going_on, stopped in zip(
        simulate(potential, copper(), HOT),
        simulate(potential, copper(), HOT.changed(stop_on_too_deep=True)),
        strict=True,
    ):
        assert stopped.stopped
        assert stopped.steps_run == stopped.first_failing_step == going_on.first_failing_step
        assert stopped.reasons == ("too_deep",)


def test_a_start_below_the_training_data_is_no_failure() -> None:
    """What a structure is given with is not the potential's invention."""
    strained = [atoms.copy() for atoms in crystals()]
    for atoms in strained:
        atoms.set_cell(atoms.cell * 1.3, scale_atoms=True)
    verdicts = simulate(known_to(Morse(), strained), copper(), HOT.changed(temperature=300))
    assert [v.checks["too_deep"] for v in verdicts] == ["passed"] * 2
    assert verdicts[0].metrics["lowest_energy"] < verdicts[0].metrics["lowest_training_energy"] - 0.2


def test_it_can_be_turned_off_and_the_margin_changed() -> None:
    potential = known_to(FalseWell())
    off = simulate(potential, copper(1), HOT.changed(too_deep_margin=None))[0]
    assert off.status == "stable"
    assert "too_deep: too_deep_margin is null" in off.notes
    assert simulate(potential, copper(1), HOT.changed(too_deep_margin=5.0))[0].checks["too_deep"] == "passed"


def test_each_structure_by_its_own_composition() -> None:
    """Of unknown elements the data say nothing; the others are judged all the same."""
    gold = copper(1)[0]
    gold.numbers[:] = 79
    verdicts = simulate(known_to(FalseWell()), [gold, *copper(1)], HOT)
    assert [v.checks["too_deep"] for v in verdicts] == ["n/a", "failed"]


def test_a_run_that_is_stopped_goes_on_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    potential, settings = known_to(FalseWell()), HOT.changed(checkpoint_steps=40)
    whole = simulate(potential, copper(), settings)
    evaluations = 0
    real = FalseWell.pair

    def interrupted(self: FalseWell, r: torch.Tensor) -> torch.Tensor:
        nonlocal evaluations
        evaluations += 1
        if evaluations == 300:
            raise KeyboardInterrupt
        return real(self, r)

    monkeypatch.setattr(FalseWell, "pair", interrupted)
    with pytest.raises(KeyboardInterrupt):
        simulate(potential, copper(), settings, tmp_path)
    assert simulate(potential, copper(), settings, tmp_path) == whole


def test_stored_trajectories_say_the_same(tmp_path: Path) -> None:
    potential, settings = known_to(FalseWell()), HOT.changed(trajectory_interval=1)
    found = simulate(potential, copper(1), settings, tmp_path)
    again = judge_run(tmp_path)
    assert again[0].reasons == found[0].reasons == ("too_deep",)
    assert again[0].first_failing_step == found[0].first_failing_step
    assert again[0].metrics["lowest_energy"] == pytest.approx(found[0].metrics["lowest_energy"], abs=1e-7)
    file = tmp_path / "trajectories" / "00000.extxyz"
    assert judge_trajectory(file, settings).status == "stable"
    assert judge_trajectory(file, settings, trained_on=-1.0).reasons == ("too_deep",)


def test_frames_of_the_first_step_below_are_kept(tmp_path: Path) -> None:
    from ase.io import read

    found = simulate(known_to(FalseWell()), copper(1), HOT, tmp_path)[0]
    frames = read(tmp_path / "failing_frames" / "00000.extxyz", ":")
    assert [f.info["step"] for f in frames] == [0, found.first_failing_step]


def test_keys_of_stored_runs(tmp_path: Path) -> None:
    """As they were where nothing is known of the training data; another one for other data, where it is judged."""
    potential = Morse()

    def key(**changes: object) -> str:
        return run_key(potential, copper(), ["0", "1"], [HOT.changed(**changes)] * 2, [0, 1])

    unknown = key()
    assert unknown == key(stop_on_too_deep=False)
    off = key(too_deep_margin=None)
    potential.training_energies = TrainingEnergies.of([set_labels(bulk("Cu"), energy=-3.5)])
    first = key()
    potential.training_energies = TrainingEnergies.of([set_labels(bulk("Cu"), energy=-3.6)])
    assert len({unknown, first, key(), key(too_deep_margin=0.1)}) == 4
    assert key(too_deep_margin=None) == off


def test_verdicts_of_earlier_versions_are_read() -> None:
    verdict = simulate(Morse(), copper(1), HOT.changed(steps=5))[0].plain()
    del verdict["checks"]["too_deep"]
    for name in [name for name in verdict["metrics"] if name.startswith("lowest_")]:
        del verdict["metrics"][name]
    assert Verdict.model_validate(json.loads(json.dumps(verdict))).status == "stable"

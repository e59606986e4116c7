"""Simulations side by side."""

from math import comb
from pathlib import Path

import pytest

from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts.verdict import REASONS, make_verdict
from mdl_physpre.errors import DataError
from mdl_physpre.report.comparison import PROTOCOL, compare, format_comparison, paired_counts, read_simulations
from mdl_physpre.runs import layout
from mdl_physpre.runs.read import Simulation
from mdl_physpre.runs.stage import write_json


def verdict(index, broken, formula="SiO2", n_atoms=3, place=None, conditions=None, **metrics):
    return make_verdict(
        structure_id=f"s{index}",
        index=index if place is None else place,
        formula=formula,
        n_atoms=n_atoms,
        failures={"overlap": (7, "too near")} if broken else {},
        not_applicable={},
        steps_run=7 if broken else 20,
        steps_asked=20,
        timestep=1.0,
        conditions=conditions or {},
        metrics=metrics,
    )


def simulated(*verdicts, name=""):
    return Simulation(name, Path(), {}, verdicts)


def store(folder, verdicts, settings):
    write_json(folder / "verdicts.json", {"settings": settings, "verdicts": verdicts})
    return folder


def stored(folder, broken, n=20, **settings):
    return store(folder, [verdict(k, k in broken) for k in range(n)], settings)


def test_paired_counts_are_those_of_shared_structures():
    one = simulated(*(verdict(k, k < 9) for k in range(20)))
    two = simulated(*(verdict(k, k in (0, 1, 15)) for k in range(2, 30)), verdict(0, True))
    found = paired_counts(one, two)
    assert found.shared == 19  # 0 and 2 to 19
    assert (found.first_only, found.second_only, found.both) == (7, 1, 1)
    assert found.p_value == pytest.approx(2 * (comb(8, 0) + comb(8, 1)) / 2**8)
    assert paired_counts(one, one).p_value == 1.0
    assert paired_counts(one, simulated()).p_value is None


def test_other_structures_of_the_same_name_are_not_shared(tmp_path):
    copper = [("Cu16", 16)] * 4, [("Cu32", 32), ("Cu16", 16), ("Cu", 1), ("Cu", 1)]
    for name, structures in zip(("one", "two"), copper):
        store(tmp_path / name, [verdict(k, False, *structure) for k, structure in enumerate(structures)], {})
    found = compare([tmp_path / "one", tmp_path / "two"])
    assert found.pairs[0].shared == 1
    assert found.pairs[0].different == ("s0", "s2", "s3")
    text = format_comparison(found)
    assert "Of 1 structures simulated by both" in text
    assert "of the same name in one and two that differ in atoms or start" in text
    assert "and are not compared: 3 (s0, s2, s3)." in text


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        ({"start_min_distance": 2.3500001}, 1),  # as rounded in a file
        ({"start_min_distance": 2.36}, 0),
        ({"volume_start": 41.0}, 0),
        ({"start_min_distance": None, "volume_start": None}, 1),  # no step could be taken
        ({"formula": "Si2O"}, 0),
        ({"n_atoms": 6}, 0),
        ({"place": 7}, 1),
    ],
)
def test_what_tells_structures_of_one_name_apart(change, shared):
    usual = {"start_min_distance": 2.35, "volume_start": 40.0}
    one, two = (simulated(verdict(0, True, **given)) for given in (usual, usual | change))
    found = paired_counts(one, two)
    assert (found.shared, found.both, len(found.different)) == (shared, shared, 1 - shared)


def test_structures_with_one_name_are_taken_in_order():
    one = simulated(*(verdict(0, broken, place=k) for k, broken in enumerate([True, False, True])))
    two = simulated(*(verdict(0, broken, place=k) for k, broken in enumerate([False, False])))
    found = paired_counts(one, two)
    assert (found.shared, found.first_only, found.second_only) == (2, 1, 0)


OTHER = {
    "ensemble": "npt", "temperature": 400.0, "timestep": 2.0, "steps": 10, "friction": 0.02, "fixcm": False,
    "overlap_ratio": 0.6, "stop_on_overlap": False, "lindemann_local": 0.3, "lindemann_global": 0.3,
    "distance": "minimum_image", "lindemann_interval": 6, "lindemann_check_interval": 60, "lindemann_min_steps": 5,
    "lindemann_max_atoms": 5, "max_temperature": 5000.0, "max_displacement": 5.0, "max_neighbours": 5, "pressure": 2.0,
    "taut": 50.0, "taup": 500.0, "compressibility": 1e-5, "min_volume_ratio": 0.2, "max_volume_ratio": 5.0,
    "observers": ["mdl_physpre.dynamics.verdicts.built_in:Temperature"], "temperature_end": 600.0,
    "max_force_spread": 1.0, "stop_on_uncertain": False,
    "too_deep_margin": 0.1, "stop_on_too_deep": True, "start_velocities": "structures",
}  # fmt: skip
WORK = {
    "seed": 7, "skin": 2.0, "max_edges": 7, "checkpoint_steps": 7, "checkpoint_seconds": 7.0, "trajectory_interval": 7,
}  # fmt: skip
OBSERVED = {"pressure_interval": 7, "rdf_interval": 7, "rdf_start": 7, "rdf_r_max": 7.0, "rdf_bins": 7}


def test_settings_that_change_verdicts_are_named(tmp_path):
    assert set(PROTOCOL) == set(OTHER)
    usual = DynamicsSettings()
    stored(tmp_path / "usual", {1}, **usual.model_dump())
    for key, value in OTHER.items():
        stored(tmp_path / key, {1}, **usual.changed(**{key: value}).model_dump())
        found = compare([tmp_path / "usual", tmp_path / key])
        assert found.differing_settings == {key: [usual.model_dump(mode="json")[key], value]}
        assert f"They differ in {key}: " in format_comparison(found) and str(value) in format_comparison(found)
    stored(tmp_path / "work", {1}, **usual.changed(**WORK, **OBSERVED, rdf_smoothing=0.1).model_dump())
    assert not compare([tmp_path / "usual", tmp_path / "work"]).differing_settings


def test_temperatures_of_single_structures_are_told(tmp_path):
    shared = DynamicsSettings(temperature=300.0).model_dump()
    for name, temperatures in (("one", (300.0, 300.0)), ("two", (300.0, 2000.0))):
        verdicts = [verdict(k, False, conditions={"temperature": t}) for k, t in enumerate(temperatures)]
        store(tmp_path / name, verdicts, shared)
    text = format_comparison(compare([tmp_path / "one", tmp_path / "two"]))
    assert "They differ in temperature: 300.0, 300 to 2000." in text


def test_folders_of_md_and_of_runs(tmp_path):
    plain = stored(tmp_path / "plain", {0, 1, 2, 3, 4, 5}, temperature=2000)
    networks = tmp_path / "run" / layout.NETWORKS
    stored(networks / "baseline" / layout.DYNAMICS, {0, 1, 2}, temperature=2000)
    stored(networks / "pretrain" / layout.DYNAMICS, set(), temperature=2000)
    found = compare([plain, tmp_path / "run"])
    assert [s.name for s in found.simulations] == ["plain", "run: baseline", "run: pretrain"]
    assert [s.summary.failed.count for s in found.simulations] == [6, 3, 0]
    assert set(found.simulations[0].summary.by_reason) == set(REASONS)
    assert not found.differing_settings
    text = format_comparison(found)
    assert "6 of 20 (15–52 %)" in text and "p = 0.031" in text
    stored(tmp_path / "hotter", set(), temperature=4000)
    assert "temperature: 2000, 4000" in format_comparison(compare([plain, tmp_path / "hotter"]))


def test_a_folder_without_verdicts(tmp_path):
    with pytest.raises(DataError, match="neither verdicts.json"):
        compare([tmp_path])
    (tmp_path / "verdicts.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        compare([tmp_path])


def test_networks_of_a_run_are_told_apart(tmp_path):
    """By the folder of a network, of its dynamics, or of the run."""
    names = ("baseline", "pretrain-2")
    for k, name in enumerate(names):
        stored(tmp_path / "3-networks" / name / "dynamics", set(range(5 * k)))
    networks = [tmp_path / "3-networks" / name for name in names]
    assert [s.name for s in read_simulations(networks)] == list(names)
    assert [s.name for s in read_simulations([n / "dynamics" for n in networks])] == list(names)
    whole = f"{tmp_path.name}: "
    assert [s.name for s in read_simulations([tmp_path])] == [whole + name for name in names]


def test_a_setting_that_came_later_has_its_default(tmp_path):
    known = DynamicsSettings().model_dump(mode="json")
    stored(tmp_path / "new", {1}, **known)
    stored(tmp_path / "old", {1}, **{k: v for k, v in known.items() if k != "observers"})
    assert not compare([tmp_path / "old", tmp_path / "new"]).differing_settings

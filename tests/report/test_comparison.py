"""Simulations side by side."""

import json
from math import comb

import pytest

from mdl_physpre.dynamics.verdicts import REASONS, make_verdict
from mdl_physpre.errors import DataError
from mdl_physpre.report.comparison import Simulated, compare, format_comparison, paired_counts


def verdict(index, broken):
    return make_verdict(
        structure_id=f"s{index}",
        index=index,
        formula="SiO2",
        n_atoms=3,
        failures={"overlap": (7, "too near")} if broken else {},
        not_applicable={},
        steps_run=7 if broken else 20,
        steps_asked=20,
        timestep=1.0,
        conditions={},
        metrics={},
    )


def stored(folder, broken, n=20, **settings):
    folder.mkdir(parents=True)
    content = {"settings": settings, "verdicts": [verdict(k, k in broken) for k in range(n)]}
    (folder / "verdicts.json").write_text(json.dumps(content))
    return folder


def test_paired_counts_are_those_of_shared_structures():
    one = Simulated("one", {}, [verdict(k, k < 9) for k in range(20)])
    two = Simulated("two", {}, [verdict(k, k in (0, 1, 15)) for k in range(2, 30)] + [verdict(0, True)])
    found = paired_counts(one, two)
    assert found["shared"] == 19  # 0 and 2 to 19
    assert (found["first_only"], found["second_only"], found["both"]) == (7, 1, 1)
    assert found["p_value"] == pytest.approx(2 * (comb(8, 0) + comb(8, 1)) / 2**8)
    assert paired_counts(one, one)["p_value"] == 1.0
    assert paired_counts(one, Simulated("none", {}, []))["p_value"] is None


def test_folders_of_md_and_of_runs(tmp_path):
    plain = stored(tmp_path / "plain", {0, 1, 2, 3, 4, 5}, temperature=2000)
    stored(tmp_path / "run" / "4-dynamics" / "baseline", {0, 1, 2}, temperature=2000)
    stored(tmp_path / "run" / "4-dynamics" / "pretrain", set(), temperature=2000)
    found = compare([plain, tmp_path / "run"])
    assert [s["name"] for s in found["simulations"]] == ["plain", "run: baseline", "run: pretrain"]
    assert [s["summary"]["failed"]["count"] for s in found["simulations"]] == [6, 3, 0]
    assert set(found["simulations"][0]["summary"]["by_reason"]) == set(REASONS)
    assert not found["differing_settings"]
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

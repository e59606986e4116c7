"""Where it breaks: the section of the page, its sentences, and the text for the terminal."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from mdl_physpre.analysis.calibration import CommitteeErrors
from mdl_physpre.errors import DataError
from mdl_physpre.report.comparison import compare, format_comparison
from mdl_physpre.report.measurements import Measured
from mdl_physpre.report.output.write import write_report
from mdl_physpre.report.tables.breaking import breaking_sentences, correctness_sentence, median_words
from mdl_physpre.report.tables.text import format_summary
from mdl_physpre.report.verdict import verdict_table
from mdl_physpre.runs.read import read_run
from mdl_physpre.runs.stage import write_json
from mdl_physpre.runs.summary import Summary
from tests.helpers.made_up_runs import make_run, stress_result, verdict, verdicts

MIDDLE = {"baseline": 1500.0, "pretrain": 2400.0, "hybrid": 9000.0}


def stressed(networks: int, arms: dict[str, float] = MIDDLE, structures: int = 12, seed: int = 0) -> dict:
    """Heating to 6,000 K and compression to 200 GPa; structures break about the middle of each arm."""
    rng = np.random.default_rng(seed)
    own = rng.normal(0, 150, structures)
    return {
        arm: [
            {
                "heating": stress_result("heating", middle + own + rng.normal(0, 250, structures) + shift, 6000),
                "compression": stress_result("compression", rng.gamma(4, middle / 80, structures), 200, "too_deep"),
            }
            for shift in rng.normal(0, 120, networks)
        ]
        for arm, middle in arms.items()
    }


def made(folder: Path, networks: int, **given) -> Summary:
    stress = stressed(networks, **given)
    failures = {arm: [verdicts(12, 0.6, k) for k in range(networks)] for arm in stress}
    return read_run(make_run(folder, failures, frames=False, stress=stress)).summary


def test_the_section_is_first_and_says_it_all(tmp_path: Path) -> None:
    summary = made(tmp_path / "run", 3)
    write_report(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.index('id="breaking"') < page.index('id="stability"')
    for text in [*(s for t in summary.stress_tests for s in breaking_sentences(summary, t)), "Networks needed",
                 str(correctness_sentence(summary)), "Heating: temperature at which half", "too deep"]:  # fmt: skip
        assert text.replace(">", "&gt;") in page, text
    verdict = page[page.index('id="verdict"') :]
    assert verdict.index("Heating:") < verdict.index("is not known") < verdict.index("Stability:")
    for test in ("heating", "compression"):
        for end in ("png", "svg"):
            assert (tmp_path / "run" / "report" / f"breaking-{test}.{end}").stat().st_size > 5000
    with open(tmp_path / "run" / "report" / "breaking-points.csv", newline="", encoding="utf-8") as file:
        points = list(csv.DictReader(file))
    assert len(points) == 2 * 3 * 3 * 12
    assert {p["broken"] for p in points if (p["test"], p["arm"]) == ("heating", "hybrid")} == {"False"}
    with open(tmp_path / "run" / "report" / "breaking-heating.csv", newline="", encoding="utf-8") as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert float(rows["baseline"]["median"]) == summary.arms["baseline"].stress["heating"].median
    assert rows["hybrid"]["median"] == "" and float(rows["pretrain"]["smallest_p"]) == pytest.approx(0.1)


def test_what_is_said_of_three_networks_each(tmp_path: Path) -> None:
    summary = made(tmp_path / "run", 3)
    pretrain, hybrid = breaking_sentences(summary, "heating")
    own = summary.arms["pretrain"].stress["heating"]
    assert pretrain.startswith(f"Heating: pretrain breaks at {median_words(own)}, baseline at 1,")
    assert "pretrain breaks later, as far as so few networks can tell (p = 0.1, the smallest that 3 and 3" in pretrain
    assert "taking structures as independent" in pretrain and "about 4 networks of each would show" in pretrain
    assert "hybrid breaks at > 6,000 K, baseline" in hybrid
    assert own.networks == ("pretrain", "pretrain-2", "pretrain-3") and own.reasons == {"overlap": 36}
    text = format_summary(summary)
    assert text.index("Heating: temperature") < text.index("Molecular dynamics.") and pretrain in text
    assert "half broken by, ps" in text
    table = verdict_table(read_run(tmp_path / "run"), Measured())
    assert table.rows[1][:2] == ["Heating: half broken at, K", median_words(summary.arms["baseline"].stress["heating"],
                                                                            unit=False)]  # fmt: skip
    assert table.rows[2] == ["against baseline, networks permuted", "–", "p = 0.1", "p = 0.1"]


def test_what_is_said_of_four_and_of_one(tmp_path: Path) -> None:
    several = breaking_sentences(made(tmp_path / "four", 4), "heating")[0]
    assert "pretrain breaks later (p = 0.029, the smallest that 4 and 4 networks can give; " in several
    alone = breaking_sentences(made(tmp_path / "one", 1), "heating")[0]
    assert "this pretrain network breaks later than this baseline network (p = " in alone
    assert "not known from one network each" in alone
    alike = breaking_sentences(made(tmp_path / "alike", 4, arms={"baseline": 2000.0, "pretrain": 2000.0}), "heating")[0]
    assert "no difference is shown (p = " in alike and "whole networks permuted" in alike


def test_the_floor_alone_is_no_difference(tmp_path: Path) -> None:
    """With two and two networks every third division is at the floor; it says nothing where structures do not."""
    stress = {
        "baseline": [{"heating": stress_result("heating", [1000, 2000, 3000, 4000], 6000)}] * 2,
        "pretrain": [{"heating": stress_result("heating", [1000, 2000, 3000, 4000 + k], 6000)} for k in (10, 20)],
        "sam": [{"heating": stress_result("heating", [1000, 2000, 3000, 4000], 6000)}] * 2,
    }
    failures = {arm: [verdicts(4, 0, 1)] * 2 for arm in stress}
    summary = read_run(make_run(tmp_path / "run", failures, frames=False, stress=stress)).summary
    pretrain, same = breaking_sentences(summary, "heating")
    assert "no difference is shown (p = 0.33, the smallest that 2 and 2 networks can give" in pretrain
    assert "cannot be told apart" in same


def test_where_nothing_breaks_nothing_is_claimed(tmp_path: Path) -> None:
    summary = made(tmp_path / "run", 3, arms={"baseline": 9000.0, "pretrain": 9000.0})
    assert breaking_sentences(summary, "heating") == ["Heating: nothing broke with baseline or pretrain up to 6,000 K."]
    assert summary.stress_pairs["heating"][0].z is None
    assert "heating" in read_run(tmp_path / "run").summary.model_dump()["stress_pairs"]


def test_nothing_is_called_better_by_counts_alone(tmp_path: Path) -> None:
    """Neither by the sentences nor on the page: nobody has asked whether what stays whole is right."""
    failures = {
        "baseline": [[verdict(k, 700) for k in range(20)]] * 4,
        "hybrid": [[verdict(k, None) for k in range(20)]] * 4,
    }
    make_run(tmp_path / "run", failures, frames=False)
    write_report(tmp_path / "run", formats=["html"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "fewer fail with hybrid" in page and "so that no" not in page
    assert "Whether structures that stay whole are right is not known" in page
    for word in ("more stable", "best", "most stable"):
        assert word not in page.replace("best.pt", "").replace("best loss", "")
    assert "No stress test was run" in page


def test_a_committee_that_has_looked_is_not_denied(tmp_path: Path) -> None:
    summary = made(tmp_path / "run", 2)
    assert "and no committee has looked at them" in str(correctness_sentence(summary))
    asked = summary.with_committee("pretrain", {"test": CommitteeErrors.model_construct()})
    said = str(correctness_sentence(asked))
    assert "no committee" not in said and "the networks of pretrain were asked as committees, but on the test" in said


def test_a_run_without_simulations_says_nothing_of_it() -> None:
    assert correctness_sentence(Summary()) is None


def stored(folder: Path, values: list[float], end: float = 200.0, **settings) -> Path:
    result = stress_result("compression", values, end).model_copy(update={"settings": settings})
    (folder / "compression").mkdir(parents=True)
    write_json(folder / "compression" / "result.json", {"key": "", "result": result.plain()})
    return folder


def test_folders_of_stress_tests_are_compared(tmp_path: Path) -> None:
    """On the structures of both; of ``physpre stress --out``, of networks and of runs."""
    one = stored(tmp_path / "one", [20, 40, 60, 80, 100, 120, 140], rate=1.0, compile=False)
    two = stored(tmp_path / "two", [50, 90, 150, 160, 170, 180, 199, 250], rate=2.0, compile=True)
    found = compare([one, two])
    (stress,) = found.stress
    assert list(stress.found) == ["one", "two"] and not found.simulations
    assert stress.found["one"].median == 80 and stress.found["two"].median == 160
    assert stress.pairs[0].structures == 7 and stress.pairs[0].later == "two"
    assert stress.pairs[0].p_structures == pytest.approx(2 / 2**7)
    text = format_comparison(found)
    assert "this two network breaks later than this one network (p = 0.016" in text
    assert "of the 7 structures that both have" in text
    assert "They differ in compression.rate: 1.0, 2.0." in text and "compile" not in text
    for name in ("baseline", "pretrain"):
        stored(tmp_path / "run" / "3-networks" / name / "stress", [20, 40, 60, 80, 100, 120, 140])
    assert list(compare([tmp_path / "run"]).stress[0].found) == ["run: baseline", "run: pretrain"]
    assert list(compare([one, tmp_path / "run" / "3-networks" / "baseline"]).stress[0].found) == ["one", "baseline"]
    (one / "compression" / "result.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as the result of a stress test"):
        compare([one, two])

"""What a report claims: only what the counts allow."""

from __future__ import annotations

from math import comb
from pathlib import Path

import numpy as np
import pytest

from mdl_physpre.analysis.parity import LabelledPredictions
from mdl_physpre.dynamics.verdicts.verdict import Verdict
from mdl_physpre.report.measurements import Measured
from mdl_physpre.report.tables.breaking import p_value
from mdl_physpre.report.verdict import cautions, comparisons, verdict_table
from mdl_physpre.runs.read import read_run
from tests.helpers.made_up_runs import make_run, verdict


def failing(which: range | set[int], n: int = 20) -> list[Verdict]:
    return [verdict(k, 700 if k in which else None) for k in range(n)]


def said(folder: Path, measured: Measured | None = None) -> tuple[str, str]:
    (found,) = comparisons(read_run(folder), measured or Measured())
    return found.stability, found.errors


def test_few_discordant_structures_are_too_few(tmp_path: Path) -> None:
    stability, _ = said(make_run(tmp_path, {"baseline": [failing(range(5))], "pretrain": [failing(set())]}))
    assert "0 with pretrain alone, 5 with baseline alone: too few to tell them apart. Half had failed" in stability
    assert "no difference is shown (p = 0.062 taking structures as independent)" in stability


def test_a_difference_between_two_networks_is_not_one_between_arms(tmp_path: Path) -> None:
    folder = make_run(tmp_path, {"baseline": [failing(range(15))], "pretrain": [failing({0})]})
    stability, _ = said(folder)
    assert "1 of 20 structures failed with pretrain and 15 of 20 with baseline" in stability
    p = 2 * 1 / 2**14  # 14 structures failed with one of them alone
    assert p_value(p) in stability
    assert "fewer fail with this pretrain network than with this baseline network" in stability
    assert "another training" in stability
    assert any("One network was trained for each arm" in one for one in cautions(read_run(folder)))
    stability, _ = said(make_run(tmp_path / "worse", {"baseline": [failing({0})], "pretrain": [failing(range(15))]}))
    assert "fewer fail with this baseline network than with this pretrain network" in stability


def test_where_nothing_fails_nothing_is_told(tmp_path: Path) -> None:
    for networks in (1, 3):
        each = [failing(set())] * networks
        stability, _ = said(make_run(tmp_path / str(networks), {"baseline": each, "pretrain": each}))
        assert stability.endswith(": the simulation was too mild to tell them apart.")


def test_no_difference(tmp_path: Path) -> None:
    stability, _ = said(make_run(tmp_path, {"baseline": [failing(range(6))], "pretrain": [failing(range(4, 12))]}))
    assert "no difference is shown" in stability and "fewer" not in stability


def test_several_networks_are_what_is_compared(tmp_path: Path) -> None:
    baseline = [failing(range(k)) for k in (12, 14, 16, 18)]
    pretrain = [failing(range(k)) for k in (2, 1, 0, 3)]
    forces = {"baseline": [0.12, 0.13, 0.14, 0.15], "pretrain": [0.10, 0.11, 0.10, 0.11]}
    folder = make_run(tmp_path, {"baseline": baseline, "pretrain": pretrain}, forces)
    stability, errors = said(folder)
    assert "6 of 80 (2, 1, 0, 3)" in stability and "60 of 80 (12, 14, 16, 18)" in stability
    assert f"p = {2 / comb(8, 4):.2g}" in stability and "fewer fail with pretrain" in stability
    lowest, highest = 0.10 / 0.15 - 1, 0.11 / 0.12 - 1
    assert f"all pairs of networks −{-100 * lowest:.1f} % to −{-100 * highest:.1f} %; lower" in errors
    run = read_run(folder)
    assert not any("One network" in one for one in cautions(run))
    table = verdict_table(run, Measured())
    assert table.rows[0] == ["networks", "4", "4"]
    assert "6 of 80" in table.rows[1][2] and "; 2, 1, 0, 3" in table.rows[1][2]
    assert "over structures and networks" in table.notes


def test_errors_without_an_interval_that_excludes_zero_are_no_gain(tmp_path: Path) -> None:
    folder = make_run(
        tmp_path, {"baseline": [failing({0})], "pretrain": [failing({0})]}, {"baseline": [0.1], "pretrain": [0.098]}
    )
    rng = np.random.default_rng(1)
    base = {"index": np.arange(30), "n_atoms": np.full(30, 3), "forces_count": np.full(30, 9)}
    stored = {
        "baseline": {**base, "forces_error": 0.9 * rng.uniform(0.5, 1.5, 30)},
        "pretrain": {**base, "forces_error": 0.9 * rng.uniform(0.5, 1.5, 30)},
    }
    none = np.full(30, np.nan)
    for found in stored.values():
        found |= {"energy": none, "energy_label": none, "stress_error": none, "stress_count": np.zeros(30)}
        found |= dict.fromkeys(("forces", "forces_label", "stress", "stress_label"), np.zeros(0))
    predictions = {name: LabelledPredictions(**found) for name, found in stored.items()}
    _, errors = said(folder, Measured(predictions={"test": predictions}))
    assert "−2.0 %" in errors and "no difference is shown" in errors
    _, worse = said(make_run(tmp_path / "w", {"baseline": [failing({0})], "pretrain": [failing({0})]},
                             {"baseline": [0.1], "pretrain": [0.2]}))  # fmt: skip
    assert "+100.0 %; higher: it did not help" in worse


def test_arms_without_results_are_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path, {"baseline": [failing({0})], "pretrain": [failing({0})], "sam": [failing({1})]})
    (folder / "summary.json").unlink()
    run = read_run(folder)
    assert "pretrain: not trained and tested to the end" in run.missing
    for found in comparisons(run, Measured()):
        assert "nothing can be said" in found.stability and "nothing can be said" in found.errors


@pytest.mark.parametrize(
    "p, text", [(1.0, "p = 1"), (0.0313, "p = 0.031"), (0.001, "p = 0.001"), (7.63e-6, "p = 7.6·10⁻⁶")]
)
def test_p_values_in_words(p: float, text: str) -> None:
    assert p_value(p) == text

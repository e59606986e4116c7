"""Counts and intervals over verdicts."""
from __future__ import annotations

import pytest

from mdl_physpre.dynamics.verdicts import make_verdict, summarise, wilson_interval


def verdict(index: int, failures: dict, missing: dict | None = None) -> dict:
    return make_verdict(
        structure_id=f"s{index}", index=index, formula="Si", n_atoms=1, failures=failures, not_applicable=missing or {},
        steps_run=50, steps_asked=100, timestep=2.0, metrics={"x": float("nan"), "y": 1.0},
    )


def test_wilson_interval_solves_its_equation() -> None:
    z = 1.959963984540054
    for count, n in ((0, 10), (3, 10), (10, 10), (27, 100), (1, 1)):
        low, high = wilson_interval(count, n)
        for bound in (low, high):
            # |p − π| = z sqrt(π(1−π)/n) defines both ends
            assert abs(count / n - bound) == pytest.approx(z * (bound * (1 - bound) / n) ** 0.5, abs=1e-7)
    assert wilson_interval(10, 100) == pytest.approx((0.05522914, 0.17436566), abs=1e-7)
    assert wilson_interval(0, 0) is None


def test_summary_counts() -> None:
    verdicts = [
        verdict(0, {}),
        verdict(1, {"overlap": (40, "near"), "lindemann_local": (20, "loose")}),
        verdict(2, {"lindemann_global": (30, "loose"), "lindemann_local": (30, "loose")}),
        verdict(3, {}, {"overlap": "one atom", "lindemann_local": "one atom", "lindemann_global": "one atom"}),
    ]
    assert verdicts[1]["reasons"] == ["lindemann_local", "overlap"]
    assert verdicts[1]["first_failing_step"] == 20
    assert verdicts[1]["time_fs"] == 40
    assert verdicts[0]["metrics"] == {"x": None, "y": 1.0}
    assert verdicts[3]["status"] == "stable"
    assert len(verdicts[3]["notes"]) == 3
    summary = summarise(verdicts)
    assert summary["n"] == 4
    assert (summary["failed"]["count"], summary["failed"]["n"]) == (2, 4)
    assert (summary["overlap"]["count"], summary["overlap"]["n"]) == (1, 3)
    assert (summary["lindemann"]["count"], summary["lindemann"]["n"]) == (2, 3)
    assert summary["by_reason"]["lindemann_global"]["count"] == 1
    assert summary["by_reason"]["not_finite"]["count"] == 0
    assert summary["median_failing_step"] == 25
    assert summary["median_failing_time_fs"] == 50
    assert summarise([])["failed"]["interval"] is None

"""Counts, intervals and survival curves over verdicts."""

from __future__ import annotations

import numpy as np
import pytest

from mdl_physpre.dynamics.verdicts.survival import survival_curve
from mdl_physpre.dynamics.verdicts.verdict import (
    REASONS,
    Verdict,
    make_verdict,
    summarise,
    wilson_interval,
)


def verdict(index: int, failures: dict, missing: dict | None = None, steps_run: int = 50) -> Verdict:
    return make_verdict(
        structure_id=f"s{index}", index=index, formula="Si", n_atoms=1, failures=failures, not_applicable=missing or {},
        steps_run=steps_run, steps_asked=100, timestep=2.0, conditions={"temperature": 300},
        metrics={"x": float("nan"), "y": 1.0},
    )  # fmt: skip


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
    assert verdicts[1].reasons == (
        "lindemann_local",
        "overlap",
    )
    assert verdicts[1].first_failing_step == 20
    assert verdicts[1].time_fs == 40
    assert verdicts[0].metrics == {"x": None, "y": 1.0}
    assert verdicts[3].status == "stable"
    assert len(verdicts[3].notes) == 3
    summary = summarise(verdicts)
    assert summary.n == 4
    assert (summary.failed.count, summary.failed.n) == (2, 4)
    assert (summary.overlap.count, summary.overlap.n) == (1, 3)
    assert (summary.lindemann.count, summary.lindemann.n) == (2, 3)
    assert summary.by_reason["lindemann_global"].count == 1
    assert summary.by_reason["not_finite"].count == 0
    assert summary.median_failing_step == 25
    assert summary.median_failing_time_fs == 50
    assert summarise([]).failed.interval is None


def test_survival_without_censoring_is_a_proportion_with_its_interval() -> None:
    times = [10, 10, 30, 70]
    verdicts = [verdict(k, {"overlap": (t, "near")}, steps_run=t) for k, t in enumerate(times)]
    verdicts += [verdict(k, {}, steps_run=100) for k in range(4, 10)]
    curve = survival_curve(verdicts)
    assert curve.n == 10
    assert curve.value == (0, 20, 60, 140)
    assert curve.survival == pytest.approx([1, 0.8, 0.7, 0.6])
    assert curve.at_risk == (10, 10, 8, 7)
    assert curve.failed == (0, 2, 1, 1)
    assert curve.end == 200
    for k, failed in enumerate([0, 2, 3, 4]):
        assert (curve.low[k], curve.high[k]) == pytest.approx(wilson_interval(10 - failed, 10))


def test_survival_with_structures_that_end_earlier() -> None:
    """Kaplan and Meier's product, written out; the band covers the truth as often as it says."""
    verdicts = [
        verdict(0, {"overlap": (10, "near")}, steps_run=10),
        verdict(1, {}, steps_run=20),
        verdict(2, {"temperature": (30, "hot")}, steps_run=30),
        verdict(3, {}, steps_run=40),
        verdict(4, {}, dict.fromkeys(REASONS, "nothing"), steps_run=40),
    ]
    curve = survival_curve(verdicts)
    assert curve.n == 4
    assert curve.survival == pytest.approx([1, 3 / 4, 3 / 4 * 1 / 2])
    overlap = survival_curve(verdicts, ["overlap"])
    assert overlap.survival == pytest.approx([1, 3 / 4])
    assert survival_curve([]).survival == ()
    at_once = survival_curve([verdict(0, {"overlap": (0, "near")}, steps_run=0), verdict(1, {})])
    assert (at_once.value, at_once.survival) == ((0,), (0.5,))
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        fails, ends = rng.exponential(100, 30).astype(int), rng.integers(20, 200, 30)
        drawn = [
            verdict(k, {"overlap": (int(f), "")} if f <= e else {}, steps_run=int(min(f, e)))
            for k, (f, e) in enumerate(zip(fails, ends, strict=True))
        ]
        found = survival_curve(drawn)
        at = np.searchsorted(found.value, 2 * 60, side="right") - 1
        covered += found.low[at] <= np.exp(-61 / 100) <= found.high[at]
    assert 0.92 < covered / 400 <= 1

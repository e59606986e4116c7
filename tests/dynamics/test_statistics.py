"""Counts over several networks, their intervals and the exact test between two groups of networks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import permutation_test

from mdl_physpre.dynamics.verdicts.statistics import clustered_interval, permutation_p_value, summarise_networks
from mdl_physpre.dynamics.verdicts.verdict import Verdict, make_verdict, wilson_interval


def verdict(index: int, step: int | None) -> Verdict:
    return make_verdict(
        structure_id=str(index), index=index, formula="SiO2", n_atoms=3, not_applicable={}, timestep=1.0,
        failures={} if step is None else {"overlap": (step, "too close")},
        steps_run=100 if step is None else step, steps_asked=100, conditions={}, metrics={},
    )  # fmt: skip


def test_one_network_has_the_interval_of_its_structures():
    assert clustered_interval([3], [20]) == wilson_interval(3, 20)
    assert clustered_interval([], []) is None
    assert clustered_interval([0], [0]) is None


def test_networks_that_differ_widen_the_interval():
    alike, unlike = clustered_interval([5, 5, 5, 5], [20] * 4), clustered_interval([20, 0, 0, 0], [20] * 4)
    single = wilson_interval(20, 80)
    assert unlike[0] < alike[0] < single[0] and single[1] < alike[1] < unlike[1]


def test_intervals_hold_the_true_fraction_as_often_as_they_say():
    """Networks whose own fraction of broken structures scatters (beta distribution), drawn many times."""
    rng = np.random.default_rng(0)
    held = wilson_held = 0
    for _ in range(600):
        counts = rng.binomial(20, rng.beta(0.6, 1.4, size=5))
        low, high = clustered_interval(list(counts), [20] * 5)
        held += low <= 0.3 <= high
        low, high = wilson_interval(int(counts.sum()), 100)
        wilson_held += low <= 0.3 <= high
    assert 0.90 < held / 600 <= 1.0
    assert wilson_held / 600 < 0.75  # what the structures alone would claim


def test_pooled_counts():
    groups = [[verdict(0, 10), verdict(1, None)], [verdict(0, None), verdict(1, None)]]
    found = summarise_networks(groups)
    assert found.networks == 2 and found.n == 4
    assert found.failed.count == 1 and found.failed.each == (1, 0)
    assert found.by_reason["overlap"].each == (1, 0)
    assert found.failed.interval == pytest.approx(clustered_interval([1, 0], [2, 2]))


@pytest.mark.parametrize("first, second", [([18, 0, 1], [0, 1, 11]), ([5, 6, 7, 9], [1, 2, 3, 3]), ([1, 1], [1, 1])])
def test_permutation_test_is_that_of_scipy(first, second):
    found = permutation_p_value(first, second)
    theirs = permutation_test(
        (first, second), lambda x, y: abs(np.mean(x) - np.mean(y)), n_resamples=np.inf, alternative="greater"
    )
    assert found == pytest.approx(theirs.pvalue)
    assert permutation_p_value(second, first) == pytest.approx(found)

"""Counts over several networks, their intervals and the exact test between two groups of networks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import permutation_test

from mdl_physpre.dynamics.verdicts.statistics import clustered_interval, permutation_p_value
from mdl_physpre.dynamics.verdicts.verdict import wilson_interval


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


@pytest.mark.parametrize("first, second", [([18, 0, 1], [0, 1, 11]), ([5, 6, 7, 9], [1, 2, 3, 3]), ([1, 1], [1, 1])])
def test_permutation_test_is_that_of_scipy(first, second):
    found = permutation_p_value(first, second)
    theirs = permutation_test(
        (first, second), lambda x, y: abs(np.mean(x) - np.mean(y)), n_resamples=np.inf, alternative="greater"
    )
    assert found == pytest.approx(theirs.pvalue)
    assert permutation_p_value(second, first) == pytest.approx(found)

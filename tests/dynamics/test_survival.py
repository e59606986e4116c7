"""Survival curves, medians with intervals, log-rank tests and power, against textbooks, scipy and simulation."""

from __future__ import annotations

from itertools import combinations
from math import comb, sqrt

import numpy as np
import pytest
from scipy.stats import CensoredData, ecdf, logrank, norm

from mdl_physpre.dynamics.verdicts.log_rank import (
    compare_breaking,
    log_rank,
    networks_needed,
    smallest_p_value,
)
from mdl_physpre.dynamics.verdicts.survival import Observation, breaking_statistics, kaplan_meier
from mdl_physpre.dynamics.verdicts.verdict import wilson_interval

# E. J. Freireich et al., Blood 21, 699 (1963): weeks of remission of 21 pairs of patients, placebo and 6-MP
PLACEBO = [1, 22, 3, 12, 8, 17, 2, 11, 8, 12, 2, 5, 4, 15, 8, 23, 5, 11, 4, 1, 8]
TREATED = [10, 7, 32, 23, 22, 6, 16, 34, 32, 25, 11, 20, 19, 6, 17, 35, 6, 13, 9, 6, 10]
CENSORED = {2, 7, 8, 9, 10, 11, 12, 14, 15, 18, 19, 20}  # of the treated


def patients() -> tuple[list[Observation], list[Observation]]:
    placebo = [Observation(float(x), True, k, "placebo") for k, x in enumerate(PLACEBO)]
    return placebo, [Observation(float(x), k not in CENSORED, k, "6-MP") for k, x in enumerate(TREATED)]


def censored(side: list[Observation]) -> CensoredData:
    return CensoredData([o.value for o in side if o.broken], right=[o.value for o in side if not o.broken])


def drawn(rng, networks, structures, between, of_structures, rest, shift=0.0, end=np.inf, name="a"):
    """Breaking points of the same structures with several networks, normal about 10 + shift, censored at an end."""
    offsets = between * rng.normal(size=networks)
    return [
        Observation(min(x, end), x < end, s, f"{name}-{k}")
        for k in range(networks)
        for s, own in enumerate(of_structures)
        for x in [10 + shift + offsets[k] + own + rest * rng.normal()]
    ]


def test_curve_and_medians_are_those_of_textbooks():
    placebo, treated = map(breaking_statistics, patients(), ("time",) * 2, ("weeks",) * 2)
    curve = kaplan_meier(patients()[1], "weeks")
    assert (placebo.median, treated.median) == (8, 23)  # J. P. Klein and M. L. Moeschberger, Survival Analysis, ch. 4
    theirs = [1, 0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448]
    assert curve.survival == pytest.approx(theirs, abs=6e-4)
    assert curve.value == (0, 6, 7, 10, 13, 16, 22, 23)
    for side in patients():
        found, expected = kaplan_meier(side), ecdf(censored(side)).sf
        at = [list(expected.quantiles).index(t) for t in found.value[1:]]
        assert found.survival[1:] == pytest.approx(expected.probabilities[at])
    assert treated.interval[0] == pytest.approx(13, abs=3) and treated.interval[1] is None  # survfit: 16, none
    assert placebo.interval == (4, 11)  # survfit of R, with its log transform: 4, 11
    assert placebo.unit == curve.unit == "weeks" and curve.median == 23


def test_log_rank_test_is_that_of_scipy_and_of_textbooks():
    placebo, treated = patients()
    u, v, _ = log_rank(placebo, treated)
    assert u == pytest.approx(21 - 10.75, abs=5e-3) and u * u / v == pytest.approx(16.79, abs=5e-3)
    rng = np.random.default_rng(0)
    for _ in range(5):
        first, second = (
            [Observation(float(x), bool(b)) for x, b in zip(rng.integers(1, 9, n), rng.random(n) < 0.7)]
            for n in (15, 22)
        )
        u, v, scores = log_rank(first, second)
        theirs = logrank(censored(first), censored(second))
        assert u / sqrt(v) == pytest.approx(theirs.statistic)
        assert sum(scores[:15]) == pytest.approx(u) and sum(scores) == pytest.approx(0, abs=1e-12)
        one = compare_breaking(first, second, ("a", "b"))
        assert one.z == pytest.approx(theirs.statistic) and one.p_structures == pytest.approx(theirs.pvalue)


def test_pairs_are_a_sign_test():
    """Stratified by pair, each pair says which of the two broke first: 18 and 3 of 21."""
    placebo, treated = patients()
    found = compare_breaking(placebo, treated, ("placebo", "6-MP"))
    assert found.z == pytest.approx((18 - 3) / sqrt(21)) and found.later == "6-MP"
    assert found.p_structures == pytest.approx(2 * sum(comb(21, k) for k in range(4)) / 2**21)
    assert (found.structures, found.p_networks, found.smallest_p) == (21, None, None)  # one network each
    wanted = (norm.ppf(0.975) + norm.ppf(0.8)) ** 2
    assert found.structures_needed == np.ceil(21 * wanted / found.z**2)
    other = compare_breaking(treated, placebo, ("6-MP", "placebo"))
    assert other.z == pytest.approx(-found.z) and other.later == "6-MP"


def test_strata_are_added_by_hand():
    """Two structures, two networks each: U and V written out."""
    first = [Observation(1, True, "s", 1), Observation(2, True, "s", 2), Observation(5, True, "r", 1),
             Observation(9, False, "r", 2), Observation(0, True, "mine alone", 1)]  # fmt: skip
    second = [Observation(3, True, "s", 3), Observation(9, False, "s", 4), Observation(5, True, "r", 3),
              Observation(6, True, "r", 4)]  # fmt: skip
    u = (1 - 2 / 4) + (1 - 1 / 3) + (0 - 0) + (1 - 2 * 2 / 4) + (0 - 1 / 2)
    v = 1 / 4 + 2 / 9 + 0 + 2 * (1 / 4) * (2 / 3) + 1 / 4
    found = compare_breaking(first, second, ("a", "b"))
    assert found.z == pytest.approx(u / sqrt(v)) and found.structures == 2
    assert found.smallest_p == smallest_p_value(2, 2) == pytest.approx(1 / 3)


def test_networks_are_permuted_whole():
    """Against scipy's permutation test of networks, and by hand: every division of the networks tested anew."""
    rng = np.random.default_rng(1)
    structures = rng.normal(size=8)
    first = drawn(rng, 3, 8, 0.5, structures, 0.5, end=10.5)
    second = drawn(rng, 4, 8, 0.5, structures, 0.5, 0.8, 10.5, "b")
    found = compare_breaking(first, second, ("a", "b"))
    everything = [*first, *second]
    names = sorted({o.network for o in everything})
    statistics = []
    for chosen in combinations(names, 3):
        sides = ([o for o in everything if (o.network in chosen) is inside] for inside in (True, False))
        one, other = ({s: [o for o in side if o.structure == s] for s in range(8)} for side in sides)
        statistics.append(abs(sum(log_rank(one[s], other[s])[0] for s in range(8))))
    assert found.p_networks == pytest.approx(np.mean([s >= statistics[0] - 1e-9 for s in statistics]))
    assert found.smallest_p == 1 / comb(7, 3)
    apart = compare_breaking(drawn(rng, 3, 8, 0, structures, 0.1), drawn(rng, 3, 8, 0, structures, 0.1, 5, name="b"),
                             ("a", "b"))  # fmt: skip
    assert apart.p_networks == apart.smallest_p == pytest.approx(0.1)  # the floor that 3 and 3 networks have
    assert apart.p_structures < 1e-8 and apart.later == "b" and apart.networks_needed == 4


def test_permutation_of_networks_holds_its_level_where_structures_do_not():
    """Networks that scatter, no difference between the arms: how often each p-value is below 5 %."""
    rng, below = np.random.default_rng(2), np.zeros(2)
    for _ in range(150):
        structures = 0.5 * rng.normal(size=10)
        sides = [drawn(rng, 4, 10, 1.0, structures, 0.5, name=name) for name in "ab"]
        found = compare_breaking(*sides, ("a", "b"))
        below += found.p_networks < 0.05, found.p_structures < 0.05
    assert below[0] / 150 < 0.09 and below[1] / 150 > 0.3


@pytest.mark.parametrize(
    "networks, structures, between, of_structures, rest",
    [(1, 20, 0, 0.3, 0.9), (3, 12, 0.3, 0.3, 0.9), (3, 12, 0.9, 0.3, 0.3), (3, 12, 0.3, 0.9, 0.3),
     (5, 12, 0.9, 0.3, 0.3), (5, 12, 0.3, 0.9, 0.3)],
)  # fmt: skip
def test_intervals_of_the_median_hold_it(networks, structures, between, of_structures, rest):
    """Networks, structures and both together scatter; half of a large population breaks below 10."""
    rng, held, runs = np.random.default_rng(3), 0, 60
    for _ in range(runs):
        own = of_structures * rng.normal(size=structures)
        found = breaking_statistics(drawn(rng, networks, structures, between, own, rest, end=11), "", "")
        low, high = found.interval
        held += low <= 10 <= (np.inf if high is None else high)
    assert held / runs >= 0.85


def test_one_network_says_nothing_on_others():
    rng, held = np.random.default_rng(3), 0
    for _ in range(40):
        low, high = breaking_statistics(drawn(rng, 1, 20, 0.9, np.zeros(20), 0.5), "", "").interval
        held += low <= 10 <= (high or np.inf)
    assert held / 40 < 0.5


def test_one_network_has_the_interval_of_its_structures():
    found = kaplan_meier([Observation(float(k), True, k) for k in range(1, 11)])
    for k, ends in enumerate(zip(found.low, found.high)):
        assert ends == pytest.approx(wilson_interval(10 - k, 10))
    assert found.median == 5 and found.median_interval == (2, 9)  # as the binomial test has it: 2 of 10 and 8 of 10


def test_where_fewer_than_half_break_the_median_is_beyond_the_end():
    whole = breaking_statistics([Observation(6.0, False, k) for k in range(12)], "temperature", "K")
    assert (whole.median, whole.interval, whole.broken, whole.end) == (None, (6.0, None), 0, 6.0)
    few = breaking_statistics(
        [Observation(1.0 + k, k < 4, k, reason="overlap" if k else "too_deep") for k in range(12)], "pressure", "GPa"
    )
    assert few.median is None and few.interval[1] is None and few.reasons == {"overlap": 3, "too_deep": 1}
    nothing = breaking_statistics([], "pressure", "GPa")
    assert (nothing.n, nothing.median, nothing.interval) == (0, None, None)
    same = compare_breaking([Observation(6.0, False, k) for k in range(3)], [Observation(6.0, False, k) for k in
                            range(3)], ("a", "b"))  # fmt: skip
    assert same.z is None and same.p_structures is None and same.later is None


def test_numbers_of_networks_are_those_of_tables():
    """J. Cohen, Statistical Power Analysis (1988), table 2.4.1, two-sided 5 %, 80 %: n = 26 and 17 and 64."""
    assert [networks_needed(d, 1.0) for d in (0.8, 1.0, 0.5)] == [26, 17, 64]
    assert networks_needed(1e-9, 1.0) is None and networks_needed(0.0, 0.0) is None
    assert networks_needed(100.0, 1.0) == networks_needed(1.0, 0.0) == 4  # with three, nothing can be below 0.05


def test_power_is_what_is_said():
    """As many networks as small experiments say, at the middle, show the difference in four of five; four do not."""
    rng = np.random.default_rng(4)
    structures = 0.5 * rng.normal(size=10)

    def experiment(networks):
        sides = [drawn(rng, networks, 10, 0.5, structures, 0.5, shift, name=n) for n, shift in (("a", 0), ("b", 0.95))]
        return compare_breaking(*sides, ("a", "b"))

    pilots = [experiment(5) for _ in range(15)]
    k = int(np.median([pilot.networks_needed or np.inf for pilot in pilots]))
    assert all(4 <= p.networks_at_least <= p.networks_needed for p in pilots if p.networks_needed)
    assert 5 <= k <= 9
    shown = [np.mean([experiment(n).p_networks < 0.05 for _ in range(60)]) for n in (k, 4)]
    assert 0.7 < shown[0] < 0.97 and shown[1] < 0.6

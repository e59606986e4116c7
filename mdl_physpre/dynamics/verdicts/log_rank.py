"""Two arms compared by where the same structures broke, and how many networks would show the difference seen."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import fmean

import numpy as np

from mdl_physpre.dynamics.verdicts.statistics import permutation_p_value
from mdl_physpre.dynamics.verdicts.survival import Observation
from mdl_physpre.utils.record import Record

LEVEL, POWER = 0.05, 0.8
MOST = 1000  # networks of each arm: beyond, a difference is not one that anybody will show


class BreakingComparison(Record):
    """Two arms compared by where the same structures broke.

    first, second : arms. structures : that both have. networks_first, networks_second : how many of each arm.
    z : of the stratified log-rank test; above zero where ``first`` breaks earlier. ``None`` where nothing broke.
    p_networks : exact, whole networks permuted between the arms; ``None`` with one network of each.
    smallest_p : the smallest that p_networks can be with so many networks.
    p_structures : of the stratified log-rank test, which takes structures as independent, networks of an arm too; with
        one network of each, of the exact sign test, which it then is.
    networks_needed : of each arm, for a difference of the size seen at 80 % power and a level of 5 %, with these
        structures; ``None`` where the spread between networks is not known, or no number up to 1,000 is enough.
    networks_at_least : the same with any number of structures.
    structures_needed : for p_structures below 5 % at 80 % power, with these networks.
    """

    first: str
    second: str
    structures: int
    networks_first: int
    networks_second: int
    z: float | None
    p_networks: float | None
    smallest_p: float | None
    p_structures: float | None
    networks_needed: int | None = None
    networks_at_least: int | None = None
    structures_needed: int | None = None

    @property
    def later(self) -> str | None:
        """The arm that breaks later; ``None`` where neither does."""
        return None if not self.z else self.second if self.z > 0 else self.first

    @property
    def at_floor(self) -> bool:
        """Whether the networks are as far apart as so many can be: p_networks is the smallest that they can give."""
        return None not in (self.p_networks, self.smallest_p) and self.p_networks <= self.smallest_p * (1 + 1e-9)  # type: ignore[operator]

    @property
    def shown(self) -> bool:
        """Whether the tests show a difference: by networks, or by structures where so few networks cannot."""
        if self.p_structures is None:
            return False
        if self.p_networks is not None and self.p_networks < LEVEL:
            return True
        return (self.p_networks is None or self.at_floor) and self.p_structures < LEVEL


def log_rank(first: Sequence[Observation], second: Sequence[Observation]) -> tuple[float, float, list[float]]:
    """The log-rank test of two groups in one stratum (N. Mantel, 1966; R. Peto and J. Peto, 1972).

    With d_k breaks at t_k among n_k that are whole, a_k of them of the first group,

        U = Σ_k (d_k,first − d_k a_k/n_k),   V = Σ_k d_k (a_k/n_k)(1 − a_k/n_k)(n_k − d_k)/(n_k − 1).

    U is also the sum over the first group of the scores c_i = δ_i − Σ_{t_k ≤ x_i} d_k/n_k, which do not depend on who
    is in which group.

    Returns
    -------
    U, V, and the scores of the observations of both, in order.
    """
    both = [*first, *second]
    x, broken = np.array([o.value for o in both], dtype=float), np.array([o.broken for o in both], dtype=bool)
    own = np.arange(len(both)) < len(first)
    t = np.unique(x[broken])
    whole, breaks = x[None, :] >= t[:, None], (x[None, :] == t[:, None]) & broken
    n, d, a = whole.sum(1), breaks.sum(1), (whole & own).sum(1)
    variance = float((d * a * (n - a) * (n - d) / (n**2 * np.maximum(n - 1, 1))).sum())
    scores = broken - np.where(whole, (d / n)[:, None], 0.0).sum(0)
    return float(scores[own].sum()), variance, scores.tolist()


def compare_breaking(
    first: Sequence[Observation], second: Sequence[Observation], names: tuple[str, str]
) -> BreakingComparison:
    """The log-rank test stratified by structure, of observations of two arms on the same structures.

    Every structure is a stratum: U and V are sums over the strata (:func:`log_rank`), and z = U/√V is standard normal
    if the arms are alike and observations independent. The networks are what is independent: the sum of the scores of
    each network over its structures is its value in an exact permutation test
    (:func:`~mdl_physpre.dynamics.verdicts.statistics.permutation_p_value`), whose statistic is |U|.

    Structures that one arm alone has are left out.
    """
    strata = {o.structure for o in first} & {o.structure for o in second}
    sides = [[o for o in side if o.structure in strata] for side in (first, second)]
    total = variance = 0.0
    earlier = [0, 0]  # structures that broke earlier with first, and with second
    scores: list[dict[Hashable, list[float]]] = [{}, {}]  # of each arm by network, a score for each structure
    by_structure: dict[Hashable, tuple[list[Observation], list[Observation]]] = {}
    for side, own in enumerate(sides):
        for o in own:
            by_structure.setdefault(o.structure, ([], []))[side].append(o)
    for one, other in by_structure.values():
        u, v, each = log_rank(one, other)
        total, variance = total + u, variance + v
        earlier[u < 0] += abs(u) > 1e-9
        for k, (o, score) in enumerate(zip([*one, *other], each)):
            scores[k >= len(one)].setdefault(o.network, []).append(score)
    networks = [list(own.values()) for own in scores]
    sizes = len(networks[0]), len(networks[1])
    found = BreakingComparison(
        first=names[0], second=names[1], structures=len(strata), networks_first=sizes[0], networks_second=sizes[1],
        z=None, p_networks=None, smallest_p=smallest_p_value(*sizes) if max(sizes) > 1 else None, p_structures=None,
    )  # fmt: skip
    if variance <= 0:
        return found
    z = total / math.sqrt(variance)
    change: dict[str, float | int | None] = {"z": z, "p_structures": math.erfc(abs(z) / math.sqrt(2))}
    if sizes == (1, 1) and len(strata) == len(sides[0]) == len(sides[1]):
        change["p_structures"] = _sign_test(*earlier)
    if z:
        wanted = (_normal_quantile(1 - LEVEL / 2) + _normal_quantile(POWER)) / z
        change["structures_needed"] = math.ceil(len(strata) * wanted**2)
    if max(sizes) > 1:
        sums = [[math.fsum(own) for own in side] for side in networks]
        change["p_networks"] = permutation_p_value(*sums)
        needed = _networks_for(networks)
        change |= {"networks_needed": needed[0], "networks_at_least": needed[1]}
    return found.model_copy(update=change)


def smallest_p_value(first: int, second: int) -> float:
    """The smallest p-value of an exact two-sided permutation test of so many networks in each arm."""
    return min(1.0, (2 if first == second else 1) / math.comb(first + second, first))


def networks_needed(difference: float, deviation: float, level: float = LEVEL, power: float = POWER) -> int | None:
    """How many networks of each of two arms show a difference between the means of a value of each network.

    The smallest K for which Student's test of K and K values reaches the power: with f = 2K − 2 and the noncentral t
    distribution, P(t'_f(δ) > t_f(1 − level/2)) ≥ power, δ = difference/deviation · √(K/2) (J. Cohen, Statistical
    Power Analysis (1988), ch. 2), and for which an exact permutation test can reach the level at all.

    Parameters
    ----------
    difference : between the means of the arms. deviation : standard deviation of the values of an arm.

    Returns
    -------
    K, or ``None`` where it is above 1,000.
    """
    from scipy.stats import nct, t

    least = next(k for k in range(2, MOST) if smallest_p_value(k, k) <= level)
    if not difference:
        return None
    if deviation <= abs(difference) * 1e-6:
        return least

    def enough(k: int) -> bool:
        bound, shift = t.ppf(1 - level / 2, 2 * k - 2), abs(difference) / deviation * math.sqrt(k / 2)
        if shift > bound + 5:  # far beyond; scipy's noncentral t has no value there
            return True
        return bool(nct.sf(bound, 2 * k - 2, shift) >= power)  # the other tail is below 0.1 % where this is near

    if not enough(MOST):
        return None
    low, high = least, MOST
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def _networks_for(arms: Sequence[Sequence[Sequence[float]]]) -> tuple[int | None, int | None]:
    """How many networks the difference between two arms needs, with these structures and with any number of them.

    ``arms`` : the scores of each network of each arm on each structure. The value of a network is their mean m. Its
    variance s² between the networks of an arm is that of the networks themselves and what structures add to it,
    s² = σ² + e²/M, where e² is the variance of the scores beyond the means of network and structure.
    """
    means = [[fmean(own) for own in side] for side in arms]
    freedom = sum(len(side) - 1 for side in arms)
    difference = fmean(means[0]) - fmean(means[1])
    variance = sum((m - fmean(side)) ** 2 for side in means for m in side) / freedom
    beyond, count = 0.0, 0
    for side in arms:
        if len(side) < 2 or len({len(own) for own in side}) > 1:
            continue
        table = np.array(side)
        rest = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
        beyond, count = beyond + float((rest**2).sum()), count + (len(side) - 1) * (table.shape[1] - 1)
    structures = len(arms[0][0])
    alone = max(0.0, variance - beyond / count / structures) if count else variance
    return networks_needed(difference, math.sqrt(variance)), networks_needed(difference, math.sqrt(alone))


def _sign_test(first: int, second: int) -> float:
    from scipy.stats import binomtest

    return float(binomtest(first, first + second).pvalue)


def _normal_quantile(p: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf(p))

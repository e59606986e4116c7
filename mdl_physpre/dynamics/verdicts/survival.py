"""Where structures broke on a scale (time, temperature, pressure, energy): curves, medians, and their intervals.

Structures that did not break are censored: all that is known is that they would break later than the end. Structures
with one network share its faults, and networks share the structures; the intervals hold the spread of both.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mdl_physpre.dynamics.verdicts.verdict import Verdict, wilson_interval
from mdl_physpre.utils.record import Record

ROUNDING = 1e-9  # of a product of fractions


class Observation(NamedTuple):
    """One structure with one network.

    value : where it broke; where it did not, the end that it reached.
    structure, network : what names them, the same for the same structure with another network.
    reason : of the break.
    """

    value: float
    broken: bool
    structure: Hashable = ""
    network: Hashable = ""
    reason: str | None = None


class Survival(Record):
    """A survival curve over the values at which something broke, 0 first.

    n : structures, with each network. unit : of the scale. value, survival : t_k and S(t_k). low, high : the 95 % band.
    at_risk, failed : n_k and d_k. end : the largest value that was reached.
    """

    n: int
    unit: str = "fs"
    value: tuple[float, ...] = ()
    survival: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    at_risk: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    end: float

    @property
    def median(self) -> float | None:
        """The first value at which the curve is at or below a half; ``None`` where it stays above."""
        return next((t for t, s in zip(self.value, self.survival) if s <= 0.5 + ROUNDING), None)

    @property
    def median_interval(self) -> tuple[float, float | None] | None:
        """95 % interval of the median: the values at which the band holds a half (R. Brookmeyer and J. Crowley, 1982).

        The upper end is ``None`` where the band reaches above a half to the end of the scale; the lower end is the end
        of the scale where the whole band does. ``None`` without structures. (Biometrics 38, 29.)
        """
        if not self.n:
            return None
        low = next((t for t, s in zip(self.value, self.low) if s <= 0.5 + ROUNDING), self.end)
        return low, next((t for t, s in zip(self.value, self.high) if s < 0.5 - ROUNDING), None)


class BreakingStatistics(Record):
    """Where the structures of one arm broke, with all its networks.

    quantity, unit : of the scale. n, broken : observations, and those that broke. reasons : of these, most often first.
    median : ``None`` where fewer than half broke before ``end``, the largest value reached.
    interval : of the median, 95 %; see :attr:`Survival.median_interval`.
    networks : their names. median_each, broken_each : of each network.
    """

    quantity: str
    unit: str
    n: int
    broken: int
    reasons: dict[str, int] = {}
    median: float | None
    interval: tuple[float, float | None] | None
    end: float
    networks: tuple[str, ...] = ()
    median_each: tuple[float | None, ...] = ()
    broken_each: tuple[int, ...] = ()


def kaplan_meier(observations: Sequence[Observation], unit: str = "fs") -> Survival:
    """The fraction of structures that are not broken at a value of the scale (E. L. Kaplan and P. Meier, 1958).

        S(t) = Π_{t_k <= t} (1 − d_k / n_k),

    with d_k breaks at t_k among the n_k structures that were still whole just before. A structure that reached its end,
    or was stopped for another reason, leaves the n_k after that value without a break.

    The 95 % band is Wilson's interval of S at as many independent structures as give the variance V of S,
    n* = min(n, S(1−S)/V). V comes from the influence of every observation i on S(t),

        a_i = δ_i 1(x_i ≤ t) / (n(x_i) − d(x_i)) − Σ_{t_k ≤ min(x_i, t)} d_k / (n_k (n_k − d_k)),   V₀ = S² Σ_i a_i²,

    summed by network or by structure before it is squared (Z. Ying and L. J. Wei, J. Multivariate Anal. 50, 17 (1994)),
    V_N = K/(K−1) S² Σ_networks (Σ a_i)² and V_S alike, and V = max(V₀, V_N, V_S, V_N + V_S − V₀) (A. C. Cameron,
    J. B. Gelbach and D. L. Miller, J. Bus. Econ. Stat. 29, 238 (2011)). Because V_N comes from K networks alone, n* is
    multiplied by [t(n−1)/t(f)]², with Student's quantiles and f = V² / (V_N²/(K−1) + V_S²/(M−1)) for M structures
    (F. E. Satterthwaite, 1946), at least K−1, taken where S is nearest to a half. With one network V = V₀, which
    without structures that leave is the variance of a proportion: it says nothing on other trainings.

    Parameters
    ----------
    unit : of the values.
    """
    if not observations:
        return Survival(n=0, unit=unit, end=0.0)
    x = np.array([o.value for o in observations], dtype=float)
    broken = np.array([o.broken for o in observations], dtype=bool)
    t = np.unique([0.0, *x[broken]])
    order, breaks, left = np.sort(x), np.sort(x[broken]), np.sort(x[~broken])
    at_risk = len(x) - np.searchsorted(order, t, "left")
    failed = np.searchsorted(breaks, t, "right") - np.searchsorted(breaks, t, "left")
    survival = np.cumprod(1 - failed / at_risk)
    known = len(x) - np.searchsorted(left, t, "left")
    spread = _Spread(observations, x, broken, t, at_risk, failed)
    middle = int(np.abs(survival - 0.5).argmin())
    freedom = spread.freedom(middle, float(survival[middle]))
    ends = [_band(s, int(n), spread.of(k, s), freedom) for k, (s, n) in enumerate(zip(survival.tolist(), known))]
    return Survival(
        n=len(x),
        unit=unit,
        value=tuple(t.tolist()),
        survival=tuple(survival.tolist()),
        low=tuple(low for low, _ in ends),
        high=tuple(high for _, high in ends),
        at_risk=tuple(at_risk.tolist()),
        failed=tuple(failed.tolist()),
        end=float(x.max()),
    )


class _Spread:
    """V₀, V_N, V_S over S² at each value, and the numbers of networks and structures."""

    def __init__(
        self,
        observations: Sequence[Observation],
        x: np.ndarray,
        broken: np.ndarray,
        t: np.ndarray,
        at_risk: np.ndarray,
        failed: np.ndarray,
    ) -> None:
        whole = np.maximum(at_risk - failed, 1)  # where none is left S is 0, and so is its variance
        self._hazard = np.cumsum(failed / (at_risk * whole))
        self._place, self._broken, self._whole = np.searchsorted(t, x, "right") - 1, broken, whole
        self.alone, _ = self._between(range(len(x)))
        self.networks, self.n_networks = self._between([o.network for o in observations])
        several = self.n_networks > 1
        self.structures, self.n_structures = (
            self._between([o.structure for o in observations]) if several else (self.alone, len(x))
        )

    def _between(self, names: Iterable[Hashable]) -> tuple[np.ndarray, int]:
        groups: dict[Hashable, list[int]] = {}
        for k, name in enumerate(names):
            groups.setdefault(name, []).append(k)
        if len(groups) < 2:
            return np.zeros_like(self._hazard), len(groups)
        total, steps = np.zeros_like(self._hazard), np.arange(len(self._hazard))
        for members in groups.values():
            influence = np.zeros_like(total)
            for k in members:
                place = self._place[k]
                influence -= self._hazard[np.minimum(steps, place)]
                if self._broken[k]:
                    influence[place:] += 1 / self._whole[place]
            total += influence**2
        alone = len(groups) == len(self._place)
        return total * (1.0 if alone else len(groups) / (len(groups) - 1)), len(groups)

    def of(self, k: int, survival: float) -> float:
        """V at the k-th value."""
        alone, networks, structures = (float(v[k]) for v in (self.alone, self.networks, self.structures))
        several = self.n_networks > 1
        return survival**2 * (max(alone, networks, structures, networks + structures - alone) if several else alone)

    def freedom(self, k: int, survival: float) -> float | None:
        """f at the k-th value; ``None`` with one network."""
        if self.n_networks < 2:
            return None
        least, networks, structures = (
            self.n_networks - 1,
            *(survival**2 * v[k] for v in (self.networks, self.structures)),
        )
        parts = float(networks**2 / least + structures**2 / max(self.n_structures - 1, 1))
        return max(least, self.of(k, survival) ** 2 / parts if parts > 0 else least)


def _band(survival: float, known: int, variance: float, freedom: float | None) -> tuple[float, float]:
    from scipy.stats import t

    whole = 0 < survival * (1 - survival)
    n = min(known, survival * (1 - survival) / variance) if whole and variance > 0 else float(known)
    if freedom is not None and known > 2 and freedom < known - 1:
        n *= float(t.ppf(0.975, known - 1) / t.ppf(0.975, freedom)) ** 2
    return wilson_interval(survival * n, n) or (0.0, 1.0)


def survival_curve(verdicts: Sequence[Verdict], reasons: Sequence[str] | None = None) -> Survival:
    """The fraction of structures that have not failed by a time in fs: :func:`kaplan_meier` over verdicts.

    Parameters
    ----------
    reasons : bounds that count, melted or not; where ``None``, all failures. Structures to which none of them applies
        are left out.
    """
    return kaplan_meier(failure_times(verdicts, reasons))


def failure_times(
    verdicts: Sequence[Verdict], reasons: Sequence[str] | None = None, network: Hashable = ""
) -> list[Observation]:
    """Times of failure in fs as observations; a structure is named by its place in the list.

    Parameters
    ----------
    reasons : bounds that count, melted or not; where ``None``, all failures. Structures to which none of them applies
        are left out.
    network : that the structures were simulated with.
    """
    found = []
    for v in verdicts:
        wanted = v.checks if reasons is None else [reason for reason in reasons if reason in v.checks]
        counted = [] if v.melted and reasons is None else [f for f in v.failures if f.reason in wanted]
        if counted:
            first = min(counted, key=lambda failure: failure.time_fs)
            found.append(Observation(first.time_fs, True, v.index, network, first.reason))
        elif any(v.checks[reason] != "n/a" for reason in wanted):
            found.append(Observation(v.time_run_fs, False, v.index, network))
    return found


def breaking_statistics(observations: Sequence[Observation], quantity: str, unit: str) -> BreakingStatistics:
    """Median breaking point and its interval, of all structures with all networks of an arm.

    Parameters
    ----------
    quantity, unit : of the scale, such as ``temperature`` and ``K``.
    """
    finite = [o for o in observations if math.isfinite(o.value)]
    networks = list(dict.fromkeys(o.network for o in finite))
    each = [[o for o in finite if o.network == name] for name in networks]
    curve = kaplan_meier(finite, unit)
    reasons = Counter(o.reason for o in finite if o.broken and o.reason)
    return BreakingStatistics(
        quantity=quantity,
        unit=unit,
        n=curve.n,
        broken=sum(o.broken for o in finite),
        reasons=dict(reasons.most_common()),
        median=curve.median,
        interval=curve.median_interval,
        end=curve.end,
        networks=tuple(map(str, networks)),
        median_each=tuple(kaplan_meier(own, unit).median for own in each),
        broken_each=tuple(sum(o.broken for o in own) for own in each),
    )

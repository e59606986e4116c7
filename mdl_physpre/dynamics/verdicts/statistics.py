"""Verdicts of several networks that were trained alike: counts whose intervals include the spread between networks.

Structures simulated with one network share its faults, so that 20 of them are not 20 independent observations. The
networks are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from statistics import median

from mdl_physpre.dynamics.verdicts.verdict import Count, Counts, wilson_interval


def clustered_interval(counts: Sequence[int], sizes: Sequence[int]) -> tuple[float, float] | None:
    """95 % interval of a proportion that is counted in K groups, here networks, of n_k observations each.

    With p = Σ c_k / N, N = Σ n_k, the variance of p between groups is V = K/(K−1) Σ (c_k − p n_k)² / N², and as many
    independent observations as n* = min(N, p(1−p)/V) would give it. Wilson's interval is taken at
    n* [t(N−1)/t(K−1)]², with t the 97.5 % quantile of Student's distribution, because V comes from K groups alone
    (E. L. Korn and B. I. Graubard, Survey Methodology 24, 193 (1998), there with another interval).

    One group alone says nothing on the spread between groups; then it is Wilson's interval with n = N.

    Parameters
    ----------
    counts, sizes : c_k and n_k.

    Returns
    -------
    Lower and upper end; ``None`` without observations.
    """
    pairs = [(c, n) for c, n in zip(counts, sizes, strict=True) if n]
    total, groups = sum(n for _, n in pairs), len(pairs)
    if groups < 2 or total < 3:
        return wilson_interval(sum(c for c, _ in pairs), total)
    from scipy.stats import t

    p = sum(c for c, _ in pairs) / total
    variance = groups / (groups - 1) * sum((c - p * n) ** 2 for c, n in pairs) / total**2
    effective = min(total, p * (1 - p) / variance) if variance > 0 else total
    effective *= float(t.ppf(0.975, total - 1) / t.ppf(0.975, groups - 1)) ** 2
    return wilson_interval(p * effective, effective)


def pooled_counts(each: Sequence[Counts], failing_steps: Sequence[int | None], timestep: float) -> Counts:
    """Counts of the same structures simulated with several networks, taken together.

    Every count has the count of each network, and its interval is :func:`clustered_interval`.

    Parameters
    ----------
    each : of every network.
    failing_steps : the first failing step of every structure with every network; ``None``: none.
    timestep : fs.
    """

    def together(counts: Sequence[Count]) -> Count:
        found, sizes = [c.count for c in counts], [c.n for c in counts]
        return Count(count=sum(found), n=sum(sizes), interval=clustered_interval(found, sizes), each=tuple(found))

    middle = median(failed) if (failed := [step for step in failing_steps if step is not None]) else None
    return Counts(
        n=sum(one.n for one in each),
        failed=together([one.failed for one in each]),
        overlap=together([one.overlap for one in each]),
        lindemann=together([one.lindemann for one in each]),
        by_reason={reason: together([one.by_reason[reason] for one in each]) for reason in each[0].by_reason},
        median_failing_step=middle,
        median_failing_time_fs=None if middle is None else middle * timestep,
        networks=len(each),
        **{
            name: together([getattr(one, name) for one in each])
            for name in ("melted", "paper")
            if all(getattr(one, name) is not None for one in each)  # earlier versions do not say
        },
    )


def permutation_p_value(first: Sequence[float], second: Sequence[float]) -> float:
    """Exact p-value of a difference between the means of two groups of networks.

    If how they were trained made no difference, every division of the values into groups of these sizes would be as
    likely: P is the share of the C(K₁+K₂, K₁) divisions whose means differ at least as much as those observed
    (R. A. Fisher, The Design of Experiments (1935), §21). With 3 and 3 networks it cannot fall below 0.1, with 4 and 4
    below 0.029, with 5 and 5 below 0.008.

    Parameters
    ----------
    first, second : one value for each network, such as the fraction of structures that broke.
    """
    values, k = [*first, *second], len(first)

    def difference(chosen: Sequence[int]) -> float:
        mine = math.fsum(values[i] for i in chosen)
        return abs(mine / k - (math.fsum(values) - mine) / (len(values) - k))

    observed = difference(range(k))
    divisions = list(combinations(range(len(values)), k))
    return sum(difference(chosen) >= observed - 1e-9 for chosen in divisions) / len(divisions)

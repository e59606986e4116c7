"""Two simulations, or two arms of a run, compared, as types."""

from __future__ import annotations

from mdl_physpre.dynamics.verdicts.log_rank import BreakingComparison
from mdl_physpre.utils.record import Record


class Pair(Record):
    """Two simulations, or two arms, compared.

    p_value : of the exact test of the counts; ``None`` where nothing can be compared.
    times : their times of failure compared.
    """

    first: str
    second: str
    p_value: float | None
    times: BreakingComparison | None = None


class StructurePair(Pair):
    """The same structures simulated with two networks.

    shared : structures of both. first_only, second_only, both : how many of them broke with which.
    different : names that both have for different structures.
    """

    shared: int
    first_only: int
    second_only: int
    both: int
    different: tuple[str, ...] = ()


class ReplicaPair(Pair):
    """Two arms with several replicas each: how many structures broke with each replica, of ``n_each``."""

    first_each: tuple[int, ...]
    second_each: tuple[int, ...]
    n_each: int

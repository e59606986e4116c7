"""What a stress test found: the point at which each structure broke, on a scale that rises from 0 or a start."""

from __future__ import annotations

from typing import Any

from mdl_physpre.dynamics.oracle_errors import OracleErrors
from mdl_physpre.dynamics.verdicts.survival import Observation
from mdl_physpre.utils.record import Record

UNCERTAIN = "uncertain_value"
"""Metric: where on the scale the spread of a committee passed its bound, whether the structure broke by it or not."""


class BreakingPoint(Record):
    """Where one structure broke.

    structure_id, index, formula, n_atoms : what names it; ``index`` is its place in the list of structures.
    value : the point of the scale, in the unit of the test, at which it broke; where it did not, the end of the scale
        that it reached (a censored observation).
    broken : whether it broke.
    reason, text : why, as the reasons of a :class:`~mdl_physpre.dynamics.Verdict`, and in a sentence.
    step : of the dynamics or of the ladder, at which it broke or ended.
    metrics : what else was measured; ``None`` where a number is not finite.
    """

    structure_id: str
    index: int
    formula: str
    n_atoms: int
    value: float
    broken: bool
    reason: str | None = None
    text: str = ""
    step: int = 0
    metrics: dict[str, Any] = {}


class StressResult(Record):
    """One stress test of all structures with one potential.

    test : its registered name: ``heating``, ``compression``, ``collisions``, ``random_starts``, …
    quantity, unit : of the scale, such as ``temperature`` and ``K``.
    points : of each structure, in order. settings : of the test. seconds : that it took.
    oracle : what a reference says of frames along the test; ``None`` where none was asked.
    """

    test: str
    quantity: str
    unit: str
    points: tuple[BreakingPoint, ...]
    settings: dict[str, Any] = {}
    oracle: OracleErrors | None = None
    seconds: float = 0.0

    def observations(self, network: str = "") -> list[Observation]:
        """Its points as observations of :func:`~mdl_physpre.dynamics.breaking_statistics`, each structure by its place.

        Parameters
        ----------
        network : that was tested.
        """
        return [Observation(p.value, p.broken, p.index, network, p.reason) for p in self.points]

    def uncertain_observations(self, network: str = "") -> list[Observation]:
        """The same of where the spread of a committee passed its bound; a structure that broke before is censored.

        Empty without a bound, and of a potential that gives no spread.
        """
        judged = [p for p in self.points if UNCERTAIN in p.metrics]
        return [
            Observation(p.value if at is None else at, at is not None, p.index, network, "uncertain")
            for p, at in ((p, p.metrics[UNCERTAIN]) for p in judged)
        ]

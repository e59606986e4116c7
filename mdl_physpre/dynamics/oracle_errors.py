"""Errors of a potential along its own simulations, against an oracle: what they are, and what they say together.

For N atoms with forces F of the potential and F° of the oracle, and their energies E and E°, a frame at time t has

energy error      [(E(t) − E(0)) − (E°(t) − E°(0))] / N, with 0 the first frame of the same structure: two references
                  may differ by a zero of energy for each element, which says nothing of the forces
force error       Σ |F − F°| / 3N (mae) and √(Σ (F − F°)² / 3N) (rmse)
cosine            Σ F·F° / (√Σ F² √Σ F°²)

A frame is wrong where rmse > bound · max(√(Σ F°² / 3N), floor). The floor is 0.05 eV/Å: below that, forces are too
small to be wrong by much. In a relaxation it is 1 eV/Å, as large as thermal forces are: where the potential's own
forces vanish, the oracle's are the error, whatever their size. A structure is wrong by the oracle from the first such
frame on.

Errors are counted along a scale: the time of a simulation, or the scale of a stress test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pydantic import AliasChoices, Field

from mdl_physpre.dynamics.verdicts.statistics import clustered_interval
from mdl_physpre.dynamics.verdicts.verdict import Count, wilson_interval
from mdl_physpre.utils.record import Record

BINS = 10
FLOOR, RESTING_FLOOR = 0.05, 1.0  # eV/Å


class OracleFrame(Record):
    """One frame, see the module; ``None`` where there is no such number.

    value : where on the scale: the time in fs, or the point of a stress test. step : of the dynamics or of the ladder.
    time_fs, temperature, thermostat, min_distance : fs; K, of the atoms and of the thermostat; Å.
    energy_error, forces_mae, forces_rmse, oracle_forces_rms : meV/atom; eV/Å.
    force_spread : the largest of the atoms, eV/Å, where the potential is a committee.
    at_break : whether the structure broke here. at_rest : whether it was being relaxed.
    """

    structure_id: str
    index: int
    step: int
    value: float
    time_fs: float | None = None
    temperature: float | None = None
    thermostat: float | None = None
    min_distance: float | None
    energy_error: float
    forces_mae: float
    forces_rmse: float
    oracle_forces_rms: float
    forces_cosine: float | None
    force_spread: float | None = None
    at_break: bool
    at_rest: bool = False

    @property
    def relative_error(self) -> float:
        """The error of the forces over the oracle's forces, or the floor."""
        return self.forces_rmse / max(self.oracle_forces_rms, RESTING_FLOOR if self.at_rest else FLOOR)

    def wrong(self, bound: float) -> bool:
        """Whether the error of the forces passes the bound."""
        return self.relative_error > bound


class OracleMeans(Record):
    """Means over frames, those at which a structure broke left out; ``None`` without frames.

    frames : their number. energy_error : the mean with its sign, meV/atom; energy_mae : of the absolute values.
    forces_rmse, oracle_forces_rms : roots of the mean squares, eV/Å. relative_error : of the forces, see the module.
    wrong_frames : the fraction that is wrong.
    """

    frames: int
    energy_error: float | None = None
    energy_mae: float | None = None
    forces_mae: float | None = None
    forces_rmse: float | None = None
    oracle_forces_rms: float | None = None
    forces_cosine: float | None = None
    force_spread: float | None = None
    temperature: float | None = None
    min_distance: float | None = None
    relative_error: float | None = None
    wrong_frames: float | None = None


class OracleBin(OracleMeans):
    """Means over frames of all structures between two points of the scale, or at one."""

    start: float = Field(validation_alias=AliasChoices("start", "start_fs"))  # as it was called when it was a time
    end: float = Field(validation_alias=AliasChoices("end", "end_fs"))

    def words(self, factor: float = 1.0) -> str:
        """``0.1 to 0.2``, or the one point; ``factor`` : to the unit that is shown."""
        return " to ".join(f"{value * factor:.4g}" for value in dict.fromkeys((self.start, self.end)))


class OracleStructure(OracleMeans):
    """Means over the frames of one structure.

    failed : by its verdict, or whether it broke. break_forces_rmse, break_energy_error : at the frame at which it
        broke, eV/Å and meV/atom.
    wrong_step, wrong_value : of its first wrong frame, the one at which it broke included; ``None``: none.
    """

    structure_id: str
    index: int
    failed: bool
    break_forces_rmse: float | None = None
    break_energy_error: float | None = None
    wrong_step: int | None = None
    wrong_value: float | None = None


class OracleErrors(Record):
    """What an oracle says of simulations or stress tests with a potential.

    oracle, bound : its name; see the module. quantity, unit : of the scale, such as ``time`` and ``fs``.
    means : over all frames. bins : along the scale. structures : one by one.
    wrong : structures that are wrong by the oracle, of those with frames that it evaluated; whole_and_wrong : of these,
        of those that their verdicts do not call failed.
    left_out : a sentence for each frame that could not be compared.
    rows : the frames one by one.
    """

    oracle: str
    bound: float
    quantity: str = "time"
    unit: str = "fs"
    means: OracleMeans
    bins: tuple[OracleBin, ...]
    structures: tuple[OracleStructure, ...]
    wrong: Count
    whole_and_wrong: Count
    left_out: tuple[str, ...] = ()
    rows: tuple[OracleFrame, ...] = ()

    def summary(self) -> OracleErrors:
        """The same without the rows."""
        return self.model_copy(update={"rows": ()})


def gathered(
    oracle: str,
    bound: float,
    rows: Sequence[OracleFrame],
    structures: Sequence[tuple[str, int, bool]],
    ends: tuple[float, float],
    scale: tuple[str, str] = ("time", "fs"),
    left_out: Sequence[str] = (),
) -> OracleErrors:
    """What frames say together.

    Parameters
    ----------
    rows : of all structures, each structure's in order along the scale.
    structures : name, place, and whether it failed, of each.
    ends : of the scale. A bin is as wide as a tenth of what lies between; where frames are at few points, one point.
    scale : its quantity and unit.
    """
    by_structure: dict[int, list[OracleFrame]] = {index: [] for _, index, _ in structures}
    for row in rows:
        by_structure[row.index].append(row)
    found = tuple(_of_structure(name, k, failed, by_structure[k], bound) for name, k, failed in structures)
    running = [row for row in rows if not row.at_break]
    return OracleErrors(
        oracle=oracle,
        bound=bound,
        quantity=scale[0],
        unit=scale[1],
        means=_means(running, bound),
        bins=_bins(running, bound, *ends),
        structures=found,
        left_out=tuple(left_out),
        rows=tuple(rows),
        **_counts([found]),
    )


def _bins(rows: Sequence[OracleFrame], bound: float, start: float, end: float) -> tuple[OracleBin, ...]:
    width = (end - start) / BINS or 1.0
    few = len({row.value for row in rows}) <= BINS
    binned: dict[tuple[float, float], list[OracleFrame]] = {}
    for row in sorted(rows, key=lambda row: row.value):
        k = int((row.value - start) // width)
        k = min(k, BINS - 1) if row.value <= end else k
        place = (row.value, row.value) if few else (start + k * width, start + (k + 1) * width)
        binned.setdefault(place, []).append(row)
    return tuple(OracleBin(start=a, end=b, **dict(_means(own, bound))) for (a, b), own in binned.items())


def _of_structure(name: str, index: int, failed: bool, rows: Sequence[OracleFrame], bound: float) -> OracleStructure:
    wrong = next((row for row in rows if row.wrong(bound)), None)
    broke = next((row for row in rows if row.at_break), None)
    return OracleStructure(
        structure_id=name,
        index=index,
        failed=failed,
        break_forces_rmse=None if broke is None else broke.forces_rmse,
        break_energy_error=None if broke is None else broke.energy_error,
        wrong_step=None if wrong is None else wrong.step,
        wrong_value=None if wrong is None else wrong.value,
        **dict(_means([row for row in rows if not row.at_break], bound)),
    )


def _means(rows: Sequence[OracleFrame], bound: float) -> OracleMeans:
    each = []
    for row in rows:
        own = {**dict(row), "energy_mae": abs(row.energy_error), "relative_error": row.relative_error}
        own["wrong_frames"] = float(row.wrong(bound))
        each.append(OracleMeans(frames=1, **{k: v for k, v in own.items() if k in OracleMeans.model_fields}))
    return _together(each)


def _together(each: Sequence[OracleMeans]) -> OracleMeans:
    """Means of means, weighted with their numbers of frames."""

    def mean(name: str) -> float | None:
        known = [(value, one.frames) for one in each if (value := getattr(one, name)) is not None]
        n = sum(frames for _, frames in known)
        if not n:
            return None
        if name.endswith(("rmse", "rms")):
            return math.sqrt(sum(value**2 * frames for value, frames in known) / n)
        return sum(value * frames for value, frames in known) / n

    names = OracleMeans.model_fields.keys() - {"frames"}
    return OracleMeans(frames=sum(one.frames for one in each), **{name: mean(name) for name in names})


def _counts(networks: Sequence[Sequence[OracleStructure]]) -> dict[str, Count]:
    """``wrong`` and ``whole_and_wrong`` over the structures of one or of several networks."""

    def count(keep: Callable[[OracleStructure], bool]) -> Count:
        kept = [
            [one for one in own if (one.frames or one.break_forces_rmse is not None) and keep(one)] for own in networks
        ]
        wrong, sizes = [sum(one.wrong_step is not None for one in own) for own in kept], [len(own) for own in kept]
        interval = clustered_interval(wrong, sizes) if len(networks) > 1 else wilson_interval(wrong[0], sizes[0])
        each = tuple(wrong) if len(networks) > 1 else ()
        return Count(count=sum(wrong), n=sum(sizes), interval=interval, each=each)

    return {"wrong": count(lambda one: True), "whole_and_wrong": count(lambda one: not one.failed)}


def pooled_oracle_errors(each: Sequence[OracleErrors]) -> OracleErrors | None:
    """Errors of the same structures with several networks, taken together, without rows; ``None`` where there are none.

    Intervals are :func:`~mdl_physpre.dynamics.verdicts.statistics.clustered_interval`.
    """
    if len(each) < 2:
        return each[0].summary() if each else None
    binned: dict[tuple[float, float], list[OracleBin]] = {}
    for one in each:
        for own in one.bins:
            binned.setdefault((own.start, own.end), []).append(own)
    return OracleErrors(
        oracle=each[0].oracle,
        bound=each[0].bound,
        quantity=each[0].quantity,
        unit=each[0].unit,
        means=_together([one.means for one in each]),
        bins=tuple(OracleBin(start=a, end=b, **dict(_together(own))) for (a, b), own in sorted(binned.items())),
        structures=tuple(one for own in each for one in own.structures),
        left_out=tuple(text for one in each for text in one.left_out),
        **_counts([one.structures for one in each]),
    )

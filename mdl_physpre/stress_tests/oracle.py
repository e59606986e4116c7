"""Stress tests against an oracle: a reference that evaluates frames taken along the way to where structures break.

Errors are those of :mod:`mdl_physpre.dynamics.oracle_errors`, along the scale of the test.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import TypeVar

import numpy as np
from ase import Atoms

from mdl_physpre.dynamics.oracle import OracleSettings, compare_with_oracle, errors_along
from mdl_physpre.dynamics.oracle_errors import OracleErrors, gathered
from mdl_physpre.dynamics.running.storage import VERDICTS
from mdl_physpre.dynamics.running.trajectory_frames import read_frames
from mdl_physpre.errors import DataError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.stress_tests.kinds import make_test
from mdl_physpre.stress_tests.ladder import FRAMES
from mdl_physpre.stress_tests.result import StressResult
from mdl_physpre.utils.settings import Settings

logger = logging.getLogger(__name__)
AnySettings = TypeVar("AnySettings", bound=Settings)


def with_frames(settings: AnySettings, along: OracleSettings) -> AnySettings:
    """The settings of a test, with frames for the oracle where there is one; as they are for a test without frames."""
    if along.oracle is None or not hasattr(settings, FRAMES) or getattr(settings, FRAMES):
        return settings
    return settings.changed(frames=along.oracle_frames)


def with_oracle(result: StressResult, folder: Path, oracle: Potential, along: OracleSettings) -> StressResult:
    """A result with what an oracle says of the frames that the test has stored in its folder.

    Without it where the test has stored no frames, which is said.
    """
    try:
        if (folder / FRAMES).is_dir():
            found = _of_ladder(result, folder, oracle, along)
        elif (folder / VERDICTS).is_file():
            found = _of_simulation(result, folder, oracle, along)
        else:
            raise DataError("it stores no frames")
        return result.model_copy(update={"oracle": found})
    except DataError as error:
        logger.warning("%s: no comparison with an oracle: %s", result.test, error)
        return result


def _of_simulation(result: StressResult, folder: Path, oracle: Potential, along: OracleSettings) -> OracleErrors:
    """Of a test that is one simulation: by temperature where that is its scale, else by time."""
    found = compare_with_oracle(folder, oracle, along)
    if result.quantity != "temperature":
        return found
    rows = [row.model_copy(update={"value": row.thermostat}) for row in found.rows]
    return gathered(found.oracle, found.bound, rows, _structures(result), *_scale(result), found.left_out)


def _of_ladder(result: StressResult, folder: Path, oracle: Potential, along: OracleSettings) -> OracleErrors:
    """Of a test that goes up rung by rung."""
    frames: dict[int, list[Atoms]] = {point.index: [] for point in result.points}
    for path in sorted((folder / FRAMES).iterdir()):
        for frame in read_frames(path):
            frames[int(frame.info["index"])].append(frame)
    plain = json.dumps([point.plain() for point in result.points], sort_keys=True)
    name = along.oracle or str(getattr(oracle, "name", type(oracle).__name__))
    return errors_along(
        folder,
        (name, oracle),
        along,
        hashlib.sha256(plain.encode()).hexdigest(),
        [(p.index, p.structure_id, _some(frames[p.index], along.oracle_frames)) for p in result.points],
        _structures(result),
        *_scale(result),
    )


def _some(frames: list[Atoms], n: int) -> list[Atoms]:
    """The first frame, about ``n`` more evenly, and those where the structure broke."""
    kept = set(np.linspace(0, len(frames) - 1, n + 1).round().astype(int).tolist()) if frames else set()
    return [frame for k, frame in enumerate(frames) if k in kept or frame.info["at_break"]]


def _structures(result: StressResult) -> list[tuple[str, int, bool]]:
    return [(point.structure_id, point.index, point.broken) for point in result.points]


def _scale(result: StressResult) -> tuple[tuple[float, float], tuple[str, str]]:
    """Between which points bins are, and quantity and unit."""
    return make_test(result.test, result.settings).ends(), (result.quantity, result.unit)

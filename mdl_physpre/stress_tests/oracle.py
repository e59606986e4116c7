"""Stress tests against an oracle: a reference that evaluates frames taken along the way to where structures break."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypeVar

from mdl_physpre.dynamics.oracle import OracleSettings, compare_with_oracle
from mdl_physpre.dynamics.running.storage import VERDICTS
from mdl_physpre.errors import DataError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.stress_tests.result import StressResult
from mdl_physpre.utils.settings import Settings

logger = logging.getLogger(__name__)
FRAMES = "frames"
AnySettings = TypeVar("AnySettings", bound=Settings)


def with_frames(settings: AnySettings, along: OracleSettings) -> AnySettings:
    """The settings of a test, with frames for the oracle where there is one; as they are for a test without frames."""
    if along.oracle is None or not hasattr(settings, FRAMES) or getattr(settings, FRAMES):
        return settings
    return settings.changed(frames=along.oracle_frames)


def with_oracle(result: StressResult, folder: Path, oracle: Potential, along: OracleSettings) -> StressResult:
    """A result with what an oracle says of the frames that the test has stored in its folder.

    Without it where the test is no molecular dynamics, or has stored no frames, which is said.
    """
    if not (folder / VERDICTS).is_file():
        logger.warning("%s: stores no frames that an oracle could look at", result.test)
        return result
    try:
        return result.model_copy(update={"oracle": compare_with_oracle(folder, oracle, along)})
    except DataError as error:
        logger.warning("%s: no comparison with an oracle: %s", result.test, error)
        return result

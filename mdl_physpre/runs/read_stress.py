"""Results of stress tests in folders of ``physpre stress --out``, of a network, or of a run."""

from __future__ import annotations

import json
from pathlib import Path

from mdl_physpre.errors import DataError
from mdl_physpre.runs import layout
from mdl_physpre.stress_tests.result import StressResult
from mdl_physpre.stress_tests.run import RESULT

STRESS = "stress"  # folder of a network


def read_stress(folder: Path) -> dict[str, dict[str, StressResult]]:
    """Name of a network, or of the folder → stress test → what it found; empty where there is none.

    Raises
    ------
    DataError : a result that is damaged.
    """
    alone = [*folder.glob(f"*/{RESULT}"), *folder.glob(f"{STRESS}/*/{RESULT}")]
    found: dict[str, dict[str, StressResult]] = {}
    for path in sorted(alone or folder.glob(f"{layout.NETWORKS}/*/{STRESS}/*/{RESULT}")):
        place = path.parent.parent
        name = (place.parent if place.name == STRESS else place).name
        result = _read(path)
        found.setdefault(name, {})[result.test] = result
    return found


def _read(path: Path) -> StressResult:
    try:
        return StressResult.model_validate(json.loads(path.read_text())["result"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as the result of a stress test ({error}); test again") from None

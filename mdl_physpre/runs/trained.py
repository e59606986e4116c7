"""The trained networks of an arm, found by the folder of a run and the name of the arm."""

from __future__ import annotations

import logging
from pathlib import Path

from mdl_physpre.errors import CheckpointError, DataError, nearest
from mdl_physpre.runs.layout import Plan
from mdl_physpre.runs.read import read_plan
from mdl_physpre.runs.stage import stage_result

logger = logging.getLogger(__name__)


def arm_checkpoints(path: Path) -> list[Path]:
    """Checkpoints of all trained networks of ``RUN/ARM``, the first network first.

    Of an unfinished run those that are there, with a warning.

    Raises
    ------
    CheckpointError : no run there, no such arm in it, fewer than two networks, or a file that is missing.
    """
    folder, arm = path.parent, path.name
    try:
        _, plan = read_plan(folder)
    except DataError as error:
        raise CheckpointError(str(error)) from None
    arms = [one.name for one in plan.arms]
    if arm not in arms:
        raise CheckpointError(f"{folder}: this run has no arm {arm!r}; {nearest(arm, arms)}")
    found = trained_networks(folder, plan, arm)
    wanted = len(plan.of_arm(arm))
    if len(found) < 2:
        said = f"{path}: a committee needs two networks, and {len(found)} of {wanted} is trained"
        only = f"; open it by its file, {found[0]}" if found else ""
        raise CheckpointError(said + only + "; physpre.n_networks says how many a run trains" * (wanted < 2))
    if missing := [str(file) for file in found if not file.is_file()]:
        raise CheckpointError(f"{path}: a checkpoint is gone: {', '.join(missing)}; run physpre run again")
    if len(found) < wanted:
        logger.warning("%s: %d of %d networks are trained; the committee is made of these", path, len(found), wanted)
    return found


def trained_networks(folder: Path, plan: Plan, arm: str) -> list[Path]:
    """Checkpoints of the networks of an arm that are trained, by what their stages say."""
    results = [stage_result(network.folder(folder)) for network in plan.of_arm(arm)]
    return [folder / done["checkpoint"] for done in results if done]

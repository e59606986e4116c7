"""The third stage of a run, of all networks of an arm together: what they are as a committee on the test sets."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from mdl_physpre.analysis.calibration import CommitteeErrors, committee_errors
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.runs.layout import COMMITTEE, Plan
from mdl_physpre.runs.stage import Stage, stage_key
from mdl_physpre.runs.summary import committee_result
from mdl_physpre.workflow.data import RunData

logger = logging.getLogger(__name__)


def committee_stage(
    folder: Path, data: RunData, plan: Plan, arm: str, device: str | torch.device
) -> dict[str, CommitteeErrors]:
    """3, committee: errors of the mean of an arm's networks, all trained, and what their spread says of it.

    Nothing where the arm has one network alone.
    """
    networks = plan.of_arm(arm)
    if len(networks) < 2:
        return {}
    place = networks[0].folder(folder) / COMMITTEE
    trained = [stage_key(network.folder(folder)) for network in networks]
    stage = Stage(place, {"trained": trained, "data": data.key, "extra_tests": data.extra_key}, free=True)
    if not stage.done:
        stage.begin()
        committee = load_potential(folder / arm, device)
        stage.finish({COMMITTEE: {name: committee_errors(committee, own) for name, own in data.test_sets.items()}})
    return committee_result(folder, plan, arm)

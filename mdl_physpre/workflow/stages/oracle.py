"""The errors of a network along its own dynamics, by the reference that ``physpre.dynamics.oracle`` names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ase import Atoms

from mdl_physpre.dynamics.oracle import compare_with_oracle, open_oracle
from mdl_physpre.runs.layout import DYNAMICS, ORACLE, Network, Plan
from mdl_physpre.runs.stage import Stage, hash_of_file, stage_key, stage_result
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.setup import device_of

logger = logging.getLogger(__name__)


def try_oracle(folder: Path, config: Config, plan: Plan, structures: Sequence[Atoms]) -> None:
    """Open and try the oracle, before anything is trained; raises what :func:`open_oracle` says.

    Not where every network has been compared with one.
    """
    name = config.physpre.dynamics.oracle
    if name is not None and plan.dynamics and not all(stage_result(n.folder(folder) / ORACLE) for n in plan.networks):
        open_oracle(name, structures, device=device_of(config))


def oracle_stage(folder: Path, config: Config, plan: Plan, network: Network, structures: Sequence[Atoms]) -> None:
    """3, oracle: frames of the dynamics, which are done, evaluated by the oracle."""
    settings, dynamics = config.physpre.dynamics, network.folder(folder) / DYNAMICS
    assert settings.oracle is not None
    file = Path(settings.oracle)
    depends = {
        "dynamics": stage_key(dynamics),
        "oracle": [settings.oracle, hash_of_file(file) if file.is_file() else ""],
        "frames": [settings.oracle_frames, settings.oracle_bound],
    }
    stage = Stage(network.folder(folder) / ORACLE, depends)
    if stage.done:
        return
    logger.info("errors along the dynamics of %s, by %s", network.name, settings.oracle)
    oracle = open_oracle(settings.oracle, structures, device=device_of(config, plan.networks.index(network)))
    stage.begin()
    stage.finish(compare_with_oracle(dynamics, oracle, settings).summary().plain())

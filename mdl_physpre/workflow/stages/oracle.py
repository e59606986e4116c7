"""What the reference that ``physpre.dynamics.oracle`` names says of the dynamics of networks.

Errors along the dynamics of each network, on frames taken from it; and how atoms move in the dynamics of the oracle
itself, from the same start as the first network of each arm.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ase import Atoms

from mdl_physpre.dynamics.compare_motion import compare_motion
from mdl_physpre.dynamics.oracle import compare_with_oracle, open_oracle
from mdl_physpre.dynamics.running.simulate import simulate
from mdl_physpre.dynamics.verdicts.verdict import summarise
from mdl_physpre.runs.layout import DYNAMICS, MOTION, ORACLE, ORACLE_RUN, Network, Plan
from mdl_physpre.runs.stage import Stage, decisive, hash_of_file, stage_key, stage_result
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.data import RunData
from mdl_physpre.workflow.setup import device_of

logger = logging.getLogger(__name__)


def try_oracles(folder: Path, config: Config, data: RunData, plan: Plan) -> None:
    """Open and try oracles before anything is trained; raises what :func:`open_oracle` says.

    Not where every network has been compared with one.
    """
    folders = [network.folder(folder) for network in plan.networks]
    dynamics, stress, seed = config.physpre.dynamics, config.physpre.stress, config.task.seed
    if dynamics.oracle and plan.oracle and not all(stage_result(place / ORACLE) for place in folders):
        structures = data.drawn_tests(dynamics.n_structures, dynamics.min_atoms, seed)
        open_oracle(dynamics.oracle, structures, device=device_of(config))
    tested = [stage_result(n.stress_folder(folder, test)) for n in plan.networks for test in plan.stress]
    if stress.oracle and tested and not all(tested):
        structures = data.drawn_tests(stress.n_structures, stress.min_atoms, seed)
        open_oracle(stress.oracle, structures, device=device_of(config))


def oracle_stage(folder: Path, config: Config, plan: Plan, network: Network, structures: Sequence[Atoms]) -> None:
    """3, oracle: frames of the dynamics, which are done, evaluated by the oracle."""
    settings, dynamics = config.physpre.dynamics, network.folder(folder) / DYNAMICS
    frames = [settings.oracle_frames, settings.oracle_bound]
    depends = {"dynamics": stage_key(dynamics), "oracle": identity_of(settings.oracle), "frames": frames}
    stage = Stage(network.folder(folder) / ORACLE, depends, follows=("dynamics",))
    if stage.done:
        return
    logger.info("errors along the dynamics of %s, by %s", network.name, settings.oracle)
    oracle = open_oracle(str(settings.oracle), structures, device=device_of(config, plan.networks.index(network)))
    stage.begin()
    stage.finish(compare_with_oracle(dynamics, oracle, settings).summary().plain())


def oracle_trajectory_stage(
    folder: Path, config: Config, data: RunData, plan: Plan, structures: Sequence[Atoms]
) -> None:
    """4: the dynamics of the oracle, and those of the first network of each arm against it."""
    networks = [network for network in plan.networks if network.number == 1]
    settings = config.dynamics_settings().changed(seed=networks[0].seed)
    name, sizes = config.physpre.dynamics.oracle, [len(atoms) for atoms in structures]
    depends = {"oracle": identity_of(name), "settings": decisive(settings), "data": data.key, "structures": sizes}
    stage = Stage(folder / ORACLE_RUN, {**depends, "seed": config.task.seed})
    if not stage.done:
        logger.info("molecular dynamics, %s: %d structures, %d steps", name, len(structures), settings.steps)
        oracle = open_oracle(str(name), structures, device=device_of(config))
        stage.begin()
        stage.finish({"name": name, "counts": summarise(simulate(oracle, structures, settings, out=stage.folder))})
    dynamics = {network.arm.name: network.folder(folder) / DYNAMICS for network in networks}
    keys = {arm: stage_key(place) for arm, place in dynamics.items()}
    compared = Stage(stage.folder / MOTION, {"oracle": stage.key, "dynamics": keys}, free=True)
    if not compared.done:
        compared.begin()
        compared.finish({"arms": {arm: compare_motion(place, stage.folder) for arm, place in dynamics.items()}})


def identity_of(name: str | None) -> list[str]:
    """The name of an oracle, and a hash of the file that it is."""
    file = Path(str(name))
    return [str(name), hash_of_file(file) if file.is_file() else ""]

"""The third stage of a run: each network is trained, tested, simulated, and put to stress tests.

The networks of an arm are replicas that differ in their seed alone: their initial weights, the order of structures in
training, and the velocities at the start of the dynamics. Data, embedded-atom potential and pretraining set are the
same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from ase import Atoms

from mdl_physpre.dynamics.running.simulate import simulate
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts.verdict import summarise
from mdl_physpre.potentials.base import Potential
from mdl_physpre.runs.layout import DYNAMICS, PRETRAINING_SET, Network, Plan
from mdl_physpre.runs.stage import Stage, decisive, stage_key
from mdl_physpre.runs.summary import NetworkResult, network_result
from mdl_physpre.utils.devices import device_of_parameters, threads
from mdl_physpre.utils.overwrite import may_overwrite, overwriting
from mdl_physpre.utils.processes import Piece, run_in_processes
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.data import RunData, load_data
from mdl_physpre.workflow.setup import device_of
from mdl_physpre.workflow.stages.errors import errors_stage
from mdl_physpre.workflow.stages.oracle import oracle_stage
from mdl_physpre.workflow.stages.stress import stages_of, stress_stage
from mdl_physpre.workflow.stages.training import stage_of, training_stage

logger = logging.getLogger(__name__)


def network_results(folder: Path, config: Config, data: RunData, plan: Plan) -> Iterator[NetworkResult]:
    """3: what became of each network, as soon as that is known.

    With ``task.processes`` above 1 the work is done in as many processes first.
    """
    for network in plan.networks:  # before anything is done, and so that nothing is said by several processes
        check_stages(folder, config, data, plan, network)
    if config.task.processes > 1:
        given = (str(folder), config, plan)
        pieces = [Piece(network.name, (*given, network, may_overwrite())) for network in plan.networks]
        run_in_processes(_in_process, pieces, config.task.processes)
    for network in plan.networks:
        yield network_stages(folder, config, data, plan, network)


def check_stages(folder: Path, config: Config, data: RunData, plan: Plan, network: Network) -> None:
    """Raise WouldDelete where the stages of a network would delete what was done with other settings or data."""
    device = device_of(config, plan.networks.index(network))
    trained = stage_of(folder, config, data, network, pretraining_key(folder, network), device)
    trained.check()
    if plan.dynamics:
        _dynamics_stage_of(folder, config, data, network, trained.key, device)[0].check()
    if plan.stress:
        for _, _, test in stages_of(folder, config, data, network, trained.key, device):
            test.check()


def pretraining_key(folder: Path, network: Network) -> str:
    """The key of the pretraining set of a run, which a network depends on; empty where it needs none."""
    return stage_key(folder / PRETRAINING_SET) if network.arm.uses_pretraining_set else ""


def _in_process(folder: str, config: Config, plan: Plan, network: Network, overwrite: bool) -> None:
    for name, level in ((load_data.__module__, logging.WARNING), ("mdl_physpre.structures", logging.ERROR)):
        logging.getLogger(name).setLevel(level)  # the first process has said it
    with threads(config.task.threads), overwriting(overwrite):
        network_stages(Path(folder), config, load_data(config), plan, network)


def network_stages(folder: Path, config: Config, data: RunData, plan: Plan, network: Network) -> NetworkResult:
    """3: one network is trained, tested, simulated, compared with an oracle, put to stress tests; on one device."""
    device = device_of(config, plan.networks.index(network))
    potential, key = training_stage(folder, config, data, network, pretraining_key(folder, network), device)
    errors_stage(folder, data, network, potential, key, with_eam=plan.eam)
    if plan.dynamics:
        dynamics_stage(folder, config, data, network, potential, key)
    if plan.oracle:
        oracle_stage(folder, config, plan, network, dynamics_structures(config, data))
    if plan.stress:
        stress_stage(folder, config, data, network, potential, key)
    found = network_result(folder, network, plan)
    assert found is not None
    return found


def dynamics_stage(
    folder: Path, config: Config, data: RunData, network: Network, potential: Potential, key: str
) -> None:
    """3, dynamics: of test structures, the same for each network, each judged while it runs."""
    structures = dynamics_structures(config, data)
    stage, settings = _dynamics_stage_of(folder, config, data, network, key, device_of_parameters(potential))
    if stage.done:
        return
    logger.info("molecular dynamics, %s: %d structures, %d steps", network.name, len(structures), settings.steps)
    stage.begin()
    verdicts = simulate(potential, structures, settings, out=stage.folder)
    failing_steps = [verdict.first_failing_step for verdict in verdicts]
    stage.finish({"counts": summarise(verdicts), "failing_steps": failing_steps, "settings": settings.model_dump()})


def _dynamics_stage_of(
    folder: Path, config: Config, data: RunData, network: Network, key: str, device: str | torch.device
) -> tuple[Stage, DynamicsSettings]:
    """The stage that simulates with a network, trained in the stage of this key, and its settings."""
    sizes = [len(atoms) for atoms in dynamics_structures(config, data)]
    settings = config.dynamics_settings().changed(seed=network.seed, compile=config.task.compiles_on(str(device)))
    depends = {"trained": key, "settings": decisive(settings), "structures": sizes, "seed": config.task.seed}
    return Stage(network.folder(folder) / DYNAMICS, depends, follows=("trained",)), settings


def dynamics_structures(config: Config, data: RunData) -> list[Atoms]:
    """The test structures that are simulated."""
    wanted = config.physpre.dynamics
    return data.drawn_tests(wanted.n_structures, wanted.min_atoms, config.task.seed)

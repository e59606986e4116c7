"""Errors, stability test, table of arms and report of ``physpre run``, of the networks that MatDeepLearn trained.

``results/ID/run`` becomes a folder of ``physpre run`` whose trainings are done: the checkpoints of MatDeepLearn.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mdl_physpre.errors import ConfigError, PhyspreError
from mdl_physpre.potentials.checkpoints.matdeeplearn import CALCULATOR
from mdl_physpre.potentials.checkpoints.matdeeplearn_models import MODELS
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.potentials.open import open_potential
from mdl_physpre.runs.layout import EAM, PRETRAINING_SET, TEACHER, Network, plan_of
from mdl_physpre.runs.results import TrainingStage
from mdl_physpre.runs.stage import DONE, read_json, record_of
from mdl_physpre.training.arms import FINETUNE
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.data import RunData
from mdl_physpre.workflow.run import run
from mdl_physpre.workflow.setup import data_of_run, device_of, record_setup
from mdl_physpre.workflow.stages.network import pretraining_key
from mdl_physpre.workflow.stages.training import TrainedNetwork, stage_of

if TYPE_CHECKING:
    from mdl_physpre.hosts.matdeeplearn.plan import Plan, Stage

logger = logging.getLogger(__name__)
RUN = "run"


def report_config(engine: Config, ensemble: int) -> Config:
    """The configuration of ``results/ID/run``: the networks of an ensemble are replicas of their arm.

    Raises ConfigError where this package has no such network, or its data cannot be those of a run.
    """
    name = engine.model.name.rpartition(".")[2].lower()
    if name not in MODELS or name.startswith("eam"):
        raise ConfigError(
            f"physpre.report: {engine.model.name} is a network of MatDeepLearn alone; CGCNN and torchmd_etEarly, its "
            "own or those of this package, can be reported on. Leave physpre.report out, and see the last line of the "
            "log for what opens the checkpoints"
        )
    model = engine.model.changed(name="CGCNN" if name == "cgcnn" else "torchmd_etEarly", envelope=False)
    physpre = engine.physpre.model_copy(update={"n_networks": ensemble})
    return data_of_run(None, engine.model_copy(update={"model": model, "physpre": physpre}))[0]


def tell(plan: Plan) -> None:
    """Where the networks are, and what to do with them."""
    for arm in plan.stages():
        file = arm[-1].folder / "checkpoint_0" / "best_checkpoint.pt"
        logger.info("%s: %s", arm[-1].name, file)
    try:
        open_potential(file)
    except PhyspreError:  # a model that MatDeepLearn alone has
        route = f"calculator:{CALCULATOR}?checkpoint={file}&config={arm[-1].folder / 'config.yml'}"
        logger.info('physpre evaluate, physpre doctor and physpre md take them as "%s"', route)
    else:
        logger.info("physpre evaluate, physpre doctor and physpre md take these checkpoints")


def report_on(plan: Plan) -> None:
    """Test, simulate and compare the networks of a job where that is asked for; what is done already is left.

    What goes wrong is said, and spoils no training.
    """
    config, data, into = plan.reported, plan.data, plan.folder / RUN
    if config is None or data is None:
        return
    try:
        for part in (EAM, TEACHER, PRETRAINING_SET):
            if (plan.folder / part).is_dir():
                shutil.copytree(plan.folder / part, into / part, dirs_exist_ok=True)
        record_setup(into, config, data, device_of(config))  # by which a run is known
        trained = {arm.name: stages for arm, stages in zip(config.arms, plan.stages())}
        for network in plan_of(config.model_dump()).networks:
            _put(into, config, data, network, trained[network.arm.name])
        run(config, out=into)
    except PhyspreError as error:
        logger.error("physpre.report: %s. The networks are trained, as named above", error)


def _put(into: Path, config: Config, data: RunData, network: Network, trained: Sequence[Stage]) -> None:
    """The trainings of a network, done, in the folder of the run."""
    key = pretraining_key(into, network)
    stage = stage_of(into, config, data, network, key, device_of(config))
    if stage.done:
        return
    stage.begin()
    told, checkpoint, number = {}, Path(), network.number - 1
    for name, of_host in zip((*network.arm.stages, FINETUNE), trained):
        potential = open_potential(of_host.folder / f"checkpoint_{number}" / "best_checkpoint.pt")
        checkpoint = save_potential(stage.folder / name / "best.pt", potential)
        noted = read_json(of_host.folder / DONE)
        best = {key: noted[key][number] for key in ("best_loss", "best_epoch") if key in noted}
        told[name] = record_of(TrainingStage, {**noted, **best, "stopped_by": "max_epochs"}, of_host.folder)
    result = TrainedNetwork(checkpoint=str(checkpoint.relative_to(into)), training=told)
    stage.finish(result.plain())

"""Errors, stability test, table of arms and report of ``physpre run``, of the networks that MatDeepLearn trained.

``results/ID/run`` becomes a folder of ``physpre run`` whose trainings are done: the checkpoints of MatDeepLearn.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

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
from mdl_physpre.workflow.setup import device_of, network_of, record_setup
from mdl_physpre.workflow.stages.network import pretraining_key
from mdl_physpre.workflow.stages.training import TrainedNetwork, stage_of

logger = logging.getLogger(__name__)
RUN = "run"


def report_config(engine: Config, data: RunData, ensemble: int) -> Config:
    """The configuration of ``results/ID/run``: the networks of an ensemble are replicas of their arm.

    Raises ConfigError where this package has no such network.
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
    config = engine.model_copy(update={"model": model, "physpre": physpre})
    with torch.random.fork_rng(devices=[]):
        network_of(config, data)
    return config


def tell(folder: Path, trained: Sequence[Sequence[Path]]) -> None:
    """Where the networks of a job are, and what to do with them; parameters as in :func:`report_on`."""
    for stages in trained:
        file = stages[-1] / "checkpoint_0" / "best_checkpoint.pt"
        logger.info("%s: %s", stages[-1].relative_to(folder), file)
    try:
        open_potential(file)
    except PhyspreError:  # a model that MatDeepLearn alone has
        route = f"calculator:{CALCULATOR}?checkpoint={file}&config={stages[-1] / 'config.yml'}"
        logger.info('physpre evaluate, physpre doctor and physpre md take them as "%s"', route)
    else:
        logger.info("physpre evaluate, physpre doctor and physpre md take these checkpoints")


def report_on(folder: Path, config: Config, data: RunData, trained: Sequence[Sequence[Path]]) -> None:
    """Test, simulate and compare the networks of a job; what is done already is left.

    What goes wrong is said, and spoils no training.

    Parameters
    ----------
    folder : ``results/ID``.
    config : of :func:`report_config`.
    data : of the job.
    trained : for each arm the folders of its trainings, the finetuning last.
    """
    into = folder / RUN
    try:
        for part in (EAM, TEACHER, PRETRAINING_SET):
            if (folder / part).is_dir():
                shutil.copytree(folder / part, into / part, dirs_exist_ok=True)
        record_setup(into, config, data, device_of(config))  # by which a run is known
        of_arm = {arm.name: stages for arm, stages in zip(config.arms, trained)}
        for network in plan_of(config.model_dump()).networks:
            _put(into, config, data, network, of_arm[network.arm.name])
        run(config, out=into)
    except PhyspreError as error:
        logger.error("physpre.report: %s. The networks are trained, as named above", error)


def _put(into: Path, config: Config, data: RunData, network: Network, trained: Sequence[Path]) -> None:
    """The trainings of a network, done, in the folder of the run."""
    key = pretraining_key(into, network)
    stage = stage_of(into, config, data, network, key, device_of(config))
    if stage.done:
        return
    stage.begin()
    told, checkpoint, number = {}, Path(), network.number - 1
    for name, where in zip((*network.arm.stages, FINETUNE), trained):
        potential = open_potential(where / f"checkpoint_{number}" / "best_checkpoint.pt")
        checkpoint = save_potential(stage.folder / name / "best.pt", potential)
        noted = read_json(where / DONE)
        noted |= {key: noted[key][number] for key in ("best_loss", "best_epoch") if key in noted}
        told[name] = record_of(TrainingStage, {**noted, "stopped_by": "max_epochs"}, where)
    result = TrainedNetwork(checkpoint=str(checkpoint.relative_to(into)), training=told)
    stage.finish(result.plain())

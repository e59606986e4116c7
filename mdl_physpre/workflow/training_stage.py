"""The third stage of a run: one arm trained, from random weights to the checkpoint that is tested and simulated."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.checkpoints import build_backbone, load_potential
from mdl_physpre.pretraining.pretraining_set import OnlinePretrainingSet
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.structures.read import read_structures
from mdl_physpre.training.arms import parse_arm
from mdl_physpre.training.two_stage import initial_potential, pretrain_then_finetune, train_baseline
from mdl_physpre.workflow.config import Config
from mdl_physpre.workflow.data import RunData
from mdl_physpre.workflow.stages import Stage, decisive

logger = logging.getLogger(__name__)


def training_stage(
    folder: Path,
    config: Config,
    data: RunData,
    arm: str,
    pretraining_key: str,
    seed: int | None = None,
    stage_folder: Path | None = None,
) -> tuple[Potential, str]:
    """3: one arm trained; ``baseline`` on DFT alone, ``pretrain`` on EAM labels first.

    Parameters
    ----------
    folder : of the run; holds the stages that came before.
    pretraining_key : key of the stage that made the pretraining set; empty where the arm needs none.
    seed : of the initial weights and of the order of structures; ``task.seed`` where ``None``.
    stage_folder : where this network is trained, inside ``folder``; ``3-train/ARM`` where ``None``.

    Returns
    -------
    The trained potential, and the key of this stage.
    """
    seed = config.task.seed if seed is None else seed
    finetune, pretrain = (replace(s, seed=seed) for s in (config.training_settings(), config.pretraining_settings()))
    cutoff = config.dataset.preprocess_params.cutoff_radius
    hyperparameters = config.model.hyperparameters()
    stage = Stage(
        stage_folder or folder / "3-train" / arm,
        {
            "data": data.key,
            "model": config.model.name,
            "hyperparameters": hyperparameters,
            "cutoff": cutoff,
            "finetune": decisive(finetune),
            "elements": data.elements,
            "pretrain": [decisive(pretrain), pretraining_key, config.physpre.pretrain.online] * parse_arm(arm).pretrain,
        },
    )
    result = stage.result()
    if result is None:
        logger.info("training, arm %s", arm)
        stage.begin()
        cache = config.physpre.cache_dir
        potential = initial_potential(
            lambda: build_backbone(config.model.name, elements=data.elements, cutoff=cutoff, **hyperparameters),
            data.train,
            seed=seed,
        )
        train, val = (GraphDataset(s, cutoff, cache_dir=cache) for s in (data.train, data.val))
        if arm == "baseline":
            trained = train_baseline(potential, train, val, finetune, stage.folder)
        else:
            online = None
            if config.physpre.pretrain.online:
                eam = load_potential(folder / "1-eam" / "eam.pt")
                perturbation = config.perturbation_settings()
                online = OnlinePretrainingSet(data.train, perturbation, eam, config.task.seed, cutoff)
            first_train, first_val = (
                GraphDataset(read_structures(folder / "2-pretraining-set" / f"{name}.extxyz"), cutoff, cache_dir=cache)
                for name in ("train", "val")
            )
            trained = pretrain_then_finetune(
                potential, (first_train, first_val), (train, val), pretrain, finetune, stage.folder, online=online
            )
        losses = {
            name: {"best_loss": s.best_loss, "best_epoch": s.best_epoch, "stopped_by": s.stopped_by}
            for name, s in trained.stages.items()
        }
        result = stage.finish(
            {
                "checkpoint": str(trained.checkpoint.relative_to(folder)),
                "stages": losses,
                "budget": trained.budget(),
            }
        )
    return load_potential(folder / result["checkpoint"]), stage.key

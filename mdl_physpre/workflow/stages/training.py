"""The third stage of a run: one arm trained, from random weights to the checkpoint that is tested and simulated."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from ase import Atoms

from mdl_physpre.potentials.backbones.registry import build_backbone
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.pretraining.pretraining_set import OnlinePretrainingSet
from mdl_physpre.runs.stage import Stage, decisive, hash_of, hash_of_file
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.structures.read import read_structures
from mdl_physpre.training.arms import parse_arm
from mdl_physpre.training.two_stage import initial_potential, pretrain_then_finetune, train_baseline
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.data import RunData
from mdl_physpre.workflow.stages.saved_teacher import EAM, fitted_eam, load_teacher

logger = logging.getLogger(__name__)


def training_stage(
    folder: Path,
    config: Config,
    data: RunData,
    arm: str,
    pretraining_key: str,
    seed: int | None = None,
    stage_folder: Path | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Potential, str]:
    """3: one arm trained on DFT labels; with what its name says beside or before that (:mod:`training.arms`).

    Arms whose pretraining is the same share it: the first one does it, the others begin with a copy, and what it cost
    is part of the budget of each.

    Parameters
    ----------
    folder : of the run; holds the stages that came before.
    pretraining_key : key of the stage that made the pretraining set; empty where no arm needs one.
    seed : of the initial weights and of the order of structures; ``task.seed`` where ``None``.
    stage_folder : where this network is trained, inside ``folder``; ``3-train/ARM`` where ``None``.
    device : where it is trained, alone where ``task.devices`` is 1.

    Returns
    -------
    The trained potential, there, and the key of this stage.

    Raises
    ------
    ConfigError : a hybrid arm in a run whose ``physpre.eam.checkpoint`` is no embedded-atom potential.
    """
    seed = config.task.seed if seed is None else seed
    parts, physpre = parse_arm(arm), config.physpre
    where: dict[str, Any] = {"compile": config.task.compiles_on(str(device))}
    if config.task.devices == 1:
        where["device"] = str(device)
    finetune, pretrain = (
        s.changed(seed=seed, **where) for s in (config.training_settings(parts), config.pretraining_settings(parts))
    )
    cutoff = config.dataset.preprocess_params.cutoff_radius
    network = {
        "data": data.key,
        "model": config.model.name,
        "hyperparameters": config.model.hyperparameters(),
        "cutoff": cutoff,
        "elements": data.elements,
        **({"hybrid": hash_of_file(folder / EAM)} if parts.hybrid else {}),
    }
    pretraining = [decisive(pretrain), pretraining_key, physpre.pretrain.online] * parts.pretrain
    stage = Stage(
        stage_folder or folder / "3-train" / arm,
        {
            **network,
            "finetune": decisive(finetune),
            "pretrain": pretraining,
            **({"train_eam": physpre.hybrid.train_eam} if parts.hybrid else {}),
            **({"replay": physpre.replay.model_dump()} if parts.replay else {}),
        },
    )
    result = stage.result()
    if result is None:
        logger.info("training, arm %s", arm)
        stage.begin()
        first_key = hash_of([network, pretraining, seed]) if parts.pretrain else None
        potential = initial_potential(
            lambda: build_backbone(
                config.model.name, elements=data.elements, cutoff=cutoff, **config.model.hyperparameters()
            ),
            data.train,
            seed=seed,
            eam=fitted_eam(folder, config) if parts.hybrid else None,
            train_eam=physpre.hybrid.train_eam,
        )

        def graphs(structures: list[Atoms]) -> GraphDataset:
            return GraphDataset(structures, potential.cutoff, cache_dir=physpre.cache_dir)

        train, val = graphs(data.train), graphs(data.val)
        if not parts.pretrain:
            trained = train_baseline(potential, train, val, finetune, stage.folder)
        else:
            online = None
            if physpre.pretrain.online:
                teacher = load_teacher(folder, config, torch.device(device))
                online = OnlinePretrainingSet(
                    data.train,
                    config.perturbation_settings(),
                    teacher,
                    config.task.seed,
                    potential.cutoff,
                    workers=None if physpre.teacher is None else physpre.teacher.processes,
                )
            first = [graphs(read_structures(folder / "2-pretraining-set" / f"{n}.extxyz")) for n in ("train", "val")]
            copy_pretraining(folder / "3-train", stage.folder, first_key)
            trained = pretrain_then_finetune(
                potential,
                (first[0], first[1]),
                (train, val),
                pretrain,
                finetune,
                stage.folder,
                online=online,
                replay=(physpre.replay.share, physpre.replay.weight) if parts.replay else None,
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
                "pretraining": first_key,
            }
        )
    return load_potential(folder / result["checkpoint"], device), stage.key


def copy_pretraining(folder: Path, target: Path, key: str | None) -> None:
    """Copy the pretraining of an arm that is done, of the same key, into the folder of another that has none yet."""
    if (target / "pretrain").exists():
        return
    for done in sorted(folder.rglob("done.json")):
        try:
            result = json.loads(done.read_text())["result"]
        except FileNotFoundError:  # another process begins that stage anew
            continue
        if result.get("pretraining") == key and (done.parent / "pretrain" / "last.ckpt").exists():
            logger.info("%s: pretraining is that of %s", target.name, done.parent.name)
            part = target / ".pretrain.part"
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(done.parent / "pretrain", part)
            part.rename(target / "pretrain")
            return

"""The third stage of a run: one network of an arm trained, from random weights to the checkpoint that is tested."""

from __future__ import annotations

import logging
import shutil
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from ase import Atoms

from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.training_energies import TrainingEnergies
from mdl_physpre.potentials.zbl import repulsion_radii
from mdl_physpre.pretraining.pretraining_set import OnlinePretrainingSet
from mdl_physpre.runs.layout import NETWORKS, PRETRAINING_SET, Network
from mdl_physpre.runs.results import TrainingStage
from mdl_physpre.runs.stage import Stage, decisive, hash_of, hash_of_file, stage_result
from mdl_physpre.structures.read import read_structures
from mdl_physpre.training.arms import FINETUNE, Arm, Material, Online
from mdl_physpre.training.optimizer import SHAPES
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.training.train import TrainingResult
from mdl_physpre.training.two_stage import initial_potential, train_arm
from mdl_physpre.utils.record import Record
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.data import RunData
from mdl_physpre.workflow.setup import network_of
from mdl_physpre.workflow.stages.eam import fitted_eam, hybrid_file
from mdl_physpre.workflow.stages.teacher import load_teacher

logger = logging.getLogger(__name__)


class TrainedNetwork(Record):
    """What the stage gave.

    checkpoint : of the trained potential, from the folder of the run on.
    training : of each training of the arm by name, what came of it.
    short_range_radii : where the repulsion of nuclei in it ends, Å by pair; empty where it has none.
    before : a hash of what the trainings before finetuning depend on; empty where there is none.
    """

    checkpoint: str
    training: dict[str, TrainingStage]
    short_range_radii: dict[str, float] = {}
    before: str = ""


def training_stage(
    folder: Path,
    config: Config,
    data: RunData,
    network: Network,
    pretraining_key: str,
    device: str | torch.device = "cpu",
) -> tuple[Potential, str]:
    """3: one network of an arm trained, in its folder of the run.

    Arms whose trainings before finetuning are the same share them: the first one does them, the others begin with a
    copy, and what they cost is part of the budget of each.

    Parameters
    ----------
    folder : of the run; holds the stages that came before.
    network : its arm, and the seed of its initial weights and of the order of structures.
    pretraining_key : key of the stage that made the pretraining set; empty where no arm needs one.
    device : where it is trained, alone where ``task.devices`` is 1.

    Returns
    -------
    The trained potential, there, and the key of this stage.

    Raises
    ------
    ConfigError : an arm with the embedded-atom potential in a run whose ``physpre.eam.checkpoint`` is none.
    """
    arm, settings = network.arm, _settings_of_finetuning(config, network, str(device))
    stage = stage_of(folder, config, data, network, pretraining_key, device)
    before = str(stage.depends_on["before"])
    if not stage.done:
        logger.info("training, %s", network.name)
        stage.begin()
        for place in {p.name for p in stage.folder.iterdir() if p.is_dir()} - {*arm.stages, FINETUNE}:
            shutil.rmtree(stage.folder / place)  # tests of a network that is now trained further
        material = run_material(folder, config, data, torch.device(device))
        build = partial(network_of, config, data)
        trained_before = config.model.start_from is not None
        potential = initial_potential(build, arm, material, network.seed, trained_before)
        if before:
            copy_trainings(folder / NETWORKS, stage.folder, arm.stages, before)
        trained = train_arm(arm, potential, material, settings, stage.folder, cache_dir=config.physpre.cache_dir)
        result = TrainedNetwork(
            checkpoint=str(trained.checkpoint.relative_to(folder)),
            training={name: _told(found) for name, found in trained.stages.items()},
            short_range_radii=repulsion_radii(trained.potential),
            before=before,
        )
        stage.finish(result.plain())
    found = TrainedNetwork.model_validate(stage_result(stage.folder))
    return _with_training_energies(load_potential(folder / found.checkpoint, device), data), stage.key


def stage_of(
    folder: Path,
    config: Config,
    data: RunData,
    network: Network,
    pretraining_key: str,
    device: str | torch.device = "cpu",
) -> Stage:
    """The stage that trains a network; parameters as in :func:`training_stage`."""
    arm, model, settings = network.arm, config.model, _settings_of_finetuning(config, network, str(device))
    start = {
        "data": data.key,
        "model": model.name,
        "hyperparameters": model.hyperparameters,
        "cutoff": model.cutoff,
        "elements": data.elements,
        "eam": hash_of_file(folder / hybrid_file(config)) if arm.uses_eam else "",
        "pretraining_set": pretraining_key if arm.uses_pretraining_set else "",
    }
    if model.start_from is not None:
        start["start_from"] = hash_of_file(Path(model.start_from))
    depends = {"before": _key_before_finetuning(arm, settings, start), "parts": _settings(arm)}
    finetune = decisive(arm.settings_of(FINETUNE, settings))
    return Stage(network.folder(folder), {**start, **depends, "finetune": finetune}, grows=_grows(finetune))


def _grows(finetune: dict[str, Any]) -> tuple[str, ...]:
    """Where the length of the finetuning stands; nowhere where the rate of every step depends on it."""
    if finetune.get("schedule") in SHAPES:
        return ()
    return ("finetune.max_epochs" if finetune.get("max_steps") is None else "finetune.max_steps",)


def _with_training_energies(potential: Potential, data: RunData) -> Potential:
    """The potential, with the energies it was trained on; checkpoints of earlier versions do not say them."""
    if potential.training_energies is None:
        potential.training_energies = TrainingEnergies.of(data.train)
    return potential


def _settings_of_finetuning(config: Config, network: Network, device: str) -> TrainingSettings:
    where: dict[str, Any] = {"compile": config.task.compiles_on(device)}
    if config.task.devices == 1:
        where["device"] = device
    return config.training_settings().changed(seed=network.seed, **where)


def _told(result: TrainingResult) -> TrainingStage:
    return TrainingStage(**{name: getattr(result, name) for name in TrainingStage.model_fields})


def _settings(arm: Arm, before_finetuning: bool = False) -> dict[str, Any]:
    parts = [part for part in arm.parts if part.acts_before_finetuning or not before_finetuning]
    return {part.name: part.settings.asked("json") for part in parts}


def _key_before_finetuning(arm: Arm, settings: TrainingSettings, start: dict[str, Any]) -> str:
    """A hash of what the trainings before finetuning depend on; empty where there is none."""
    stages = {stage: decisive(arm.settings_of(stage, settings)) for stage in arm.stages}
    return hash_of([start, stages, _settings(arm, before_finetuning=True)]) if stages else ""


def run_material(folder: Path, config: Config, data: RunData, device: torch.device) -> Material:
    """What the parts of an arm can use of the run in a folder; a teacher works on a device."""

    @cache
    def pretraining_set() -> tuple[list[Atoms], list[Atoms]]:
        made = folder / PRETRAINING_SET
        train, val = (read_structures(made / f"{name}.extxyz", check=False) for name in ("train", "val"))
        return train, val  # checked when they were made

    def online(cutoff: float) -> Online:
        teacher, named = load_teacher(folder, config, device), config.physpre.teacher
        workers = None if named is None else named.processes
        return OnlinePretrainingSet(
            data.train, config.physpre.perturbation, teacher, config.task.seed, cutoff, workers=workers
        )

    return Material(data.train, data.val, lambda: fitted_eam(folder, config), pretraining_set, online, data.isolated)


def copy_trainings(networks: Path, target: Path, stages: tuple[str, ...], key: str) -> None:
    """Copy the trainings before finetuning that another network has finished, for the same key, where there are none.

    networks : folder of all networks. target : of this one. stages : names of these trainings.
    """
    if any((target / stage).exists() for stage in stages):
        return
    for done in sorted(networks.glob("*/done.json")):
        other = done.parent  # without a result where another process begins it anew
        if stage_result(other).get("before") == key and all((other / s / "last.ckpt").exists() for s in stages):
            logger.info("%s: pretraining is that of %s", target.name, other.name)
            for stage in stages:
                part = target / f".{stage}.part"
                shutil.rmtree(part, ignore_errors=True)
                shutil.copytree(other / stage, part)
            for stage in stages:
                (target / f".{stage}.part").rename(target / stage)
            return

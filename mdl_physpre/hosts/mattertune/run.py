"""``mattertune pretrain`` and ``finetune``: EAM, pretraining set, pretraining, finetuning, with the host's own trainer.

    1-eam               the embedded-atom potential, fitted to the training structures
    2-pretraining-set   perturbed training and validation structures with its labels
    3-pretrain          the model trained on them
    4-finetune          the same weights trained on the data of the configuration

Each stage has a folder and is done once its ``done.json`` stands; called again, a run goes on after the last of them.
Stages 3 and 4 hold the host's checkpoint, its log, and ``config.yml``, with which the host repeats the stage by itself.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mdl_physpre.errors import CheckpointError, ConfigError, DataError
from mdl_physpre.hosts.mattertune.config_file import load_mattertune_config, validated
from mdl_physpre.hosts.mattertune.energies import say_that_none_is_fitted, with_energy_reference
from mdl_physpre.hosts.mattertune.graphs import say_what_lacks
from mdl_physpre.hosts.mattertune.plugin import register
from mdl_physpre.hosts.mattertune.ranks import (
    START,
    begin_preparing,
    end_preparing,
    is_first,
    said_by_first,
    wait_until_prepared,
)
from mdl_physpre.hosts.mattertune.resume import LAST, begin_training, fit_from, resumes
from mdl_physpre.hosts.mattertune.settings import Physpre
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.checkpoints.mattertune import read_mattertune_checkpoint
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.potentials.training_energies import TrainingEnergies
from mdl_physpre.runs.layout import PRETRAINING_SET
from mdl_physpre.runs.stage import Stage, hash_of, hash_of_file
from mdl_physpre.structures.graph import content_hash
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.utils.processes import run_lock
from mdl_physpre.workflow.stages.eam import fit_stage
from mdl_physpre.workflow.stages.pretraining_set import make_set_stage

logger = logging.getLogger(__name__)


def finetune(
    path: str | Path, overrides: Sequence[str] = (), out: str | Path | None = None, *, pretrain_only: bool = False
) -> Path:
    """Run every stage of a MatterTune configuration that is not done yet.

    Parameters
    ----------
    path : YAML with the host's sections, and ``physpre`` for what comes before the finetuning.
    overrides : ``section.key=value``.
    out : folder of the run; ``runs/NAME`` where None.
    pretrain_only : stop after pretraining.

    Returns
    -------
    The checkpoint of the last stage, a file of the host.

    Raises
    ------
    HostError : MatterTune is missing, or of a version that lacks something.
    ConfigError, DataError, FitError, CheckpointError : each with what to do about it.
    """
    register()
    raw, physpre = load_mattertune_config(path, overrides)
    raw = with_averages(raw)
    if pretrain_only and (physpre is None or physpre.pretrain is None):
        raise ConfigError(f"{path}: nothing to pretrain: the section physpre, or physpre.pretrain in it, is missing")
    config = validated(raw, str(path))
    folder = Path(out) if out is not None else Path("runs") / Path(path).stem
    asked = hash_of(
        {"configuration": raw, "physpre": physpre and physpre.model_dump(), "files": _files_key(raw["data"])}
    )
    with run_lock(folder) if is_first() else nullcontext():
        if is_first():
            begin_preparing(folder)
            for source in config.data.dataset_configs():
                source.prepare_data()
        else:
            wait_until_prepared(folder, asked)
        if physpre is None:  # the host reads what it needs, be it larger than the memory
            say_that_none_is_fitted(config)
            end_preparing(folder, asked)
            return _train(folder / "4-finetune", raw, 0, _files_key(raw["data"]), _validates(config.data))
        parts = config.data.create_datasets()
        train, val = _structures(parts, "train"), _structures(parts, "validation")
        key = _data_key(train, val)
        if is_first() and config.model.name == "physpre-m3gnet":
            say_what_lacks(train, config.model.properties)
        if physpre.energy_reference:
            raw = with_energy_reference(raw, config, train, (folder, key, physpre.seed))
        if physpre.pretrain is not None:
            eam = _pretraining_data(folder, physpre, train, val, key)
        end_preparing(folder, asked)
        if physpre.pretrain is not None:
            start = _pretrain_stage(folder, raw, physpre, bool(val))
            logger.info("pretrained with the labels of %s: %s", eam, start)
            if pretrain_only:
                return start
            first = {"name": "physpre-start-from", "checkpoint": str(start.absolute())}
            raw = {**raw, "recipes": [first, *raw.get("recipes", [])]}
        return _train(folder / "4-finetune", raw, physpre.seed, key, bool(val), TrainingEnergies.of(train))


def _pretraining_data(folder: Path, physpre: Physpre, train: list[Atoms], val: list[Atoms], key: str) -> Path:
    """The first two stages; the file of the embedded-atom potential."""
    eam = fit_stage(folder, physpre.eam, train, val, data_key=key, seed=physpre.seed).folder / "eam.pt"
    make_set_stage(
        folder,
        physpre.perturbation,
        {"training": train, "validation": val},
        lambda: load_potential(eam),
        depends_on={"teacher": hash_of_file(eam), "data": key},
        seed=physpre.seed,
        shuffled=True,  # other backbones take them in the order of the file, in every epoch
    )
    return eam


def with_averages(raw: dict[str, Any]) -> dict[str, Any]:
    """The configuration with averaged weights saved where they choose the best epoch.

    ``trainer.ema``, which the host does not act on, becomes its recipe ``ema``.
    """
    trainer, recipes = dict(raw.get("trainer") or {}), list(raw.get("recipes") or [])
    averages = trainer.pop("ema", None)
    if averages:
        logger.info("trainer.ema: MatterTune passes it over; it is taken as the recipe ema")
        recipes.append({"name": "ema", **averages})
    if any(r.get("name") == "ema" and not r.get("validate_original_weights") for r in recipes):
        recipes.append({"name": "physpre-save-averages"})
    found = {**raw, "trainer": trainer} if "trainer" in raw else raw
    return {**found, "recipes": recipes} if recipes else found


def _structures(parts: Any, name: str) -> list[Atoms]:
    from mdl_physpre.hosts.mattertune.data_sources import listed

    found = listed(parts[name]) if name in parts else []
    if not found and name == "train":
        raise DataError("data: the training set is empty")
    return found


def _validates(data: Any) -> bool:
    """Whether a data section of the host has a validation part."""
    if hasattr(data, "validation_split"):
        return data.validation_split != "disable"
    return getattr(data, "validation", None) is not None


def _files_key(data: dict[str, Any]) -> str:
    """A hash of the files that a data section names."""
    named = [value for part in data.values() if isinstance(part, dict) for value in part.values()]
    return "".join(hash_of_file(Path(v)) for v in named if isinstance(v, str) and Path(v).is_file())


def _data_key(train: Sequence[Atoms], val: Sequence[Atoms]) -> str:
    """A hash of structures and labels."""
    labels = [
        [
            None if value is None else np.round(value, 10).tolist()
            for value in (found.energy, found.forces, found.stress)
        ]
        for found in map(get_labels, [*train, *val])
    ]
    return content_hash([*train, *val], len(train), json.dumps(labels))


def _pretrain_stage(folder: Path, raw: dict[str, Any], physpre: Physpre, validation: bool) -> Path:
    """The host's training on the pretraining set; recipes and freezing are for the finetuning."""
    made, own = (folder / PRETRAINING_SET).absolute(), physpre.pretrain
    assert own is not None
    raw = copy.deepcopy(raw)
    raw.pop("recipes", None)
    raw["model"]["freeze_backbone"] = False
    if own.lr is not None:
        raw["model"].setdefault("optimizer", {})["lr"] = own.lr
    if own.max_epochs is not None:
        raw.setdefault("trainer", {})["max_epochs"] = own.max_epochs
    if "checkpoint" in raw.get("trainer", {}):  # its folder is that of the finetuning
        raw["trainer"]["checkpoint"] = {**(raw["trainer"]["checkpoint"] or {}), "dirpath": None}
    parents = raw["data"].get("train")
    if own.online and parents is None:
        raise ConfigError("physpre.pretrain.online: give the training structures as data.train, not in data.dataset")
    loading = {k: v for k, v in raw["data"].items() if k in ("batch_size", "num_workers", "pin_memory")}
    if own.batch_size is not None:
        loading["batch_size"] = own.batch_size
    sources = {"train": "train.extxyz", **({"validation": "val.extxyz"} if validation else {})}
    raw["data"] = loading | {
        part: {"type": "physpre-structures", "src": str(made / file)} for part, file in sources.items()
    }
    if own.online:
        raw["data"]["train"] = {
            "type": "physpre-pretraining",
            "source": parents,
            "teacher": str((folder / "1-eam" / "eam.pt").absolute()),
            "perturbation": physpre.perturbation.model_dump(mode="json", exclude={"validation"}),
            "seed": physpre.seed,
            "online": True,
        }
    key = "".join(hash_of_file(made / file) for file in sources.values())
    return _train(folder / "3-pretrain", raw, physpre.seed, key, validation)


def _train(
    folder: Path,
    raw: dict[str, Any],
    seed: int,
    data_key: str,
    validation: bool,
    energies: TrainingEnergies | None = None,
) -> Path:
    """One training by the host in a folder; the checkpoint that it calls best. ``energies``: of the training set."""
    from lightning import seed_everything
    from mattertune.main import MatterTuner

    files = {str(p): hash_of_file(Path(p)) for p in _checkpoints_of(raw)}
    stage = Stage(folder, {"configuration": raw, "seed": seed, "data": data_key, "files": files})
    done = stage.result()
    if done is not None and (folder / done["checkpoint"]).is_file():
        return folder / done["checkpoint"]
    raw = with_files_in(folder, raw, validation)
    last = said_by_first(folder, partial(begin_training, stage, raw))
    config = validated(raw, str(folder / "config.yml"))
    seed_everything(seed, workers=True, verbose=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Checkpoint directory")  # the folder of the stage, which holds config.yml
        warnings.filterwarnings("ignore", ".*LeafSpec.*")
        with fit_from(last):
            output = MatterTuner(config).tune()
    best = getattr(output.trainer.checkpoint_callback, "best_model_path", "")
    if output.trainer.interrupted:
        raise KeyboardInterrupt
    if is_first():
        _finish(stage, output.trainer, best, energies)
    output.trainer.strategy.barrier()
    return Path(best).absolute()


def _finish(stage: Stage, trainer: Any, best: str, energies: TrainingEnergies | None) -> None:
    """Say what came of a training, and that it is done."""
    folder = stage.folder
    if not best or not Path(best).is_file():
        raise CheckpointError(
            f"{folder}: the training ended without a checkpoint; trainer.checkpoint.monitor has to name a logged value"
        )
    told = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
    shown = [f"{name} {value:.4g}" for name, value in told.items() if name.endswith(("_mae", "total_loss"))]
    logger.info("%s, last epoch: %s", folder, ", ".join(shown))
    checkpoint = Path(best).absolute()
    _save_as_potential(checkpoint, folder / "potential.pt", energies)
    inside = checkpoint.is_relative_to(folder.absolute())
    place = checkpoint.relative_to(folder.absolute()) if inside else checkpoint
    stage.finish({"checkpoint": str(place), "metrics": told})
    for file in (LAST, START):
        (folder / file).unlink(missing_ok=True)


def with_files_in(folder: Path, raw: dict[str, Any], validation: bool) -> dict[str, Any]:
    """The configuration with checkpoint and log in ``folder``, where it does not say otherwise."""
    trainer = dict(raw.get("trainer") or {})
    own = {"filename": "best", "save_top_k": 1, "enable_version_counter": False, "save_last": resumes(raw)}
    if validation:
        own |= {"monitor": "val/total_loss", "mode": "min"}
    checkpoint = trainer.get("checkpoint") or own
    trainer["checkpoint"] = {**checkpoint, "dirpath": checkpoint.get("dirpath") or str(folder.absolute())}
    if trainer.get("loggers", "default") == "default":
        trainer["loggers"] = [{"type": "csv", "save_dir": str(folder.absolute()), "name": "log", "version": ""}]
    return {**raw, "trainer": trainer}


def _checkpoints_of(raw: dict[str, Any]) -> list[str]:
    named = [raw["model"].get("checkpoint"), *(r.get("checkpoint") for r in raw.get("recipes", []))]
    return [p for p in named if p is not None and Path(p).is_file()]


def _save_as_potential(checkpoint: Path, path: Path, energies: TrainingEnergies | None) -> None:
    """The network in a file of this package too, where it has one that says the same, with what it was trained on."""
    try:
        potential = read_mattertune_checkpoint(checkpoint)
        potential.training_energies = energies
        save_potential(path, potential)
    except CheckpointError as error:
        logger.info("%s is the host's alone: %s", checkpoint.name, error)

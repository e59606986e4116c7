"""``physpre pretraining-set CONFIG --for TRAINER``: the first two stages of a run, written for another trainer."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ase import Atoms
from ase.data import atomic_numbers

from mdl_physpre.errors import DataError
from mdl_physpre.potentials.energy_reference import fit_energy_reference
from mdl_physpre.runs.layout import PRETRAINING_SET, plan_of
from mdl_physpre.structures.check import describe
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.structures.read import read_structures
from mdl_physpre.utils.files import write_text
from mdl_physpre.utils.record import Record
from mdl_physpre.workflow.config.file import load_config, read_raw
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.data import RunData
from mdl_physpre.workflow.outside.base import TRAINERS, Material, OutsideTrainer
from mdl_physpre.workflow.setup import data_of_run, working_in
from mdl_physpre.workflow.stages.eam import eam_stage
from mdl_physpre.workflow.stages.pretraining_set import pretraining_set_stage
from mdl_physpre.workflow.stages.teacher import teacher_stage

logger = logging.getLogger(__name__)
SCRIPT = "pretrain.sh"


class OutsideFolder(Record):
    """What was written.

    folder : with the sets, the trainer's settings files, and ``pretrain.sh``.
    commands : that pretrain and finetune, run in the folder.
    structures : how many each set has. energies : E0 by element, eV. stress : whether stresses are trained on.
    """

    folder: Path
    commands: list[str]
    structures: dict[str, int]
    energies: dict[str, float]
    stress: bool


def pretraining_set_for(
    trainer: str, config: Config | str | Path, overrides: Sequence[str] = (), out: str | Path | None = None
) -> OutsideFolder:
    """The pretraining set of a run and its DFT sets, in the files, keys and units of a trainer of another package.

    Both have one zero of energy, E0 of each element fitted to the DFT training structures, and the split of the run.

    Parameters
    ----------
    trainer : mace, nequip, graph-pes, deepmd, sevennet, mattersim, a registered name, or an import path.
    config : a :class:`Config`, or the path of a configuration file; its section ``model`` may be missing.
    overrides : ``section.key=value``, put into the file's values.
    out : folder of the run, ``runs/IDENTIFIER`` where ``None``; written is its ``for-TRAINER``.

    Raises
    ------
    ConfigError : an unknown trainer, or what :func:`~mdl_physpre.workflow.run.run` raises it for.
    DataError : ``for-TRAINER`` exists; a structure without energy or forces, or that the trainer's format cannot hold.
    """
    chosen = TRAINERS.find(trainer)()
    if not isinstance(config, Config):
        config = _load(Path(config), overrides)
    with working_in(out, config) as folder:
        target = folder / f"for-{TRAINERS.name_of(type(chosen)).replace(':', '.')}"
        if target.exists():
            raise DataError(
                f"{target}: exists already, with what was changed or trained there; move it away, or remove it, and "
                "call again: the stages before it are not done again"
            )
        config, data = data_of_run(folder, config, with_network=False)
        material = _material(_sets(folder, config, data), data, config.task.seed)
        return _write(target, chosen, material)


def _load(path: Path, overrides: Sequence[str]) -> Config:
    """The configuration; nothing here is of the network, whose section may be missing."""
    raw = read_raw(path)
    return load_config(path, overrides if "model" in raw or "Models" in raw else ["model.name=CGCNN", *overrides])


def _sets(folder: Path, config: Config, data: RunData) -> dict[str, list[Atoms]]:
    """The sets of both trainings by name, after the stages that make the first."""
    if config.physpre.teacher is None:
        eam_stage(folder, config, data, for_hybrids=plan_of(config.model_dump()).hybrids)
    else:
        teacher_stage(folder, config, data)
    pretraining_set_stage(folder, config, data)
    made = {
        name: read_structures(folder / PRETRAINING_SET / f"{file}.extxyz", check=False)
        for name, file in (("pretrain", "train"), ("pretrain-val", "val"))
    }
    extra = {f"test-{name}": part for name, part in data.extra_tests.items()}
    return {**made, "train": data.train, "val": data.val, "test": data.test, **extra}


def _material(sets: dict[str, list[Atoms]], data: RunData, seed: int) -> Material:
    """Raises DataError for a structure without energy or forces, which trainers of other packages do not pass over."""
    stresses = []
    for name, structures in sets.items():
        for index, atoms in enumerate(structures):
            labels = get_labels(atoms)
            missing = [label for label in ("energy", "forces") if getattr(labels, label) is None]
            if missing:
                raise DataError(
                    f"{name}: structure {describe(atoms, index)} has no {' and no '.join(missing)}; other trainers "
                    "need both on every structure. Leave it out, or name its labels by dataset.keys"
                )
            stresses.append(labels.stress is not None)
    if any(stresses) and not all(stresses):
        logger.warning("%d of %d structures have a stress; none is trained on", sum(stresses), len(stresses))
    reference = fit_energy_reference(data.train).energies
    energies = {symbol: float(reference[atomic_numbers[symbol]]) for symbol in data.elements}
    return Material(sets, energies, all(stresses), seed)


def _write(target: Path, trainer: OutsideTrainer, material: Material) -> OutsideFolder:
    """All files, whole or not at all."""
    recipe = trainer.recipe(material)
    sizes = {name: len(structures) for name, structures in material.sets.items()}
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        temporary.mkdir(parents=True)
        trainer.write(temporary, material)
        for name, text in recipe.files.items():
            write_text(temporary / name, text)
        lines = [
            "#!/bin/sh",
            f"# Pretraining on labels of the teacher, then finetuning on DFT labels, by {trainer.title}.",
            f"# Made for {trainer.version}; networks and lengths of training are a beginning.",
            f"# Sets: {', '.join(f'{name} ({size})' for name, size in sizes.items())}.",
            f"# Labels: {trainer.units}. Total energies; both trainings share",
            f"# E0 (eV): {', '.join(f'{symbol} {energy:.10g}' for symbol, energy in material.energies.items())}.",
            *(f"# {note}." for note in recipe.notes),
            "set -e",
            'cd "$(dirname "$0")"',
            *recipe.commands,
        ]
        write_text(temporary / SCRIPT, "\n".join(lines) + "\n")
        os.replace(temporary, target)
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror or error}. Nothing was written") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return OutsideFolder(
        folder=target,
        commands=list(recipe.commands),
        structures=sizes,
        energies=dict(material.energies),
        stress=material.stress,
    )

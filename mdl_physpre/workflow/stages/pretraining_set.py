"""The second stage of a run: structures perturbed, and labelled by the teacher. Test structures never are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mdl_physpre.potentials.base import Potential
from mdl_physpre.pretraining.labelling import label
from mdl_physpre.pretraining.pretraining_set import make_pretraining_set
from mdl_physpre.pretraining.set_report import format_report
from mdl_physpre.runs.layout import EAM_FILE, PRETRAINING_SET, TEACHER
from mdl_physpre.runs.results import PretrainingSetResult, pretraining_set_result
from mdl_physpre.runs.stage import Stage, hash_of_file, stage_key, write_json
from mdl_physpre.structures.write import write_structures
from mdl_physpre.utils.files import write_text
from mdl_physpre.workflow.config.hot_frames import HotFrames
from mdl_physpre.workflow.config.schema import Config, Perturbation
from mdl_physpre.workflow.data import RunData
from mdl_physpre.workflow.setup import device_of
from mdl_physpre.workflow.stages.hot_frames import hot_frames
from mdl_physpre.workflow.stages.teacher import load_teacher


def pretraining_set_stage(folder: Path, config: Config, data: RunData) -> PretrainingSetResult:
    """2: the pretraining set of a run, labelled by the teacher of its first stage."""
    other, perturbation = config.physpre.teacher, config.physpre.perturbation
    return make_set_stage(
        folder,
        perturbation,
        {"training": data.train, "validation": data.val},
        lambda: load_teacher(folder, config, device_of(config)),
        depends_on={
            "teacher": hash_of_file(folder / EAM_FILE) if other is None else stage_key(folder / TEACHER),
            "data": data.key,
        },
        seed=config.task.seed,
        workers=None if other is None else other.processes,
        hot=config.physpre.hot_frames,
    )


def make_set_stage(
    folder: Path,
    perturbation: Perturbation,
    parts: Mapping[str, Sequence[Atoms]],
    teacher: Callable[[], Potential],
    *,
    depends_on: Mapping[str, Any],
    seed: int,
    workers: int | None = None,
    shuffled: bool = False,
    hot: HotFrames | None = None,
) -> PretrainingSetResult:
    """``train.extxyz`` and ``val.extxyz`` in ``2-pretraining-set`` of a folder, with reports of how they were made.

    Parameters
    ----------
    parts : training structures, and validation structures, which may be none, by these names.
    teacher : makes what labels them; called where the set is not made yet.
    depends_on : hashes of teacher and structures.
    seed : of the perturbation.
    workers : processes that label.
    shuffled : in a random order, for trainers that take the structures in the order of the file.
    hot : frames of the teacher's dynamics beside the perturbed structures.
    """
    hot = hot or HotFrames()
    depends = {**depends_on, "seed": seed, "settings": perturbation.asked(), "shuffled": shuffled}
    depends |= {"hot_frames": hot.model_dump()} if hot.n else {}
    stage = Stage(folder / PRETRAINING_SET, depends)
    if not stage.done:
        stage.begin()
        potential, reports, sizes = teacher(), {}, {}
        for name, file in (("training", "train"), ("validation", "val")):
            if not parts.get(name):
                continue
            if name == "training" or perturbation.validation:
                made = make_pretraining_set(parts[name], perturbation, potential, seed, workers=workers)
                frames = hot_frames(parts[name], potential, hot, seed, perturbation.max_force, workers)
                structures, reports[name] = made.structures + frames, made.report
            else:
                structures = label(parts[name], potential, workers=workers)
            if shuffled:
                structures = [structures[k] for k in np.random.default_rng(seed).permutation(len(structures))]
            write_structures(stage.folder / f"{file}.extxyz", structures)
            sizes[name] = len(structures)
        texts = [f"{name} set\n{format_report(found)}\n" for name, found in reports.items()]
        write_text(stage.folder / "report.txt", "\n".join(texts))
        write_json(stage.folder / "report.json", reports)
        rejected = {name: found.rejected for name, found in reports.items()}
        stage.finish({"structures": sizes["training"], "validation": sizes.get("validation", 0), "rejected": rejected})
    return pretraining_set_result(folder)

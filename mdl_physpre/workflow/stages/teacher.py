"""The first two stages of a run: the teacher, fitted or named, and the pretraining set that it labels."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ase import Atoms

from mdl_physpre.analysis.errors import label_errors
from mdl_physpre.eam_fit.fit import fit_eam
from mdl_physpre.errors import DataError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.potentials.open import open_potential
from mdl_physpre.potentials.sum import SumPotential
from mdl_physpre.pretraining.labelling import LabelFailure, compute_labels, failure_text, label, without_labels
from mdl_physpre.pretraining.pretraining_set import format_report, make_pretraining_set
from mdl_physpre.pretraining.teacher_energy_zero import fit_teacher_zero
from mdl_physpre.runs.stage import Stage, hash_of_file, write_json, write_text
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.structures.labels import Labels, get_labels, set_labels
from mdl_physpre.structures.write import write_structures
from mdl_physpre.training.energy_zero import refit_reference
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.config.schema import Teacher as TeacherSection
from mdl_physpre.workflow.data import RunData
from mdl_physpre.workflow.setup import device_of
from mdl_physpre.workflow.stages.network import errors_of
from mdl_physpre.workflow.stages.saved_teacher import EAM, TEACHER, finished, fitted_eam, named_teacher, set_zero

logger = logging.getLogger(__name__)


def fit_stage(folder: Path, config: Config, data: RunData, summary: dict[str, Any]) -> Potential:
    """1: the embedded-atom potential, fitted to the training structures alone, or loaded.

    Raises ConfigError where an arm is a hybrid and the checkpoint is no embedded-atom potential.
    """
    settings, device = config.physpre.eam, device_of(config)
    source = hash_of_file(Path(settings.checkpoint)) if settings.checkpoint else ""
    weights = config.optim.loss.loss_args.model_dump()
    stage = Stage(
        folder / EAM.parent,
        {
            "data": data.key,
            "eam": settings.model_dump(),
            "source": source,
            "seed": config.task.seed,
            "weights": weights,
        },
    )
    result = stage.result()
    if result is None:
        stage.begin()
        if settings.checkpoint:
            potential: Potential = open_potential(settings.checkpoint, map_location=device)
            # fitted to other data, it may have another zero of energy, which the network would have to unlearn
            refit_reference(potential, *(GraphDataset(s, potential.cutoff) for s in (data.train, data.val)))
            save_potential(folder / EAM, potential)
            result = {"text": f"loaded from {settings.checkpoint}", "table": [], "errors": {}}
        else:
            if device.type != "cpu":
                logger.info("the embedded-atom potential is fitted on the CPU: small sums, seconds to a minute")
            stresses = summary["data"]["train"]["labels"]["stress"] > 0
            fit = fit_eam(
                data.train,
                data.val,
                settings.settings(),
                elements=data.elements,
                seed=config.task.seed,
                loss_weights=(weights["weight_energy"], weights["weight_force"], weights["weight_stress"] * stresses),
            )
            save_potential(folder / EAM, fit.potential)
            write_json(stage.folder / "history.json", fit.history)
            write_text(stage.folder / "fit.txt", fit.text + "\n")
            result = {"text": fit.text, "table": fit.table, "errors": fit.errors}
        result = stage.finish(result)
    logger.info("embedded-atom potential\n%s", result["text"])
    hybrid = any(arm.uses_eam for arm in config.arms)
    # a hybrid that cannot be built is better known before the other arms are trained
    potential = fitted_eam(folder, config, device) if hybrid else load_potential(folder / EAM, device)
    tests = errors_of(folder / "1-eam-errors", potential, data, {"eam": stage.key, "data": data.key})
    summary["eam"] = {
        "table": result["table"],
        "fit_errors": result["errors"],
        "errors": tests,
        "seconds": result["seconds"],
    }
    return potential


def teacher_stage(folder: Path, config: Config, data: RunData, summary: dict[str, Any]) -> Potential:
    """1: who labels the pretraining set: ``physpre.teacher`` with its zero of energy fitted, or the EAM."""
    settings = config.physpre.teacher
    if settings is None:
        return fit_stage(folder, config, data, summary)
    teacher = named_teacher(settings, device_of(config))
    stage = Stage(
        folder / TEACHER,
        {"data": data.key, "teacher": settings.model_dump(exclude={"processes"}), "source": _source(teacher, settings)},
    )
    result = stage.result()
    if result is None:
        stage.begin()
        logger.info("zero of energy of the teacher %s", settings.name)
        result = stage.finish(_fitted_zero(teacher, [*data.train, *data.val], settings.processes))
    else:
        set_zero(teacher, result)
    tested = Stage(folder / f"{TEACHER}-errors", {"teacher": stage.key, "extra_tests": data.extra_key})
    errors = tested.result()
    if errors is None:
        tested.begin()
        errors = tested.finish({n: _errors(teacher, s, settings.processes) for n, s in data.test_sets.items()})
    summary["teacher"] = {
        "name": settings.name,
        "zero_of_energy": {k: v for k, v in result.items() if k != "seconds"},
        "errors": {name: errors[name] for name in data.test_sets},
        "seconds": result["seconds"],
    }
    return teacher


def _fitted_zero(teacher: SumPotential, structures: list[Atoms], workers: int | None) -> dict[str, Any]:
    """As :func:`fit_teacher_zero`; where the data have no energies, the teacher keeps the zero that it has."""
    if any(get_labels(atoms).energy is not None for atoms in structures):
        return fit_teacher_zero(teacher, structures, workers=workers)
    logger.info("no training or validation structure carries an energy: the teacher keeps its own zero of energy")
    return {"energies": {}, "structures": 0, "before": None, "after": None}


def _source(teacher: SumPotential, settings: TeacherSection) -> str:
    """What the labels depend on beside the settings: the content of files."""
    identity = getattr(teacher.base, "identity", None)  # of calculators and TorchSim models
    if identity is not None:
        return identity
    return hash_of_file(Path(settings.source)) if Path(settings.source).is_file() else ""


def _errors(teacher: Potential, structures: list[Atoms], workers: int | None) -> dict[str, Any]:
    """Errors of a teacher on labelled structures, calculated in worker processes."""
    found = compute_labels(structures, teacher, workers=workers)
    failures = {k: result.reason for k, result in enumerate(found) if isinstance(result, LabelFailure)}
    if len(failures) == len(structures):
        raise DataError(f"errors of the teacher: {failure_text(structures, failures)}")
    if failures:
        logger.warning("errors of the teacher: %s; they are left out", failure_text(structures, failures))
    predicted, known = [], []
    for atoms, result in zip(structures, found):
        if isinstance(result, Labels):
            predicted.append(set_labels(without_labels(atoms), result.energy, result.forces, result.stress))
            known.append(atoms)
    return label_errors(predicted, known)


def pretraining_set_stage(
    folder: Path, config: Config, data: RunData, teacher: Potential, summary: dict[str, Any]
) -> str:
    """2: training and validation structures perturbed and labelled by the teacher. Test structures never are."""
    other = config.physpre.teacher
    source = {"eam": hash_of_file(folder / EAM)} if other is None else {"teacher": finished(folder)["key"]}
    stage = Stage(
        folder / "2-pretraining-set",
        {
            **source,
            "data": data.key,
            "seed": config.task.seed,
            "settings": config.physpre.perturbation.model_dump(),
        },
    )
    result = stage.result()
    if result is None:
        stage.begin()
        settings, seed = config.perturbation_settings(), config.task.seed
        workers = None if other is None else other.processes
        made = make_pretraining_set(data.train, settings, teacher, seed, workers=workers)
        write_structures(stage.folder / "train.extxyz", made.structures)
        reports = {"training": made.report}
        if config.physpre.perturbation.validation:
            made_val = make_pretraining_set(data.val, settings, teacher, seed, workers=workers)
            val, reports["validation"] = made_val.structures, made_val.report
        else:
            val = label(data.val, teacher, workers=workers)
        write_structures(stage.folder / "val.extxyz", val)
        texts = [f"{name} set\n{format_report(found)}\n" for name, found in reports.items()]
        write_text(stage.folder / "report.txt", "\n".join(texts))
        write_json(stage.folder / "report.json", reports)
        result = stage.finish(
            {
                "structures": len(made.structures),
                "validation": len(val),
                "rejected": {name: found["rejected"] for name, found in reports.items()},
            }
        )
    summary["pretraining_set"] = result
    return stage.key

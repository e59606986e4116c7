"""The first stage of a run with another teacher than the embedded-atom potential: its zero of energy and errors."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.data import atomic_numbers

from mdl_physpre.analysis.errors import Errors, label_errors
from mdl_physpre.eam_fit.angular import AngularEAMSettings, fit_angular_eam
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.potentials.energy_reference import EnergyReference
from mdl_physpre.potentials.sum import SumPotential
from mdl_physpre.potentials.zbl import repulsion_radii
from mdl_physpre.pretraining.labelling import compute_labels, labelled_copy, without_failures
from mdl_physpre.pretraining.teacher import make_teacher
from mdl_physpre.pretraining.teacher_energy_zero import fit_teacher_zero
from mdl_physpre.runs.layout import EAM_FILE, ERRORS, FITTED_TEACHER, TEACHER
from mdl_physpre.runs.results import TeacherResult, teacher_result
from mdl_physpre.runs.stage import Stage, hash_of_file, stage_result
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.config.teacher import Teacher
from mdl_physpre.workflow.data import RunData
from mdl_physpre.workflow.setup import device_of
from mdl_physpre.workflow.stages.eam import check_one_repulsion
from mdl_physpre.workflow.stages.hot_frames import far_frames

logger = logging.getLogger(__name__)


def teacher_stage(folder: Path, config: Config, data: RunData) -> TeacherResult:
    """1: ``physpre.teacher``, fitted where it says so, its zero of energy fitted to the data."""
    settings = config.physpre.teacher
    assert settings is not None
    teacher = None if settings.fit else named_teacher(settings, device_of(config), data.train)
    depends = {
        "teacher": {key: value for key, value in settings.asked().items() if key != "processes"},
        "source": "" if teacher is None else _source(teacher, settings),
    }
    depends |= {"radii": "of the data"} if settings.short_range else {}  # earlier versions: covalent distances
    stage = Stage(folder / TEACHER, {"data": data.key, **depends})
    done = stage.done
    if not done:
        stage.begin()
        if settings.fit:
            elements = [int(z) for atoms in data.val for z in atoms.numbers]
            save_potential(folder / FITTED_TEACHER, fitted_teacher(settings, data.train, elements))
    if teacher is None:
        teacher = make_teacher(str(folder / FITTED_TEACHER), device=device_of(config))
    if settings.fit:  # which is what hybrids add; beside any other teacher that is the embedded-atom potential
        check_one_repulsion(config, teacher)
    if done:
        set_zero(teacher, stage_result(stage.folder)["zero_of_energy"])
    else:
        logger.info("zero of energy of the teacher %s", settings.name)
        zero = _fitted_zero(teacher, [*data.train, *data.val], settings.processes)
        radii = repulsion_radii(teacher)
        stage.finish({"name": settings.name, "zero_of_energy": zero, "short_range_radii": radii})
    tests = Stage(stage.folder / ERRORS, {"teacher": stage.key, "extra_tests": data.extra_key}, free=True)
    if not tests.done:
        tests.begin()
        tests.finish({"errors": {n: _errors(teacher, s, settings.processes) for n, s in data.test_sets.items()}})
    return teacher_result(folder)


def fitted_teacher(settings: Teacher, train: Sequence[Atoms], elements: Sequence[int] = ()) -> Potential:
    """The teacher that ``physpre.teacher.fit`` names, fitted twice, the second time held to the first on frames of hot
    dynamics; ``elements`` beside those of ``train``."""
    return fit_angular_eam(train, AngularEAMSettings(**settings.arguments), elements, partial(far_frames, train))


def load_teacher(folder: Path, config: Config, device: str | torch.device) -> Potential:
    """What labels the pretraining set of a run in ``folder`` whose first stage is done, on a device."""
    settings, found = config.physpre.teacher, stage_result(folder / TEACHER)
    if settings is None:
        return load_potential(folder / EAM_FILE, device)
    if settings.fit:
        teacher = make_teacher(str(folder / FITTED_TEACHER), device=device)
    else:
        teacher = named_teacher(settings.changed(short_range_radii=found.get("short_range_radii", {})), device)
    set_zero(teacher, found["zero_of_energy"])
    return teacher


def named_teacher(
    settings: Teacher, device: str | torch.device, structures: Sequence[Atoms] | None = None
) -> SumPotential:
    """The teacher that ``physpre.teacher`` names, with its own zero of energy; a network on a device.

    ``structures`` : at whose shortest distances a short-range repulsion ends.
    """
    return make_teacher(
        settings.source,
        settings.arguments,
        short_range=settings.short_range,
        short_range_radii=settings.short_range_radii,
        structures=structures,
        device=torch.device(device),
    )


def set_zero(teacher: SumPotential, fitted: Mapping[str, Any]) -> None:
    """Shift a teacher's zero of energy as :func:`~mdl_physpre.pretraining.fit_teacher_zero` found."""
    energies = {atomic_numbers[symbol]: energy for symbol, energy in fitted["energies"].items()}
    teacher.shift_reference(EnergyReference(energies).energies)


def _fitted_zero(teacher: SumPotential, structures: list[Atoms], workers: int | None) -> dict[str, Any]:
    """As :func:`fit_teacher_zero`; where the data have no energies, the teacher keeps the zero that it has."""
    if any(get_labels(atoms).energy is not None for atoms in structures):
        return fit_teacher_zero(teacher, structures, workers=workers)
    logger.info("no training or validation structure carries an energy: the teacher keeps its own zero of energy")
    return {"energies": {}, "structures": 0, "before": None, "after": None}


def _source(teacher: SumPotential, settings: Teacher) -> str:
    """What the labels depend on beside the settings: the content of files."""
    identity = getattr(teacher.base, "identity", None)  # of calculators and TorchSim models
    if identity is not None:
        return str(identity)
    return hash_of_file(Path(settings.source)) if Path(settings.source).is_file() else ""


def _errors(teacher: Potential, structures: list[Atoms], workers: int | None) -> Errors:
    """Errors of a teacher on labelled structures, calculated in worker processes."""
    found = compute_labels(structures, teacher, workers=workers)
    labels = without_failures(structures, found, "errors of the teacher")
    known = [(atoms, one) for atoms, one in zip(structures, labels) if one is not None]
    return label_errors([labelled_copy(atoms, one) for atoms, one in known], [atoms for atoms, _ in known])

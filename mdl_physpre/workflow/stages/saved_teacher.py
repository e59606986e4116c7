"""The teacher of a run, from its configuration and the files of its first stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers

from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.eam.potential import EAMInteraction
from mdl_physpre.potentials.energy_reference import EnergyReference
from mdl_physpre.potentials.sum import SumPotential
from mdl_physpre.pretraining.teacher import make_teacher
from mdl_physpre.workflow.config.schema import Config, Teacher

EAM = Path("1-eam") / "eam.pt"
TEACHER = "1-teacher"


def load_teacher(folder: Path, config: Config, device: torch.device) -> Potential:
    """The teacher of a run in ``folder`` whose first stage is done, on a device."""
    if config.physpre.teacher is None:
        return load_potential(folder / EAM, device)
    teacher = named_teacher(config.physpre.teacher, device)
    set_zero(teacher, finished(folder)["result"])
    return teacher


def fitted_eam(folder: Path, config: Config, device: str | torch.device = "cpu") -> EAMInteraction:
    """The embedded-atom potential of a run, which hybrid arms add to the network.

    Raises ConfigError where ``physpre.eam.checkpoint`` named something else.
    """
    potential = load_potential(folder / EAM, device)
    if not isinstance(potential, EAMInteraction):
        raise ConfigError(
            f"physpre.eam.checkpoint: {config.physpre.eam.checkpoint} holds a {type(potential).__name__}, and arms "
            "with hybrid add an embedded-atom potential (EAMInteraction) to the network; name a file of one, or leave "
            "these arms out of physpre.arms"
        )
    return potential


def named_teacher(settings: Teacher, device: torch.device) -> SumPotential:
    """The teacher that ``physpre.teacher`` names, with its own zero of energy; a network on a device."""
    return make_teacher(
        settings.source,
        settings.arguments,
        short_range=settings.short_range,
        short_range_radii=settings.short_range_radii,
        device=device,
    )


def set_zero(teacher: SumPotential, fitted: Mapping[str, Any]) -> None:
    """Shift a teacher's zero of energy as :func:`~mdl_physpre.pretraining.fit_teacher_zero` found."""
    energies = {atomic_numbers[symbol]: energy for symbol, energy in fitted["energies"].items()}
    teacher.shift_reference(EnergyReference(energies).energies)


def finished(folder: Path) -> dict[str, Any]:
    """``key`` and ``result`` of the stage that fitted the zero of energy of a run's teacher."""
    return json.loads((folder / TEACHER / "done.json").read_text())

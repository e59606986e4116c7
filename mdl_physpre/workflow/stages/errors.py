"""Errors of potentials on the test structures of a run, and angles between the forces of EAM and network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mdl_physpre.analysis.errors import Errors, prediction_errors
from mdl_physpre.analysis.force_alignment import force_alignment
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.eam.potential import EAMInteraction
from mdl_physpre.potentials.sum import HybridPotential
from mdl_physpre.runs.layout import EAM_FILE, ERRORS, Network
from mdl_physpre.runs.stage import Stage, hash_of_file
from mdl_physpre.utils.devices import device_of_parameters
from mdl_physpre.workflow.data import RunData


def errors_on_tests(potential: Potential, data: RunData) -> dict[str, Errors]:
    """Errors on each test set."""
    return {name: prediction_errors(potential, structures) for name, structures in data.test_sets.items()}


def errors_stage(
    folder: Path, data: RunData, network: Network, potential: Potential, key: str, *, with_eam: bool
) -> None:
    """3, errors: of a trained network, and of what it was before finetuning where it was trained before; force angles.

    Force angles are between the run's embedded-atom potential and the network. Of a hybrid potential they are between
    its own two parts after training, as in the paper: do they pull the same way, or against each other?

    Parameters
    ----------
    key : of the stage that trained it.
    with_eam : whether the run has an embedded-atom potential.
    """
    place = network.folder(folder)
    eam = hash_of_file(folder / EAM_FILE) if with_eam else ""
    depends = {"trained": key, "data": data.key, "extra_tests": data.extra_key, "eam": eam}
    stage = Stage(place / ERRORS, depends, free=True)
    if stage.done:
        return
    stage.begin()
    device = device_of_parameters(potential)
    found: dict[str, Any] = {"errors": errors_on_tests(potential, data)}
    if network.arm.stages:
        before = load_potential(place / network.arm.stages[-1] / "best.pt", device)
        found["errors_before_finetuning"] = errors_on_tests(before, data)
    if with_eam:
        first, second = load_potential(folder / EAM_FILE, device), potential
        if isinstance(potential, HybridPotential):
            first, second = potential.parts["eam"], potential.parts["network"]
        if isinstance(first, EAMInteraction):
            found["force_angles"] = {name: force_alignment(first, second, s) for name, s in data.test_sets.items()}
    stage.finish(found)

"""Angles between the forces of the embedded-atom potential and of a trained network, as a part of a run's summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdl_physpre.analysis.force_alignment import force_alignment, pooled_alignment
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.eam.potential import EAMInteraction
from mdl_physpre.potentials.sum import HybridPotential
from mdl_physpre.runs.stage import Stage, hash_of_file
from mdl_physpre.utils.devices import device_of_parameters
from mdl_physpre.workflow.data import RunData
from mdl_physpre.workflow.stages.saved_teacher import EAM


def force_angles_stage(folder: Path, trained: Path, data: RunData, potential: Potential, key: str) -> dict[str, Any]:
    """``force_angles``: for each test set the result of :func:`mdl_physpre.analysis.force_alignment`; kept as a stage.

    First the embedded-atom potential of the run, second the network. Of a hybrid potential, its own two parts after
    training, as in the paper: do they pull the same way, or against each other?

    Parameters
    ----------
    folder : of the run.
    trained : folder of the network; the stage stands beside it.
    key : of the stage that trained it.
    """
    if not (folder / EAM).exists():
        return {}
    first: Potential
    second: Potential
    if isinstance(potential, HybridPotential):
        first, second, source = potential.parts["eam"], potential.parts["network"], ""
    else:
        first = load_potential(folder / EAM, device_of_parameters(potential))
        second, source = potential, hash_of_file(folder / EAM)
        if not isinstance(first, EAMInteraction):
            return {}
    stage = Stage(
        trained.with_name(f"{trained.name}-force-angles"),
        {"arm": key, "eam": source, "data": data.key, "extra_tests": data.extra_key},
    )
    result = stage.result()
    if result is None:
        stage.begin()
        found = {name: force_alignment(first, second, structures) for name, structures in data.test_sets.items()}
        result = stage.finish(found)
    return {"force_angles": {name: result[name] for name in data.test_sets}}


def pooled_angles(networks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``force_angles`` of several networks of an arm together: all their atoms in one histogram."""
    found = [network["force_angles"] for network in networks]
    return {name: pooled_alignment([f[name] for f in found]) for name in found[0]}

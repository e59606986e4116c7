"""The first stage of a run: the embedded-atom potential, fitted to the training structures alone, or loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ase import Atoms

from mdl_physpre.eam_fit.fit import fit_eam
from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.potentials.eam.angular import AngularEAM
from mdl_physpre.potentials.eam.potential import EAMInteraction
from mdl_physpre.potentials.open import open_potential
from mdl_physpre.potentials.training_energies import TrainingEnergies
from mdl_physpre.potentials.zbl import repulsion_radii
from mdl_physpre.runs.layout import EAM, EAM_FILE, ERRORS, FITTED_TEACHER
from mdl_physpre.runs.results import FittedEAM, eam_result
from mdl_physpre.runs.stage import Stage, hash_of_file, write_json
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.training.energy_zero import refit_reference
from mdl_physpre.utils.files import write_text
from mdl_physpre.workflow.config.schema import EAM as EAMSection
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.data import RunData
from mdl_physpre.workflow.setup import device_of
from mdl_physpre.workflow.stages.errors import errors_on_tests

logger = logging.getLogger(__name__)


def eam_stage(folder: Path, config: Config, data: RunData, *, for_hybrids: bool = False) -> FittedEAM:
    """1: the embedded-atom potential of a run, and its errors on the test structures.

    Raises ConfigError where hybrids are to be made of it and ``physpre.eam.checkpoint`` is no embedded-atom potential,
    or where it and the network of an arm have a short-range repulsion each.
    """
    device = device_of(config)
    fit = fit_stage(
        folder,
        config.physpre.eam,
        data.train,
        data.val,
        data_key=data.key,
        seed=config.task.seed,
        device=device,
    )
    # a hybrid that cannot be built is better known before the other arms are trained
    potential = fitted_eam(folder, config, device) if for_hybrids else load_potential(folder / EAM_FILE, device)
    check_one_repulsion(config, potential)
    tests = Stage(fit.folder / ERRORS, {"eam": fit.key, "extra_tests": data.extra_key}, free=True)
    if not tests.done:
        tests.begin()
        tests.finish({"errors": errors_on_tests(potential, data)})
    return eam_result(folder)


def check_one_repulsion(config: Config, potential: Potential) -> None:
    """Raise ConfigError where the potential of hybrids and the network of an arm have a short-range repulsion each."""
    twice = [arm.name for arm in config.arms if arm.uses_eam and arm.has("zbl")]
    if twice and repulsion_radii(potential):
        out = "zbl" if hybrid_file(config) == FITTED_TEACHER else "physpre.eam.short_range, or zbl"
        raise ConfigError(
            f"arm {twice[0]!r}: the embedded-atom potential has a short-range repulsion already, and two would add up; "
            f"leave out {out}"
        )


def fit_stage(
    folder: Path,
    settings: EAMSection,
    train: Sequence[Atoms],
    val: Sequence[Atoms],
    *,
    data_key: str,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Stage:
    """The embedded-atom potential in ``1-eam/eam.pt`` of a folder, fitted or loaded as the settings say.

    Parameters
    ----------
    train, val : labelled structures; the training structures where there are none for validation.
    data_key : a hash of the structures.
    seed : of the fit.
    device : where a loaded potential has its zero of energy fitted.
    """
    source = hash_of_file(Path(settings.checkpoint)) if settings.checkpoint else ""
    weights = {"weight_energy", "weight_force", "weight_stress"}
    depends = {"data": data_key, "eam": settings.model_dump(exclude=weights), "source": source, "seed": seed}
    depends |= {"radii": "of the data"} if settings.short_range else {}  # earlier versions: covalent distances
    stage = Stage(folder / EAM, {**depends, "weights": list(settings.weights)})
    if stage.done:
        logger.info("embedded-atom potential\n%s", (stage.folder / "fit.txt").read_text().rstrip())
        return stage
    stage.begin()
    potential: Potential
    found: dict[str, Any]
    if settings.checkpoint:
        potential = open_potential(settings.checkpoint, map_location=device)
        # fitted to other data, it may have another zero of energy, which the network would have to unlearn
        refit_reference(potential, *(GraphDataset(part, potential.cutoff) for part in (train, val or train)))
        potential.training_energies = TrainingEnergies.of(train)  # those of its own data had another zero
        text, found = f"loaded from {settings.checkpoint}", {}
    else:
        fit = fit_eam(
            train,
            val,
            settings,
            elements=sorted({int(z) for atoms in (*train, *val) for z in atoms.numbers}),
            seed=seed,
        )
        potential, text = fit.potential, fit.text
        found = {"table": fit.table, "fit_errors": {name: e for name, e in fit.errors.items() if e is not None}}
        write_json(stage.folder / "history.json", fit.history)
    found["short_range_radii"] = repulsion_radii(potential)
    save_potential(folder / EAM_FILE, potential)
    write_text(stage.folder / "fit.txt", text + "\n")
    logger.info("embedded-atom potential\n%s", text)
    stage.finish(found)
    return stage


def hybrid_file(config: Config) -> str:
    """Where a run keeps what hybrid arms add to the network: the teacher that it fitted, or the EAM."""
    return FITTED_TEACHER if config.physpre.teacher is not None and config.physpre.teacher.fit else EAM_FILE


def fitted_eam(folder: Path, config: Config, device: str | torch.device = "cpu") -> EAMInteraction | AngularEAM:
    """The embedded-atom potential of a run, which hybrid arms add to the network.

    Raises ConfigError where ``physpre.eam.checkpoint`` named something else.
    """
    potential = load_potential(folder / hybrid_file(config), device)
    if not isinstance(potential, (EAMInteraction, AngularEAM)):
        raise ConfigError(
            f"physpre.eam.checkpoint: {config.physpre.eam.checkpoint} holds a {type(potential).__name__}, and arms "
            "with hybrid add an embedded-atom potential (EAMInteraction) to the network; name a file of one, or leave "
            "these arms out of physpre.arms"
        )
    return potential

"""The energies of the elements that training in MatterTune starts with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from lightning import seed_everything

from mdl_physpre.potentials.energy_reference import fit_energy_reference
from mdl_physpre.potentials.open import open_potential
from mdl_physpre.runs.stage import Stage
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.structures.labels import get_labels, set_labels
from mdl_physpre.training.energy_zero import energy_errors

logger = logging.getLogger(__name__)

ENERGIES = "0-energies"
MOST = 500  # structures that another backbone predicts first


def with_energy_reference(
    raw: dict[str, Any], config: Any, train: Sequence[Atoms], stage: tuple[Path, str, int] | None = None
) -> dict[str, Any]:
    """The configuration with the energies of the elements that training starts with.

    From scratch they are the least-squares fit of the training energies to composition; from a checkpoint, of what its
    predictions leave of them. ``physpre-m3gnet`` has them in the network, other backbones in the normalizer
    ``per_atom_references``. Where the normalizers change the energy already, all is left as it is.

    Parameters
    ----------
    stage : folder of the run, hash of the data and seed: what another backbone predicts first is kept in the folder.
    """
    model = config.model
    energy = next((p.name for p in model.properties if p.type == "energy"), None)
    if energy is None or any(normalizer.only_for_target for normalizer in model.normalizers.get(energy, ())):
        return raw
    if model.name != "physpre-m3gnet":
        reference = _of_another_backbone(raw, config, train, stage)
        normalizers = dict(raw["model"].get("normalizers") or {})
        normalizers[energy] = [{"per_atom_references": reference}, *(normalizers.get(energy) or ())]
        return {**raw, "model": {**raw["model"], "normalizers": normalizers}}
    if model.energy_reference is not None:
        return raw
    labelled = list(train)
    if model.checkpoint is not None:
        potential = open_potential(model.checkpoint)
        left = energy_errors(potential, GraphDataset(labelled, potential.cutoff))
        labelled = [set_labels(a.copy(), energy=e) for a, e in zip(labelled, left) if np.isfinite(e)]
    return {**raw, "model": {**raw["model"], "energy_reference": _fitted(labelled)}}


def say_that_none_is_fitted(config: Any) -> None:
    """Warn where ``physpre-m3gnet`` begins at random without energies of the elements: those are most of an energy."""
    model = config.model
    if model.name != "physpre-m3gnet" or model.checkpoint or model.energy_reference:
        return
    energies = [p.name for p in model.properties if p.type == "energy"]
    if energies and not any(n.only_for_target for n in model.normalizers.get(energies[0], ())):
        logger.warning(
            "model.energy_reference is not given: training starts with energies of 0 for all elements. physpre: "
            "{pretrain: null} fits them to the training structures, and nothing else is changed"
        )


def _fitted(labelled: Sequence[Atoms]) -> dict[int, float]:
    reference = fit_energy_reference(labelled).as_dict()
    logger.info("energies of the elements, eV: %s", {z: round(e, 4) for z, e in reference.items()})
    return reference


def _of_another_backbone(
    raw: dict[str, Any], config: Any, train: Sequence[Atoms], where: tuple[Path, str, int] | None
) -> dict[int, float]:
    """The fit of what the backbone, as it is before training, leaves of the energies."""
    stage = None
    if where is not None:
        folder, key, seed = where
        stage = Stage(folder / ENERGIES, {"model": raw["model"], "data": key, "seed": seed})
        done = stage.result()
        if done is not None:
            return {int(z): e for z, e in done["energies"].items()}
        stage.begin()
        seed_everything(seed, workers=True, verbose=False)  # its read-out may begin at random
    labelled = [a for a in train if get_labels(a).energy is not None]
    labelled = labelled[:: -(-len(labelled) // MOST) or 1]
    config.model.ensure_dependencies()
    from mdl_physpre.hosts.mattertune.predict import predicted

    left = [
        set_labels(a.copy(), energy=get_labels(a).energy - get_labels(found).energy)  # type: ignore[operator]
        for a, found in zip(labelled, predicted(config.model.create_model().eval(), labelled))
    ]
    reference = _fitted(left)
    if stage is not None:
        stage.finish({"energies": reference})
    return reference

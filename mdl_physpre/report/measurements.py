"""What the figures need beyond what the stages have stored: computed once from checkpoints, kept in ``report/data``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers
from pydantic import ValidationError

from mdl_physpre.analysis.energy_curves import eam_elements, element_pairs, energy_curves, pair_name
from mdl_physpre.analysis.parity import LabelledPredictions, predictions
from mdl_physpre.errors import ConfigError, PhyspreError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.eam.potential import EAMInteraction
from mdl_physpre.report.figures.potentials import DrawnCurves
from mdl_physpre.report.figures.style import safe_name
from mdl_physpre.runs import layout
from mdl_physpre.runs.read import Run
from mdl_physpre.runs.stage import hash_of, hash_of_file, read_json, stage_key, write_json
from mdl_physpre.structures.neighbours import closest_by_elements, pairs_within
from mdl_physpre.utils.devices import available_device
from mdl_physpre.utils.files import replacing

logger = logging.getLogger(__name__)
FOLDER: Path = Path(layout.REPORT_FILES) / "data"
BEFORE = ", before finetuning"
FITTED = {"EAM": (layout.EAM, layout.EAM_FILE), "teacher": (layout.TEACHER, layout.FITTED_TEACHER)}
"""Potentials that a run fits: folder of their stage, and their file, where there is one."""
PAIRS = 12  # pairs of elements that are drawn at most
VERSION = 1

Structures = Callable[[], Mapping[str, Sequence[Atoms]]]
Reader = Callable[[str], Sequence[Atoms]]


@dataclass
class Measured:
    """Data of the figures.

    Attributes
    ----------
    curves : energies of two atoms; ``None`` where there is no potential yet.
    predictions : test set → name of the potential → its predictions.
    missing : sentences on what could not be computed.
    """

    curves: DrawnCurves | None = None
    predictions: dict[str, dict[str, LabelledPredictions]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def measure(run: Run, structures: Structures | None = None) -> Measured:
    """Read what is stored for this run's checkpoints, and compute and store the rest.

    Parameters
    ----------
    structures : gives the sets of structures by name, ``train`` and every test set among them; asked only where
        something has to be computed. ``None``: only what is stored, and what needs no structures.
    """
    found = Measured()
    sets = _reader(structures)
    checkpoints = _checkpoints(run)
    try:
        found.curves = _curves(run, checkpoints, sets)
    except (PhyspreError, OSError) as error:
        found.missing.append(f"energy curves: {error}")
    for test_set in next((dict(arm.errors) for arm in run.summary.arms.values() if arm.errors), {}):
        for name, path in checkpoints.items():
            if name.endswith(BEFORE):
                continue
            try:
                own = _predictions(run, name, path, test_set, sets)
            except (PhyspreError, OSError) as error:
                found.missing.append(f"parity of {name} on {test_set}: {error}")
                continue
            found.predictions.setdefault(test_set, {})[name] = own
    return found


def _reader(structures: Structures | None) -> Reader:
    """Gives a set of structures by name; the sets are read once, when the first is needed."""

    @cache
    def sets() -> Mapping[str, Sequence[Atoms]]:
        if structures is None:
            raise PhyspreError("the structures are needed, and were not given")
        return structures()

    def one(name: str) -> Sequence[Atoms]:
        if name not in sets():
            raise PhyspreError(f"the data hold no set {name!r}")
        return sets()[name]

    return one


def _checkpoints(run: Run) -> dict[str, Path]:
    """What was fitted, the first network of every arm, and what that was before finetuning."""
    fitted = {"EAM": run.summary.eam, "teacher": run.summary.teacher}
    found = {name: run.folder / FITTED[name][1] for name, one in fitted.items() if one}
    for arm in run.plan.arms:
        for network in run.networks(arm.name)[:1]:
            path = run.folder / network.checkpoint
            found[arm.name] = path
            if arm.stages:
                found[f"{arm.name}{BEFORE}"] = path.parent.parent / arm.stages[-1] / path.name
    return {name: path for name, path in found.items() if path.is_file()}


def _data_of(run: Run, name: str) -> Any:
    """What names the data that a network was tested on: the key of the stage that did, or the configuration."""
    folder = FITTED[name][0] if name in FITTED else f"{layout.NETWORKS}/{name}"
    key = stage_key(run.folder / folder / layout.ERRORS)
    return key or [run.config["dataset"], run.config.get("task", {}).get("seed")]


def _key(*parts: Any) -> str:
    return hash_of([VERSION, *(hash_of_file(part) if isinstance(part, Path) else part for part in parts)])


def _predictions(run: Run, name: str, checkpoint: Path, test_set: str, sets: Reader) -> LabelledPredictions:
    key = _key(checkpoint, _data_of(run, name), test_set)
    path = run.folder / FOLDER / f"predictions-{safe_name(f'{name}-{test_set}')}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["key"]) == key:
                return LabelledPredictions.model_validate(dict(stored))
    except (OSError, ValueError, KeyError, EOFError):
        pass
    found = predictions(load_potential(checkpoint, _device(run)), sets(test_set))
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, key=np.array(key), **dict(found))
    return found


def _device(run: Run) -> torch.device:
    """That of the run, or what there is where the report is written."""
    try:
        return available_device(run.config.get("task", {}).get("device", "auto"))
    except ConfigError:
        return available_device("auto")


def _curves(run: Run, checkpoints: Mapping[str, Path], sets: Reader) -> DrawnCurves | None:
    if not checkpoints:
        return None
    key = _key(list(checkpoints), *checkpoints.values())
    path = run.folder / FOLDER / "energy_curves.json"
    with suppress(ValidationError):
        stored = DrawnCurves.model_validate(read_json(path))
        if stored.key == key:
            return stored
    potentials: dict[str, Potential] = {name: load_potential(f, _device(run)) for name, f in checkpoints.items()}
    elements = sorted({z for p in potentials.values() for z in p.elements or ()})
    closest = _closest(run, sets)
    pairs = element_pairs(elements)
    # where there are many pairs, those that come closest to bonding are the ones to look at
    pairs.sort(key=lambda pair: closest.get(pair_name(pair), np.inf))
    drawn = sorted(pairs[:PAIRS])
    curves, eam = energy_curves(potentials, drawn), potentials.get("EAM")
    found = DrawnCurves(
        **dict(curves), key=key, closest=closest, left_out=len(pairs) - len(drawn),
        elements=tuple(eam_elements(eam)) if isinstance(eam, EAMInteraction) else (),
    )  # fmt: skip
    write_json(path, found)
    return found


def _closest(run: Run, sets: Reader) -> dict[str, float]:
    """Smallest distance of each pair of elements in the training structures, Å."""
    closest = {}
    for row in run.summary.eam.table if run.summary.eam else ():
        if row.closest_A:
            a, b = (atomic_numbers[symbol] for symbol in row.pair.split("-"))
            closest[pair_name((a, b))] = row.closest_A
    if closest:
        return closest
    try:
        training = sets("train")
    except PhyspreError as error:
        logger.debug("smallest distances of the training data: %s", error)
        return {}
    for atoms in training[:: -(-len(training) // 2000) or 1]:
        for pair, d in closest_by_elements(atoms.numbers, *pairs_within(atoms, 5.0)).items():
            closest[pair_name(pair)] = min(d, closest.get(pair_name(pair), np.inf))
    return closest

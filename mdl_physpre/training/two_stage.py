"""The trainings of an arm, one after another with the same weights; in the paper's method two of them.

E_θ0 → (pretraining set, teacher's labels) → E_θ1 → (training set, DFT labels) → E_θ2

The weights are shared as they are, read-out included; nothing is frozen. Each training starts with a fresh optimiser
and a fresh learning rate, and its best epoch is chosen among its own epochs alone.

All have one zero of energy: the potential's energy reference is fitted once, to the DFT training part, before the
first, and is kept. The embedded-atom potential that labels the pretraining set starts from the same fit, so the network
finds in both stages what composition does not explain, and not an offset between them. With ``refit_reference`` the
finetuned potential, in every arm, has its reference fitted once more at the very end.

The arms that are compared start from the same random weights when they are built with the same seed. What each of them
spends is part of its result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mdl_physpre.potentials.base import Backbone
from mdl_physpre.potentials.energy_reference import fit_energy_reference
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.training.arms import FINETUNE, Arm, Material, Structures, Training
from mdl_physpre.training.loss import check_labels
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.training.train import TrainingResult, train_potential

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedArm:
    """The trained potential of an arm, its checkpoint, and the result of each training by name."""

    potential: Backbone
    checkpoint: Path
    stages: dict[str, TrainingResult]


def initial_potential(build: Callable[[], Backbone], arm: Arm, material: Material, seed: int = 0) -> Backbone:
    """A new potential with random weights drawn from ``seed`` and the energy reference of the DFT training part.

    The global random numbers of the program are left as they were. A potential without reference energies is returned
    as built. Where no structure carries an energy, as in training on forces alone, the reference is zero, and the log
    says so.

    Parameters
    ----------
    build : makes the network, such as ``lambda: CGCNN(elements=["Si", "O"])``.
    arm : whose parts may put it into another potential.
    material : its total energies are fitted to composition.
    seed : of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = potential = build()
        network.prepare_for(material.train)
        for part in arm.parts:
            potential = part.build(potential, material)
    if potential is not network:
        return potential
    potential.shift_reference(-potential.reference_energies())
    if any(get_labels(atoms).energy is not None for atoms in material.train):
        potential.shift_reference(fit_energy_reference(material.train, material.isolated).energies)
    else:
        logger.info(
            "none of %d training structures carries an energy: the energy reference is zero", len(material.train)
        )
    return potential


def trainings_of(
    arm: Arm, potential: Backbone, material: Material, settings: TrainingSettings, cache_dir: str | Path | None = None
) -> list[Training]:
    """The trainings of an arm in their order, finetuning last.

    settings : of finetuning, without any part. cache_dir : of :class:`.GraphDataset`.
    """

    def graphs(both: tuple[Structures, Structures]) -> tuple[GraphDataset, GraphDataset]:
        first, second = (GraphDataset(list(part), potential.cutoff, cache_dir=cache_dir) for part in both)
        return first, second

    before = [
        Training(
            stage,
            arm.settings_of(stage, settings),
            *graphs(part.structures(stage, material)),
            online=part.online(stage, potential.cutoff, material),
        )
        for part in arm.parts
        for stage in part.stages
    ]
    finetuning = Training(FINETUNE, arm.settings_of(FINETUNE, settings), *graphs((material.train, material.val)))
    for part in arm.parts:
        finetuning = part.finetuning(finetuning, before)
    return [*before, finetuning]


def train_arm(
    arm: Arm,
    potential: Backbone,
    material: Material,
    settings: TrainingSettings,
    out: Path | str,
    resume: bool = True,
    cache_dir: str | Path | None = None,
) -> TrainedArm:
    """Do the trainings of an arm, each in a folder of its name in ``out``.

    Parameters
    ----------
    potential : from :func:`initial_potential`; trained in place.
    material : structures with DFT labels, and what the parts of the arm use.
    settings : of finetuning, without any part.
    resume : go on where an interrupted training stopped.
    cache_dir : of :class:`.GraphDataset`.

    Raises
    ------
    ConfigError, DataError, CheckpointError, TrainingError : as :func:`train_potential`; labels of all trainings are
        checked before the first one starts.
    """
    trainings = trainings_of(arm, potential, material, settings, cache_dir)
    for one in trainings:
        check_labels(one.train, "training", one.settings)
        check_labels(one.val, "validation", one.settings)
    stages = {}
    for one in trainings:  # the learning rate, moments and clocks end with each: only the weights go on
        for part in arm.parts:
            part.prepare(one.name, potential)
        stages[one.name] = train_potential(
            potential, one.train, one.val, one.settings, Path(out) / one.name, resume, one.online, one.replay
        )
    return TrainedArm(potential, stages[FINETUNE].best_checkpoint, stages)

"""Two-stage training: pretrain on the labels of a teacher, then finetune on DFT with the same weights.

E_θ0 → (pretraining set, teacher's labels) → E_θ1 → (training set, DFT labels) → E_θ2

The weights are shared as they are, read-out included; nothing is frozen. The finetuning stage starts with a fresh
optimiser and a fresh learning rate, and its best epoch is chosen among its own epochs alone.

Both stages have one zero of energy: the potential's energy reference is fitted once, to the DFT training part, before
either stage, and is kept in both. The embedded-atom potential that labels the pretraining set starts from the same
fit, so the network finds in both stages what composition does not explain, and not an offset between them. With
``refit_reference`` the finetuned potential, in every arm, has its reference fitted once more at the very end.

The arms that are compared start from the same random weights when they are built with the same seed. What each of them
spends is part of its result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from ase import Atoms

from mdl_physpre.potentials.base import Backbone
from mdl_physpre.potentials.eam.potential import EAMInteraction
from mdl_physpre.potentials.energy_reference import fit_energy_reference
from mdl_physpre.potentials.sum import HybridPotential
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.training.loss import check_labels
from mdl_physpre.training.module import Online
from mdl_physpre.training.replay import Replay
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.training.train import TrainingResult, train_potential

logger = logging.getLogger(__name__)

__all__ = [
    "ArmResult",
    "TrainingResult",
    "TrainingSettings",
    "initial_potential",
    "pretrain_then_finetune",
    "train_baseline",
    "train_potential",
]


@dataclass(frozen=True)
class ArmResult:
    """One arm: its name, the trained potential, its checkpoint, and the result of each stage by name."""

    arm: str
    potential: Backbone
    checkpoint: Path
    stages: dict[str, TrainingResult]

    def budget(self) -> dict[str, dict[str, float]]:
        """Epochs, steps, structures seen and seconds of each stage, and of all together under ``total``."""
        spent = {name: stage.budget() for name, stage in self.stages.items()}
        total = {key: sum(stage[key] for stage in spent.values()) for key in next(iter(spent.values()))}
        return {**spent, "total": total}


def initial_potential(
    build: Callable[[], Backbone],
    structures: Sequence[Atoms],
    seed: int = 0,
    eam: EAMInteraction | None = None,
    train_eam: bool = True,
) -> Backbone:
    """A new potential with random weights drawn from ``seed`` and the energy reference of the DFT training part.

    The global random numbers of the program are left as they were. A potential without reference energies is returned
    as built. Where no structure carries an energy, as in training on forces alone, the reference is zero, and the log
    says so.

    Parameters
    ----------
    build : makes the potential, such as ``lambda: CGCNN(elements=["Si", "O"])``.
    structures : the DFT training part; its total energies are fitted to composition.
    seed : of the weights.
    eam : a fitted embedded-atom potential, which is added to the network (:class:`HybridPotential`). Its reference
        energies, fitted to the same totals, are then those of the sum.
    train_eam : whether its parameters are trained, too.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        potential = build()
    if eam is not None:
        return HybridPotential(potential, eam, train_eam=train_eam)
    potential.shift_reference(-potential.reference_energies())
    if any(get_labels(atoms).energy is not None for atoms in structures):
        potential.shift_reference(fit_energy_reference(structures).energies)
    else:
        logger.info("none of %d training structures carries an energy: the energy reference is zero", len(structures))
    return potential


def train_baseline(
    potential: Backbone,
    train: GraphDataset,
    val: GraphDataset,
    settings: TrainingSettings,
    out: Path | str,
    resume: bool = True,
) -> ArmResult:
    """Training on DFT labels alone, in ``out/finetune``: the same data, settings and folder names as finetuning."""
    stage = train_potential(potential, train, val, settings, Path(out) / "finetune", resume)
    return ArmResult("baseline", potential, stage.best_checkpoint, {"finetune": stage})


def pretrain_then_finetune(
    potential: Backbone,
    pretraining: tuple[GraphDataset, GraphDataset],
    finetuning: tuple[GraphDataset, GraphDataset],
    pretrain_settings: TrainingSettings,
    finetune_settings: TrainingSettings,
    out: Path | str,
    resume: bool = True,
    online: Online | None = None,
    replay: tuple[float, float] | None = None,
) -> ArmResult:
    """Train on the teacher's labels, in ``out/pretrain``, then on DFT labels, in ``out/finetune``.

    Parameters
    ----------
    potential : from :func:`initial_potential`; trained in place.
    pretraining, finetuning : training and validation set of each stage.
    pretrain_settings, finetune_settings : of each stage.
    out : folder of the arm.
    resume : go on where an interrupted training stopped, in either stage.
    online : a fresh pretraining set for each epoch, see :func:`train_potential`.
    replay : share and weight of structures of the pretraining set in finetuning, see :class:`Replay`.

    The embedded-atom part of a hybrid potential stays as it is in the first stage. Where the labels are its own, what
    the network learns there is to add nothing to them.

    Raises
    ------
    ConfigError, DataError, CheckpointError, TrainingError : as :func:`train_potential`; labels of both stages are
        checked before the first one starts.
    """
    out = Path(out)
    for split, dataset in zip(("training", "validation"), finetuning):
        check_labels(dataset, split, finetune_settings)
    # a shift towards the teacher's zero of energy would only have to be unlearnt
    pretrain_settings = pretrain_settings.changed(refit_reference=False)
    if isinstance(potential, HybridPotential):
        potential.learn_eam(False)
    first = train_potential(potential, *pretraining, pretrain_settings, out / "pretrain", resume, online)
    if isinstance(potential, HybridPotential):
        potential.learn_eam(potential.train_eam)
    # the learning rate, moments and clocks of the first stage end with it: only the weights go on
    replayed = None if replay is None else Replay(pretraining[0], pretrain_settings, *replay)
    second = train_potential(potential, *finetuning, finetune_settings, out / "finetune", resume, replay=replayed)
    return ArmResult("pretrain", potential, second.best_checkpoint, {"pretrain": first, "finetune": second})

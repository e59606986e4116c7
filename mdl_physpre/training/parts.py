"""The parts of arms that this package brings; ``docs/arms.md`` has what each is for."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.base import Backbone
from mdl_physpre.potentials.sum import HybridPotential, RepulsivePotential
from mdl_physpre.potentials.zbl import RADII, ZBL, radii_text, repulsion_beside_data, repulsion_radii
from mdl_physpre.training import replay
from mdl_physpre.training.arms import FINETUNE, Material, Online, Part, Structures, Training
from mdl_physpre.training.settings import OptimSettings, TrainingSettings
from mdl_physpre.utils.settings import setting

logger = logging.getLogger(__name__)


class SAM(Part):
    """Sharpness-aware minimisation (:mod:`mdl_physpre.training.sam`)."""

    name = "sam"
    description = "Finetuned by sharpness-aware minimisation: each step takes the gradient at the worst weights nearby."
    acts_before_finetuning = False  # beyond the settings of that training

    class Settings(Part.Settings):
        """For arms with ``sam``."""

        rho: float = setting(5e-3, "Length of the step to the worst weights nearby.", gt=0)
        adaptive: bool = setting(True, "Measure that length relative to the size of each weight.")
        pretraining: bool = setting(False, "Use it before finetuning, too.")

    def settings_of(self, stage: str, settings: TrainingSettings) -> TrainingSettings:
        """With ρ."""
        if stage != FINETUNE and not self.settings.pretraining:
            return settings
        return settings.changed(sam_rho=self.settings.rho, sam_adaptive=self.settings.adaptive)


class Pretrain(Part):
    """Pretraining on the labels of a teacher: E_θ0 → (teacher's labels) → E_θ1 → (DFT labels) → E_θ2."""

    name = "pretrain"
    description = "Trained on perturbed structures with the labels of a teacher first, then on DFT labels."
    uses_pretraining_set = True
    stages = ("pretrain",)

    class Settings(Part.Settings):
        """The pretraining stage. A key that is left at ``null`` has the value of ``optim``."""

        LATER: ClassVar[dict[str, Any]] = dict.fromkeys(OptimSettings.LATER)

        max_epochs: int | None = setting(None, "Passes through the pretraining set.", ge=1)
        max_steps: int | None = setting(None, "Steps of the optimiser, in place of max_epochs.", ge=1)
        lr: float | None = setting(None, "Learning rate at the start.", gt=0)
        batch_size: int | None = setting(None, "Structures in a batch.", ge=1)
        batch_atoms: int | None = setting(None, "Atoms in a batch, in place of batch_size.", ge=1)
        schedule: Literal["plateau", "cosine", "linear", "constant"] | None = setting(None, "Of the learning rate.")
        warmup_steps: int | None = setting(None, "Steps over which the learning rate rises at the start.", ge=0)
        max_seconds: float | None = setting(
            None, "No epoch starts that would be expected to end later than this.", "s", gt=0
        )
        early_stopping_patience: int | None = setting(
            None, "Training stops after so many epochs without a lower validation loss.", ge=1
        )
        online: bool = setting(False, "Draw and label a fresh pretraining set for each epoch.")
        loss: str | None = setting(None, "Error function of the loss.")
        force_tail: float | None = setting(
            None, "The error of a force F is divided by 1 + |F|/force_tail.", "eV/Å", gt=0
        )
        stress_tail: float | None = setting(
            None, "The error of a stress σ is divided by 1 + ‖σ‖/stress_tail.", "eV/Å³", gt=0
        )
        ema_decay: float | None = setting(None, "Decay of the average of the weights; 0: none.", ge=0, lt=1)
        weight_energy: float | None = setting(None, "Weight of the energy error in eV.", ge=0)
        weight_force: float | None = setting(None, "Weight of the force error in eV/Å.", ge=0)
        weight_stress: float | None = setting(None, "Weight of the stress error in eV/Å³.", ge=0)

        def settings(self, finetune: TrainingSettings) -> TrainingSettings:
            """Settings of the pretraining stage, from those of the finetuning stage."""
            own = {k: v for k, v in self.model_dump(exclude={"online"}).items() if v is not None}
            for key, in_place_of in (("max_steps", "max_epochs"), ("batch_atoms", "batch_size")):
                if in_place_of in own:  # what stands here counts, and not the other of `optim`
                    own.setdefault(key, None)
            return finetune.changed(**own)

    def settings_of(self, stage: str, settings: TrainingSettings) -> TrainingSettings:
        """Its own, for its own stage."""
        return self.settings.settings(settings) if stage in self.stages else settings

    def structures(self, stage: str, material: Material) -> tuple[Structures, Structures]:
        """Perturbed structures with the labels of the teacher."""
        return material.pretraining_set()

    def online(self, stage: str, cutoff: float, material: Material) -> Online | None:
        """Fresh ones for each epoch."""
        return material.online(cutoff) if self.settings.online else None


class Repulsion(Part):
    """E = E_network + E_ZBL (:class:`.RepulsivePotential`) in every training; it ends where the data begin."""

    name = "zbl"
    description = "The screened repulsion of the nuclei (ZBL) is added to the network at short range."
    brings_energies = False

    class Settings(Part.Settings):
        """E = E_network + E_ZBL, for arms with ``zbl``."""

        short_range_radii: dict[str, float] = setting({}, RADII, "Å")

        @field_validator("short_range_radii")
        @classmethod
        def _pairs_of_elements(cls, radii: dict[str, float]) -> dict[str, float]:
            try:
                ZBL(radii=radii)
            except ConfigError as error:
                raise ValueError(str(error)) from None
            return radii

    def build(self, potential: Backbone, material: Material) -> Backbone:
        """The sum."""
        repulsion = repulsion_beside_data(material.train, potential.elements, self.settings.short_range_radii)
        total = RepulsivePotential(potential, repulsion)
        logger.info("repulsion of the nuclei (ZBL) up to %s", radii_text(repulsion_radii(total)))
        return total


class Hybrid(Part):
    """E = E_network + E_EAM (:class:`.HybridPotential`).

    The embedded-atom potential stays as it is before finetuning: where the labels are its own, what the network learns
    there is to add nothing to them.
    """

    name = "hybrid"
    description = "The energy of the embedded-atom potential is added to that of the network."
    uses_eam = True

    class Settings(Part.Settings):
        """E = E_network + E_EAM, for arms with ``hybrid``."""

        train_eam: bool = setting(
            True, "Train the parameters of the embedded-atom potential in finetuning; one with angles stays as it is."
        )

    def build(self, potential: Backbone, material: Material) -> Backbone:
        """The sum; its energies of the elements are those of the embedded-atom potential, fitted to the same totals."""
        return HybridPotential(potential, material.eam(), train_eam=self.settings.train_eam)

    def prepare(self, stage: str, potential: Backbone) -> None:
        """Let the embedded-atom potential learn in finetuning alone."""
        if isinstance(potential, HybridPotential):
            potential.learn_eam(self.settings.train_eam and stage == FINETUNE)


class Replay(Part):
    """Structures of the pretraining set in the batches of finetuning (:mod:`mdl_physpre.training.replay`)."""

    name = "replay"
    description = "A part of the structures with the labels of the teacher stays in the batches of finetuning."
    needs = {"pretrain": "replay repeats structures of the pretraining set, and this arm has no pretraining"}
    acts_before_finetuning = False

    class Settings(Part.Settings):
        """Structures of the pretraining set in finetuning, for arms with ``replay``."""

        share: float = setting(0.25, "Their share of the structures of a step.", gt=0, lt=1)
        weight: float = setting(0.1, "Weight of their loss beside that of the DFT labels.", gt=0)

    def finetuning(self, training: Training, before: Sequence[Training]) -> Training:
        """With structures of the pretraining, and its loss."""
        first = next(one for one in before if one.name in Pretrain.stages)
        repeated = replay.Replay(first.train, first.settings, self.settings.share, self.settings.weight)
        return dataclasses.replace(training, replay=repeated)

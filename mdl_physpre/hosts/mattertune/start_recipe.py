"""MatterTune's recipes ``physpre-start-from``, weights of an earlier stage, and ``physpre-save-averages``.

For every backbone. Importing this imports the host.
"""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from mattertune.main import MatterTunerConfig
from mattertune.recipes.base import RecipeConfigBase, recipe_registry

from mdl_physpre.errors import CheckpointError
from mdl_physpre.potentials.checkpoints.archive import read_archive

# the host renews its configuration for new backbones and data sources, not for new recipes
recipe_registry.rebuild_on_registers(MatterTunerConfig)


@recipe_registry.register
class StartFromConfig(RecipeConfigBase):
    """Start training with the weights of a checkpoint of MatterTune that has the same backbone and normalizers.

    Nothing else is taken over: the optimiser, its learning rate and the count of epochs start anew.
    """

    name: Literal["physpre-start-from"] = "physpre-start-from"

    checkpoint: str
    """Lightning's file of the earlier stage."""

    def create_lightning_callback(self) -> Callback:
        return StartFrom(self.checkpoint)


class StartFrom(Callback):
    """Loads weights before the optimiser is made."""

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raises CheckpointError where the file is missing or its weights do not fit."""
        if stage != "fit":
            return
        content = read_archive(self.checkpoint, skip_objects=True)
        try:
            pl_module.load_state_dict(content.get("state_dict", {}))
        except RuntimeError as error:
            raise CheckpointError(
                f"{self.checkpoint}: its weights do not fit this model: {' '.join(str(error).split())[:400]}"
            ) from None


@recipe_registry.register
class SaveAveragesConfig(RecipeConfigBase):
    """Save the averaged weights of the recipe ``ema``, by which the host chooses the best epoch.

    The host itself saves the weights of the last step.
    """

    name: Literal["physpre-save-averages"] = "physpre-save-averages"

    def create_lightning_callback(self) -> Callback:
        return SaveAverages()


class SaveAverages(Callback):
    """Puts averages of weights into every checkpoint, in place of the weights."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Goes before the module's own hook: Lightning calls a callback's not where weights alone are saved."""
        if stage != "fit":
            return
        own = pl_module.on_save_checkpoint

        def save(checkpoint: dict[str, Any]) -> None:
            names = {id(p): name for name, p in pl_module.named_parameters()}
            for optimizer in trainer.optimizers:
                averages = getattr(optimizer, "ema_params", ())
                if averages:
                    optimizer.join()  # type: ignore[attr-defined]
                used = (p for group in optimizer.param_groups for p in group["params"])
                for parameter, average in zip(used, averages):
                    checkpoint["state_dict"][names[id(parameter)]] = average.detach().clone().to(parameter.device)
            own(checkpoint)

        pl_module.on_save_checkpoint = save  # type: ignore[method-assign]

"""graph-pes's trainer, ``graph-pes-train``."""

from __future__ import annotations

from typing import Any

from mdl_physpre.workflow.outside.base import (
    CUTOFF,
    FINETUNE_EPOCHS,
    PRETRAIN_EPOCHS,
    Material,
    OutsideTrainer,
    Recipe,
    as_yaml,
)


class GraphPES(OutsideTrainer):
    """E0 is a fixed offset, a part of the model that finetuning loads whole."""

    title = "graph-pes"
    version = "graph-pes 1.0.2"

    def recipe(self, material: Material) -> Recipe:
        """A file of settings for each training; any other model of graph-pes may stand for PaiNN."""
        model = {
            "offset": {"+FixedOffset": dict(material.energies)},
            "many-body": {"+PaiNN": {"cutoff": CUTOFF, "channels": 64, "layers": 3}},
        }
        files = {
            "pretrain.yaml": self._settings(material, "pretrain", model, pre_fit=True),
            "finetune.yaml": self._settings(
                material, "finetune", {"+load_model": {"path": "graph-pes-results/pretrain/model.pt"}}, pre_fit=False
            ),
        }
        return Recipe(
            ["graph-pes-train pretrain.yaml", "graph-pes-train finetune.yaml"],
            files,
            ["graph-pes-results/finetune/model.pt is the trained network"],
        )

    def _settings(self, material: Material, stage: str, model: dict[str, Any], pre_fit: bool) -> str:
        files = material.files(stage)
        others = ["forces", "stress"] if material.stress else ["forces"]
        losses = ["+PerAtomEnergyLoss()", *({"+PropertyLoss": {"property": name, "metric": "RMSE"}} for name in others)]
        pretraining = stage == "pretrain"
        content = {
            "general": {"run_id": stage, "seed": material.seed, "progress": "logged"},
            "model": model,
            "data": {
                {"val": "valid"}.get(role, role): {"+file_dataset": {"path": path, "cutoff": CUTOFF}}
                for role, path in files.items()
            },
            "loss": losses,
            "fitting": {
                "pre_fit_model": pre_fit,
                "trainer_kwargs": {"max_epochs": PRETRAIN_EPOCHS if pretraining else FINETUNE_EPOCHS},
                "optimizer": {"name": "AdamW", "lr": 1e-3 if pretraining else 5e-4},
                "loader_kwargs": {"batch_size": 4},
            },
            "wandb": None,
        }
        return as_yaml(content, f"{self.title}: {stage}")

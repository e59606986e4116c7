"""graph-pes's trainer, ``graph-pes-train``."""

from __future__ import annotations

from typing import Any

from mdl_physpre.workflow.outside.base import CUTOFF, EPOCHS, Material, SettingsTrainer


class GraphPES(SettingsTrainer):
    """E0 is a fixed offset, a part of the model that finetuning loads whole."""

    title = "graph-pes"
    version = "graph-pes 1.0.2"
    commands = ("graph-pes-train pretrain.yaml", "graph-pes-train finetune.yaml")
    notes = ("graph-pes-results/finetune/model.pt is the trained network",)

    def settings(self, material: Material, stage: str) -> dict[str, Any]:
        """Any other model of graph-pes may stand for PaiNN."""
        files, pretraining = material.files(stage), stage == "pretrain"
        model = {
            "offset": {"+FixedOffset": dict(material.energies)},
            "many-body": {"+PaiNN": {"cutoff": CUTOFF, "channels": 64, "layers": 3}},
        }
        others = ["forces", "stress"] if material.stress else ["forces"]
        losses = ["+PerAtomEnergyLoss()", *({"+PropertyLoss": {"property": name, "metric": "RMSE"}} for name in others)]
        return {
            "general": {"run_id": stage, "seed": material.seed, "progress": "logged"},
            "model": model if pretraining else {"+load_model": {"path": "graph-pes-results/pretrain/model.pt"}},
            "data": {
                {"val": "valid"}.get(role, role): {"+file_dataset": {"path": path, "cutoff": CUTOFF}}
                for role, path in files.items()
            },
            "loss": losses,
            "fitting": {
                "pre_fit_model": pretraining,
                "trainer_kwargs": {"max_epochs": EPOCHS[stage]},
                "optimizer": {"name": "AdamW", "lr": 1e-3 if pretraining else 5e-4},
                "loader_kwargs": {"batch_size": 4},
            },
            "wandb": None,
        }

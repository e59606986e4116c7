"""SevenNet's trainer, ``sevenn train``."""

from __future__ import annotations

from typing import Any

from mdl_physpre.workflow.outside.base import CUTOFF, EPOCHS, Material, SettingsTrainer


class SevenNet(SettingsTrainer):
    """E0s are the shifts of the elements. Finetuning continues from the checkpoint, with its shifts and scales."""

    title = "SevenNet"
    version = "sevenn 0.13.0"
    commands = ("sevenn train pretrain.yaml -w pretrain-run", "sevenn train finetune.yaml -w finetune-run")
    notes = ("finetune-run/checkpoint_best.pth is the trained network",)

    def settings(self, material: Material, stage: str) -> dict[str, Any]:
        files, pretraining = material.files(stage), stage == "pretrain"
        labels = ["Energy", "Force", *(["Stress"] if material.stress else [])]
        continued = {
            "checkpoint": "pretrain-run/checkpoint_best.pth",
            "reset_optimizer": True,
            "reset_scheduler": True,
            "reset_epoch": True,
            "use_statistic_values_of_checkpoint": True,
        }
        return {
            "model": {
                "chemical_species": material.elements,
                "cutoff": CUTOFF,
                "channel": 32,
                "lmax": 2,
                "num_convolution_layer": 3,
                "is_parity": False,
                "train_shift_scale": False,
            },
            "train": {
                "random_seed": material.seed,
                "is_train_stress": material.stress,
                "epoch": EPOCHS[stage],
                "loss": "Huber",
                "loss_param": {"delta": 0.01},
                "optimizer": "adam",
                "optim_param": {"lr": 0.005 if pretraining else 0.002},
                "scheduler": "exponentiallr",
                "scheduler_param": {"gamma": 0.99},
                "force_loss_weight": 1.0,
                "stress_loss_weight": 0.01,
                "per_epoch": 10,
                "error_record": [*([label, "RMSE"] for label in labels), ["TotalLoss", "None"]],
                **({} if pretraining else {"continue": continued}),
            },
            "data": {
                "batch_size": 4,
                "shift": list(material.energies.values()),
                "scale": "force_rms",
                "data_format_args": {"index": ":"},
                **{f"load_{role}set_path": [files[name]] for role, name in (("train", "train"), ("valid", "val"))},
                "load_testset_path": [files["test"]],
            },
        }

"""NequIP's trainer, ``nequip-train``; Allegro's networks are trained by it, too."""

from __future__ import annotations

from typing import Any

from mdl_physpre.workflow.outside.base import CUTOFF, EPOCHS, Material, SettingsTrainer


class NequIP(SettingsTrainer):
    """E0s are the shifts of the elements, which are not trained. Finetuning takes the model from the checkpoint."""

    title = "NequIP"
    version = "nequip 0.19.1"
    commands = (
        "nequip-train -cp $PWD -cn pretrain hydra.run.dir=pretrain",
        "nequip-train -cp $PWD -cn finetune hydra.run.dir=finetune",
    )
    notes = ("finetune/best.ckpt is the trained network: nequip-compile makes of it what ASE and LAMMPS load",)

    def settings(self, material: Material, stage: str) -> dict[str, Any]:
        """The model is new in pretraining, and that of the checkpoint in finetuning."""
        checkpoint = {
            "_target_": "nequip.model.ModelFromCheckpoint",
            "checkpoint_path": "${hydra:runtime.cwd}/pretrain/best.ckpt",
        }
        files, pretraining = material.files(stage), stage == "pretrain"
        labels = ["total_energy", "forces", *(["stress"] if material.stress else [])]
        kind = "EnergyForceStress" if material.stress else "EnergyForce"
        loader = {"_target_": "torch.utils.data.DataLoader", "batch_size": 4}
        metrics = {
            "_target_": f"nequip.train.{kind}Metrics",
            "coeffs": {f"{name}_rmse": 1.0 for name in ("per_atom_energy", *labels[1:])},
        }
        best = {
            "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
            "dirpath": "${hydra:runtime.output_dir}",
            "filename": "best",
            "monitor": "val0_epoch/weighted_sum",
            "save_last": True,
        }
        return {
            "run": ["train", "test"],
            "data": {
                "_target_": "nequip.data.datamodule.ASEDataModule",
                "seed": material.seed,
                **{f"{role}_file_path": file for role, file in files.items()},
                "transforms": [
                    {
                        "_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper",
                        "model_type_names": material.elements,
                    },
                    {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": CUTOFF},
                ],
                "train_dataloader": {**loader, "shuffle": True},
                "val_dataloader": loader,
                "test_dataloader": loader,
                "stats_manager": {
                    "_target_": "nequip.data.CommonDataStatisticsManager",
                    "type_names": material.elements,
                },
            },
            "trainer": {
                "_target_": "lightning.Trainer",
                "max_epochs": EPOCHS[stage],
                "callbacks": [best],
            },
            "training_module": {
                "_target_": "nequip.train.EMALightningModule",
                "loss": {"_target_": f"nequip.train.{kind}Loss", "coeffs": dict.fromkeys(labels, 1.0)},
                "val_metrics": metrics,
                "test_metrics": metrics,
                "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.01 if pretraining else 0.002},
                "model": _network(material) if pretraining else checkpoint,
            },
            "global_options": {"allow_tf32": False},
        }


def _network(material: Material) -> dict[str, Any]:
    """``nequip.model.NequIPGNNModel`` may be replaced by another model."""
    return {
        "_target_": "nequip.model.NequIPGNNModel",
        "seed": material.seed,
        "model_dtype": "float32",
        "type_names": material.elements,
        "r_max": CUTOFF,
        "num_layers": 4,
        "l_max": 1,
        "num_features": 32,
        "avg_num_neighbors": "${training_data_stats:num_neighbors_mean}",
        "per_type_energy_scales": "${training_data_stats:forces_rms}",
        "per_type_energy_shifts": dict(material.energies),
        "per_type_energy_shifts_trainable": False,
    }

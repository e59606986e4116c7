"""MatterSim's trainer, ``mattersim.training.finetune_mattersim``."""

from __future__ import annotations

from mdl_physpre.workflow.outside.base import CUTOFF, EPOCHS, Material, OutsideTrainer, Recipe


class MatterSim(OutsideTrainer):
    """The trainer begins with a checkpoint. The first training fits the energies of the elements to the labels of the
    teacher, which have the zero of the DFT energies; the second keeps them."""

    title = "MatterSim"
    version = "mattersim 1.2.3"

    def recipe(self, material: Material) -> Recipe:
        """Two calls of the trainer."""
        commands = ["START=${START:-mattersim-v1.0.0-1m}"]
        trainings = (
            ("pretrain", '"$START"', 5e-4, "--re_normalize"),
            ("finetune", "pretrain-run/last_model.pth", 2e-4, "--no-re_normalize"),
        )
        for stage, start, rate, normalise in trainings:
            files = material.files(stage)
            words = [
                "torchrun --nproc_per_node=1 -m mattersim.training.finetune_mattersim",
                f"--load_model_path {start}",
                f"--train_data_path {files['train']}",
                f"--valid_data_path {files['val']}",
                f"--save_path {stage}-run",
                "--save_checkpoint",
                f"--run_name {stage}",
                "--include_forces",
                "--include_stresses" if material.stress else "--no-include_stresses",
                normalise,
                f"--cutoff {CUTOFF}",
                f"--epochs {EPOCHS[stage]}",
                f"--lr {rate:g}",
                "--batch_size 4",
                f"--seed {material.seed % 2**32}",
                '--device "${DEVICE:-cuda}"',
            ]
            commands.append(" \\\n  ".join(words))
        return Recipe(
            commands,
            {},
            [
                "START: the checkpoint that is pretrained, a name or a file; physpre convert-checkpoint makes one of a "
                "trained M3GNet",
                "DEVICE=cpu: without a GPU",
                "finetune-run/best_model.pth is the trained network",
            ],
        )

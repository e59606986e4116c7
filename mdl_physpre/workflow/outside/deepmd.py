"""DeePMD-kit's trainer, ``dp train``, with PyTorch."""

from __future__ import annotations

import json

from mdl_physpre.workflow.outside.base import FINETUNE_EPOCHS, PRETRAIN_EPOCHS, Material, OutsideTrainer, Recipe


class DeePMD(OutsideTrainer):
    """E0s are the preset bias of the output. Finetuning begins with ``--init-model``, which keeps it; ``--finetune``
    would fit another."""

    title = "DeePMD-kit"
    version = "deepmd-kit 3.2.0"
    units = "energy.npy (eV), force.npy (eV/Å) and virial.npy (eV, −V σ), a folder for each list of elements"
    format = "deepmd"
    suffix = ""

    def recipe(self, material: Material) -> Recipe:
        """A file of settings for each training; steps are those of an epoch times the epochs."""
        n = {name: len(material.sets[name]) for name in ("pretrain", "train")}
        steps = {"pretrain": PRETRAIN_EPOCHS * n["pretrain"], "finetune": FINETUNE_EPOCHS * n["train"]}
        files = {
            f"{stage}.json": self._settings(material, stage, steps[stage], 1e-3 if stage == "pretrain" else 5e-4)
            for stage in steps
        }
        return Recipe(
            [
                "mkdir -p pretrain-run finetune-run",
                "(cd pretrain-run && dp --pt train ../pretrain.json)",
                "(cd finetune-run && dp --pt train ../finetune.json --init-model ../pretrain-run/model.ckpt.pt)",
                "(cd finetune-run && dp --pt freeze -o ../finetuned.pth)",
            ],
            files,
            ["finetuned.pth is the trained network"],
        )

    def _settings(self, material: Material, stage: str, steps: int, rate: float) -> str:
        files = material.files(stage, "")
        virial = 1.0 if material.stress else 0.0
        content = {
            "model": {
                "type_map": material.elements,
                "descriptor": {
                    "type": "se_e2_a",
                    "sel": "auto",
                    "rcut": 6.0,
                    "rcut_smth": 0.5,
                    "neuron": [25, 50, 100],
                    "axis_neuron": 16,
                    "set_davg_zero": True,
                    "seed": material.seed,
                },
                "fitting_net": {"neuron": [120, 120, 120], "resnet_dt": True, "seed": material.seed},
                "preset_out_bias": {"energy": list(material.energies.values())},
            },
            "learning_rate": {"type": "exp", "start_lr": rate, "stop_lr": 1e-6, "decay_steps": max(1, steps // 100)},
            "loss": {
                "type": "ener",
                "start_pref_e": 0.02,
                "limit_pref_e": 1,
                "start_pref_f": 1000,
                "limit_pref_f": 1,
                "start_pref_v": 0.01 * virial,
                "limit_pref_v": virial,
            },
            "training": {
                "training_data": {"systems": f"../{files['train']}", "batch_size": 1},
                "validation_data": {"systems": f"../{files['val']}", "batch_size": 1},
                "numb_steps": steps,
                "seed": material.seed,
                "disp_freq": max(1, steps // 100),
                "save_freq": max(1, steps // 10),
            },
        }
        return json.dumps(content, indent=2) + "\n"

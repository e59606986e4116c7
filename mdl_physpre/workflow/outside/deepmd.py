"""DeePMD-kit's trainer, ``dp train``, with PyTorch."""

from __future__ import annotations

import json
from typing import Any

from mdl_physpre.workflow.outside.base import EPOCHS, Material, SettingsTrainer


class DeePMD(SettingsTrainer):
    """E0s are the preset bias of the output. Finetuning begins with ``--init-model``, which keeps it; ``--finetune``
    would fit another."""

    title = "DeePMD-kit"
    version = "deepmd-kit 3.2.0"
    units = "energy.npy (eV), force.npy (eV/Å) and virial.npy (eV, −V σ), a folder for each list of elements"
    format = "deepmd"
    suffix = ""
    ending = ".json"
    commands = (
        "mkdir -p pretrain-run finetune-run",
        "(cd pretrain-run && dp --pt train ../pretrain.json)",
        "(cd finetune-run && dp --pt train ../finetune.json --init-model ../pretrain-run/model.ckpt.pt)",
        "(cd finetune-run && dp --pt freeze -o ../finetuned.pth)",
    )
    notes = ("finetuned.pth is the trained network",)

    def text(self, content: dict[str, Any], stage: str) -> str:
        return json.dumps(content, indent=2) + "\n"

    def settings(self, material: Material, stage: str) -> dict[str, Any]:
        """Steps are those of an epoch times the epochs."""
        files, rate = material.files(stage, ""), 1e-3 if stage == "pretrain" else 5e-4
        steps = EPOCHS[stage] * len(material.sets[files["train"]])
        virial = 1.0 if material.stress else 0.0
        return {
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

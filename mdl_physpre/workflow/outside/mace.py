"""MACE's trainer, ``mace_run_train`` of mace-torch."""

from __future__ import annotations

import shlex

from ase import Atoms
from ase.data import atomic_numbers

from mdl_physpre.structures.labels import LABELS
from mdl_physpre.workflow.outside.base import CUTOFF, EPOCHS, Material, OutsideTrainer, Recipe


class MACE(OutsideTrainer):
    """E0s are given as a dictionary. Finetuning takes all weights, and the shift and scale of energies, from the
    pretrained model (``--foundation_model`` without multihead finetuning)."""

    title = "MACE"
    version = "mace-torch 0.3.16"
    units = "REF_energy (eV), REF_forces (eV/Å) and REF_stress (eV/Å³, tension positive, xx yy zz yz xz xy)"

    def labelled(self, atoms: Atoms) -> Atoms:
        """Labels as ``REF_energy``, ``REF_forces`` and ``REF_stress``; there are none beside them."""
        copy: Atoms = atoms.copy()
        results = getattr(atoms.calc, "results", {})
        for name in LABELS:
            if name in results:
                (copy.arrays if name == "forces" else copy.info)[f"REF_{name}"] = results[name]
        return copy

    def recipe(self, material: Material) -> Recipe:
        """Two calls of ``mace_run_train``."""
        energies = {atomic_numbers[symbol]: energy for symbol, energy in material.energies.items()}
        common = {
            "energy_key": "REF_energy",
            "forces_key": "REF_forces",
            "stress_key": "REF_stress",
            "E0s": repr(energies),
            "batch_size": 4,
            "default_dtype": "float64",
            "seed": material.seed,
            **({"loss": "stress", "compute_stress": True} if material.stress else {}),
        }
        network = {
            "model": "MACE",
            "r_max": CUTOFF,
            "num_interactions": 2,
            "num_channels": 64,
            "max_L": 0,
            "scaling": "rms_forces_scaling",
        }
        stages = {
            "pretrain": {**network, "lr": 0.005, "max_num_epochs": EPOCHS["pretrain"]},
            "finetune": {
                "foundation_model": "pretrain.model",
                "multiheads_finetuning": False,
                "lr": 0.002,
                "max_num_epochs": EPOCHS["finetune"],
            },
        }
        commands = []
        for name, settings in stages.items():
            files = {f"{'valid' if role == 'val' else role}_file": f for role, f in material.files(name).items()}
            options = {"name": name, **files, **common, **settings}
            commands.append(
                " \\\n  ".join(["mace_run_train", *(f"--{k}={shlex.quote(str(v))}" for k, v in options.items())])
            )
        return Recipe(
            commands,
            {},
            [
                "finetune.model is the trained network",
                "a GPU: add --device=cuda to both commands",
            ],
        )

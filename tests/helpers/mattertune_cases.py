"""Structures, configurations and models for the tests of the MatterTune plugin in the real MatterTune."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms

from mdl_physpre.errors import PhyspreError
from mdl_physpre.hosts.mattertune.plugin import register
from mdl_physpre.potentials.adapters.ase_calculator import PotentialCalculator
from mdl_physpre.potentials.backbones.m3gnet.network import M3GNet
from mdl_physpre.structures.labels import set_labels
from mdl_physpre.structures.write import write_structures

ROOT = Path(__file__).parents[2]
MATTERSIM = ROOT / "tests" / "data" / "mattersim" / "m3gnet.pth"

try:
    register()
    WHY_NOT = ""
except PhyspreError as error:
    WHY_NOT = str(error)
needs_host = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

SMALL = {"num_blocks": 2, "units": 8, "cutoff": 4.0, "threebody_cutoff": 3.0}
PROPERTIES = [
    {"type": "energy", "loss": {"name": "mae"}},
    {"type": "forces", "conservative": True, "loss": {"name": "mae"}},
    {"type": "stresses", "conservative": True, "loss": {"name": "mae"}},
]


def model_section(**changes) -> dict:
    base = {
        "name": "physpre-m3gnet", **SMALL, "properties": PROPERTIES, "optimizer": {"name": "AdamW", "lr": 1e-3},
    }  # fmt: skip
    return {**base, **changes}


def model(**changes):
    """A module by the host's own way: its configuration is validated as one of its backbones."""
    import nshconfig
    from mattertune.backbones import ModelConfig

    torch.manual_seed(1)
    return nshconfig.TypeAdapter(ModelConfig).validate_python(model_section(**changes)).create_model()


def crystal(seed: int = 0, n: int = 6) -> Atoms:
    rng = np.random.default_rng(seed)
    cell = np.diag([5.0, 5.5, 6.0]) + rng.normal(0, 0.2, (3, 3))
    return Atoms(["Si", "O", "O"] * (n // 3), scaled_positions=rng.random((n, 3)), cell=cell, pbc=True)


def labelled(n: int = 6) -> list[Atoms]:
    """Structures with labels by an untrained network, stress too."""
    torch.manual_seed(7)
    calculator = PotentialCalculator(M3GNet(["O", "Si"], **SMALL))
    structures = [crystal(seed) for seed in range(n)]
    for atoms in structures:
        calculator.calculate(atoms)
        set_labels(atoms, -20.0 + calculator.results["energy"], *(calculator.results[k] for k in ("forces", "stress")))
    return structures


def configuration(data: Path, **sections) -> dict:
    source = {"type": "physpre-structures", "src": str(data)}
    base = {
        "model": model_section(),
        "data": {"train": source, "validation": source, "batch_size": 3, "num_workers": 0, "pin_memory": False},
        "trainer": {
            "max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1,
            "additional_trainer_kwargs": {"enable_progress_bar": False, "enable_model_summary": False},
        },
    }  # fmt: skip
    return {**base, **sections}


def written(folder: Path, content: dict) -> Path:
    path = folder / "c.yml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def calculated(atoms: Atoms, calculator) -> dict[str, np.ndarray]:
    found = atoms.copy()
    found.calc = calculator
    return {"energy": found.get_potential_energy(), "forces": found.get_forces(), "stress": found.get_stress()}


def assert_same(one, other, rtol: float = 1e-5) -> None:
    for key, value in one.items():
        assert np.allclose(value, other[key], rtol=rtol, atol=rtol * np.abs(value).max() + 1e-7), key


def saved(module, path: Path) -> Path:
    """The module's checkpoint, written by Lightning."""
    from lightning.pytorch import Trainer

    trainer = Trainer(logger=False, accelerator="cpu", enable_model_summary=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


def trained(content: dict, folder: Path):
    """The host's own training, without this package's command."""
    from mattertune.main import MatterTuner, MatterTunerConfig

    content = copy.deepcopy(content)
    content["trainer"] |= {
        "checkpoint": {"dirpath": str(folder), "filename": "last"},
        "loggers": [{"type": "csv", "save_dir": str(folder)}],
    }
    torch.manual_seed(2)
    return MatterTuner(MatterTunerConfig.model_validate(content)).tune(), folder / "last.ckpt"


def write_data(folder: Path) -> Path:
    """Six labelled structures in a file."""
    write_structures(folder / "data.extxyz", labelled())
    return folder / "data.extxyz"

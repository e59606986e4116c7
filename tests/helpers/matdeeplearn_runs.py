"""Runs of the real MatDeepLearn for the tests beside this file, and small labelled crystals."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import bulk
from torch_geometric.data import Batch

from mdl_physpre import label, write_structures
from mdl_physpre.errors import PhyspreError
from mdl_physpre.hosts.locate import HOSTS, put_on_path
from mdl_physpre.potentials import EAMInteraction

HOST = HOSTS["matdeeplearn"]


def host_root() -> Path | None:
    """Where MatDeepLearn is, with that folder on Python's path; None where it or a package it needs is missing."""
    try:
        root = put_on_path(HOST)
    except PhyspreError:
        return None
    lacking = [m for m in ("torch_scatter", "torch_sparse", "torch_cluster") if importlib.util.find_spec(m) is None]
    return None if lacking else root


ROOT = host_root()
needs_host = pytest.mark.skipif(
    ROOT is None, reason="MatDeepLearn is not installed: set MATDEEPLEARN_HOME to a checkout, with torch-scatter etc."
)
CUTOFF = 4.5


def crystals(n: int = 12, seed: int = 0) -> list[Atoms]:
    """Rattled, strained rock salt of Si and O, 8 atoms, labelled by an embedded-atom potential."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        atoms = bulk("SiO", "rocksalt", a=4.3, cubic=True)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.03 * rng.standard_normal((3, 3))), scale_atoms=True)
        atoms.positions += 0.08 * rng.standard_normal((8, 3))
        found.append(atoms)
    return label(found, EAMInteraction(["Si", "O"], CUTOFF, 2), progress=False, workers=1)


def configuration(folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """A configuration that trains in seconds, with its data in ``folder``; sections are merged in."""
    source = folder / "crystals.extxyz"
    if not source.exists():
        write_structures(source, crystals())
    config: dict[str, Any] = {
        "trainer": "mdl_physpre.hosts.matdeeplearn.TwoStageTrainer",
        "task": {"seed": 3, "identifier": "small", "save_dir": str(folder)},
        "model": {"name": "CGCNN", "dim1": 8, "dim2": 8, "gc_count": 1, "post_fc_count": 1},
        "optim": {"max_epochs": 2, "lr": 1e-3, "batch_size": 4},
        "dataset": {
            "processed": True,
            "src": str(source),
            "split": {"test": 2, "val": 3},
            "preprocess_params": {"cutoff_radius": CUTOFF},
        },
        "physpre": {
            "arms": ["pretrain"],
            "eam": {"n_basis": 2, "cutoff": CUTOFF},
            "perturbation": {"n_aug": 2, "n_pairs": 1, "n_sites": 2},
            "pretrain": {"max_epochs": 2},
        },
    }
    for name, section in sections.items():
        config[name] = {**config[name], **section} if isinstance(section, dict) else section
    return config


def run_here(config: dict[str, Any]) -> Any:
    """What MatDeepLearn's main.py does with a configuration, in this process; the trainer."""
    from matdeeplearn.common.trainer_context import new_trainer_context

    with new_trainer_context(args=None, config=config) as context:
        context.task.setup(context.trainer)
        context.task.run()
        return context.trainer


def run_main(config: dict[str, Any], folder: Path, module: bool = False, root: Path | None = None) -> str:
    """``python main.py --config``, or ``python -m matdeeplearn.main``, in ``folder``; what it printed."""
    file = folder / "given.yml"
    file.write_text(yaml.safe_dump(config))
    done = subprocess.run(
        command(file, module, root), cwd=folder, env=environment(root), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def command(file: Path, module: bool = False, root: Path | None = None) -> list[str]:
    how = ["-m", "matdeeplearn.main"] if module else [str((root or ROOT or Path()) / "main.py")]
    return [sys.executable, *how, "--config", str(file)]


def environment(root: Path | None = None) -> dict[str, str]:
    """As that of the tests, with MatDeepLearn on Python's path and data files of PyG allowed."""
    paths = [str(root or ROOT), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
            "OMP_NUM_THREADS": "1"}  # fmt: skip


def host_batch(structures: list[Any]) -> Any:
    """A batch as MatDeepLearn's loader makes it, from this package's items."""
    from mdl_physpre.hosts.matdeeplearn.data import as_data, host_items

    items = host_items(structures, np.zeros(119), ("energy", "forces", "stress"))
    return Batch.from_data_list([as_data(item) for item in items])


def host_model(name: str, **given: Any) -> Any:
    from mdl_physpre.hosts.matdeeplearn.calculator import setup_models
    from mdl_physpre.hosts.matdeeplearn.names import host

    setup_models()
    switches = {"prediction_level": "graph", "otf_edge_index": True, "otf_edge_attr": True, "otf_node_attr": True,
                "gradient": True, "cutoff_radius": CUTOFF, "n_neighbors": 10_000, "graph_method": "ocp",
                "num_offsets": 3, "node_dim": 100, "edge_dim": 50, "output_dim": 1}  # fmt: skip
    return host().registry.get_model_class(name)(**{**switches, **given})

"""Runs that are small enough for a test, and commands as a user calls them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from ase.build import bulk
from typer.testing import CliRunner

from mdl_physpre import label, write_structures
from mdl_physpre.cli.main import app
from mdl_physpre.potentials import EAMInteraction

CONFIG = """
dataset: {{src: {data}, split: {{test: 4, val: 4}}}}
model: {{name: CGCNN, cutoff: 4.0, dim1: 8, dim2: 8, gc_count: 1, post_fc_count: 1, edge_dim: 8}}
optim: {{max_epochs: 6, lr: 1.0e-3, batch_size: 4}}
physpre:
  eam: {{cutoff: 5.0, n_basis: 2, epochs: 5}}
  perturbation: {{n_aug: 2, n_pairs: 1}}
  pretrain: {{max_epochs: 4}}
  dynamics: {{temperature: 300, timestep: 1.0, steps: 120, n_structures: 3, checkpoint_steps: 20}}
"""
"""Of both arms, on what :func:`write_oxide` writes."""


def write_oxide(path: Path, n: int = 24) -> EAMInteraction:
    """Write rattled rock salt, and give the potential that has labelled it."""
    rng, structures = np.random.default_rng(0), []
    for _ in range(n):
        atoms = bulk("MgO", "rocksalt", 4.2 * rng.uniform(0.97, 1.05), cubic=True)
        atoms.positions += rng.normal(0, 0.08, atoms.positions.shape)
        structures.append(atoms)
    torch.manual_seed(0)
    teacher = EAMInteraction(elements=["Mg", "O"], cutoff=5.0, n_basis=2)
    write_structures(path, label(structures, teacher, progress=False))
    return teacher


def called(*arguments: object, code: int = 0) -> str:
    """The output of ``physpre`` with these arguments, which ends with this status."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (arguments, result.output, result.exception)
    return result.output

"""MACE in a whole run, from data to report, and out of it into MACE's own calculator."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from mdl_physpre import PotentialCalculator, load_potential, write_structures
from mdl_physpre.potentials import HybridPotential, convert_checkpoint
from mdl_physpre.structures.labels import set_labels
from mdl_physpre.workflow.config.file import load_config
from mdl_physpre.workflow.run import run

CONFIG = """
dataset: {{src: {data}, split: {{test: 2, val: 2}}}}
model: {{name: MACE, cutoff: 4.0, num_channels: 3, max_L: 0, max_ell: 1, correlation: 2, radial_MLP: [6]}}
optim: {{max_epochs: 2, lr: 1.0e-3, batch_size: 4}}
physpre:
  arms: [baseline, pretrain, hybrid]
  eam: {{cutoff: 5.0, n_basis: 2, epochs: 5}}
  perturbation: {{n_aug: 1, n_pairs: 1}}
  pretrain: {{max_epochs: 1}}
  dynamics: {{temperature: 300, timestep: 1.0, steps: 5, n_structures: 1}}
  report: {{formats: []}}
"""


def test_from_data_to_report_and_to_mace(tmp_path):
    pytest.importorskip("mace", reason="MACE is not installed: pip install mace-torch")
    from mace.calculators import MACECalculator

    structures = []
    for seed in range(12):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.12, seed=seed)
        atoms.calc = EMT()
        structures.append(
            set_labels(atoms.copy(), atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress())
        )
    write_structures(tmp_path / "cu.extxyz", structures)
    (tmp_path / "cu.yml").write_text(CONFIG.format(data=tmp_path / "cu.extxyz"))
    summary = run(load_config(tmp_path / "cu.yml"), out=tmp_path / "out")
    assert set(summary.arms) == {"baseline", "pretrain", "hybrid"}

    networks = tmp_path / "out" / "3-networks"
    hybrid = load_potential(networks / "hybrid" / "finetune" / "best.pt")
    assert isinstance(hybrid, HybridPotential) and type(hybrid.parts["network"]).__name__ == "MACE"
    potential = load_potential(networks / "pretrain" / "finetune" / "best.pt")
    assert potential.avg_num_neighbors == pytest.approx(18, abs=3)  # two shells of face-centred cubic
    assert convert_checkpoint(networks / "pretrain" / "finetune" / "best.pt", tmp_path / "cu.model") == []
    atoms = structures[0].copy()
    atoms.calc = MACECalculator(model_paths=str(tmp_path / "cu.model"), device="cpu", default_dtype="float32")
    expected = PotentialCalculator(potential).get_forces(structures[0].copy())
    np.testing.assert_allclose(atoms.get_forces(), expected, atol=1e-5)

"""One command from data to report with a model of graph-pes, and its result as graph-pes's own file."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from mdl_physpre import PotentialCalculator, load_potential, write_structures
from mdl_physpre.potentials import convert_checkpoint
from mdl_physpre.structures.labels import set_labels
from mdl_physpre.workflow.run import run

models = pytest.importorskip("graph_pes.models", reason="needs graph-pes")

CONFIG = """
dataset: {{src: {data}, split: {{test: 4, val: 4}}}}
model: {{name: "graph_pes:PaiNN", cutoff: 4.0, channels: 8, layers: 1, radial_features: 6}}
optim: {{max_epochs: 3, lr: 1.0e-3, batch_size: 4}}
physpre:
  arms: [baseline, pretrain, hybrid]
  eam: {{cutoff: 5.0, n_basis: 2, epochs: 5}}
  perturbation: {{n_aug: 2, n_pairs: 1}}
  pretrain: {{max_epochs: 2, batch_size: 8}}
  dynamics: {{temperature: 300, timestep: 1.0, steps: 20, n_structures: 2}}
"""


def copper() -> list:
    """Rattled cells of copper with the labels of ASE's effective-medium potential."""
    rng, made = np.random.default_rng(0), []
    for _ in range(24):
        atoms = bulk("Cu", "fcc", 3.6 * rng.uniform(0.97, 1.05), cubic=True)
        atoms.positions += rng.normal(0, 0.08, atoms.positions.shape)
        atoms.calc = EMT()
        energy, stress = atoms.get_potential_energy() - 100.0 * len(atoms), atoms.get_stress(voigt=False)
        made.append(set_labels(atoms.copy(), energy=energy, forces=atoms.get_forces(), stress=stress))
    return made


def test_from_data_to_report(tmp_path):
    structures = copper()
    write_structures(tmp_path / "cu.extxyz", structures)
    (tmp_path / "cu.yml").write_text(CONFIG.format(data=tmp_path / "cu.extxyz"))
    summary = run(tmp_path / "cu.yml", out=tmp_path / "run")
    assert (tmp_path / "run" / "report.html").exists()
    assert {arm: summary.arms[arm].dynamics.counts.n for arm in summary.arms} == dict(baseline=2, pretrain=2, hybrid=2)
    file = tmp_path / "run" / summary.arms["pretrain"].networks[0].checkpoint
    potential = load_potential(file)
    assert potential.reference.as_dict()[29] == pytest.approx(-100.0, abs=2.0)
    assert float(potential.network.scaler.per_element_scaling[29].detach()) != pytest.approx(1.0, abs=0.05)
    convert_checkpoint(file, tmp_path / "model.pt", "graph-pes")
    energies = []
    for calculator in (PotentialCalculator(potential), models.load_model(tmp_path / "model.pt").ase_calculator()):
        structures[0].calc = calculator
        energies.append(structures[0].get_potential_energy())
    assert energies[0] == pytest.approx(energies[1], abs=1e-4)  # of -400 eV, in single precision

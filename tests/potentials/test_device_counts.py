"""What a training step and a step of dynamics cost on a GPU: kernels, waits of the host, and no clash of devices.

A GPU that gets thousands of small kernels is idle most of the time, and one that the host waits for has nothing to do
meanwhile. So the number of kernels is bounded, and does not grow with the number of structures. Counted on a stand-in
for a GPU, with the paper's numbers of layers.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import mean, median
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.spacegroup import crystal

from mdl_physpre.dynamics.engine.forces import inference
from mdl_physpre.dynamics.running.run_state import begin_or_resume
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.potentials import CGCNN, EAMInteraction, HybridPotential, M3GNet, Potential, TorchMDET
from mdl_physpre.structures import set_labels
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.training.module import PotentialTraining
from mdl_physpre.training.optimizer import make_optimizer
from mdl_physpre.training.settings import TrainingSettings
from tests.helpers.gpu_stand_in import DEVICE, Counts, counting

ELEMENTS = ["Si", "O"]
KERNELS = {"cgcnn": 700, "torchmd_et": 3600, "m3gnet": 2100, "eam": 700, "hybrid": 1400}  # of a training step


def network(name: str) -> Potential:
    torch.manual_seed(0)
    if name == "cgcnn":
        return CGCNN(elements=ELEMENTS, cutoff=6.0, dim1=12, dim2=12).float()
    if name == "torchmd_et":
        return TorchMDET(elements=ELEMENTS, cutoff=6.0, hidden_channels=16, post_hidden_channels=16).float()
    if name == "m3gnet":
        return M3GNet(elements=ELEMENTS, cutoff=5.0, threebody_cutoff=4.0, units=16).float()
    eam = EAMInteraction(elements=ELEMENTS, cutoff=8.0, n_basis=10).float()
    return eam if name == "eam" else HybridPotential(network("cgcnn"), eam).float()


def silica(n: int) -> list[Atoms]:
    """Rattled quartz of 9 atoms with made-up labels."""
    places = [(0.4697, 0, 1 / 3), (0.4133, 0.2672, 0.4524)]
    quartz = crystal(["Si", "O"], places, spacegroup=152, cellpar=[4.916, 4.916, 5.405, 90, 90, 120])
    made = []
    for k in range(n):
        rng = np.random.default_rng(k)
        atoms = quartz.copy()
        atoms.rattle(0.05, seed=k)
        set_labels(atoms, rng.normal(), rng.normal(size=(len(atoms), 3)), rng.normal(size=(3, 3)))
        made.append(atoms)
    return made


def training_step(name: str, n: int, folder: Path) -> Counts:
    """The counts of the second of two steps, as Lightning takes them: errors, gradient, norm, optimiser, sums."""
    potential = network(name).to(DEVICE)
    data = GraphDataset(silica(n), potential.cutoff, dtype=torch.float32, workers=1)
    settings = TrainingSettings(batch_size=n)
    module = PotentialTraining(potential, data, data, settings, folder)
    optimizer, _ = make_optimizer(potential, settings)
    module.optimizers = lambda: SimpleNamespace(optimizer=optimizer)
    batch = module.transfer_batch_to_device(next(iter(module.train_dataloader())), DEVICE, 0)
    module.on_train_epoch_start()
    with counting() as counts:
        for _ in range(2):
            counts.reset()
            module.training_step(batch, 0)
    assert module.counts["skipped_steps"] == 0
    return counts


@pytest.mark.parametrize("name", KERNELS)
def test_a_training_step_is_few_kernels_however_large_the_batch(name, tmp_path):
    one, many = training_step(name, 1, tmp_path), training_step(name, 8, tmp_path)
    assert many.clashes == {}
    assert many.waited <= 1, many.syncs
    assert one.kernels == pytest.approx(many.kernels, rel=0.05)
    assert many.kernels <= KERNELS[name], many.names.most_common(15)


def dynamics_steps(name: str, ensemble: str, n: int, steps: int = 16) -> tuple[list[int], list[int], Counter, Counter]:
    """Kernels and waits of each step, all lines where the host waited, and all clashes."""
    potential = network(name).to(DEVICE).eval()
    settings = DynamicsSettings(ensemble=ensemble, temperature=300.0, timestep=0.5, steps=10_000)
    kernels, waits, lines, clashes = [], [], Counter(), Counter()
    with counting() as counts, inference(potential):
        ids = [str(k) for k in range(n)]
        run = begin_or_resume(potential, silica(n), ids, list(range(n)), settings, [settings] * n)
        clashes += counts.clashes
        for _ in range(steps):
            counts.reset()
            run.advance()
            kernels.append(counts.kernels)
            waits.append(counts.waited)
            lines += counts.syncs
            clashes += counts.clashes
    assert len(run.active) == n
    return kernels, waits, lines, clashes


@pytest.mark.parametrize("ensemble", ["nvt", "npt", "fire?fmax=0"])
def test_a_step_of_dynamics_is_few_kernels_however_many_structures(ensemble):
    one, _, _, _ = dynamics_steps("cgcnn", ensemble, 1)
    many, waits, lines, clashes = dynamics_steps("cgcnn", ensemble, 8)
    assert clashes == {}
    assert mean(waits) <= 2, lines.most_common(15)
    assert median(one) == pytest.approx(median(many), rel=0.05)
    assert mean(many) <= (1000 if ensemble == "npt" else 500)

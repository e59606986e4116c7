"""The loss against numbers worked out independently."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.base import Predictions
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import AtomGraph, GraphDataset
from mdl_physpre.training.data import GraphBatches
from mdl_physpre.training.loss import check_labels, label_errors, total_loss
from mdl_physpre.training.settings import TrainingSettings
from tests.helpers.tiny_potential import CUTOFF, TinyPotential, cells, labelled

NAN = float("nan")


def case(dtype=torch.float64):
    """Two structures of 2 and 1 atoms; the energy of the second, one force and one stress are missing."""
    graph = AtomGraph.from_tensors(
        n_atoms=torch.tensor([2, 1]),
        batch=torch.tensor([0, 0, 1]),
        energy=torch.tensor([-10.0, NAN], dtype=torch.float64),
        forces=torch.tensor([[1.0, 2.0, 2.0], [NAN, NAN, NAN], [0.0, 0.0, 400.0]], dtype=dtype),
        stress=torch.stack([torch.full((3, 3), NAN), torch.full((3, 3), 0.1)]).to(dtype),
    )
    predictions = Predictions(
        torch.tensor([-7.0, 5.0], dtype=torch.float64, requires_grad=True),
        torch.tensor([[1.5, 2.0, 1.0], [9.0, 9.0, 9.0], [3.0, 0.0, 398.0]], dtype=dtype, requires_grad=True),
        torch.cat([torch.zeros(1, 3, 3), torch.full((1, 3, 3), 0.3)]).to(dtype).requires_grad_(True),
    )
    return graph, predictions


def loss_of(graph, predictions, **settings):
    s = TrainingSettings(**settings)
    return total_loss(label_errors(predictions, graph, s), s)


def test_paper_loss_over_the_labels_that_exist():
    # energy |−7+10| = 3; forces (0.5+0+1+3+0+2)/6; stress 0.2
    expected = 0.01 * 3 + 50 * 6.5 / 6 + 50 * 0.2
    assert float(loss_of(*case()).detach()) == pytest.approx(expected, rel=1e-7)


def test_missing_labels_have_no_gradient_and_no_nan():
    graph, predictions = case()
    loss_of(graph, predictions).backward()
    assert predictions.energies.grad.tolist() == pytest.approx([0.01, 0.0])
    assert predictions.forces.grad[1].tolist() == [0, 0, 0]
    assert predictions.stress.grad[0].abs().max() == 0
    assert predictions.forces.grad[0].tolist() == pytest.approx([50 / 6, 0, -50 / 6])


def test_energy_per_atom():
    only_energy = {"weight_force": 0.0, "weight_stress": 0.0, "weight_energy": 2.0}
    assert float(loss_of(*case(), energy_per_atom=True, **only_energy).detach()) == pytest.approx(2 * 3 / 2)


def test_huber_is_the_absolute_error_rounded_off():
    graph, predictions = case()
    got = label_errors(predictions, graph, TrainingSettings(loss="huber", huber_force=2.0, huber_energy=1.0))
    # below δ=2: d²/4 for 0.5, 1 and (at the edge, both forms agree) 2; above: 3 − 1
    assert float(got["forces"].loss.detach()) == pytest.approx(0.25 / 4 + 1 / 4 + 1 + 2)
    assert float(got["energy"].loss.detach()) == pytest.approx(3 - 0.5)
    assert float(got["forces"].absolute) == pytest.approx(6.5)


def test_conditional_huber_pays_less_heed_to_long_forces():
    graph, predictions = case()
    got = label_errors(predictions, graph, TrainingSettings(loss="conditional_huber", huber_force=2.0))
    # third atom: |F| = 400, a tenth of δ and slope: 0.1·(3 − 0.1) + 0.1·(2 − 0.1)
    assert float(got["forces"].loss.detach()) == pytest.approx(0.25 / 4 + 1 / 4 + 0.1 * 2.9 + 0.1 * 1.9)
    huber = torch.nn.functional.huber_loss(torch.tensor([3.0, 2.0]), torch.zeros(2), delta=0.2, reduction="sum") / 2.0
    assert 0.1 * 2.9 + 0.1 * 1.9 == pytest.approx(float(huber))  # MACE's form, divided by the full δ


def test_tails_divide_by_the_size_of_the_label():
    graph, predictions = case()
    got = label_errors(predictions, graph, TrainingSettings(force_tail=3.0, stress_tail=0.3))
    # first atom |F| = 3, third |F| = 400; stress: norm 0.3
    assert float(got["forces"].loss.detach()) == pytest.approx(1.5 / 2 + 5 / (1 + 400 / 3))
    assert float(got["stress"].loss.detach()) == pytest.approx(9 * 0.2 / 2, rel=1e-6)
    assert float(got["stress"].absolute) == pytest.approx(9 * 0.2, rel=1e-6)


def test_large_totals_keep_small_differences():
    graph, predictions = case(torch.float32)
    graph.energy[0] = -100_000.0
    predictions.energies = torch.tensor([-100_000.001, 0.0], dtype=torch.float64, requires_grad=True)
    got = label_errors(predictions, graph, TrainingSettings())
    assert float(got["energy"].absolute) == pytest.approx(1e-3, rel=1e-6)


def test_zero_weight_needs_no_label_and_a_weight_without_label_is_an_error():
    structures = labelled(cells(3))
    for atoms in structures:
        del atoms.calc.results["stress"]
    dataset = GraphDataset(structures, CUTOFF)
    check_labels(dataset, "training", TrainingSettings(weight_stress=0.0))
    with pytest.raises(ConfigError, match="weight_stress.*3 structures of the validation set.*'stress'"):
        check_labels(dataset, "validation", TrainingSettings())


def test_structure_without_cell_leaves_a_finite_gradient():
    """Its stress is undefined and masked; the gradient through it must not become NaN, nor its forces change."""
    crystals, molecules = labelled(cells(2)), labelled(cells(2, seed=5, periodic=False))
    mixed = GraphDataset(crystals + molecules, CUTOFF, dtype=torch.float64)
    settings = TrainingSettings()
    torch.manual_seed(0)
    potential = TinyPotential().double()
    (graph,) = GraphBatches(mixed, [[0, 1, 2, 3]])
    predictions = evaluate(potential, graph, create_graph=True)
    total_loss(label_errors(predictions, graph, settings), settings).backward()
    assert all(torch.isfinite(p.grad).all() for p in potential.parameters())
    plain = evaluate(potential, mixed.batch([0, 1, 2, 3]))
    np.testing.assert_allclose(predictions.forces.detach(), plain.forces, atol=1e-12)
    np.testing.assert_allclose(predictions.stress[:2].detach(), plain.stress[:2], atol=1e-12)


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", 0.0), ("max_epochs", 0), ("batch_size", 1.5), ("loss", "hubr"), ("precision", "fp16"), ("lr", NAN),
     ("scheduler_factor", 1.0), ("loggers", ("mlflow",)), ("force_tail", -1.0)],
)  # fmt: skip
def test_settings_out_of_range(key, value):
    with pytest.raises(ConfigError, match=key):
        TrainingSettings(**{key: value})


def test_all_weights_zero():
    with pytest.raises(ConfigError, match="nothing to train"):
        TrainingSettings(weight_energy=0.0, weight_force=0.0, weight_stress=0.0)

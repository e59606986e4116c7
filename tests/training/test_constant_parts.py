"""Parts of a sum that training does not change: evaluated once, with the same gradient as in every step."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from mdl_physpre.potentials import CGCNN, EAMInteraction, HybridPotential
from mdl_physpre.potentials.eam.angular import AngularEAM
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.sum import RepulsivePotential
from mdl_physpre.potentials.zbl import ZBL
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.training import constant_parts
from mdl_physpre.training.constant_parts import ConstantParts, taken_apart
from mdl_physpre.training.gradient import LossGradient
from mdl_physpre.training.loss import label_errors, total_loss
from mdl_physpre.training.ranks import Ranks
from mdl_physpre.training.settings import TrainingSettings
from tests.helpers.tiny_potential import CUTOFF, cells, labelled

ELEMENTS = ["Si", "O"]
SETTINGS = TrainingSettings(force_tail=5.0)


def angular() -> AngularEAM:
    eam = AngularEAM(ELEMENTS, CUTOFF, n_pair=3, n_radial=2, l_max=1)
    with torch.no_grad():
        eam.coefficients.normal_(0, 0.05)
    return eam


def network() -> CGCNN:
    return CGCNN(ELEMENTS, CUTOFF, dim1=8, dim2=8, gc_count=1)


@pytest.fixture
def structures() -> GraphDataset:
    torch.manual_seed(0)
    return GraphDataset(labelled(cells(6)), CUTOFF, dtype=torch.float64)


@pytest.mark.parametrize(
    "make", [lambda: HybridPotential(network(), angular()), lambda: RepulsivePotential(network(), ZBL(ELEMENTS))]
)
def test_the_gradient_is_that_of_the_whole_sum(structures, make) -> None:
    whole = make().double()
    made = LossGradient(whole, SETTINGS, SETTINGS, Ranks())
    for indices in ([0, 1, 2], [2, 3], [1, 0, 3]):  # the last one is known by parts of the others
        graph = structures.batch(indices)
        made(graph, [(structures.batch([4, 5]), 0.5)])
        found = [p.grad for p in made.parameters]
        loss = sum(
            weight * total_loss(label_errors(evaluate(whole, g, create_graph=True), g, SETTINGS), SETTINGS)
            for g, weight in ((graph, 1.0), (structures.batch([4, 5]), 0.5))
        )
        expected = torch.autograd.grad(loss, made.parameters, allow_unused=True)
        for one, other in zip(found, expected):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
        errors = made.validation_errors(graph)
        other = label_errors(evaluate(whole, graph), graph, SETTINGS)
        assert float(errors["forces"].loss) == pytest.approx(float(other["forces"].loss), rel=1e-12)


def test_each_structure_is_evaluated_once(structures, monkeypatch) -> None:
    made = LossGradient(HybridPotential(network(), angular()).double(), SETTINGS, SETTINGS, Ranks())
    asked = []
    plain = constant_parts.evaluate
    monkeypatch.setattr(constant_parts, "evaluate", lambda p, g, **k: asked.append(len(g.n_atoms)) or plain(p, g, **k))
    for _ in range(3):
        for indices in ([0, 1, 2], [3, 4, 5]):
            made(structures.batch(indices), [])
            made.validation_errors(structures.batch(indices[::-1]))
    assert asked == [3, 3]


def test_what_is_trained_is_no_constant() -> None:
    eam = EAMInteraction(ELEMENTS, CUTOFF, n_basis=3)
    assert taken_apart(network())[1] is None
    assert taken_apart(HybridPotential(network(), eam))[1] is None
    trained, constant = taken_apart(HybridPotential(network(), eam, train_eam=False))
    assert constant is not None
    assert list(trained.parts) == ["network"]


def test_a_structure_that_is_gone_is_forgotten(structures) -> None:
    known = ConstantParts({"eam": angular().double()})
    assert known.predictions(structures.batch([0, 1]), forces=True, stress=True).forces is not None
    assert len(known._known) == 2
    others = GraphDataset(labelled(cells(2)), CUTOFF, dtype=torch.float64)
    known.predictions(others.batch(), forces=False, stress=False)
    assert len(known._known) == 4
    both = known.predictions(others.batch(), forces=True, stress=False)  # more is asked for than is known
    np.testing.assert_allclose(both.forces, evaluate(known._sum, others.batch()).forces, atol=1e-12)
    del others
    gc.collect()
    assert len(known._known) == 2

"""Predictions beside labels, and the change from one potential to another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk

from mdl_physpre import label
from mdl_physpre.analysis import parity, prediction_errors
from mdl_physpre.analysis.parity import evenly, paired_change, predictions, structure_sums
from mdl_physpre.potentials import EAMInteraction
from mdl_physpre.structures import set_labels


def eam(seed: int) -> EAMInteraction:
    torch.manual_seed(seed)
    potential = EAMInteraction(elements=["Mg", "O"], cutoff=4.5, n_basis=2)
    with torch.no_grad():
        potential.D.mul_(1 + 0.3 * torch.rand(3))
    return potential


@pytest.fixture
def labelled() -> list:
    rng = np.random.default_rng(1)
    made = []
    for k in range(7):
        atoms = bulk("MgO", "rocksalt", 4.2, cubic=bool(k % 2))
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
        made.append(atoms)
    made = label(made, eam(0), progress=False)
    results = made[2].calc.results
    set_labels(made[2], results["energy"], results["forces"])  # no stress
    results = made[4].calc.results
    set_labels(made[4], None, results["forces"], results["stress"])  # no energy
    return made


def test_sums_are_those_of_the_errors(labelled: list) -> None:
    other = eam(5)
    found, errors = predictions(other, labelled), prediction_errors(other, labelled)
    for quantity, key in (
        ("energy", "energy_mae"), ("energy_per_atom", "energy_mae_mev_per_atom"), ("forces", "forces_mae"),
        ("stress", "stress_mae"),
    ):  # fmt: skip
        above, below = structure_sums(found, quantity)
        assert above.sum() / below.sum() == pytest.approx(getattr(errors, key), rel=1e-6)
    assert structure_sums(found, "stress")[1][2] == 0 and structure_sums(found, "energy")[1][4] == 0
    difference = np.abs(found.forces - found.forces_label).mean()
    assert difference == pytest.approx(errors.forces_mae, rel=1e-6), "few components: all are kept"


def test_few_of_many_are_taken(labelled: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "STRUCTURES", 3)
    monkeypatch.setattr(parity, "COMPONENTS", 5)
    found = predictions(eam(5), labelled)
    assert found.index.tolist() == [0, 3, 6]
    assert len(found.forces) == len(found.stress_label) == 5
    assert evenly(0, 5).tolist() == [] and evenly(2, 5).tolist() == [0, 1]


def test_a_change_and_its_interval(labelled: list) -> None:
    one = predictions(eam(5), labelled)
    half = one.model_copy(update={"forces_error": one.forces_error * 0.5})
    found = paired_change(one, half, "forces")
    assert found is not None
    assert found.change == pytest.approx(-0.5)
    assert found.interval == pytest.approx((-0.5, -0.5)), "every structure changes alike"
    rng = np.random.default_rng(0)
    uneven = one.model_copy(update={"forces_error": one.forces_error * rng.uniform(0.2, 2.0, 7)})
    found = paired_change(one, uneven, "forces")
    assert found is not None and found.interval[0] < found.change < found.interval[1]
    assert paired_change(one, one.model_copy(update={"index": one.index + 1}), "forces") is None
    nothing = one.model_copy(update={"stress_count": np.zeros(7, int)})
    assert paired_change(nothing, nothing, "stress") is None

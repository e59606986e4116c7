"""The spread of a committee against its error: numbers whose answer is known, and networks against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from mdl_physpre import PotentialCalculator
from mdl_physpre.analysis import committee_errors, prediction_errors
from mdl_physpre.analysis.calibration import CommitteeErrors, calibration, format_calibration
from mdl_physpre.errors import DataError
from mdl_physpre.potentials import Committee
from mdl_physpre.structures.labels import get_labels
from tests.helpers.tiny_potential import TinyPotential, cells, labelled


def test_a_calibrated_spread_has_factor_one_and_lies_on_the_line():
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.1, 1.0, 50_000)
    found = calibration(spread, np.abs(rng.normal(0, spread)))
    assert found.factor == pytest.approx(1, abs=0.02)
    assert 0.4 < found.spearman < 0.7
    assert found.n == sum(found.counts) == 50_000 and len(found.counts) == 10
    np.testing.assert_allclose(found.error, found.spread, rtol=0.05)
    assert all(a < b for a, b in zip(found.spread, found.spread[1:]))


def test_half_of_the_error_told():
    spread = np.linspace(0.1, 1.0, 31)
    found = calibration(spread, 2 * spread)
    assert found.factor == pytest.approx(2) and found.spearman == pytest.approx(1)
    assert found.rms_error == pytest.approx(2 * found.rms_spread)
    assert found.rms_spread == pytest.approx(math.sqrt(np.mean(spread**2)))
    np.testing.assert_allclose(found.error, 2 * np.array(found.spread))
    assert len(found.counts) == 6


def test_few_values_and_no_spread():
    one = calibration(np.array([0.5]), np.array([1.0]))
    assert one.spearman is None and one.factor == 2 and one.counts == (1,)
    none = calibration(np.zeros(4), np.arange(4.0))
    assert none.factor is None and none.spearman is None and none.rms_error == pytest.approx(math.sqrt(14 / 4))


@pytest.fixture
def committee() -> Committee:
    members = []
    for seed in range(3):
        torch.manual_seed(seed)
        members.append(TinyPotential().double())
    return Committee(members)


def test_errors_and_calibration_are_those_of_numpy(committee):
    structures = labelled(cells(7))
    structures[2].calc = None
    found = committee_errors(committee, structures, max_edges=300)  # several batches
    assert found.errors == prediction_errors(committee, structures)
    force_error, force_spread, energy_error, energy_spread = [], [], [], []
    for k, atoms in enumerate(structures):
        if k == 2:
            continue
        calculator = PotentialCalculator(committee)
        label = get_labels(atoms)
        force_error.append(np.linalg.norm(calculator.get_forces(atoms) - label.forces, axis=1))
        force_spread.append(calculator.results["force_spread"])
        energy_error.append(abs(calculator.results["energy"] - label.energy) / len(atoms))
        energy_spread.append(calculator.results["energy_spread"] / len(atoms))
    error, spread = np.concatenate(force_error), np.concatenate(force_spread)
    assert found.forces.n == len(error) and found.energy.n == 6
    assert found.forces.spearman == pytest.approx(spearmanr(spread, error).statistic)
    assert found.forces.factor == pytest.approx(math.sqrt(np.sum(error**2) / np.sum(spread**2)))
    assert found.energy.spearman == pytest.approx(spearmanr(energy_spread, energy_error).statistic)
    assert found.energy.rms_error == pytest.approx(1e-3 * found.errors.energy_rmse_mev_per_atom)
    assert found.forces.rms_error == pytest.approx(math.sqrt(3) * found.errors.forces_rmse)
    assert CommitteeErrors.model_validate(found.plain()) == found
    lines = format_calibration({"pretrain": found}).splitlines()
    assert len(lines) == 4 and "force, eV/Å, by atom" in lines[1] and f"{found.forces.factor:.3g}" in lines[1]


def test_a_label_that_nobody_carries(committee):
    structures = labelled(cells(3))
    for atoms in structures:
        del atoms.calc.results["forces"]
    found = committee_errors(committee, structures)
    assert found.forces is None and found.energy.n == 3


def test_one_network_has_no_spread():
    with pytest.raises(DataError, match="TinyPotential gives no spread; take a committee"):
        committee_errors(TinyPotential().double(), labelled(cells(2)))

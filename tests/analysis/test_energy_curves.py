"""Curves of two atoms: parts that add up, against independent routes to the same energies."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from ase import Atoms

from mdl_physpre import PotentialCalculator
from mdl_physpre.analysis.energy_curves import (
    EnergyCurves,
    dimer_energies,
    eam_elements,
    eam_parts,
    element_pairs,
    energy_curves,
)
from mdl_physpre.errors import DataError
from mdl_physpre.potentials import CGCNN, EAMInteraction
from mdl_physpre.potentials.eam.potential import pair_curve


@pytest.fixture
def eam() -> EAMInteraction:
    torch.manual_seed(3)
    potential = EAMInteraction(elements=["Si", "O"], cutoff=6.0, n_basis=3)
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return potential


def test_the_parts_add_up_to_the_energy_of_two_atoms(eam: EAMInteraction) -> None:
    r = np.linspace(0.5, 6.5, 40)
    for pair in element_pairs(eam.elements):
        parts = eam_parts(eam, pair, r)
        total = np.add(parts.pair, parts.embedding)
        np.testing.assert_allclose(total, dimer_energies(eam, pair, r), atol=1e-9)
        np.testing.assert_allclose(total, pair_curve(eam, *pair, r).detach(), atol=1e-9)
        assert total[-1] == 0.0, "nothing beyond the cutoff"
        apart = Atoms(numbers=pair, positions=[[0, 0, 0], [50, 0, 0]])
        apart.calc = PotentialCalculator(eam)
        b, rho0 = (p.detach() for p in eam.element_parameters(torch.float64))
        empty = sum(float(b[int(eam.element_of[z])] * rho0[int(eam.element_of[z])] ** 2) for z in pair)
        assert parts.atomic == pytest.approx(apart.get_potential_energy() - empty)


def test_curves_of_several_potentials_share_distances(eam: EAMInteraction) -> None:
    network = CGCNN(elements=["Si", "O", "P"], cutoff=4.0, dim1=8, dim2=8, gc_count=1, post_fc_count=1, edge_dim=8)
    found = energy_curves({"EAM": eam, "baseline": network}, element_pairs([8, 14, 15]))
    assert set(found.pairs) == {"O-O", "O-Si", "O-P", "Si-Si", "Si-P", "P-P"}
    assert found.distances[0] == 0.3 and found.distances[-1] == pytest.approx(6.0)
    assert set(found.pairs["O-Si"].curves) == {"EAM", "baseline"}
    assert set(found.pairs["P-P"].curves) == {"baseline"}, "the embedded-atom potential has no P"
    assert found.pairs["O-Si"].covalent_distance == pytest.approx(0.63 + 1.16)
    assert EnergyCurves.model_validate(json.loads(json.dumps(found.plain()))) == found
    k = found.distances.index(1.5)
    dimer = Atoms("SiO", [[0, 0, 0], [0, 0, 1.5]])
    dimer.calc = PotentialCalculator(network)
    far = Atoms("SiO", [[0, 0, 0], [0, 0, 40.0]])
    far.calc = PotentialCalculator(network)
    expected = dimer.get_potential_energy() - far.get_potential_energy()
    assert found.pairs["O-Si"].curves["baseline"][k] == pytest.approx(expected, abs=1e-4)


def test_elements(eam: EAMInteraction) -> None:
    rows = eam_elements(eam)
    assert [row.element for row in rows] == ["Si", "O"]
    assert rows[1].B_eV == pytest.approx(abs(float(eam.b[1])))
    with pytest.raises(DataError, match="P"):
        dimer_energies(eam, (15, 15), np.array([1.0]))

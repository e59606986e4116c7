"""The short-range repulsion of nuclei: its formula, its end, and the embedded-atom potential that holds it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials import CGCNN, HybridPotential, RepulsivePotential
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.potentials.eam.covalent_radii import covalent_radius
from mdl_physpre.potentials.eam.potential import EAMInteraction, pair_curve
from mdl_physpre.potentials.energy_reference import EnergyReference
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.zbl import (
    SWITCH_START,
    ZBL,
    nuclear_repulsion,
    repulsion_beside_data,
    repulsion_radii,
    shortest_distances,
)
from mdl_physpre.structures.graph import build_graph


def dimer(symbols: str, distance: float) -> Atoms:
    return Atoms(symbols, [[0, 0, 0], [0, 0, distance]])


def energy(potential, atoms, dtype=torch.float64) -> float:
    graph = build_graph(atoms, max(potential.cutoff, 1.0), dtype=dtype)
    return float(evaluate(potential, graph, forces=False, stress=False).energies.sum())


@pytest.mark.parametrize(("pair", "distance"), [("SiO", 0.5), ("PP", 0.3), ("LiMn", 0.1), ("SiO", 1e-5)])
def test_the_repulsion_is_that_of_the_formula(pair, distance):
    """Screening length and function of Ziegler, Biersack and Littmark, written out; near zero, the bare nuclei."""
    z = Atoms(pair).numbers
    x = distance * (z[0] ** 0.23 + z[1] ** 0.23) / 0.4685
    chi = 0.18175 * np.exp(-3.1998 * x) + 0.50986 * np.exp(-0.94229 * x)
    chi += 0.28022 * np.exp(-0.4029 * x) + 0.02817 * np.exp(-0.20162 * x)
    written_out = 14.399645 * z[0] * z[1] / distance * chi
    assert float(nuclear_repulsion(int(z[0]), int(z[1]), torch.tensor(distance).double())) == pytest.approx(written_out)
    assert energy(ZBL(), dimer(pair, distance)) == pytest.approx(written_out, rel=1e-12)  # not switched off yet
    if distance < 1e-3:
        assert written_out * distance == pytest.approx(14.399645 * z[0] * z[1], rel=1e-3)


def test_it_vanishes_at_the_sum_of_covalent_radii_with_two_derivatives():
    repulsion, radius = ZBL(["Si", "O"]), covalent_radius(14) + covalent_radius(8)
    assert repulsion.cutoff == pytest.approx(2 * covalent_radius(14))
    z = torch.tensor([14]), torch.tensor([8])
    gaps = [float(repulsion.pair_energy(*z, torch.tensor([radius - h]).double())[0]) for h in (0.01, 0.02)]
    assert gaps[1] / gaps[0] == pytest.approx(8, rel=0.1)  # with the third power: C²
    value, slope = repulsion.pair_energy(*z, torch.tensor([radius, radius + 1.0]).double())
    assert value.abs().max() < 1e-12 and slope.abs().max() < 1e-12
    start = SWITCH_START * radius
    inside = float(repulsion.pair_energy(*z, torch.tensor([start - 1e-6]).double())[0])
    assert inside == pytest.approx(float(nuclear_repulsion(14, 8, torch.tensor(start - 1e-6).double())), rel=1e-12)


def test_slope_by_hand_and_by_autograd():
    r = torch.linspace(0.05, 2.5, 200, dtype=torch.float64, requires_grad=True)
    value, slope = ZBL().pair_energy(torch.full((200,), 14), torch.full((200,), 8), r)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), r)[0], slope.detach(), rtol=1e-10, atol=1e-10)
    assert (slope <= 0).all()


def test_radii_by_hand():
    repulsion = ZBL(["Si", "O"], {"O-Si": 0.9, "O-O": 1.0})
    assert repulsion.pair_radius(14, 8) == repulsion.pair_radius(8, 14) == 0.9
    assert repulsion.pair_radius(14, 14) == pytest.approx(2.32)
    assert energy(repulsion, dimer("SiO", 0.95)) == 0.0 < energy(repulsion, dimer("SiSi", 0.95))
    assert ZBL(**repulsion.hyperparameters()).hyperparameters() == repulsion.hyperparameters()


@pytest.mark.parametrize(
    ("radii", "message"),
    [
        ({"SiO": 1.0}, "'SiO' is no pair"),
        ({"Si-Xx": 1.0}, "no pair of elements"),
        ({"Si-P": 1.0}, "does not hold P"),
        ({"Si-O": 1.0, "O-Si": 1.1}, "O-Si is given twice"),
        ({"Si-O": -1.0}, "expected a distance"),
        ({"Si-O": "far"}, "expected a distance"),
    ],
)
def test_wrong_radii_are_named(radii, message):
    with pytest.raises(ConfigError, match=message):
        ZBL(["Si", "O"], radii)


def test_wrong_repulsions_are_named():
    with pytest.raises(ConfigError, match="'Sj' is no element"):
        ZBL(["Sj"])
    with pytest.raises(ConfigError, match="expected zbl"):
        EAMInteraction(["Si"], short_range="morse")
    with pytest.raises(ConfigError, match="add short_range: zbl"):
        EAMInteraction(["Si"], short_range_radii={"Si-Si": 1.0})
    with pytest.raises(ConfigError, match="beyond the cutoff of 2 Å"):
        EAMInteraction(["Si"], cutoff=2.0, short_range="zbl")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inside_the_embedded_atom_potential_it_adds_up(dtype):
    """Energy, forces and stress of the sum are the sums, on tables too, down to distances where it diverges."""
    plain = EAMInteraction(["Si", "O"], cutoff=4.0, n_basis=3)
    with_repulsion = EAMInteraction(
        ["Si", "O"], cutoff=4.0, n_basis=3, short_range="zbl", short_range_radii={"Si-O": 1.2}
    )
    with_repulsion.load_state_dict(plain.state_dict())
    crystal = bulk("SiO", "rocksalt", 2.3)
    crystal.rattle(0.2, seed=0)
    structures = [crystal, *(dimer("SiO", r) for r in (0.003, 0.02, 0.4, 1.0, 1.5)), dimer("OO", 0.9)]
    for atoms in structures:
        graph = build_graph(atoms, 4.0, dtype=dtype)
        found = evaluate(with_repulsion, graph)
        one, other = (evaluate(p, graph) for p in (plain, ZBL(["Si", "O"], {"Si-O": 1.2})))
        tolerance = {"rtol": 1e-10, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-4}
        torch.testing.assert_close(found.energies, one.energies + other.energies, **tolerance)
        torch.testing.assert_close(found.forces, one.forces + other.forces, **tolerance)
        torch.testing.assert_close(found.stress, one.stress + other.stress, equal_nan=True, **tolerance)


def test_the_pair_curve_has_the_repulsion():
    potential = EAMInteraction(["Si", "O"], short_range="zbl")
    curve = pair_curve(potential, "Si", "O", [0.01, 0.1]).detach()
    for r, value in zip((0.01, 0.1), curve):
        assert energy(potential, dimer("SiO", r)) - energy(potential, dimer("SiO", 20.0)) == pytest.approx(float(value))
    assert float(curve[0]) > 1e5


def test_shortest_distances_by_hand_with_periodic_images():
    """Rock salt of lattice constant 4: unlike neighbours at 2, like ones at 4/√2; a far atom meets nobody."""
    crystal, far = bulk("SiO", "rocksalt", 4.0), Atoms("SiMo", [[0, 0, 0], [0, 0, 5.1]])
    near = dimer("SiO", 1.98765)
    found = shortest_distances([crystal, far, near])
    assert found == {(8, 8): 2.8284, (8, 14): 1.9876, (14, 14): 2.8284}


def test_a_repulsion_beside_data_changes_nothing_of_them():
    rng = np.random.default_rng(2)
    data = [bulk("SiO", "rocksalt", 4.0, cubic=True) for _ in range(3)]
    for atoms in data:
        atoms.rattle(0.3, rng=rng)
    repulsion = repulsion_beside_data(data, ["Si", "O", "P"], {"O-O": 0.7})
    shortest = shortest_distances(data)
    assert repulsion_radii(repulsion) == {
        "O-O": 0.7, "O-Si": shortest[8, 14], "O-P": pytest.approx(1.74), "Si-Si": shortest[14, 14],
        "Si-P": pytest.approx(2.27), "P-P": pytest.approx(2.22),
    }  # fmt: skip
    for atoms in data:
        found = evaluate(repulsion, build_graph(atoms, repulsion.cutoff, dtype=torch.float64))
        assert not found.energies.any() and not found.forces.any() and not found.stress.any()
    assert energy(repulsion, dimer("SiO", 0.99 * shortest[8, 14])) > 0


def test_a_network_with_it_is_the_sum_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    network = CGCNN(["Si", "O"], 4.0, dim1=8, dim2=8, gc_count=1, post_fc_count=1, edge_dim=8).double()
    network.reference = EnergyReference({8: 3.0})
    alone, repulsion = copy.deepcopy(network), ZBL(["Si", "O"], {"Si-O": 1.9})
    whole = RepulsivePotential(network, repulsion).double()
    assert whole.reference.as_dict() == {8: 3.0} and not network.reference.as_dict()
    atoms = bulk("SiO", "rocksalt", 3.4)
    graph = build_graph(atoms, 4.0, dtype=torch.float64)
    found, one, other = (evaluate(p, graph) for p in (whole, alone, repulsion))
    assert float(other.energies) > 0.1
    for name in ("energies", "forces", "stress"):
        torch.testing.assert_close(getattr(found, name), getattr(one, name) + getattr(other, name))
    save_potential(tmp_path / "sum.pt", whole)
    again = load_potential(tmp_path / "sum.pt")
    assert isinstance(again, RepulsivePotential) and repulsion_radii(again) == repulsion_radii(whole)
    torch.testing.assert_close(evaluate(again, graph).forces, found.forces)
    with pytest.raises(ConfigError, match="short-range repulsion already"):
        RepulsivePotential(again, repulsion)
    with pytest.raises(ConfigError, match="a short-range repulsion each"):
        HybridPotential(again, EAMInteraction(["Si", "O"], cutoff=4.0, short_range="zbl"))

"""Network plus embedded-atom potential: a sum, on one graph, with one reference energy, for every backbone."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from mdl_physpre import build_graph, evaluate
from mdl_physpre.errors import CheckpointError, ConfigError
from mdl_physpre.potential_checks.run import examine
from mdl_physpre.potentials import CGCNN, EAMInteraction, HybridPotential, M3GNet, TorchMDET
from mdl_physpre.potentials.base import Backbone, edge_vectors
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.potentials.eam.angular import AngularEAM
from mdl_physpre.potentials.energy_reference import EnergyReference
from mdl_physpre.potentials.sum import RepulsivePotential
from mdl_physpre.potentials.zbl import ZBL

ELEMENTS = ["Si", "O"]


def network(name, cutoff):
    torch.manual_seed(2)
    if name == "CGCNN":
        return CGCNN(ELEMENTS, cutoff, dim1=8, dim2=8, gc_count=2, post_fc_count=1, edge_dim=8)
    if name == "ET":
        return TorchMDET(ELEMENTS, cutoff, hidden_channels=8, num_layers=2, num_rbf=8, num_heads=2)
    return M3GNet(ELEMENTS, cutoff=cutoff, threebody_cutoff=0.8 * cutoff, units=8, num_blocks=1, max_l=2, max_n=2)


def eam(cutoff):
    potential = EAMInteraction(ELEMENTS, cutoff=cutoff, n_basis=3)
    with torch.no_grad():
        potential.E0.copy_(torch.tensor([-160.0, -430.0]))
        potential.D.copy_(torch.tensor([0.7, 0.4, 0.2]))
    return potential


def hybrid(name="CGCNN", cutoff=4.0, eam_cutoff=5.0):
    return HybridPotential(network(name, cutoff), eam(eam_cutoff)).double()


@pytest.fixture(params=["CGCNN", "ET", "M3GNet"])
def backbone(request):
    return request.param


@pytest.fixture
def structures():
    rng = np.random.default_rng(3)
    silica = bulk("SiO", "zincblende", 4.4)
    silica.set_cell(silica.cell[:][[1, 0, 2]] @ (np.eye(3) + 0.08 * rng.normal(size=(3, 3))), scale_atoms=True)
    silica.positions += rng.normal(0, 0.2, silica.positions.shape)
    box = Atoms(["O", "Si", "O", "Si"], positions=rng.uniform(0, 4.5, (4, 3)), cell=np.eye(3) * 4.6, pbc=True)
    return [silica, box, Atoms("O", cell=np.eye(3) * 12, pbc=True)]


@pytest.mark.parametrize("cutoffs", [(4.0, 5.0), (5.0, 4.0), (4.0, 4.0)])
def test_it_is_the_sum_of_its_parts_each_on_a_graph_of_its_own(backbone, structures, cutoffs):
    whole = hybrid(backbone, *cutoffs)
    assert whole.cutoff == max(cutoffs)
    graph = build_graph(structures, whole.cutoff)
    found = evaluate(whole, graph)
    parts = [evaluate(p, build_graph(structures, p.cutoff)) for p in (whole.network, whole.eam)]
    reference = torch.tensor([sum({8: -430.0, 14: -160.0}[z] for z in a.numbers) for a in structures])
    torch.testing.assert_close(found.energies, parts[0].energies + parts[1].energies + reference)
    torch.testing.assert_close(found.forces, parts[0].forces + parts[1].forces)
    torch.testing.assert_close(found.stress, parts[0].stress + parts[1].stress)
    # the same from autograd on the energy alone, and in training mode
    graph.pos.requires_grad_(True)
    by_autograd = torch.autograd.grad(whole.atomic_energies(graph).sum(), graph.pos)[0]
    torch.testing.assert_close(found.forces, -by_autograd)
    graph.pos = graph.pos.detach()
    training = evaluate(whole, graph, create_graph=True)
    torch.testing.assert_close(training.forces.detach(), found.forces)


def test_the_doctor_finds_nothing_wrong(backbone, structures):
    """Invariances, finite differences, smoothness at the cutoff, extensivity, batches, smallest systems."""
    failed = [check for check in examine(hybrid(backbone), structures[:2]) if check.verdict == "failed"]
    assert not failed, "\n".join(map(str, failed))


@pytest.mark.parametrize("at", [3.5, 4.5])
def test_energy_and_force_are_continuous_at_both_cutoffs(backbone, at):
    """A third atom crosses a cutoff; on either side of it the force is the same to the width of the step."""
    potential = hybrid(backbone, 3.5, 4.5)

    def force(r):
        atoms = Atoms("SiOO", positions=[[0, 0, 0], [1.7, 0, 0], [0, r, 0]])
        return evaluate(potential, build_graph(atoms, 4.5), stress=False)

    inside, outside = force(at - 1e-6), force(at + 1e-6)
    assert float((inside.energies - outside.energies).abs()) < 1e-6
    assert float((inside.forces - outside.forces).abs().max()) < 1e-5
    assert float(force(3.0).forces.abs().max()) > 1e-3  # a potential of no effect would pass


def test_batch_and_single_agree_in_single_precision_too(structures):
    potential = hybrid().float()
    graph = build_graph(structures, potential.cutoff, dtype=torch.float32)
    found = evaluate(potential, graph)
    for k, atoms in enumerate(structures):
        alone = evaluate(potential, build_graph(atoms, potential.cutoff, dtype=torch.float32))
        torch.testing.assert_close(alone.energies, found.energies[k : k + 1], rtol=1e-7, atol=1e-4)
        torch.testing.assert_close(alone.forces, found.forces[graph.batch == k], rtol=1e-4, atol=1e-4)


def test_a_part_sees_its_own_edges_alone(structures):
    """Even a network that does not look at distances: the number of its neighbours is that within its own cutoff."""

    class Counting(Backbone):
        cutoff, reference = 3.0, EnergyReference()

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def atomic_energies(self, graph):
            assert float(edge_vectors(graph).norm(dim=1).max()) <= 3.0
            return torch.bincount(graph.edge_index[0], minlength=len(graph.z)) * self.weight

    potential = HybridPotential(Counting(), eam(5.0))
    graph = build_graph(structures[1], 5.0)
    alone = build_graph(structures[1], 3.0)
    extra = potential.atomic_energies(graph) - potential.eam.atomic_energies(graph) - potential.reference(graph.z)
    torch.testing.assert_close(extra.sum().float(), torch.tensor(float(alone.edge_index.shape[1])))


def test_composition_is_counted_once():
    part, classical = network("CGCNN", 4.0), eam(5.0)
    part.reference = EnergyReference({8: 3.0})
    atom = Atoms("O", cell=np.eye(3) * 12, pbc=True)
    graph = build_graph(atom, 5.0)
    alone = [float(evaluate(p.double(), graph, forces=False, stress=False).energies) for p in (part, classical)]
    whole = HybridPotential(part, classical).double()
    assert float(evaluate(whole, graph, forces=False, stress=False).energies) == pytest.approx(sum(alone), abs=1e-9)
    assert whole.reference.as_dict() == {8: -427.0, 14: -160.0}
    assert not part.reference.as_dict() and not classical.E0.detach().any()
    whole.shift_reference(torch.full((119,), 2.0))
    moved = float(evaluate(whole, graph, forces=False, stress=False).energies)
    assert moved == pytest.approx(sum(alone) + 2.0, abs=1e-9)


@pytest.mark.parametrize("train_eam", [True, False])
def test_saved_and_loaded_it_is_the_same(backbone, tmp_path, structures, train_eam):
    potential = HybridPotential(network(backbone, 4.0), eam(5.0), train_eam=train_eam)
    loaded = load_potential(save_potential(tmp_path / "hybrid.pt", potential))
    graph = build_graph(structures, potential.cutoff, dtype=torch.float32)
    before, after = evaluate(potential, graph), evaluate(loaded, graph)
    assert torch.equal(before.energies, after.energies) and torch.equal(before.forces, after.forces)
    assert loaded.hyperparameters() == potential.hyperparameters()
    assert {n: (p.dtype, p.requires_grad) for n, p in loaded.named_parameters()} == {
        n: (p.dtype, p.requires_grad) for n, p in potential.named_parameters()
    }
    assert loaded.reference.as_dict() == {8: -430.0, 14: -160.0}
    assert {n for n, p in loaded.eam.named_parameters() if p.requires_grad} == (
        {"A", "beta", "D", "alpha", "r_e", "b", "rho0"} if train_eam else set()
    )


def test_an_embedded_atom_potential_with_angles_is_added_as_it_is(tmp_path, structures):
    angular = AngularEAM(ELEMENTS, 5.0, n_pair=4, n_radial=2, radii={"Si-O": 1.3})
    torch.nn.init.normal_(angular.coefficients, std=0.1)
    angular.shift_reference(EnergyReference({8: -430.0, 14: -160.0}).energies)
    alone = evaluate(angular, graph := build_graph(structures, 5.0))
    potential = HybridPotential(network("ET", 4.0).double(), angular)
    expected = alone.forces + evaluate(potential.network, build_graph(structures, 4.0)).forces
    torch.testing.assert_close(evaluate(potential, graph).forces, expected)
    assert potential.reference.as_dict() == {8: -430.0, 14: -160.0}
    potential.learn_eam(True)
    assert not any(p.requires_grad for p in angular.parameters()), "its fit has one solution"
    loaded = load_potential(save_potential(tmp_path / "hybrid.pt", potential))
    assert torch.equal(evaluate(loaded, graph).energies, evaluate(potential, graph).energies)
    assert isinstance(loaded.eam, AngularEAM) and loaded.hyperparameters() == potential.hyperparameters()
    with pytest.raises(ConfigError, match="a short-range repulsion each"):
        HybridPotential(RepulsivePotential(network("CGCNN", 4.0), ZBL(ELEMENTS, {"Si-O": 1.3})), angular)


def test_a_file_does_not_name_a_module_to_import_for_its_network(tmp_path, monkeypatch):
    class Foreign(CGCNN):
        pass

    module = ModuleType("somebodys_networks")
    Foreign.__module__, Foreign.__qualname__, module.Foreign = "somebodys_networks", "Foreign", Foreign
    monkeypatch.setitem(sys.modules, "somebodys_networks", module)
    inner = Foreign(ELEMENTS, 4.0, dim1=4, dim2=4, gc_count=1, post_fc_count=1, edge_dim=4)
    path = save_potential(tmp_path / "hybrid.pt", HybridPotential(inner, eam(4.0)))
    assert isinstance(load_potential(path).network, Foreign)
    monkeypatch.delitem(sys.modules, "somebodys_networks")
    with pytest.raises(CheckpointError, match="somebodys_networks:Foreign"):
        load_potential(path)


def test_what_cannot_be_added_is_said():
    with pytest.raises(ConfigError, match="found CGCNN, expected an embedded-atom potential"):
        HybridPotential(network("CGCNN", 4.0), network("CGCNN", 4.0))
    with pytest.raises(ConfigError, match="no element in common"):
        HybridPotential(network("CGCNN", 4.0), EAMInteraction(["Na"]))

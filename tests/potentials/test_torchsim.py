"""Potentials as TorchSim models and TorchSim models as potentials, against the real package."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.md.verlet import VelocityVerlet
from ase.neighborlist import neighbor_list

from mdl_physpre import PotentialCalculator, build_graph, evaluate, simulate
from mdl_physpre.dynamics import DynamicsSettings
from mdl_physpre.dynamics.running.storage import run_key
from mdl_physpre.errors import CheckpointError, ConfigError, DataError
from mdl_physpre.potentials import CGCNN, EAMInteraction
from mdl_physpre.potentials.adapters.from_ase import CalculatorPotential
from mdl_physpre.potentials.open import open_potential

torch_sim = pytest.importorskip("torch_sim", reason="torch-sim-atomistic is not installed")

from torch_sim.models.interface import validate_model_outputs  # noqa: E402
from torch_sim.models.lennard_jones import LennardJonesModel  # noqa: E402

from mdl_physpre.potentials.adapters.torchsim import TorchSimModel, TorchSimPotential  # noqa: E402

CPU = torch.device("cpu")


def potentials():
    torch.manual_seed(0)
    yield "EAM", EAMInteraction(elements=["Si", "Fe", "Ar"], cutoff=5.0, n_basis=3)
    network = CGCNN(elements=["Si", "Fe", "Ar"], cutoff=5.0, dim1=8, dim2=8, gc_count=2, post_fc_count=1, edge_dim=8)
    yield "CGCNN", network


@pytest.fixture(params=list(potentials()), ids=lambda p: p[0])
def potential(request):
    return request.param[1]


@pytest.fixture()
def structures():
    """Different sizes; skew, narrower than the cutoff, left-handed, atoms outside the cell."""
    rng = np.random.default_rng(5)
    skew = bulk("Fe", "bcc", 2.9)
    skew.set_cell(skew.cell[:][[1, 0, 2]] @ (np.eye(3) + 0.1 * rng.normal(size=(3, 3))), scale_atoms=True)
    skew.positions += 3 * skew.cell[0]
    made = [
        bulk("Si", cubic=True),
        skew,
        bulk("Si"),
        Atoms("FeSiAr", rng.uniform(0, 4, (3, 3)), cell=[4, 5, 6], pbc=True),
    ]
    for atoms in made:
        atoms.rattle(0.1, rng=rng)
    return made


def argon(**kwargs):
    model = {"sigma": 3.4, "epsilon": 0.0104, "cutoff": 7.0, "dtype": torch.float64, "compute_stress": True}
    return LennardJonesModel(**{**model, **kwargs})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_models_of_torchsim_validate(potential, dtype):
    validate_model_outputs(TorchSimModel(potential, CPU, dtype), CPU, dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-4)])
def test_a_batch_is_what_evaluate_gives(potential, structures, dtype, tolerance):
    before = {name: value.clone() for name, value in potential.state_dict().items()}
    model = TorchSimModel(potential, CPU, dtype)
    found = model(torch_sim.io.atoms_to_state(structures, CPU, dtype))
    expected = evaluate(potential.double(), build_graph(structures, potential.cutoff))
    for name, values in (("energy", expected.energies), ("forces", expected.forces), ("stress", expected.stress)):
        assert found[name].dtype == dtype
        assert not found[name].requires_grad
        scale = float(values.abs().max())
        np.testing.assert_allclose(found[name].double(), values.detach(), rtol=tolerance, atol=tolerance * scale)
    assert all(torch.equal(value.double(), potential.state_dict()[name].double()) for name, value in before.items())


def test_only_what_is_asked_for_is_computed(potential, structures):
    model = TorchSimModel(potential, compute_forces=False, compute_stress=False)
    state = torch_sim.io.atoms_to_state(structures, CPU, model.dtype)
    assert set(model(state)) == {"energy"}
    model.compute_forces = True
    assert set(model(state)) == {"energy", "forces"}


def test_a_dictionary_and_clusters_are_taken(potential):
    cluster = Atoms("FeSi", [[0, 0, 0], [2.3, 0, 0]])
    model = TorchSimModel(potential, dtype=torch.float64)
    state = {
        "positions": torch.tensor(cluster.positions),
        "atomic_numbers": torch.tensor(cluster.numbers),
        "cell": torch.eye(3, dtype=torch.float64)[None],
        "pbc": False,
    }
    found = model(state)
    expected = evaluate(potential.double(), build_graph(cluster, potential.cutoff))
    np.testing.assert_allclose(found["forces"], expected.forces.detach(), atol=1e-12)
    assert float(found["energy"][0]) == pytest.approx(float(expected.energies[0]), abs=1e-12)


def test_a_potential_without_stress_says_so_before_a_run():
    class NoStress(LennardJones):
        implemented_properties = ["energy", "forces"]

    model = TorchSimModel(CalculatorPotential(NoStress))
    assert not model.compute_stress
    with pytest.raises(NotImplementedError, match="gives no stress"):
        model.compute_stress = True


def test_dynamics_in_torchsim_follow_ase(structures):
    potential = next(potentials())[1]
    start = structures[:1] + structures[3:]
    model = TorchSimModel(potential, CPU, torch.float64)
    state = torch_sim.io.atoms_to_state(start, CPU, torch.float64)
    begin, step = torch_sim.integrators.nve(
        model=model, dt=torch.tensor(0.5 * torch_sim.units.MetalUnits.time * 1e-3), kT=torch.tensor(0.0)
    )
    state = begin(state)
    state.momenta = torch.zeros_like(state.momenta)
    for _ in range(20):
        state = step(state)
    done = 0
    for atoms in start:
        reference = atoms.copy()
        reference.calc = PotentialCalculator(potential.double())
        VelocityVerlet(reference, 0.5 * units.fs).run(20)
        moved = reference.positions - atoms.positions
        found = state.positions[done : done + len(atoms)].numpy() - atoms.positions
        lattice = np.linalg.solve(atoms.cell[:].T, (found - moved).T).T  # TorchSim wraps atoms into the cell
        np.testing.assert_allclose((lattice - np.round(lattice)) @ atoms.cell[:], 0.0, atol=1e-5 * np.abs(moved).max())
        assert np.abs(moved).max() > 1e-4
        done += len(atoms)


# -- the other direction -------------------------------------------------------------------------------------------


@pytest.fixture()
def argon_structures():
    rng = np.random.default_rng(1)
    made = [
        bulk("Ar", "fcc", 5.4, cubic=True),
        Atoms("Ar3", np.diag([3.5, 3.8, 4.1])),
        bulk("Ar", "fcc", 5.3),
        Atoms("Ar"),
    ]
    for atoms in made:
        atoms.rattle(0.1, rng=rng)
    return made


def test_a_torchsim_model_as_a_potential_gives_its_numbers(argon_structures):
    found = evaluate(TorchSimPotential(argon, max_atoms=4), build_graph(argon_structures, 0.0))
    shift = 4 * 0.0104 * ((3.4 / 7.0) ** 12 - (3.4 / 7.0) ** 6)  # ASE shifts the pair energy to zero at the cutoff
    first = 0
    for k, atoms in enumerate(argon_structures):
        pairs = len(neighbor_list("i", atoms, 7.0)) / 2
        atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=7.0)
        assert float(found.energies[k]) == pytest.approx(atoms.get_potential_energy() + pairs * shift, abs=1e-8)
        if not atoms.cell.rank:
            atoms.cell = np.eye(3)
        own = argon()(torch_sim.io.atoms_to_state([atoms], CPU, torch.float64))
        np.testing.assert_allclose(found.forces[first : first + len(atoms)], own["forces"], atol=1e-12)
        if atoms.pbc.all():
            np.testing.assert_allclose(found.stress[k], own["stress"][0], atol=1e-12)
        else:
            assert bool(found.stress[k].isnan().all())
        first += len(atoms)


def test_there_and_back_again(potential, structures):
    expected = evaluate(potential.double(), build_graph(structures, potential.cutoff))
    back = evaluate(TorchSimPotential(TorchSimModel(potential, dtype=torch.float64)), build_graph(structures, 0.0))
    for name in ("energies", "forces", "stress"):
        np.testing.assert_allclose(getattr(back, name), getattr(expected, name).detach(), atol=1e-10)


def test_it_runs_dynamics(argon_structures):
    settings = DynamicsSettings(ensemble="nve", temperature=5.0, steps=10)
    verdicts = simulate(TorchSimPotential(argon), argon_structures[:3], settings, progress=False)
    assert [v.status for v in verdicts] == ["stable"] * 3


def key_of(potential):
    return run_key(potential, [bulk("Ar", "fcc", 5.3)], ["0"], [DynamicsSettings()], [0])


def test_opened_by_name(argon_structures):
    name = "torchsim:torch_sim.models.lennard_jones:LennardJonesModel?sigma=3.4&epsilon=0.0104&dtype=torch.float64"
    potential = open_potential(name, {"cutoff": 7.0})
    graph = build_graph(argon_structures, 0.0)
    found, expected = (evaluate(p, graph, stress=False) for p in (potential, TorchSimPotential(argon)))
    np.testing.assert_array_equal(found.energies, expected.energies)
    other = open_potential(name, {"cutoff": 6.0})
    assert key_of(potential) != key_of(other)
    assert potential.source.startswith("source sha256") and potential.source not in potential.name
    potential.source = ""  # as if the file were another
    assert key_of(potential) != key_of(open_potential(name, {"cutoff": 7.0}))


def test_models_without_a_name_differ_by_their_parameters():
    networks = [CGCNN(elements=["Si"], dim1=4, dim2=4, edge_dim=4) for _ in range(2)]
    keys = [key_of(TorchSimPotential(TorchSimModel(network))) for network in networks]
    assert keys[0] == key_of(TorchSimPotential(TorchSimModel(networks[0])))
    assert keys[0] != keys[1]


def test_errors_say_what_is_missing(argon_structures, tmp_path):
    potential = TorchSimPotential(argon)
    slab = bulk("Ar", "fcc", 5.4, cubic=True)
    slab.pbc = (True, True, False)
    with pytest.raises(DataError, match="structure 1 of the batch is periodic in some directions only"):
        evaluate(potential, build_graph([argon_structures[0], slab], 0.0))
    with pytest.raises(DataError, match="cannot be trained"):
        evaluate(potential, build_graph(slab, 0.0), create_graph=True)
    with pytest.raises(ConfigError, match="found LennardJones, expected a torch_sim ModelInterface"):
        TorchSimPotential(LennardJones)
    with pytest.raises(ConfigError, match="cannot be built: TypeError"):
        TorchSimPotential(lambda: LennardJonesModel(wrong=1))
    with pytest.raises(CheckpointError, match="cannot be saved"):
        potential.hyperparameters()

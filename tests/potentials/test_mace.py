"""MACE as a backbone, and its models, against ``mace-torch`` itself where that is installed.

It brings torch along, so it is installed without what it names as its needs:

    pip install --no-deps mace-torch==0.3.16 e3nn==0.4.4 torch-ema opt_einsum opt_einsum_fx configargparse lmdb orjson \
        h5py prettytable GitPython python-hostlist
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from mdl_physpre import PotentialCalculator, build_graph, load_potential
from mdl_physpre.errors import CheckpointError, ConfigError
from mdl_physpre.potentials import CGCNN, convert_checkpoint, open_potential, save_potential
from mdl_physpre.potentials.backbones.mace import MACE
from mdl_physpre.potentials.backbones.registry import build_backbone
from mdl_physpre.potentials.checkpoints.archive import content_of
from mdl_physpre.potentials.checkpoints.mace import is_mace_model, read_mace_model, write_mace_model
from mdl_physpre.potentials.compiled import CompiledPotential
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.labels import set_labels
from tests.helpers.small_cells import crystal, slab


def test_without_mace_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mace", None)
    monkeypatch.setitem(sys.modules, "mace.modules", None)
    with pytest.raises(ConfigError, match=r'install it with: pip install "mdl-physpre\[mace\]"'):
        build_backbone("MACE", elements=["Si"])


@pytest.fixture
def mace():
    pytest.importorskip("mace", reason="MACE is not installed: pip install mace-torch")
    from mdl_physpre.potentials.backbones.mace import import_mace

    return import_mace()


SIZES = dict(num_channels=3, max_L=1, max_ell=2, correlation=2, num_radial_basis=4, MLP_irreps="4x0e", radial_MLP=[6])
DENSITY = "RealAgnosticDensityInteractionBlock"
NONLINEAR = "RealAgnosticResidualNonLinearInteractionBlock"
ARCHITECTURES = {
    "default": {},
    "ZBL": dict(
        max_L=0, pair_repulsion=True, distance_transform="Agnesi", atomic_inter_scale=2.3, atomic_inter_shift=1.0
    ),
    "one layer": dict(num_interactions=1),
    "three layers": dict(
        num_interactions=3, correlation=[2, 2, 1], gate="tanh", interaction_first=DENSITY, radial_type="gaussian"
    ),
    "non-linear": dict(
        interaction=NONLINEAR, interaction_first=NONLINEAR, apply_cutoff=False, readout_cls="NonLinearBiasReadoutBlock",
        use_last_readout_only=True, use_agnostic_product=True, edge_irreps="3x0e + 3x1o", distance_transform="Soft",
    ),
    "no gate": dict(gate=None, use_so3=True),
}  # fmt: skip


def network(seed: int = 0, **changes) -> MACE:
    torch.manual_seed(seed)
    potential = MACE([1, 8, 14], 4.0, **{**SIZES, "avg_num_neighbors": 7.0, **changes})
    potential.shift_reference(-1.3 * torch.arange(119.0))
    return potential.eval()


def structures() -> list[Atoms]:
    silicon = bulk("Si", cubic=True)
    silicon.numbers[::3], silicon.numbers[1] = 8, 1
    silicon.rattle(0.2, seed=1)
    return [crystal(), silicon, slab()]


def results(calculator) -> list[tuple[float, np.ndarray, np.ndarray]]:
    found = []
    for atoms in structures():
        atoms.calc = calculator
        stress = atoms.get_stress() if atoms.pbc.all() else np.zeros(6)
        found.append((atoms.get_potential_energy(), atoms.get_forces(), stress))
    return found


def their_calculator(path, dtype: torch.dtype):
    from mace.calculators import MACECalculator

    return MACECalculator(model_paths=str(path), device="cpu", default_dtype=str(dtype).removeprefix("torch."))


def assert_same(found, expected, tolerance: float):
    for one, other in zip(found, expected):
        for value, right in zip(one, other):
            scale = max(1.0, float(np.abs(right).max()))
            np.testing.assert_allclose(value, right, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_that_mace_opens_and_that_is_opened_again(mace, name, dtype, tmp_path):
    potential = network(**ARCHITECTURES[name]).to(dtype)
    path = tmp_path / "x.model"
    assert write_mace_model(path, potential) == []
    again, tolerance = load_potential(path), 1e-9 if dtype == torch.float64 else 2e-6
    expected = results(PotentialCalculator(potential))
    assert max(float(np.abs(forces).max()) for _, forces, _ in expected) > 1e-3
    assert_same(results(their_calculator(path, dtype)), expected, tolerance)
    assert_same(results(PotentialCalculator(again)), expected, tolerance)
    assert isinstance(again, MACE) and next(again.parameters()).dtype == dtype
    torch.testing.assert_close(again.reference_energies()[[1, 8, 14]], -1.3 * torch.tensor([1.0, 8.0, 14.0]).double())


def theirs(mace, cls="ScaleShiftMACE", **changes) -> torch.nn.Module:
    """A model as MACE's own trainer makes it."""
    from e3nn.o3 import Irreps

    torch.manual_seed(3)
    block = mace.interaction_classes["RealAgnosticResidualInteractionBlock"]
    arguments = dict(
        r_max=4.0, num_bessel=5, num_polynomial_cutoff=5, max_ell=2, interaction_cls=block, interaction_cls_first=block,
        num_interactions=2, num_elements=3, hidden_irreps=Irreps("4x0e + 4x1o"), MLP_irreps=Irreps("4x0e"),
        atomic_energies=np.array([[-3.0, -5.0, -7.0]]), avg_num_neighbors=9.0, atomic_numbers=[1, 8, 14], correlation=3,
        gate=torch.nn.functional.silu,
    )  # fmt: skip
    if cls == "ScaleShiftMACE":
        arguments |= dict(atomic_inter_scale=1.7, atomic_inter_shift=0.3)
    return getattr(mace, cls)(**{**arguments, **changes})


@pytest.mark.parametrize("cls", ["ScaleShiftMACE", "MACE"])
def test_a_model_of_mace_is_read(mace, cls, tmp_path):
    path = tmp_path / "theirs.model"
    torch.save(theirs(mace, cls), path)
    potential = open_potential(path)
    assert_same(results(PotentialCalculator(potential)), results(their_calculator(path, torch.float32)), 2e-6)
    save_potential(tmp_path / "own.pt", potential)
    assert convert_checkpoint(tmp_path / "own.pt", tmp_path / "back.model") == []
    assert_same(
        results(their_calculator(tmp_path / "back.model", torch.float32)), results(PotentialCalculator(potential)), 2e-6
    )


def test_models_without_a_counterpart_are_refused_by_name(mace, tmp_path):
    path = tmp_path / "x.model"
    energies = np.array([[-3.0, -5.0, -7.0], [0.0, 0.0, 0.0]])
    heads = theirs(mace, heads=["pbe", "r2scan"], atomic_energies=energies, atomic_inter_scale=[1.0, 1.0],
                   atomic_inter_shift=[0.0, 0.0])  # fmt: skip
    torch.save(heads, path)
    with pytest.raises(CheckpointError, match="with the heads pbe, r2scan; take one out of it first: mace_select_head"):
        load_potential(path)
    dipoles = theirs(mace)
    dipoles.__class__ = mace.EnergyDipolesMACE
    torch.save(dipoles, path)
    with pytest.raises(
        CheckpointError, match="a model of MACE's class EnergyDipolesMACE; only ScaleShiftMACE and MACE"
    ):
        load_potential(path)
    fast = theirs(mace)
    from mace.modules.wrapper_ops import CuEquivarianceConfig

    fast.products[0].cueq_config = CuEquivarianceConfig()
    fast.products[0].cueq_config.enabled = True
    torch.save(fast, path)
    with pytest.raises(CheckpointError, match="converted for cuEquivariance or OpenEquivariance; convert it back"):
        load_potential(path)
    charged = theirs(mace)
    charged.embedding_specs = {"total_charge": {}}
    torch.save(charged, path)
    with pytest.raises(CheckpointError, match=r"takes more than the structure \(embedding_specs\)"):
        load_potential(path)
    narrow = theirs(mace)
    narrow.readouts[0].linear.weight = torch.nn.Parameter(torch.zeros(3))
    torch.save(narrow, path)
    with pytest.raises(CheckpointError, match=r"readouts.0.linear.weight has the shape \(3,\), expected \(4,\)"):
        load_potential(path)
    with pytest.raises(CheckpointError, match="CGCNN has no counterpart in MACE"):
        write_mace_model(path, CGCNN([14], 4.0, dim1=4, dim2=4))


def test_nothing_in_a_model_is_run(mace, tmp_path):
    """Not even what the classes of MACE would do when they are unpickled."""
    model, path = theirs(mace), tmp_path / "x.model"
    model.harm = Harm(tmp_path / "harm")
    torch.save(model, path)
    assert is_mace_model(content_of(path))
    assert isinstance(read_mace_model(path), MACE)
    assert not (tmp_path / "harm").exists()


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


def test_numbers_from_training_structures_are_those_of_mace(mace):
    from mace.data import KeySpecification, config_from_atoms
    from mace.data.atomic_data import AtomicData
    from mace.modules.utils import compute_avg_num_neighbors, compute_mean_rms_energy_forces
    from mace.tools import torch_geometric
    from mace.tools.utils import AtomicNumberTable

    rng, some = np.random.default_rng(0), structures()
    for atoms in some:
        set_labels(atoms, energy=1.0, forces=rng.normal(size=(len(atoms), 3)))
    potential = network(avg_num_neighbors=None)
    potential.prepare_for(some)
    keys = KeySpecification(info_keys={"energy": "e"}, arrays_keys={"forces": "f"})
    for atoms in some:
        atoms.info["e"], atoms.arrays["f"] = 1.0, atoms.get_forces()
    table = AtomicNumberTable([1, 8, 14])
    data = [AtomicData.from_config(config_from_atoms(a, keys), table, 4.0) for a in some]
    loader = torch_geometric.dataloader.DataLoader(data, batch_size=3)
    assert potential.avg_num_neighbors == pytest.approx(compute_avg_num_neighbors(loader), rel=1e-6)
    _, rms = compute_mean_rms_energy_forces(loader, np.zeros((1, 3)))
    assert potential.atomic_inter_scale == pytest.approx(float(rms[0]), rel=1e-6)
    assert {float(layer.avg_num_neighbors) for layer in potential.network.interactions} == {potential.avg_num_neighbors}
    assert float(potential.network.scale_shift.scale) == pytest.approx(float(rms[0]), rel=1e-6)
    given = network(atomic_inter_scale=3.0)
    given.prepare_for(some)
    assert (given.avg_num_neighbors, given.atomic_inter_scale) == (7.0, 3.0)


def test_import_leaves_loading_guarded(mace):
    code = "import os; from mdl_physpre.potentials.backbones.mace import import_mace as i; i(); print(dict(os.environ))"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TORCH_")}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in told.stdout and "cuequivariance" not in told.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(elements=None), "elements is not given"),
        (dict(num_chanels=3), "no hyperparameter 'num_chanels': did you mean 'num_channels'"),
        (dict(interaction="Real"), "interaction is 'Real'"),
        (dict(interaction=NONLINEAR), "set apply_cutoff to false"),
        (dict(pair_repulsion=True, elements=["Cs"], cutoff=4.0), "pair_repulsion of Cs and Cs reaches to 4.88 Å"),
        (dict(num_interactions=0), "num_interactions is 0"),
    ],
)
def test_what_does_not_fit_is_named(mace, changes, message):
    with pytest.raises(ConfigError, match=message):
        build_backbone("MACE", **{"elements": ["Si"], **SIZES, **changes})


def test_it_can_be_compiled(mace):
    potential = network(num_interactions=1, correlation=1).double()
    graph = build_graph([crystal()], 4.0)
    compiled = CompiledPotential(potential, backend="eager")
    found, expected = evaluate(compiled, graph), evaluate(potential, graph)
    assert not compiled._failed
    torch.testing.assert_close(found.forces, expected.forces)
    torch.testing.assert_close(found.stress, expected.stress)


def test_lammps_gets_a_model(mace, tmp_path):
    """What ``mace_create_lammps_model`` makes of one."""
    from e3nn.util import jit
    from mace.calculators import LAMMPS_MACE

    potential = network().double()
    write_mace_model(tmp_path / "x.model", potential)
    scripted = jit.compile(LAMMPS_MACE(torch.load(tmp_path / "x.model", weights_only=False)))
    graph = build_graph([crystal()], 4.0)
    i, j = graph.edge_index
    found = scripted(
        {
            "positions": graph.pos, "edge_index": torch.stack([j, i]), "cell": graph.cell[0],
            "shifts": -graph.cell_offsets.double() @ graph.cell[0], "unit_shifts": -graph.cell_offsets.double(),
            "node_attrs": potential.columns[graph.z], "batch": graph.batch, "ptr": torch.tensor([0, len(graph.z)]),
        },
        torch.ones(len(graph.z)),
    )  # fmt: skip
    expected = evaluate(potential, graph)
    torch.testing.assert_close(found["total_energy_local"], expected.energies)
    torch.testing.assert_close(found["forces"], expected.forces)

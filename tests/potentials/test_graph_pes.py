"""Models of graph-pes as backbones, and its ``model.pt``: against graph-pes itself.

pip install "mdl-physpre[graph-pes]"
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms

from mdl_physpre import PotentialCalculator, build_graph, load_potential, open_potential, testing
from mdl_physpre.errors import CheckpointError, ConfigError
from mdl_physpre.potentials import convert_checkpoint, evaluate, save_potential
from mdl_physpre.potentials.backbones import graph_pes as backbones
from mdl_physpre.potentials.backbones.registry import GRAPH_PES, backbone_name, build_backbone
from mdl_physpre.potentials.compiled import CompiledPotential
from mdl_physpre.structures.labels import set_labels

models = pytest.importorskip("graph_pes.models", reason="needs graph-pes")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

IRREPS = dict(channels=2, l_max=1, use_odd_parity=False)
MACE = dict(channels=2, l_max=1, correlation=2, n_radial=3, weights_mlp=dict(hidden_depth=1, hidden_features=4))
TINY = {
    "EDDP": dict(features=2, three_body_features=2, mlp_width=3),
    "LennardJones": dict(epsilon=0.05, sigma=2.0),
    "LennardJonesMixture": {},
    "MACE": dict(hidden_irreps="0e + 1o", readout_width=2, **MACE),
    "Morse": dict(r0=2.2, a=1.5, D=0.3),
    "NequIP": dict(layers=2, features=IRREPS, radial_features=3),
    "Orb": dict(channels=4, layers=2, radial_features=3, mlp_layers=1, mlp_hidden_dim=6, l_max=1),
    "PaiNN": dict(channels=4, layers=2, radial_features=4),
    "SchNet": dict(channels=4, layers=2, expansion_features=6),
    "StillingerWeber": dict(epsilon=0.5),
    "TensorNet": dict(channels=4, layers=1, radial_features=4),
    "ZBLCoreRepulsion": dict(trainable=True),
    "ZEmbeddingMACE": dict(hidden_irreps="0e", readout_width=2, z_embed_dim=2, **MACE),
    "ZEmbeddingNequIP": dict(layers=2, features=IRREPS, radial_features=3, Z_embed_dim=2),
}
JUMP = {"LennardJones", "LennardJonesMixture", "Morse", "SchNet", "ZBLCoreRepulsion"}
"""Without an envelope: energies jump at the cutoff."""
CELL = [[3.1, 0, 0.2], [0.3, 3.3, 0], [0, 0.1, 2.9]]
STRUCTURES = [
    Atoms("OSi", cell=CELL, positions=[[0, 0, 0], [1.4, 1.7, 1.3]], pbc=True),
    Atoms("Si2O", positions=[[0, 0, 0], [2.2, 0.3, 0], [0.4, 1.9, 0.5]]),
]
E0 = torch.zeros(119, dtype=torch.float64)
E0[8], E0[14] = -4.25, -7.5


def tiny(name: str, elements=("O", "Si"), **changes):
    torch.manual_seed(0)
    cutoff = None if name == "StillingerWeber" else 3.5
    return build_backbone(f"graph_pes:{name}", **{"elements": elements, "cutoff": cutoff, **TINY[name], **changes})


def results(calculator, atoms=STRUCTURES[0]):
    atoms = atoms.copy()
    atoms.calc = calculator
    return atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()


def assert_same(found, expected, tolerance=1e-5):
    for one, other in zip(found, expected):
        assert np.abs(np.asarray(one) - np.asarray(other)).max() < tolerance


def test_every_model_that_graph_pes_offers_is_here():
    assert {model.__name__ for model in models.ALL_PES_MODELS} == set(GRAPH_PES) == set(TINY)


@pytest.mark.parametrize("name", ["EDDP", "MACE", "NequIP", "PaiNN", "StillingerWeber", "TensorNet"])
def test_all_checks_of_potentials(name):
    testing.check_potential(tiny(name), STRUCTURES)


@pytest.mark.parametrize(
    "name", sorted(set(TINY) - {"EDDP", "MACE", "NequIP", "PaiNN", "StillingerWeber", "TensorNet"})
)
def test_what_holds_for_every_model(name):
    potential = tiny(name).double()
    for check in (testing.check_forces, testing.check_stress, testing.check_batches, testing.check_no_edges,
                  testing.check_edges_beyond_cutoff, testing.check_save_and_load):  # fmt: skip
        check(potential, STRUCTURES)
    if name != "Orb":  # which learns to be the same after a rotation, and is not by itself
        testing.check_invariances(potential, STRUCTURES)
    if name in JUMP:
        with pytest.raises(AssertionError, match="jump"):
            testing.check_smooth_at_cutoff(potential, STRUCTURES)
    else:
        testing.check_smooth_at_cutoff(potential, STRUCTURES)


@pytest.mark.parametrize("name", sorted(TINY))
def test_energies_are_those_of_graph_pes_and_there_and_back(name, tmp_path):
    potential = tiny(name, elements=("Si", "O")).eval()  # an order of their own, in which parameters stand
    potential.shift_reference(E0)
    assert backbone_name(potential) == f"graph_pes:{name}"
    lost = convert_checkpoint(save_potential(tmp_path / "own.pt", potential), tmp_path / "model.pt", "graph-pes")
    takes_elements = name in ("EDDP", "MACE", "NequIP")
    assert len(lost) == (0 if takes_elements else 1) and all("elements" in sentence for sentence in lost)
    expected = results(PotentialCalculator(potential))
    assert_same(results(models.load_model(tmp_path / "model.pt").ase_calculator()), expected)
    read = load_potential(tmp_path / "model.pt")
    assert type(read) is type(potential) and read.hyperparameters() == potential.hyperparameters()
    assert read.reference.as_dict() == {8: -4.25, 14: -7.5} and not read.training
    assert_same(results(PotentialCalculator(read)), expected, 1e-9)
    assert len(results(PotentialCalculator(read))[1]) == 2


def test_elements_that_a_model_saw_are_those_that_graph_pes_counts(tmp_path):
    convert_checkpoint(save_potential(tmp_path / "own.pt", tiny("PaiNN")), tmp_path / "model.pt", "graph-pes")
    assert models.load_model(tmp_path / "model.pt")["network"].elements_seen == ["O", "Si"]


def test_double_precision_and_large_energies_are_rounded_and_said(tmp_path):
    potential = tiny("EDDP").double()
    potential.shift_reference(1234.5678 * E0)
    lost = convert_checkpoint(save_potential(tmp_path / "own.pt", potential), tmp_path / "model.pt", "graph_pes")
    assert [sentence.split(" ")[0] for sentence in lost] == ["double", "energies"]


def write_theirs(folder, model, config):
    torch.save(model, folder / "model.pt")
    (folder / "train-config.yaml").write_text(yaml.safe_dump({"model": config}))
    return folder / "model.pt"


def test_a_model_of_graph_pes_is_read_by_the_configuration_beside_it(tmp_path):
    torch.manual_seed(0)
    network, offset = models.PaiNN(channels=4, layers=1, cutoff=3.5), models.LearnableOffset(Si=-5.0, O=-2.0)
    with torch.no_grad():
        network.scaler.per_element_scaling.mul_(1.5)
    config = {
        "offset": "+LearnableOffset()",
        "many": {"+graph_pes.models.PaiNN": dict(channels=4, layers=1, cutoff=3.5)},
    }
    file = write_theirs(tmp_path, models.AdditionModel(offset=offset, many=network), config)
    potential = load_potential(file)
    assert backbone_name(potential) == "graph_pes:PaiNN" and potential.reference.as_dict() == {8: -2.0, 14: -5.0}
    assert_same(results(PotentialCalculator(potential)), results(models.load_model(file).ase_calculator()))
    save_potential(tmp_path / "own.pt", potential)  # as after finetuning
    (tmp_path / "train-config.yaml").unlink()
    with pytest.raises(CheckpointError, match="put the train-config.yaml of its training beside it"):
        load_potential(file)
    path = "calculator:mdl_physpre.potentials.checkpoints.graph_pes:graph_pes_calculator"
    found = evaluate(open_potential(f"{path}?path={file}"), build_graph(STRUCTURES[:1], 3.5))
    assert found.energies.item() == pytest.approx(results(PotentialCalculator(potential))[0], abs=1e-5)


def test_several_models_are_a_sum_that_predicts(tmp_path):
    torch.manual_seed(0)
    both = models.AdditionModel(zbl=models.ZBLCoreRepulsion(3.0), net=models.TensorNet(3.5, channels=4, layers=1))
    config = {
        "zbl": {"+ZBLCoreRepulsion": {"cutoff": 3.0}},
        "net": {"+TensorNet": dict(cutoff=3.5, channels=4, layers=1)},
    }
    file = write_theirs(tmp_path, both, config)
    assert_same(results(PotentialCalculator(load_potential(file))), results(models.load_model(file).ase_calculator()))


def test_what_cannot_be_read_is_said(tmp_path):
    model = models.PaiNN(channels=4, layers=1, cutoff=3.5)
    with pytest.raises(CheckpointError, match="does not fit the arguments|has the shape"):
        load_potential(write_theirs(tmp_path, model, {"+PaiNN": {"channels": 8, "layers": 1}}))
    with pytest.raises(CheckpointError, match="names 0 models PaiNN"):
        load_potential(write_theirs(tmp_path, model, {"+SchNet": {}}))
    with pytest.raises(CheckpointError, match="energies of elements alone"):
        load_potential(write_theirs(tmp_path, models.FixedOffset(Si=1.0), {"+FixedOffset": {"Si": 1.0}}))
    with pytest.raises(CheckpointError, match="has no counterpart in graph-pes"):
        own = save_potential(tmp_path / "own.pt", build_backbone("CGCNN", elements=["Si"], dim1=4, dim2=4, gc_count=1))
        convert_checkpoint(own, tmp_path / "no.pt", "graph-pes")
    assert not (tmp_path / "no.pt").exists()


class Planted:
    """What a file would run if it were loaded as graph-pes loads it."""

    def __reduce__(self):
        return exec, ("import builtins; builtins.planted = True",)


def test_nothing_in_a_file_is_run(tmp_path):
    import builtins

    model = models.PaiNN(channels=4, layers=1, cutoff=3.5)
    model.planted = Planted()
    load_potential(write_theirs(tmp_path, model, {"+PaiNN": {"channels": 4, "layers": 1, "cutoff": 3.5}}))
    assert not hasattr(builtins, "planted")


def test_deployed_for_lammps(tmp_path):
    """Scripted in a process of its own: PyG replaces functions that TorchScript then does not find."""
    potential = tiny("PaiNN")
    potential.shift_reference(E0)
    convert_checkpoint(save_potential(tmp_path / "own.pt", potential), tmp_path / "model.pt", "graph-pes")
    STRUCTURES[0].write(tmp_path / "one.extxyz")
    script = (
        "import torch\nfrom ase.io import read\nfrom graph_pes import AtomicGraph\n"
        "from graph_pes.models import load_model\n"
        "from graph_pes.utils.lammps import as_lammps_data, deploy_model\n"
        "deploy_model(load_model('model.pt'), 'lammps.pt')\n"
        "graph = AtomicGraph.from_ase(read('one.extxyz'), 3.5)\n"
        "print(float(torch.jit.load('lammps.pt')(as_lammps_data(graph))['energy']))"
    )
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    expected = results(PotentialCalculator(potential.eval()))[0]
    assert float(ended.stdout.split()[-1]) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(CheckpointError, match="compiled"):
        load_potential(tmp_path / "lammps.pt")


def test_scales_come_from_the_training_structures():
    rng = np.random.default_rng(0)
    structures = []
    for _ in range(12):
        atoms = STRUCTURES[0].copy()
        atoms.rattle(0.1, rng=rng)
        structures.append(set_labels(atoms, energy=-1000.0 + rng.normal(0, 3.0)))
    mace, painn, eddp = tiny("MACE"), tiny("PaiNN"), tiny("EDDP")
    for potential in (mace, painn, eddp):
        potential.prepare_for(structures)
    edges = build_graph(structures, 3.5).edge_index.shape[1]
    scales = [float(value) for name, value in mace.network.named_parameters() if name.endswith(".scale")]
    assert scales == pytest.approx([edges / 24] * 2, rel=0.01)
    assert 1.0 < float(painn.network.scaler.per_element_scaling[8].detach()) < 5.0
    assert painn.reference.as_dict() == {} and float(eddp.network.shifts.detach().abs().sum()) > 0
    scale = painn.network.scaler.per_element_scaling.detach().clone()
    painn.prepare_for(structures[:3])  # once alone: this may be a network that is trained
    assert torch.equal(painn.network.scaler.per_element_scaling, scale)
    tiny("PaiNN").prepare_for(STRUCTURES)  # without energies
    assert [p.shape for p in painn.undecayed()] == [(119, 1)]


def test_triplets_are_those_of_graph_pes():
    from graph_pes.utils.threebody import triplet_edge_pairs

    potential = tiny("EDDP")
    graph = build_graph(STRUCTURES, 3.5, dtype=torch.float32)
    theirs = potential.their_graph(graph)
    mine = triplet_edge_pairs(theirs, 3.5)
    theirs.other.clear()
    as_set = lambda terms: {tuple(torch.cat([terms[0].T, terms[1], terms[2].T, terms[3]], 1)[k].tolist())  # noqa: E731
                            for k in range(terms[0].shape[1])}  # fmt: skip
    assert as_set(mine) == as_set(triplet_edge_pairs(theirs, 3.5)) and len(as_set(mine)) == mine[0].shape[1]


def test_wrong_arguments_are_named():
    with pytest.raises(ConfigError, match=r"unknown backbone 'graph_pes:PaiN': did you mean 'graph_pes:PaiNN'"):
        build_backbone("graph_pes:PaiN")
    with pytest.raises(ConfigError, match=r"has no hyperparameter 'channel': did you mean 'channels'"):
        build_backbone("graph_pes:PaiNN", channel=3)
    with pytest.raises(ConfigError, match="give its elements"):
        build_backbone("graph_pes:MACE")
    with pytest.raises(ConfigError, match="only their derivatives"):
        tiny("TensorNet", direct_force_predictions=True)
    with pytest.raises(ConfigError, match="only their derivatives"):
        tiny("Orb", conservative=False)
    with pytest.raises(ConfigError, match="reach to 3.77118 Å, but cutoff is 5"):
        build_backbone("graph_pes:StillingerWeber", cutoff=5.0)
    with pytest.raises(ConfigError, match="cannot be built of"):
        tiny("PaiNN", channels="many")


def test_without_graph_pes_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "graph_pes.models", None)
    for function in (backbones._graph_pes, backbones._class_of):
        function.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r'pip install "mdl-physpre\[graph-pes\]"'):
            build_backbone("graph_pes:PaiNN")
    finally:
        monkeypatch.undo()


@pytest.mark.parametrize("name, whole", [("PaiNN", True), ("NequIP", False)])
def test_compiled_or_as_it_is(name, whole):
    potential = tiny(name).eval()
    graph = build_graph(STRUCTURES, 3.5, dtype=torch.float32)
    compiled = CompiledPotential(potential, backend="eager")
    found, expected = evaluate(compiled, graph), evaluate(potential, graph)
    assert compiled._failed != whole
    assert torch.allclose(found.forces, expected.forces, atol=1e-6)

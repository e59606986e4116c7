"""MatDeepLearn's checkpoints, against results of its own networks recorded in tests/data/matdeeplearn, or live."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import bulk

from mdl_physpre.errors import CheckpointError, ConfigError
from mdl_physpre.potentials.backbones.cgcnn.network import CGCNN
from mdl_physpre.potentials.backbones.torchmd_et.network import TorchMDET
from mdl_physpre.potentials.base import Backbone
from mdl_physpre.potentials.checkpoints.matdeeplearn import (
    read_matdeeplearn_checkpoint,
    write_matdeeplearn_checkpoint,
)
from mdl_physpre.potentials.eam.potential import EAMInteraction
from mdl_physpre.potentials.energy_reference import EnergyReference
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.open import open_potential
from mdl_physpre.potentials.training_energies import TrainingEnergies
from mdl_physpre.structures.graph import build_graph
from mdl_physpre.structures.labels import set_labels

DATA = Path(__file__).parents[1] / "data" / "matdeeplearn"
RECORDED = json.loads((DATA / "results.json").read_text())
NETWORKS = {"cgcnn": CGCNN, "torchmd_et": TorchMDET}
HOST = os.environ.get("MATDEEPLEARN_HOME")
PHYSPRE_DATA = os.environ.get("PHYSPRE_DATA")
needs_host = pytest.mark.skipif(not HOST, reason="MATDEEPLEARN_HOME does not name a checkout of MatDeepLearn")


def recorded_structure(name: str) -> Atoms:
    return Atoms(**RECORDED["structures"][name], pbc=True)


def recorder():
    """The script that runs the host."""
    spec = importlib.util.spec_from_file_location("record", DATA / "record.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_same(potential, atoms: Atoms, host: dict, tolerance: float = 1e-4) -> None:
    found = evaluate(potential, build_graph(atoms, potential.cutoff, dtype=torch.float32))
    forces, stress = np.array(host["forces"]), np.array(host["stress"])
    assert found.energies.item() == pytest.approx(host["energy"], rel=tolerance)
    assert np.abs(found.forces.numpy() - forces).max() < tolerance * np.abs(forces).max()
    assert np.abs(found.stress[0].numpy() - stress).max() < tolerance * np.abs(stress).max()


def keys_of(name: str) -> dict:
    return yaml.safe_load((DATA / f"{name}.yml").read_text())


@pytest.mark.parametrize("structure", RECORDED["structures"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_converted_network_gives_what_the_host_gave(network, structure):
    potential = read_matdeeplearn_checkpoint(DATA / f"{network}.pt")
    assert isinstance(potential, NETWORKS[network])
    assert not potential.training
    assert_same(potential, recorded_structure(structure), RECORDED[network][structure])


@pytest.mark.parametrize("network", NETWORKS)
def test_opened_by_name_like_any_other(network):
    assert isinstance(open_potential(DATA / f"{network}.pt"), NETWORKS[network])


@needs_host
@pytest.mark.parametrize("structure", RECORDED["structures"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_record_is_what_the_host_gives(network, structure):
    record = recorder()
    model = record.host_model(keys_of(network)["model"], record.GRAPH)
    model.load_state_dict(torch.load(DATA / f"{network}.pt", weights_only=False)["state_dict"])
    live = record.host_results(model, recorded_structure(structure))
    np.testing.assert_allclose(live["energy"], RECORDED[network][structure]["energy"], rtol=1e-5)
    np.testing.assert_allclose(live["forces"], RECORDED[network][structure]["forces"], rtol=1e-3, atol=1e-5)


@needs_host
@pytest.mark.parametrize("network", NETWORKS)
def test_the_host_loads_what_is_written(network, tmp_path):
    """Another network of ours, written, and loaded as the host's calculator does it."""
    torch.manual_seed(3)
    sizes = {"cgcnn": dict(gc_count=3), "torchmd_et": dict(num_layers=4, hidden_channels=32)}[network]
    potential = NETWORKS[network](cutoff=5.0, envelope=False, energy_scale=2.5, **sizes)
    with torch.no_grad():
        for name, parameter in potential.named_parameters():
            if not name.endswith("betas"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    path = tmp_path / "best_checkpoint.pt"
    assert len(write_matdeeplearn_checkpoint(path, potential)) == (network == "torchmd_et")  # early pooling, said
    keys = yaml.safe_load(path.with_suffix(".yml").read_text())
    record = recorder()
    model = record.host_model(keys["model"], keys["dataset"]["preprocess_params"])
    model.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    for structure in RECORDED["structures"]:
        atoms = recorded_structure(structure) * (2, 2, 1)
        assert_same(potential, atoms, record.host_results(model, atoms))


def least_height(atoms: Atoms) -> float:
    """Least distance of opposite faces of the cell, Å: the host looks at two images to each side."""
    if atoms.cell.rank < 3:
        return 0.0
    return float(1.0 / np.linalg.norm(np.linalg.inv(atoms.cell[:]), axis=0).max())


@needs_host
@pytest.mark.skipif(PHYSPRE_DATA is None, reason="PHYSPRE_DATA does not name the folder with the real data")
@pytest.mark.parametrize(
    ("file", "elements"),
    [("silica/si_zeo_22_sample.extxyz.gz", "SiO"), ("phosphorus/p_gap_20.extxyz.gz", "P"),
     ("li-mn-o-p/li_mn_o.extxyz.gz", "LiMnO")],
)  # fmt: skip
@pytest.mark.parametrize("network", NETWORKS)
def test_the_paper_s_sizes_on_real_structures(network, file, elements, tmp_path):
    from mdl_physpre.structures.read import read_structures

    torch.manual_seed(4)
    potential = NETWORKS[network](cutoff=5.0, envelope=False)
    write_matdeeplearn_checkpoint(tmp_path / "checkpoint.pt", potential)
    keys = yaml.safe_load((tmp_path / "checkpoint.yml").read_text())
    record = recorder()
    model = record.host_model(keys["model"], keys["dataset"]["preprocess_params"])
    model.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state_dict"])
    back = read_matdeeplearn_checkpoint(tmp_path / "checkpoint.pt")
    frames = (a for a in read_structures(Path(PHYSPRE_DATA) / file) if 10 < len(a) < 60 and least_height(a) > 3.0)
    for _ in range(2):
        atoms = next(frames)
        assert set(atoms.symbols) <= set(Atoms(elements).symbols)
        atoms = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
        assert_same(back, atoms, record.host_results(model, atoms))


@pytest.mark.parametrize(
    ("network", "section", "key", "value"),
    [("cgcnn", "model", "dim1", 12), ("cgcnn", "model", "post_fc_count", 3), ("cgcnn", "model", "batch_norm", True),
     ("cgcnn", "graph", "cutoff_radius", 5.0), ("torchmd_et", "model", "hidden_channels", 24),
     ("torchmd_et", "model", "num_layers", 8), ("torchmd_et", "model", "max_z", 100)],
)  # fmt: skip
def test_a_yaml_that_does_not_fit_is_refused(network, section, key, value):
    keys = keys_of(network)
    (keys["dataset"]["preprocess_params"] if section == "graph" else keys["model"])[key] = value
    with pytest.raises(CheckpointError, match=rf"{key} {value!r} but the checkpoint"):
        read_matdeeplearn_checkpoint(DATA / f"{network}.pt", keys)


def test_a_key_that_is_missing_has_the_host_s_default():
    keys = keys_of("cgcnn")
    del keys["model"]["gc_count"]
    with pytest.raises(CheckpointError, match="gc_count 3 but the checkpoint 2"):
        read_matdeeplearn_checkpoint(DATA / "cgcnn.pt", keys)


@pytest.mark.parametrize(
    ("key", "value"), [("pool", "global_mean_pool"), ("pool_order", "early"), ("act", "relu"), ("name", "SchNet")]
)
def test_what_cannot_be_reproduced_is_refused(key, value):
    keys = keys_of("cgcnn")
    keys["model"][key] = value
    with pytest.raises(CheckpointError, match=value):
        read_matdeeplearn_checkpoint(DATA / "cgcnn.pt", keys)


def test_a_yaml_of_another_model_is_refused():
    with pytest.raises(CheckpointError, match="torchmd_etEarly"):
        read_matdeeplearn_checkpoint(DATA / "cgcnn.pt", keys_of("torchmd_et"))
    keys = keys_of("torchmd_et")
    del keys["dataset"]["preprocess_params"]["cutoff_radius"]
    with pytest.raises(CheckpointError, match="cutoff_radius"):
        read_matdeeplearn_checkpoint(DATA / "torchmd_et.pt", keys)


def test_the_yaml_is_found_beside_or_above(tmp_path):
    folder = tmp_path / "results" / "checkpoint_0"
    folder.mkdir(parents=True)
    shutil.copy(DATA / "cgcnn.pt", folder / "best_checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"best_checkpoint\.yml or config\.yml"):
        open_potential(folder / "best_checkpoint.pt")
    shutil.copy(DATA / "cgcnn.yml", tmp_path / "results" / "config.yml")
    assert isinstance(open_potential(folder / "best_checkpoint.pt"), CGCNN)


def test_files_that_are_something_else(tmp_path):
    (tmp_path / "text.pt").write_text("no archive")
    torch.save({"model": 1}, tmp_path / "other.pt")
    torch.save({"state_dict": recorded_structure("silica")}, tmp_path / "code.pt")
    for name in ("text.pt", "other.pt", "code.pt", "missing.pt"):
        with pytest.raises(CheckpointError, match=name):
            read_matdeeplearn_checkpoint(tmp_path / name, keys_of("cgcnn"))


@pytest.mark.parametrize("network", NETWORKS)
def test_written_and_read_back(network, tmp_path):
    sizes = {
        "cgcnn": dict(dim1=6, dim2=5, pre_fc_count=0),
        "torchmd_et": dict(hidden_channels=8, num_heads=2, max_z=40),
    }[network]
    reference = EnergyReference({8: -3.0, 14: -5.0})
    potential = NETWORKS[network](elements=["Si", "O"], cutoff=4.0, energy_scale=3.0, reference=reference, **sizes)
    lost = write_matdeeplearn_checkpoint(tmp_path / "new" / "checkpoint.pt", potential)
    said = ["O -3, Si -5 eV", "the envelope is left out", "the elements are"]
    said += ["adds up atoms before the output network"] * (network == "torchmd_et")
    for sentence, words in zip(lost, said, strict=True):
        assert words in sentence
    back = read_matdeeplearn_checkpoint(tmp_path / "new" / "checkpoint.pt")
    potential.envelope = False
    atoms = recorded_structure("silica")
    one, other = (evaluate(p, build_graph(atoms, 4.0, dtype=torch.float32)) for p in (potential, back))
    torch.testing.assert_close(one.energies, other.energies, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.forces, other.forces, rtol=1e-5, atol=1e-6)


def test_a_transformer_s_early_pooling_is_said_once(tmp_path, caplog):
    potential = TorchMDET(cutoff=4.0, hidden_channels=8, num_heads=2, envelope=False)
    with caplog.at_level(logging.WARNING):
        (lost,) = write_matdeeplearn_checkpoint(tmp_path / "t.pt", potential)
    assert "has other energies" in lost and "mdl_physpre.hosts.matdeeplearn.TorchMDETLate in the YAML" in lost
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path / 't.pt'}: {lost}"]


def test_only_its_own_yaml_is_replaced(tmp_path):
    path, config = tmp_path / "eam.pt", tmp_path / "eam.yml"
    for n_basis in (2, 3):  # again, in place of its own
        write_matdeeplearn_checkpoint(path, EAMInteraction(["Si"], cutoff=4.0, n_basis=n_basis))
        assert read_matdeeplearn_checkpoint(path).n_basis == n_basis
    checkpoint, written = path.read_bytes(), config.read_text()
    another = EAMInteraction(["O"], cutoff=4.0, n_basis=2)
    for text in (written.replace("eam.pt", "other.pt"), written + "optim: {max_epochs: 7}\n", "\xff", ""):
        config.write_text(text, encoding="latin-1")
        with pytest.raises(ConfigError, match=r"eam\.yml: is there already and is not the YAML"):
            write_matdeeplearn_checkpoint(path, another)
        assert config.read_text(encoding="latin-1") == text and path.read_bytes() == checkpoint
    config.write_text(written)
    with pytest.raises(ConfigError, match=r"eam\.yml: is there already"):
        write_matdeeplearn_checkpoint(tmp_path / "new.pt", another, config)
    config.unlink()
    config.mkdir()
    with pytest.raises(ConfigError, match=r"eam\.yml: is there already"):
        write_matdeeplearn_checkpoint(path, another)
    for name in ("eam2.yml", "eam2.YAML"):
        with pytest.raises(ConfigError, match="the name of a YAML file"):
            write_matdeeplearn_checkpoint(tmp_path / name, another)
    assert {p.name for p in tmp_path.iterdir()} == {"eam.pt", "eam.yml"}


def test_only_what_the_host_has_is_written(tmp_path):
    class Other(Backbone):
        def atomic_energies(self, graph):
            return graph.z.double()

    with pytest.raises(CheckpointError, match="Other"):
        write_matdeeplearn_checkpoint(tmp_path / "x.pt", Other())


def eam_by_formula(state: dict, elements: list[str], cutoff: float, atoms: Atoms) -> float:
    """Energy of the reference's potential, term by term over all images, from its parameters under their names."""
    pairs = [*combinations(elements, 2), *((e, e) for e in elements)]
    number = {frozenset(p): k for k, p in enumerate(pairs)}

    def value(name, k):
        return state[f"eam_params.param_dict.{name}.{k}"].double().numpy()

    reach = range(-4, 5)
    images = [np.array([a, b, c]) @ atoms.cell[:] for a in reach for b in reach for c in reach]
    energy = 0.0
    for i, centre in enumerate(atoms.symbols):
        density, own = 0.0, elements.index(centre)
        for j, other in enumerate(atoms.symbols):
            k = number[frozenset((centre, other))]
            for image in images:
                r = np.linalg.norm(atoms.positions[j] + image - atoms.positions[i])
                if not 1e-6 < r < cutoff:
                    continue
                s = min(1.0, (cutoff - r) / (cutoff - 0.66 * cutoff))
                fc = 6 * s**5 - 15 * s**4 + 10 * s**3
                well, slope, rest = (float(value(name, k)[0]) for name in ("D", "alpha", "rm"))
                energy += 0.5 * fc * (well * (1 - np.exp(-slope * (r - rest))) ** 2 - well)
                density += fc * float(np.sum(value("A", k) * np.exp(-value("beta", k) * r)))
        energy += float(value("B", own)[0]) * (density - float(value("rho0", own)[0])) ** 2
        energy += float(value("base_atomic_energy", own)[0])
    return energy


def eam_checkpoint(path: Path, elements: list[str], n_basis: int = 3) -> dict:
    """A checkpoint of the reference's potential with random parameters; its state dictionary."""
    generator = torch.Generator().manual_seed(5)
    n = len(elements)
    counts = dict.fromkeys(("D", "rm", "alpha", "A", "beta"), n * (n + 1) // 2)
    counts |= dict.fromkeys(("B", "rho0", "base_atomic_energy"), n)
    state = {}
    for name, count in counts.items():
        size = n_basis if name in ("A", "beta") else 1
        for k in range(count):
            state[f"eam_params.param_dict.{name}.{k}"] = 0.5 + torch.rand(size, generator=generator)
    state["eam_params.param_dict.B.0"] *= -1  # the reference does not keep it positive
    torch.save({"epoch": 1, "state_dict": state, "best_metric": 0.1, "identifier": "eam"}, path)
    keys = {"model": {"name": "eam_interaction", "atom_types": elements, "n_basis": n_basis},
            "dataset": {"preprocess_params": {"cutoff_radius": 4.5}}}  # fmt: skip
    path.with_suffix(".yml").write_text(yaml.safe_dump(keys))
    return state


def test_the_embedded_atom_potential_has_the_reference_s_order_of_pairs(tmp_path):
    elements = ["Li", "Mn", "O"]
    state = eam_checkpoint(tmp_path / "eam.pt", elements)
    potential = open_potential(tmp_path / "eam.pt")
    assert isinstance(potential, EAMInteraction)
    assert potential.pair_names() == ["Li-Mn", "Li-O", "Mn-O", "Li-Li", "Mn-Mn", "O-O"]
    atoms = recorded_structure("Li-Mn-O")
    found = evaluate(potential, build_graph(atoms, 4.5)).energies.item()
    assert found == pytest.approx(eam_by_formula(state, elements, 4.5, atoms), rel=1e-6)


def test_the_embedded_atom_potential_there_and_back(tmp_path):
    potential = EAMInteraction(["P", "O"], cutoff=4.5, n_basis=4)
    assert write_matdeeplearn_checkpoint(tmp_path / "eam.pt", potential) == []
    state = torch.load(tmp_path / "eam.pt", weights_only=True)["state_dict"]
    back = read_matdeeplearn_checkpoint(tmp_path / "eam.pt")
    atoms = bulk("P", "sc", a=2.5) * (2, 1, 1)
    atoms.symbols[0] = "O"
    atoms.rattle(0.1, seed=0)
    one, other = (evaluate(p, build_graph(atoms, 4.5)) for p in (potential, back))
    torch.testing.assert_close(other.energies, one.energies, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other.forces, one.forces, rtol=1e-4, atol=1e-5)
    assert one.energies.item() == pytest.approx(eam_by_formula(state, ["P", "O"], 4.5, atoms), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"atom_types": ["Li", "O"]}, "needs 3 values of D, but the checkpoint has 6"),
     ({"atom_types": None}, "atom_types"), ({"n_basis": 10}, "n_basis 10 but the checkpoint 3")],
)  # fmt: skip
def test_an_embedded_atom_yaml_that_does_not_fit(change, message, tmp_path):
    eam_checkpoint(tmp_path / "eam.pt", ["Li", "Mn", "O"])
    keys = yaml.safe_load((tmp_path / "eam.yml").read_text())
    keys["model"] = {k: v for k, v in {**keys["model"], **change}.items() if v is not None}
    with pytest.raises(CheckpointError, match=message):
        read_matdeeplearn_checkpoint(tmp_path / "eam.pt", keys)


def test_the_energies_it_was_trained_on_go_through_the_yaml(tmp_path: Path) -> None:
    potential, path = CGCNN(cutoff=4.0, dim1=8, dim2=8, gc_count=1, post_fc_count=1), tmp_path / "best_checkpoint.pt"
    atoms = set_labels(Atoms("SiO2", np.eye(3), cell=[5, 5, 5], pbc=True), energy=-24.0)
    potential.training_energies = TrainingEnergies.of([atoms])
    write_matdeeplearn_checkpoint(path, potential)
    assert read_matdeeplearn_checkpoint(path).training_energies == potential.training_energies
    keys = yaml.safe_load(path.with_suffix(".yml").read_text())
    assert keys["physpre"]["training_energies"]["compositions"]["O2Si"]["lowest"] == -8.0
    keys["physpre"]["training_energies"] = {"lowest": 3}
    with pytest.raises(CheckpointError, match="its training_energies cannot be read"):
        read_matdeeplearn_checkpoint(path, keys)

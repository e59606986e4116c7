from __future__ import annotations

import io
import os
import pickle
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk

import mdl_physpre
from mdl_physpre.errors import CheckpointError, ConfigError
from mdl_physpre.potentials.backbones.cgcnn.network import CGCNN
from mdl_physpre.potentials.backbones.m3gnet.network import M3GNet
from mdl_physpre.potentials.backbones.registry import BACKBONES, build_backbone
from mdl_physpre.potentials.base import Backbone
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.checkpoints.matdeeplearn import read_matdeeplearn_checkpoint
from mdl_physpre.potentials.checkpoints.mattersim import read_mattersim_checkpoint
from mdl_physpre.potentials.checkpoints.mattertune import read_mattertune_checkpoint
from mdl_physpre.potentials.checkpoints.own import FORMAT, read_checkpoint, save_potential
from mdl_physpre.potentials.eam.potential import EAMInteraction
from mdl_physpre.potentials.energy_reference import EnergyReference
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import build_graph

SMALL = dict(elements=["Si", "O"], cutoff=4.0, dim1=6, dim2=5, gc_count=2, post_fc_count=1, edge_dim=7)


class ThirdParty(Backbone):
    def __init__(self, depth: float = 1.0) -> None:
        super().__init__()
        self.cutoff = 3.0
        self.depth = torch.nn.Parameter(torch.tensor(depth))

    def hyperparameters(self) -> dict:
        return {}

    def atomic_energies(self, graph):
        return self.depth * torch.ones(len(graph.z))


def small_cgcnn(seed: int = 0) -> CGCNN:
    torch.manual_seed(seed)
    return CGCNN(**SMALL, envelope_start=0.5, energy_scale=2.5, reference=EnergyReference({14: -5.25, 8: -3.5}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_potential_comes_back_the_same(tmp_path, dtype):
    potential = small_cgcnn().to(dtype)
    atoms = bulk("Si") * (2, 1, 1)
    atoms.rattle(0.1, seed=0)
    path = save_potential(tmp_path / "new" / "model.pt", potential)
    loaded = load_potential(path)
    graph = build_graph(atoms, cutoff=4.0, dtype=dtype)
    before, after = evaluate(potential, graph), evaluate(loaded, graph)
    for one, other in ((before.energies, after.energies), (before.forces, after.forces), (before.stress, after.stress)):
        assert torch.equal(one, other)
    assert not loaded.training
    assert loaded.hyperparameters() == potential.hyperparameters()
    assert loaded.elements == (8, 14)
    assert loaded.cutoff == 4.0
    assert loaded.reference.as_dict() == {8: -3.5, 14: -5.25}
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert all(p.requires_grad for p in loaded.parameters())


def test_the_training_record_keeps_plain_values(tmp_path):
    record = {"epoch": np.int64(3), "loss": np.float32(0.5), "history": [{"lr": 1e-3}], "sizes": (1, 2), "at": tmp_path}
    path = save_potential(tmp_path / "model.pt", small_cgcnn(), training=record)
    stored = read_checkpoint(path)
    expected = {"epoch": 3, "loss": 0.5, "history": [{"lr": 1e-3}], "sizes": [1, 2], "at": str(tmp_path)}
    assert stored["training"] == expected
    assert stored["energy_reference"] == {8: -3.5, 14: -5.25}
    assert stored["backbone"] == "CGCNN"


def test_a_record_that_cannot_be_stored_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"training\.history\[1\]"):
        save_potential(tmp_path / "model.pt", small_cgcnn(), training={"history": [1.0, object()]})
    assert list(tmp_path.iterdir()) == []


def test_saving_again_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "model.pt"
    save_potential(path, small_cgcnn(0))
    save_potential(path, small_cgcnn(1))
    assert torch.equal(load_potential(path).lin_out.weight, small_cgcnn(1).lin_out.weight)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    save_potential(path, small_cgcnn())
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="model.pt.*No space left"):
        save_potential(path, small_cgcnn(1))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_missing_empty_and_truncated_files(tmp_path):
    with pytest.raises(CheckpointError, match="absent.pt.*no such checkpoint"):
        load_potential(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_potential(tmp_path)
    whole = save_potential(tmp_path / "model.pt", small_cgcnn()).read_bytes()
    for size in (0, 2, 100, len(whole) // 2, len(whole) - 1):
        cut = tmp_path / "cut.pt"
        cut.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="cut.pt.*truncated or damaged"):
            load_potential(cut)


def test_damaged_bytes_inside_the_archive(tmp_path):
    whole = bytearray(save_potential(tmp_path / "model.pt", small_cgcnn()).read_bytes())
    for at in range(60, 400, 7):
        whole[at] ^= 0xFF
    path = tmp_path / "damaged.pt"
    path.write_bytes(bytes(whole))
    with pytest.raises(CheckpointError, match=r"damaged\.pt"):
        load_potential(path)


class Evil:
    def __init__(self, target) -> None:
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


def test_a_file_that_would_execute_code_is_refused(tmp_path):
    target = tmp_path / "executed"
    archive, plain = tmp_path / "archive.pt", tmp_path / "plain.pt"
    torch.save({"format": FORMAT, "format_version": 1, "state_dict": Evil(target)}, archive)
    plain.write_bytes(pickle.dumps(Evil(target)))
    with pytest.raises(CheckpointError, match="archive.pt.*could execute code"):
        load_potential(archive)
    with pytest.raises(CheckpointError, match=r"plain\.pt.*not a checkpoint"):
        load_potential(plain)
    assert not target.exists()


def test_a_file_cannot_name_code_to_run(tmp_path):
    content = read_checkpoint(save_potential(tmp_path / "model.pt", small_cgcnn()))
    path = tmp_path / "other.pt"
    torch.save({**content, "backbone": "subprocess:Popen", "hyperparameters": {"args": ["false"]}}, path)
    with pytest.raises(CheckpointError, match="not a class derived from"):
        load_potential(path)
    torch.save({**content, "backbone": "antigravity:Potential"}, path)
    with pytest.raises(CheckpointError, match="not registered here"):
        load_potential(path)


def test_foreign_files(tmp_path):
    text = tmp_path / "text.pt"
    text.write_text("pos cell\n")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_potential(text)
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "b")
    with pytest.raises(CheckpointError, match=r"archive\.zip"):
        load_potential(archive)
    tensor = tmp_path / "tensor.pt"
    torch.save(torch.zeros(3), tensor)
    with pytest.raises(CheckpointError, match="holds a Tensor"):
        load_potential(tensor)
    other = tmp_path / "other.pt"
    torch.save({"state_dict": {}, "optimizer": {}}, other)
    with pytest.raises(CheckpointError, match="optimizer, state_dict"):
        load_potential(other)
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6"}, other)
    with pytest.raises(CheckpointError, match="Lightning"):
        load_potential(other)


def test_another_version_and_parameters_that_do_not_fit(tmp_path):
    content = read_checkpoint(save_potential(tmp_path / "model.pt", small_cgcnn()))
    path = tmp_path / "other.pt"
    torch.save({**content, "format_version": 99}, path)
    with pytest.raises(CheckpointError, match="version 99.*reads version 1"):
        load_potential(path)
    torch.save({**content, "hyperparameters": {**content["hyperparameters"], "dim1": 8}}, path)
    with pytest.raises(CheckpointError, match="do not fit"):
        load_potential(path)
    torch.save({**content, "hyperparameters": {**content["hyperparameters"], "dim3": 8}}, path)
    with pytest.raises(CheckpointError, match="dim3"):
        load_potential(path)
    del content["state_dict"]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="lacks state_dict"):
        load_potential(path)


def test_backbones_by_name_and_by_import_path():
    assert isinstance(build_backbone("CGCNN", **SMALL), CGCNN)
    assert isinstance(build_backbone("mdl_physpre.potentials.backbones.cgcnn.network.CGCNN", **SMALL), CGCNN)
    assert isinstance(build_backbone("mdl_physpre.potentials.backbones.cgcnn.network:CGCNN", **SMALL), CGCNN)


def test_unknown_names_get_the_nearest_known_one():
    with pytest.raises(ConfigError, match="CGCN.*did you mean 'CGCNN'"):
        build_backbone("CGCN")
    with pytest.raises(ConfigError, match="known: CGCNN, .*eam_interaction"):
        build_backbone("transformer")
    with pytest.raises(ConfigError, match="gc_cuont.*did you mean 'gc_count'"):
        build_backbone("CGCNN", gc_cuont=3)
    with pytest.raises(ConfigError, match="cannot be imported"):
        build_backbone("no.such.module.Model")
    with pytest.raises(ConfigError, match="not a class derived from"):
        build_backbone("collections:OrderedDict")
    with pytest.raises(ConfigError, match="cannot be built"):
        build_backbone("CGCNN", dim1="wide")


def test_third_party_backbones(tmp_path, monkeypatch):
    by_path = save_potential(tmp_path / "path.pt", ThirdParty(3.0))
    assert read_checkpoint(by_path)["backbone"].endswith(":ThirdParty")
    assert load_potential(by_path).depth.item() == 3.0  # its module is imported already

    point = EntryPoint("third", f"{ThirdParty.__module__}:ThirdParty", BACKBONES.group)
    monkeypatch.setattr(
        "mdl_physpre.utils.registry.entry_points", lambda group: [point] if group == point.group else []
    )
    assert isinstance(build_backbone("third", depth=2.0), ThirdParty)
    registered = save_potential(tmp_path / "registered.pt", ThirdParty(4.0))
    assert read_checkpoint(registered)["backbone"] == "third"
    assert load_potential(registered).depth.item() == 4.0


def test_a_potential_without_hyperparameters_cannot_be_saved(tmp_path, monkeypatch):
    monkeypatch.delattr(ThirdParty, "hyperparameters")
    with pytest.raises(CheckpointError, match=r"hyperparameters\(\)"):
        save_potential(tmp_path / "model.pt", ThirdParty())


def test_the_archive_holds_no_code(tmp_path):
    """A bare unpickler that knows tensors only suffices: nothing else is named in the file."""
    path = save_potential(tmp_path / "model.pt", small_cgcnn(), training={"note": "x"})
    assert torch.load(io.BytesIO(path.read_bytes()), weights_only=True)["format_version"] == 1
    assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []


def test_the_embedded_atom_potential_comes_back_the_same(tmp_path):
    potential = build_backbone("eam_interaction", elements=["Si", "O"], cutoff=5.0, n_basis=3)
    assert isinstance(potential, EAMInteraction)
    with torch.no_grad():
        for k, parameter in enumerate(potential.parameters()):
            parameter.add_(0.01 * (k + 1))
    loaded = load_potential(save_potential(tmp_path / "eam.pt", potential))
    assert read_checkpoint(tmp_path / "eam.pt")["backbone"] == "eam_interaction"
    assert loaded.hyperparameters() == potential.hyperparameters()
    dtype = next(potential.parameters()).dtype
    graph = build_graph(bulk("Si"), cutoff=5.0, dtype=dtype)
    before, after = evaluate(potential, graph), evaluate(loaded, graph)
    assert torch.equal(before.energies, after.energies)
    assert torch.equal(before.forces, after.forces)


DATA = Path(__file__).parents[1] / "data"


def test_files_in_the_formats_of_others_load_by_the_same_name(tmp_path):
    network = M3GNet(num_blocks=1, units=8, max_n=2, max_l=2, cutoff=4.0, threebody_cutoff=3.0, max_z=20)
    mdl_physpre.potentials.write_mattersim_checkpoint(tmp_path / "theirs.pth", network)
    tuned = {
        "pytorch-lightning_version": "2.6",
        "hyper_parameters": {"name": "physpre-m3gnet", "properties": [], **network.hyperparameters()},
        "state_dict": {f"backbone.{name}": value for name, value in network.state_dict().items()},
    }
    torch.save(tuned, tmp_path / "theirs.ckpt")
    for file in (DATA / "matdeeplearn" / "cgcnn.pt", tmp_path / "theirs.pth", tmp_path / "theirs.ckpt"):
        loaded, opened = mdl_physpre.load_potential(file), mdl_physpre.open_potential(file)
        assert type(loaded) is type(opened) is (CGCNN if file.suffix == ".pt" else M3GNet)
        assert not loaded.training
        state = opened.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        mdl_physpre.load_potential("calculator:ase.calculators.emt.EMT")


@pytest.mark.parametrize("device", ["foo", "cuda:99", "", torch.device("cuda:99")])
def test_a_device_that_is_not_there_is_no_damaged_checkpoint(device, tmp_path):
    path = save_potential(tmp_path / "model.pt", small_cgcnn())
    readers = [load_potential, mdl_physpre.open_potential, read_mattersim_checkpoint]
    readers += [read_mattertune_checkpoint, read_matdeeplearn_checkpoint]
    for read in readers:
        with pytest.raises(ConfigError, match=f"^device '{device}' is not available here; available: cpu"):
            read(path, map_location=device)
    assert next(load_potential(path, torch.device("cpu")).parameters()).device.type == "cpu"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Checkpoints of MatterSim and MatterTune, against results of MatterSim's own network in tests/data/mattersim, or live.

For the live comparison, mattersim 1.2.2 must be importable, which works without most of what it names as its needs:

    pip install --no-deps mattersim==1.2.2 e3nn==0.6.0 torch-runstats torch-ema opt-einsum opt-einsum-fx loguru \
        Deprecated wrapt scikit-learn threadpoolctl joblib torchmetrics requests
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from mdl_physpre.errors import CheckpointError
from mdl_physpre.potentials.backbones.cgcnn.network import CGCNN
from mdl_physpre.potentials.backbones.m3gnet.network import M3GNet
from mdl_physpre.potentials.checkpoints.archive import content_of, read_archive
from mdl_physpre.potentials.checkpoints.mattersim import (
    is_mattersim_checkpoint,
    read_mattersim_checkpoint,
    write_mattersim_checkpoint,
)
from mdl_physpre.potentials.checkpoints.mattertune import is_mattertune_checkpoint, read_mattertune_checkpoint
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.open import open_potential
from mdl_physpre.structures.graph import build_graph

DATA = Path(__file__).parents[1] / "data" / "mattersim"
FILE = DATA / "m3gnet.pth"
RECORDED = json.loads((DATA / "results.json").read_text())
NAMES = list(RECORDED["structures"])

try:
    import mattersim.forcefield.potential  # noqa: F401

    WHY_NOT = ""
except ImportError as error:
    WHY_NOT = f"mattersim cannot be imported: {error}"
needs_host = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


def recorder():
    """The script that runs the host."""
    spec = importlib.util.spec_from_file_location("record_mattersim", DATA / "record.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def structure(name: str) -> Atoms:
    return Atoms(**RECORDED["structures"][name], pbc=True)


def predicted(potential, atoms: Atoms):
    return evaluate(potential, build_graph(atoms, potential.cutoff, dtype=torch.float32))


def assert_same(potential, atoms: Atoms, host: dict, tolerance: float = 1e-4) -> None:
    found = predicted(potential, atoms)
    forces, stress = np.array(host["forces"]), np.array(host["stress"])
    assert found.energies.item() == pytest.approx(host["energy"], rel=1e-6)
    assert np.abs(found.forces.numpy() - forces).max() < tolerance * np.abs(forces).max()
    assert np.abs(found.stress[0].numpy() - stress).max() < tolerance * np.abs(stress).max()


def changed(path: Path, **changes) -> Path:
    """A copy of the recorded checkpoint with other entries; None removes one."""
    content = {**read_archive(FILE), **changes}
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_converted_network_gives_what_the_host_gave(name):
    potential = read_mattersim_checkpoint(FILE)
    assert not potential.training
    assert_same(potential, structure(name), RECORDED["results"][name])


def test_opened_by_name_like_any_other(tmp_path):
    assert isinstance(open_potential(FILE), M3GNet)
    assert isinstance(open_potential(tuned(tmp_path / "t.ckpt", {}, {})), M3GNet)


def test_written_and_read_again(tmp_path):
    potential = read_mattersim_checkpoint(FILE)
    assert write_mattersim_checkpoint(tmp_path / "new" / "m.pth", potential, "a note") == []
    again = read_mattersim_checkpoint(tmp_path / "new" / "m.pth")
    assert again.hyperparameters() == potential.hyperparameters()
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), potential.state_dict().values()))
    content = torch.load(tmp_path / "new" / "m.pth", weights_only=True)
    assert content["description"] == "a note"
    host = torch.load(FILE, weights_only=True)
    assert content.keys() == host.keys()
    assert content["model_args"] == host["model_args"]
    assert [(k, v.shape, v.dtype) for k, v in content["model"].items()] == [
        (k, v.shape, v.dtype) for k, v in host["model"].items()
    ]


def test_what_the_format_cannot_carry_is_said(tmp_path):
    potential = M3GNet(elements=["Si", "O"], num_blocks=1, units=8).double()
    potential.normalizer.shift[14] = -1234.56789
    lost = " ".join(write_mattersim_checkpoint(tmp_path / "m.pth", potential))
    for word in ("list of elements", "double precision", "energies of the elements are rounded"):
        assert word in lost
    with pytest.raises(CheckpointError, match="CGCNN has no counterpart"):
        write_mattersim_checkpoint(tmp_path / "c.pth", CGCNN(dim1=4, dim2=4, gc_count=1))


class Touches:
    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_objects_in_a_file_are_not_built(tmp_path):
    """As in checkpoints that hold an optimiser as it was, or something worse."""
    optimiser = torch.optim.Adam([torch.nn.Parameter(torch.zeros(3))])
    path = changed(tmp_path / "m.pth", optimizer=optimiser, scheduler=Touches(tmp_path / "made"))
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert is_mattersim_checkpoint(content_of(path))
    assert_same(read_mattersim_checkpoint(path), structure("silica"), RECORDED["results"]["silica"])
    assert not (tmp_path / "made").exists()


def test_files_that_do_not_fit(tmp_path):
    path = tmp_path / "m.pth"
    host = read_archive(FILE)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_mattersim_checkpoint(tmp_path / "absent.pth")
    path.write_bytes(FILE.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"m\.pth: the checkpoint is truncated"):
        read_mattersim_checkpoint(path)
    with pytest.raises(CheckpointError, match="expected model and model_args"):
        read_mattersim_checkpoint(changed(path, model=None))
    with pytest.raises(CheckpointError, match="model_name is 'graphormer'"):
        read_mattersim_checkpoint(changed(path, model_name="graphormer"))
    with pytest.raises(CheckpointError, match="model_args lack units"):
        read_mattersim_checkpoint(
            changed(path, model_args={k: v for k, v in host["model_args"].items() if k != "units"})
        )
    with pytest.raises(CheckpointError, match=r"has the shape \(16, 4\), expected \(8, 4\)"):
        read_mattersim_checkpoint(changed(path, model_args={**host["model_args"], "units": 8}))
    with pytest.raises(CheckpointError, match="does not belong to the sizes.*cutoff 6.0"):
        read_mattersim_checkpoint(changed(path, model_args={**host["model_args"], "cutoff": 6.0}))
    parameters = {k: v for k, v in host["model"].items() if k != "final.g.0.linear.bias"}
    with pytest.raises(CheckpointError, match=r"lacks 1 parameters.*final\.g\.0\.linear\.bias"):
        read_mattersim_checkpoint(changed(path, model=parameters))
    assert not is_mattersim_checkpoint(content_of(changed(path, model_args=None)))


@needs_host
@pytest.mark.parametrize("sizes", [{"units": 32, "num_blocks": 3}, {"max_n": 3}, {"max_l": 2, "threebody_cutoff": 3.2}])
def test_the_host_itself_from_its_file(sizes, tmp_path):
    record = recorder()
    host = record.host_potential({**record.SIZES, **sizes})
    host.save(str(tmp_path / "m.pth"))
    potential = read_mattersim_checkpoint(tmp_path / "m.pth")
    for atoms in record.structures().values():
        assert_same(potential, atoms, record.host_results(host, atoms))


@needs_host
def test_the_host_loads_what_is_written(tmp_path):
    from mattersim.forcefield.potential import Potential

    record = recorder()
    torch.manual_seed(1)
    potential = M3GNet(num_blocks=2, units=16).eval()
    potential.normalizer.shift[[8, 14, 15]] = torch.tensor([-3.0, -5.0, -4.0], dtype=torch.float64)
    write_mattersim_checkpoint(tmp_path / "m.pth", potential)
    for state in (True, False):
        host = Potential.from_checkpoint(str(tmp_path / "m.pth"), device="cpu", load_training_state=state)
        for atoms in record.structures().values():
            assert_same(potential, atoms, record.host_results(host, atoms))
    assert host.scheduler.optimizer is host.optimizer


# MatterTune


def tuned(path: Path, normalizers: dict, buffers: dict, **changes) -> Path:
    """The recorded network as MatterTune's Lightning file holds it."""
    state = {f"backbone.model.{name}": value for name, value in read_archive(FILE)["model"].items()}
    state |= {f"normalizers.{name}": torch.as_tensor(value) for name, value in buffers.items()}
    parameters = {
        "name": "mattersim",
        "pretrained_model": "MatterSim-v1.0.0-1M",
        "model_type": "m3gnet",
        "graph_convertor": {"twobody_cutoff": 5.0, "has_threebody": True, "threebody_cutoff": 4.0},
        "properties": [{"type": kind, "name": kind, "dtype": "float"} for kind in ("energy", "forces", "stresses")],
        "normalizers": normalizers,
    }
    content = {
        "epoch": 1,
        "global_step": 10,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": state,
        "hyper_parameters": {**parameters, **changes},
    }
    torch.save(content, path)
    return path


def test_mattertune_with_references_of_the_elements(tmp_path):
    references = torch.arange(1.0, 21.0) / 7.0  # of the atomic numbers 1 to 20
    normalizers = {"energy": [{"only_for_target": True, "per_atom_references": {}}, {"only_for_target": False}]}
    path = tuned(tmp_path / "t.ckpt", normalizers, {"energy.normalizers.0.references": references})
    assert is_mattertune_checkpoint(content_of(path))
    assert not is_mattertune_checkpoint(content_of(FILE))
    assert not is_mattersim_checkpoint(content_of(path))
    potential = read_mattertune_checkpoint(path)
    atoms = structure("silica")
    host = dict(RECORDED["results"]["silica"])
    host["energy"] += float(references[torch.from_numpy(atoms.numbers) - 1].sum())
    assert_same(potential, atoms, host)
    assert potential.hyperparameters() == read_mattersim_checkpoint(FILE).hyperparameters()


def test_mattertune_with_one_scale_for_all(tmp_path):
    scale = {"only_for_target": True, "rms": 2.5}
    names = ("energy", "forces", "stresses")
    buffers = {f"{name}.normalizers.0.rms": 2.5 for name in names}
    potential = read_mattertune_checkpoint(tuned(tmp_path / "t.ckpt", {name: [scale] for name in names}, buffers))
    host = {key: 2.5 * np.array(value) for key, value in RECORDED["results"]["silica"].items()}
    assert_same(potential, structure("silica"), host)
    del buffers["forces.normalizers.0.rms"]
    path = tuned(tmp_path / "t.ckpt", {"energy": [scale], "stresses": [scale]}, buffers)
    with pytest.raises(CheckpointError, match="different factors"):
        read_mattertune_checkpoint(path)


def test_mattertune_that_has_no_counterpart(tmp_path):
    path = tmp_path / "t.ckpt"
    shifted = {"energy": [{"only_for_target": True, "mean": -3.0, "std": 1.0}]}
    tuned(path, shifted, {"energy.normalizers.0.mean": -3.0, "energy.normalizers.0.std": 1.0})
    with pytest.raises(CheckpointError, match="adds -3 to each structure"):
        read_mattertune_checkpoint(path)
    tuned(path, {"energy": [{"only_for_target": True}]}, {})
    with pytest.raises(CheckpointError, match="no sum over atoms"):
        read_mattertune_checkpoint(path)
    for graph, word in (
        ({"twobody_cutoff": 4.5}, "twobody_cutoff is 4.5"),
        ({"has_threebody": False}, "has_threebody"),
    ):
        with pytest.raises(CheckpointError, match=word):
            read_mattertune_checkpoint(tuned(path, {}, {}, graph_convertor=graph))
    with pytest.raises(CheckpointError, match="backbone 'orb'"):
        read_mattertune_checkpoint(tuned(path, {}, {}, name="orb"))
    with pytest.raises(CheckpointError, match="no checkpoint of MatterTune"):
        read_mattertune_checkpoint(FILE)

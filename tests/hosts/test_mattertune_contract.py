"""What the MatterTune plugin does, as far as it needs no MatterTune."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import nn

from mdl_physpre.errors import CheckpointError, ConfigError, DataError
from mdl_physpre.hosts.mattertune.adapters import adapted_layers, check_adapters, merged_state
from mdl_physpre.hosts.mattertune.config_file import load_mattertune_config
from mdl_physpre.hosts.mattertune.evaluation import RootAtoms
from mdl_physpre.hosts.mattertune.graphs import checked_data, collate, normalization_counts
from mdl_physpre.hosts.mattertune.names import METHODS, NAMES
from mdl_physpre.hosts.mattertune.network import build_network, fresh_output_head
from mdl_physpre.hosts.mattertune.settings import fit_teacher, parse_physpre
from mdl_physpre.hosts.patching import git_hash, patches_for
from mdl_physpre.potentials.backbones.m3gnet.layers import Layer
from mdl_physpre.potentials.backbones.m3gnet.network import M3GNet
from mdl_physpre.potentials.checkpoints.mattersim import read_mattersim_checkpoint
from mdl_physpre.potentials.checkpoints.mattertune import read_mattertune_checkpoint
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.open import open_potential
from mdl_physpre.structures.graph import build_graph

ROOT = Path(__file__).parents[2]
MATTERSIM = ROOT / "tests" / "data" / "mattersim" / "m3gnet.pth"
SMALL = {"elements": ["O", "Si"], "num_blocks": 2, "units": 8, "cutoff": 4.0, "threebody_cutoff": 3.0}


def silica(seed: int = 0, n: int = 6) -> Atoms:
    rng = np.random.default_rng(seed)
    cell = np.diag([5.0, 5.5, 6.0]) + rng.normal(0, 0.2, (3, 3))
    return Atoms(["Si", "O", "O"] * (n // 3), scaled_positions=rng.random((n, 3)), cell=cell, pbc=True)


def network(**changes) -> M3GNet:
    torch.manual_seed(3)
    return M3GNet(**{**SMALL, **changes})


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=env, cwd="/", timeout=300
    )


# --- without the host, and with a host that lacks something


WITHOUT_HOST = """
import importlib.abc, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mattertune", "nshconfig"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
"""


def test_without_the_host_one_sentence_says_how_to_get_it(tmp_path):
    (tmp_path / "c.yml").write_text("model: {}\ndata: {}\n")
    found = run(
        f"""
        import sys
        import mdl_physpre.hosts.locate as locate
        locate.put_on_path = lambda host: None
        sys.argv = ["mattertune", "finetune", {str(tmp_path / "c.yml")!r}]
        from mdl_physpre.hosts.mattertune.cli import main
        try:
            main()
        finally:
            print("torch" in sys.modules)
        """
    )
    assert found.returncode == 1
    assert found.stdout == "False\n"  # it is said at once
    assert found.stderr.startswith(
        "error: MatterTune is not installed: git clone https://github.com/Fung-Lab/MatterTune"
    )
    assert "Traceback" not in found.stderr and found.stderr.count("\n") == 1


def test_help_needs_no_host_and_no_torch():
    found = run(
        WITHOUT_HOST
        + textwrap.dedent(
            """
            from mdl_physpre.hosts.mattertune.cli import main
            sys.argv = ["mattertune", "--help"]
            try:
                main()
            finally:
                print("torch" in sys.modules)
            """
        )
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.endswith("False\n")
    for command in ("finetune", "pretrain", "predict"):
        assert command in found.stdout


def test_nothing_else_imports_the_host():
    found = run(
        """
        import importlib, pkgutil, sys
        import mdl_physpre
        for module in pkgutil.walk_packages(mdl_physpre.__path__, "mdl_physpre."):
            if not module.name.startswith("mdl_physpre.hosts.") and not module.name.endswith("torchsim"):
                importlib.import_module(module.name)
        print([name for name in sys.modules if name.split(".")[0] == "mattertune"])
        print([name for name in sys.modules if name.startswith("mdl_physpre.hosts.mattertune.")])
        """
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines() == ["[]", "[]"]


def fake_host(folder: Path, leave_out: str = "", extra_method: str = "") -> Path:
    """A package with the names of the host, but ``leave_out``."""
    package = folder / "mattertune"
    for module, names in NAMES.items():
        path = package.joinpath(*module.split("."))
        kept = [name for name in names if name != leave_out]
        text = "".join(f"{name} = object()\n" for name in kept)
        if module == "finetune.base":
            methods = [m for m in METHODS if m != leave_out] + ([extra_method] if extra_method else [])
            body = "".join(f"    @abstractmethod\n    def {m}(self): ...\n" for m in methods)
            text += f"from abc import ABC, abstractmethod\nclass FinetuneModuleBase(ABC):\n{body}"
        path.mkdir(parents=True, exist_ok=True)
        (path / "__init__.py").write_text(text)
    for directory in [package, *(p for p in package.rglob("*") if p.is_dir())]:
        (directory / "__init__.py").touch()
    return folder


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("data_registry", "mattertune.registry.data_registry is missing (there since 2024-11-03)"),
        ("model_forward_partition", "FinetuneModuleBase.model_forward_partition is missing (there since 2025-09-24)"),
    ],
)
def test_a_host_that_lacks_a_name_is_refused_with_the_name_and_its_date(tmp_path, name, told):
    code = """
    from mdl_physpre.hosts.mattertune.names import require_host
    try:
        require_host()
    except Exception as error:
        print(type(error).__name__, error)
    else:
        print("fits")
    """
    whole = run(code, MATTERTUNE_HOME=str(fake_host(tmp_path / "whole")))
    assert whole.stdout == "fits\n", whole.stderr
    found = run(code, MATTERTUNE_HOME=str(fake_host(tmp_path / "part", leave_out=name)))
    assert found.stdout.startswith("HostError") and told in found.stdout
    assert "commit 8e1a57e" in found.stdout


def test_a_host_with_a_new_abstract_method_is_refused(tmp_path):
    code = "from mdl_physpre.hosts.mattertune.names import missing_names, require_host\nrequire_host()"
    found = run(code, MATTERTUNE_HOME=str(fake_host(tmp_path, extra_method="dream")))
    assert "FinetuneModuleBase.dream is new, and the backbone does not define it" in found.stderr


def test_a_host_that_cannot_be_imported_says_why(tmp_path):
    package = tmp_path / "mattertune"
    package.mkdir()
    (package / "__init__.py").write_text("import some_requirement")
    found = run(
        "from mdl_physpre.hosts.mattertune.names import require_host\nrequire_host()", MATTERTUNE_HOME=str(tmp_path)
    )
    assert "MatterTune cannot be imported: ModuleNotFoundError" in found.stderr
    assert "pip install some-requirement" in found.stderr


# --- configuration


def test_paths_and_overrides(tmp_path, monkeypatch):
    (tmp_path / "x.extxyz").touch()
    monkeypatch.setenv("HERE", str(tmp_path))
    path = tmp_path / "c.yml"
    path.write_text(
        "model: {name: physpre-m3gnet, optimizer: {lr: 1e-3}}\n"
        "data: {train: {type: physpre-structures, src: $HERE/x.extxyz}, validation: {type: xyz, src: x.extxyz}}\n"
        "physpre: {eam: {n_basis: 4}}\n"
    )
    raw, physpre = load_mattertune_config(path, ["model.units=16", "physpre.pretrain.lr=2e-3"])
    assert raw["model"]["units"] == 16 and raw["model"]["optimizer"]["lr"] == 0.001
    assert {part["src"] for part in raw["data"].values()} == {str(tmp_path / "x.extxyz")}
    assert physpre.pretrain.lr == 0.002 and physpre.eam.n_basis == 4
    assert "physpre" not in raw
    path.write_text("model: {}\ndata: {}\n")
    assert load_mattertune_config(path)[1] is None
    assert load_mattertune_config(path, ["physpre.pretrain=null"])[1].pretrain is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "model: {}\ndata: {}\nphyspre: {pretrain: {max_epoch: 3}}",
            "physpre.pretrain.max_epoch: unknown key; did you",
        ),
        ("model: {}\ndata: {}\nphyspre: {sede: 3}", "physpre.sede: unknown key; did you mean 'seed'"),
        ("model: {}\ndata: {}\nphyspre: {pretrain: {lr: -1}}", "physpre.pretrain.lr: found -1"),
        ("model: {}\ndata: {}\nphyspre: {perturbation: {pull_share: 2}}", "pull_share: found 2"),
        ("model: {}\ndata: {}\ntraner: {}", "unknown section 'traner'; MatterTune has model, data, trainer, recipes"),
        ("model: {}", "section 'data' is missing"),
        ("model: {checkpoint: $NO_SUCH_THING/x.pt}\ndata: {}", "variable NO_SUCH_THING is not set"),
        ("- 1", "expected sections (model, data, trainer, recipes, physpre)"),
    ],
)
def test_mistakes_are_named(tmp_path, text, told):
    path = tmp_path / "c.yml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_mattertune_config(path)
    assert told in str(error.value)


def test_unknown_key_of_the_fit():
    with pytest.raises(ConfigError, match=r"eam.n_basi: unknown key; did you mean 'n_basis'"):
        fit_teacher([silica()], [], {"n_basi": 3}, 0)


def test_defaults_are_the_papers():
    physpre = parse_physpre(None, "c.yml")
    assert physpre.pretrain is not None and physpre.energy_reference
    assert physpre.perturbation.n_aug == 5 and physpre.eam.n_basis == 10


# --- the network


def test_networks_to_start_from(tmp_path):
    assert build_network(None, SMALL, {}).hyperparameters() == network().hyperparameters()
    potential = network()
    path = save_potential(tmp_path / "p.pt", potential)
    loaded = build_network(str(path), {"units": 8, "elements": ["O"]}, {})
    assert loaded.elements == (8,) and loaded.training
    graph = build_graph(silica(), 4.0, dtype=torch.float32)
    loaded.elements = None
    assert torch.equal(evaluate(loaded, graph).forces, evaluate(potential, graph).forces)
    with pytest.raises(ConfigError, match=r"model.units is 16, but .*p.pt holds a network with 8"):
        build_network(str(path), {"units": 16}, {})
    simulated = build_network(str(MATTERSIM), {}, {})
    assert simulated.hyperparameters() == read_mattersim_checkpoint(MATTERSIM).hyperparameters()
    with pytest.raises(CheckpointError, match="no such"):
        build_network(str(tmp_path / "none.pt"), {}, {})


def test_fresh_output_head_has_the_shapes_of_the_old():
    potential = network()
    head = fresh_output_head(potential)
    assert {k: v.shape for k, v in head.state_dict().items()} == {
        k: v.shape for k, v in potential.final.state_dict().items()
    }
    assert not torch.equal(head.g[0].linear.weight, potential.final.g[0].linear.weight)


def test_energy_of_some_atoms():
    potential = network().double()
    graph = build_graph(silica(), 4.0)
    whole = evaluate(potential, graph)
    mask = torch.tensor([1.0, 0, 0, 1, 1, 0], dtype=torch.float64)
    parts = [evaluate(RootAtoms(potential, m), graph) for m in (mask, 1 - mask)]
    assert torch.allclose(parts[0].energies + parts[1].energies, whole.energies, rtol=0, atol=1e-10)
    assert torch.allclose(parts[0].forces + parts[1].forces, whole.forces, rtol=0, atol=1e-10)
    assert torch.allclose(parts[0].stress + parts[1].stress, whole.stress, rtol=0, atol=1e-12)
    assert not torch.allclose(parts[0].forces, whole.forces)


# --- graphs


def test_batch_of_graphs_is_the_graph_of_the_batch():
    structures = [silica(0), silica(1, 3), Atoms("O", cell=[20] * 3, pbc=True), silica(2)]
    potential = network()
    joined = collate([checked_data(a, potential) for a in structures])
    once = build_graph(structures, potential.cutoff)
    for key in ("pos", "cell", "pbc", "z", "n_atoms", "batch", "edge_index", "cell_offsets"):
        assert torch.equal(joined[key], once[key]), key
    counts = normalization_counts(joined)
    assert counts.shape == (4, 119) and counts.sum(1).tolist() == [6, 3, 1, 6]
    assert counts[:, 7].tolist() == [4, 2, 1, 4] and counts[:, 13].tolist() == [2, 1, 0, 2]


def test_unknown_elements_are_named():
    with pytest.raises(DataError, match=r"structure P \(odd\): the structure holds P"):
        checked_data(Atoms("P", cell=[5] * 3, pbc=True, info={"structure_id": "odd"}), network())


# --- adapters


class Adapter(nn.Module):
    """What peft puts in place of a linear map: W x + b + s B A x."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, layer.out_features, bias=False)})
        self.lora_dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + 0.5 * self.lora_B["default"](self.lora_A["default"](self.lora_dropout(x)))


def adapted(potential: M3GNet) -> dict[str, Layer]:
    """Gives every layer of a network an adapter."""
    layers = {name: module for name, module in potential.named_modules() if isinstance(module, Layer)}
    for layer in layers.values():
        layer.linear = Adapter(layer.linear)
    return layers


def merged_network(potential: M3GNet, **changes) -> M3GNet:
    merged = network(**changes)
    merged.load_state_dict(merged_state(potential, potential.state_dict()))
    return merged


WAYS = pytest.mark.parametrize("units, dtype", [(8, torch.float64), (16, torch.float32)], ids=["tensors", "c"])
"""Channels that fill no vector and double precision are for tensor operations, the others for C where it is there."""


@WAYS
def test_merged_adapters_predict_what_adapters_predict(units, dtype):
    potential, graph = network(units=units).to(dtype).eval(), build_graph(silica(), 4.0, dtype=dtype)
    plain = evaluate(potential, graph)
    layers = adapted(potential)
    potential.to(dtype).train()
    assert adapted_layers(potential) == layers and len(layers) == 2 + 2 * 13 + 6
    merged = merged_network(potential, units=units).to(dtype)
    assert potential.training and layers["edge_encoder.mlp.0"].linear.training
    found, expected = (evaluate(p, graph) for p in (merged, potential.eval()))
    tight = {"rtol": 1e-5, "atol": 1e-6 if dtype == torch.float64 else 1e-5}
    assert torch.allclose(found.energies, expected.energies, **tight)
    assert torch.allclose(found.forces, expected.forces, **tight)
    assert torch.allclose(found.stress, expected.stress, **tight)
    assert not torch.allclose(found.forces, plain.forces, rtol=1e-3, atol=1e-4)


@WAYS
def test_each_adapter_counts_and_is_trained_through_the_merged_weight(units, dtype):
    """dL/dB = s dL/dW Aᵀ, with dL/dW from the network that has W + s B A for its weight."""
    potential, graph = network(units=units).eval(), build_graph(silica(1), 4.0, dtype=dtype)

    def loss(p: M3GNet) -> torch.Tensor:
        found = evaluate(p, graph, create_graph=True)
        return found.energies.sum() + found.forces.square().sum() + found.stress.square().sum()

    layers = adapted(potential)
    potential.to(dtype)
    merged = merged_network(potential, units=units).to(dtype)
    weights = [merged.get_parameter(f"{name}.linear.weight") for name in layers]
    of_weights = torch.autograd.grad(loss(merged), weights)
    of_adapters = torch.autograd.grad(loss(potential), [x.linear.lora_B["default"].weight for x in layers.values()])
    for (name, layer), found, gradient in zip(layers.items(), of_adapters, of_weights):
        expected = 0.5 * gradient @ layer.linear.lora_A["default"].weight.T
        assert expected.any(), name
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.detach().abs().max())), name


def test_copies_of_modules_are_refused():
    potential = network()
    potential.final.original_module, potential.final.modules_to_save = potential.final.g, nn.ModuleDict()
    with pytest.raises(ConfigError, match="modules_to_save names final, which cannot be merged"):
        check_adapters(potential)
    check_adapters(network())


# --- checkpoints read without the host


def checkpoint(path: Path, potential: M3GNet, normalizers: dict, buffers: dict) -> Path:
    """The file that the host writes with our backbone."""
    sizes = {**potential.hyperparameters(), "elements": ["O", "Si"]}
    state = {f"backbone.{name}": value for name, value in potential.state_dict().items()} | buffers
    properties = [{"type": kind, "name": kind} for kind in ("energy", "forces", "stresses")]
    content = {
        "pytorch-lightning_version": "2.6.6",
        "state_dict": state,
        "hyper_parameters": {
            "name": "physpre-m3gnet", "properties": properties, "normalizers": normalizers, "checkpoint": None, **sizes,
        },
    }  # fmt: skip
    torch.save(content, path)
    return path


def test_checkpoint_of_our_backbone(tmp_path):
    potential, graph = network(threebody_cutoff=3.5), build_graph(silica(), 4.0, dtype=torch.float32)
    references = torch.linspace(-3, 2, 20)
    normalizers = {"energy": [{"only_for_target": True, "per_atom_references": {"8": 1.0}}, {"only_for_target": False}]}
    buffers = {"normalizers.energy.normalizers.0.references": references}
    path = checkpoint(tmp_path / "t.ckpt", potential, normalizers, buffers)
    found, plain = evaluate(open_potential(path), graph), evaluate(potential, graph)
    shift = 4 * float(references[7]) + 2 * float(references[13])
    assert float(found.energies[0] - plain.energies[0]) == pytest.approx(shift, abs=1e-5)
    assert torch.equal(found.forces, plain.forces)
    raw = read_mattertune_checkpoint(path, same_normalizers=normalizers)
    assert torch.equal(evaluate(raw, graph).energies, plain.energies)
    other = read_mattertune_checkpoint(path, same_normalizers={})
    assert torch.equal(evaluate(other, graph).energies, found.energies)
    assert build_network(str(path), {}, normalizers).threebody_cutoff == 3.5


# --- patches


def test_patches_only_insert_lines_of_ours():
    patches = patches_for("mattertune")
    assert patches
    for patch in patches:
        assert set(patch.after) == {"mattertune/__init__.py", "mattertune/__main__.py"}
    text = (ROOT / "mdl_physpre" / "hosts" / "patches" / "mattertune" / f"{patches[0].name}.patch").read_text()
    for line in text.splitlines():
        assert not line.startswith(" ")  # context, a line of the host
        assert not line.startswith("-") or line.startswith("--- ")
        assert not line.startswith("@@") or line.endswith("@@")


def test_inserted_lines_load_entry_points(tmp_path):
    """The lines of the patch, in a file of their own, call what the group registers."""
    (patch,) = patches_for("mattertune")
    lines: dict[str, str] = {}
    for section in patch.path.read_text().split("diff --git ")[1:]:
        inserted = [line[1:] for line in section.splitlines() if line.startswith("+") and not line.startswith("+++")]
        lines[section.split(" b/")[1].split()[0]] = "".join(f"{line}\n" for line in inserted)
    package = tmp_path / "mattertune"
    package.mkdir()
    (package / "__init__.py").write_text(lines["mattertune/__init__.py"])
    (package / "__main__.py").write_text(lines["mattertune/__main__.py"])
    assert git_hash(package / "__main__.py") == patch.after["mattertune/__main__.py"]
    (tmp_path / "guest.py").write_text("def hello():\n    print('hello')\ndef broken():\n    raise ValueError('no')\n")
    info = tmp_path / "guest-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: guest\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[mattertune.plugins]\na = guest:broken\nb = guest:hello\n[console_scripts]\nmattertune = guest:hello\n"
    )
    found = subprocess.run(
        [sys.executable, "-S", "-m", "mattertune"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, timeout=60,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stdout == "hello\nhello\n"
    assert "the plugin guest:broken could not be loaded" in found.stderr

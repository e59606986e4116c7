"""Potentials by name: load, calculators, somebody else's backbones; and what the errors say."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from ase.build import bulk
from ase.calculators.lj import LennardJones

from mdl_physpre import build_graph, evaluate, label, save_potential
from mdl_physpre.dynamics import DynamicsSettings
from mdl_physpre.dynamics.running.storage import run_key
from mdl_physpre.errors import CheckpointError, ConfigError
from mdl_physpre.potentials import EAMInteraction
from mdl_physpre.potentials import open as module
from mdl_physpre.potentials.adapters.from_ase import CalculatorPotential
from mdl_physpre.potentials.checkpoints.load import READERS, Reader
from mdl_physpre.potentials.open import open_potential

BACKBONE = """
import torch
from mdl_physpre.potentials import Backbone

class Constant(Backbone):
    def __init__(self, elements=None, cutoff=3.0, height=1.0):
        super().__init__()
        self.elements, self.cutoff = elements, cutoff
        self.height = torch.nn.Parameter(torch.tensor(float(height), dtype=torch.float64))

    def atomic_energies(self, graph):
        return self.height.expand(len(graph.z))

    def hyperparameters(self):
        return {"elements": self.elements, "cutoff": self.cutoff}
"""

CALCULATORS = """
from ase.calculators.lj import LennardJones

class Box:
    @staticmethod
    def soft(**kwargs):
        return LennardJones(sigma=2.0, **kwargs)

def from_file(path, rc=5.0):
    return LennardJones(sigma=float(open(path).read()), rc=rc)

class Made:
    def __call__(self):
        return LennardJones(sigma=2.0)

made = Made()
CONSTANT = 3
"""


@pytest.fixture()
def somebody_elses(tmp_path, monkeypatch):
    """A folder with modules that nothing has imported yet."""
    (tmp_path / "their_backbone.py").write_text(BACKBONE)
    (tmp_path / "their_calculators.py").write_text(CALCULATORS)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("their_backbone", "their_calculators"):
        sys.modules.pop(name, None)


def test_a_checkpoint(tmp_path):
    saved = EAMInteraction(elements=["Si"], cutoff=4.0, n_basis=2)
    save_potential(tmp_path / "eam.pt", saved)
    graph = build_graph(bulk("Si"), 4.0)
    for name in (tmp_path / "eam.pt", str(tmp_path / "eam.pt")):
        assert torch.equal(evaluate(open_potential(name), graph).forces, evaluate(saved, graph).forces)
    with pytest.raises(ConfigError, match="a checkpoint takes no arguments, found rc"):
        open_potential(tmp_path / "eam.pt", {"rc": 3.0})


def test_a_backbone_of_a_third_party_needs_its_module_named(somebody_elses):
    import their_backbone

    path = save_potential(somebody_elses / "theirs.pt", their_backbone.Constant(height=2.5))
    del sys.modules["their_backbone"]
    with pytest.raises(CheckpointError, match="--import MODULE"):
        open_potential(path)
    assert "their_backbone" not in sys.modules  # the file alone has run nothing
    opened = open_potential(path, modules=["their_backbone"])
    assert opened.height.item() == 2.5
    with pytest.raises(ConfigError, match="'no_such_module' cannot be imported"):
        open_potential(path, modules=["no_such_module"])


@pytest.mark.parametrize(
    "name",
    [
        "calculator:ase.calculators.lj.LennardJones?sigma=2.0&rc=5.0&smooth=true",
        "calculator:ase.calculators.lj:LennardJones?sigma=2.0&rc=5e0&smooth=True",
        "calculator:their_calculators:Box.soft?rc=5.0&smooth=true",
    ],
)
def test_calculators(somebody_elses, name):
    potential = open_potential(name)
    assert isinstance(potential, CalculatorPotential)
    atoms = bulk("Si")
    atoms.calc = LennardJones(sigma=2.0, rc=5.0, smooth=True)
    found = float(evaluate(potential, build_graph(atoms, 0.0)).energies[0])
    assert found == atoms.get_potential_energy()
    (labelled,) = label([bulk("Si")], name)
    assert labelled.get_potential_energy() == found


def test_arguments_in_the_name_and_beside_it():
    potential = open_potential("calculator:ase.calculators.lj.LennardJones?sigma=2.0&rc=5", {"rc": 6.0, "ro": 4.0})
    assert [potential.calculator.parameters[k] for k in ("sigma", "rc", "ro")] == [2.0, 6.0, 4.0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("5", 5), ("true", True), ("False", False), ("null", None), ("[1, 2]", [1, 2]),
        ("small", "small"), ("a%26b%3Dc", "a&b=c"), ("x=y", "x=y"), ("", ""), ("a/b.pt", "a/b.pt"), ("'5'", "5"),
        ("torch.float64", torch.float64),
    ],
)  # fmt: skip
def test_values(text, value, monkeypatch):
    seen = {}

    def build(**given):
        seen.update(given)
        raise ConfigError("seen")

    monkeypatch.setattr("mdl_physpre.potentials.open.import_object", lambda path, what: build)
    with pytest.raises(ConfigError, match="seen"):
        open_potential(f"calculator:some.module:build?key={text}")
    assert seen == {"key": value}


def test_the_identity_has_the_arguments_and_the_files_in_it(somebody_elses):
    def key(name, kwargs=None):
        return run_key(open_potential(name, kwargs), [bulk("Si")], ["0"], [DynamicsSettings()], [0])

    lj = "calculator:ase.calculators.lj.LennardJones"
    keys = [key(lj), key(f"{lj}?rc=4.0"), key(f"{lj}?rc=5.0"), key("calculator:ase.calculators.emt.EMT")]
    assert len(set(keys)) == 4
    assert key(f"{lj}?rc=4.0&sigma=1.5") == key(f"{lj}?sigma=1.5", {"rc": 4.0})
    file = somebody_elses / "sigma.txt"
    from_file = f"calculator:their_calculators.from_file?path={file}"
    file.write_text("2.0")
    first = key(from_file)
    file.write_text("2.1")
    assert key(from_file) != first
    file.write_text("2.0")
    assert key(from_file) == first


@pytest.mark.parametrize("target", ["Box.soft", "from_file?path=sigma.txt", "made"])
def test_the_identity_changes_with_the_source_but_not_the_name(somebody_elses, monkeypatch, target):
    monkeypatch.chdir(somebody_elses)
    (somebody_elses / "sigma.txt").write_text("2.0")

    def opened():
        sys.modules.pop("their_calculators", None)
        importlib.invalidate_caches()
        potential = open_potential(f"calculator:their_calculators:{target}")
        return potential.name, run_key(potential, [bulk("Si")], ["0"], [DynamicsSettings()], [0])

    name, key = opened()
    assert opened() == (name, key)
    with open(somebody_elses / "their_calculators.py", "a") as file:
        file.write("# edited\n")
    edited_name, edited_key = opened()
    assert edited_name == name and "source" not in name
    assert edited_key != key


def test_a_class_that_is_imported_elsewhere_has_the_source_that_defines_it(somebody_elses):
    (somebody_elses / "their_door.py").write_text("from their_calculators import Box, LennardJones\n")
    identities = {open_potential(f"calculator:{m}:Box.soft").source for m in ("their_door", "their_calculators")}
    assert len(identities) == 1
    ase = open_potential("calculator:their_door:LennardJones").source
    assert ase == open_potential("calculator:ase.calculators.lj:LennardJones").source
    assert {ase, ""}.isdisjoint(identities)
    assert module.source_of(int, "builtins:int") == ""
    sys.modules.pop("their_door")


@pytest.mark.parametrize("scheme", ["calculator:ase.calculators.lj.LennardJones", "torchsim:no.such:Model"])
def test_a_device_for_a_calculator_is_not_ignored(scheme):
    for device, name in (("cuda:0", scheme), (torch.device("cuda:0"), f"{scheme}?rc=5.0")):
        with pytest.raises(ConfigError, match=r"give the device to the calculator itself.*[?&]device=cuda:0"):
            open_potential(name, map_location=device)
    lj = "calculator:ase.calculators.lj.LennardJones"
    assert open_potential(lj, map_location=torch.device("cpu")).name == open_potential(lj).name


def test_a_new_format_is_one_line_in_the_table(tmp_path, monkeypatch):
    file = tmp_path / "foreign.bin"
    file.write_bytes(b"FOREIGN")
    made = EAMInteraction(elements=["Si"], n_basis=1)
    reader = Reader(lambda path, content: path.read_bytes()[:7] == b"FOREIGN", lambda path, device: made)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        open_potential(file)
    monkeypatch.setattr("mdl_physpre.potentials.checkpoints.load.READERS", {"foreign": reader, **READERS})
    assert open_potential(file) is made
    save_potential(tmp_path / "ours.pt", made)
    assert open_potential(tmp_path / "ours.pt") is not made


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nothing.pt", CheckpointError, "no such file; expected a checkpoint file, RUN/ARM"),
        ("ase.calculators.lj.LennardJones", CheckpointError, "did you mean calculator:ase.calculators.lj.LennardJones"),
        ("calculater:ase.calculators.lj.LennardJones", CheckpointError, "did you mean 'calculator'"),
        ("calculator:ase.calculators.lj.LenardJones", ConfigError, "did you mean 'LennardJones'"),
        ("calculator:no_such.thing", ConfigError, "module 'no_such' cannot be imported"),
        ("calculator:EMT", ConfigError, "is no import path"),
        ("calculator:", ConfigError, "is no import path"),
        ("calculator:ase.calculators.emt.EMT?rc", ConfigError, "expected key=value"),
        ("calculator:their_calculators.from_file?wrong=3", ConfigError, "cannot be built: TypeError"),
        ("calculator:ase.build.bulk?name=Si", ConfigError, "returned Atoms, expected an ASE calculator"),
        ("calculator:their_calculators.CONSTANT", ConfigError, "found int, expected a class or a function"),
    ],
)
def test_errors_say_what_is_accepted(somebody_elses, name, error, message):
    with pytest.raises(error, match=message):
        open_potential(name)


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="a folder; expected a checkpoint file"):
        open_potential(tmp_path)


def test_torchsim_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_sim", None)
    monkeypatch.delitem(sys.modules, "mdl_physpre.potentials.adapters.torchsim", raising=False)
    with pytest.raises(ConfigError, match="pip install 'mdl-physpre\\[torchsim\\]'"):
        open_potential("torchsim:ase.calculators.emt:EMT")

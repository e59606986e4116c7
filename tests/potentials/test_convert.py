"""Checkpoints converted between formats give the same energies and forces, or say what they leave out."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from ase.build import bulk
from typer.testing import CliRunner

from mdl_physpre.cli.main import app
from mdl_physpre.errors import CheckpointError, ConfigError
from mdl_physpre.potentials.backbones.cgcnn.network import CGCNN
from mdl_physpre.potentials.backbones.m3gnet.network import M3GNet
from mdl_physpre.potentials.backbones.torchmd_et.network import TorchMDET
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.potentials.convert import convert_checkpoint
from mdl_physpre.potentials.eam.potential import EAMInteraction
from mdl_physpre.potentials.energy_reference import EnergyReference
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.open import open_potential
from mdl_physpre.structures.graph import build_graph

CUTOFF = 4.0


def cgcnn(**other):
    return CGCNN(cutoff=CUTOFF, dim1=8, dim2=8, gc_count=2, post_fc_count=1, edge_dim=8, **other)


def transformer(**other):
    return TorchMDET(cutoff=CUTOFF, hidden_channels=8, num_layers=2, num_heads=2, num_rbf=8, num_post_layers=1, **other)


def m3gnet(**other):
    return M3GNet(num_blocks=1, units=8, max_n=2, max_l=2, cutoff=CUTOFF, threebody_cutoff=3.0, max_z=20, **other)


def eam(**other):
    potential = EAMInteraction(["Si", "O"], cutoff=CUTOFF, n_basis=2, **other)
    with torch.no_grad():
        potential.A.mul_(torch.rand(potential.A.shape) + 0.5)
    return potential


def predicted(file):
    atoms = bulk("SiO", "rocksalt", 4.0, cubic=True)
    atoms.rattle(0.2, seed=0)
    potential = open_potential(file)
    dtype = next(potential.parameters()).dtype
    found = evaluate(potential, build_graph(atoms, potential.cutoff, dtype=dtype))
    return float(found.energies[0].detach()), found.forces.detach().double().numpy()


CONVERSIONS = {
    "CGCNN, MatDeepLearn": (lambda: cgcnn(envelope=False), "matdeeplearn"),
    "transformer, MatDeepLearn": (lambda: transformer(envelope=False), "matdeeplearn"),
    "EAM, MatDeepLearn": (eam, "matdeeplearn"),
    "M3GNet, MatterSim": (m3gnet, "mattersim"),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_there_and_back(name, tmp_path):
    torch.manual_seed(0)
    build, format = CONVERSIONS[name]
    save_potential(tmp_path / "ours.pt", build())
    theirs, back = tmp_path / "theirs.pth", tmp_path / "back.pt"
    lost = convert_checkpoint(tmp_path / "ours.pt", theirs, format)
    if "transformer" in name:  # some of the hosts compute another energy with the same parameters
        assert "adds up atoms before the output network" in lost.pop()
    assert lost == []
    assert convert_checkpoint(theirs, back) == []
    energy, forces = predicted(tmp_path / "ours.pt")
    assert np.abs(forces).max() > 1e-3
    for file in (theirs, back):
        other_energy, other_forces = predicted(file)
        assert other_energy == pytest.approx(energy, rel=1e-5)
        np.testing.assert_allclose(other_forces, forces, rtol=0, atol=1e-5 * np.abs(forces).max())


@pytest.mark.parametrize(
    ("build", "format", "said"),
    [
        (lambda: cgcnn(reference=EnergyReference({8: -430.0})), "matdeeplearn", ["elements (O -430", "envelope"]),
        (lambda: m3gnet(elements=["Si", "O"]), "mattersim", ["list of elements"]),
        (lambda: eam(short_range="zbl"), "matdeeplearn", ["short-range repulsion"]),
    ],
)  # fmt: skip
def test_what_is_not_carried_is_said(build, format, said, tmp_path, caplog):
    save_potential(tmp_path / "ours.pt", build())
    with caplog.at_level(logging.WARNING):
        lost = convert_checkpoint(tmp_path / "ours.pt", tmp_path / "theirs.pt", format)
    assert all(words in " ".join(lost) and words in caplog.text for words in said)


def test_the_format_follows_the_ending(tmp_path):
    save_potential(tmp_path / "ours.pt", m3gnet())
    convert_checkpoint(tmp_path / "ours.pt", tmp_path / "theirs.pth")
    assert {"model_name", "model_args"} <= torch.load(tmp_path / "theirs.pth", weights_only=True).keys()


def test_impossible_conversions_are_refused(tmp_path):
    ours = save_potential(tmp_path / "ours.pt", eam())
    network = save_potential(tmp_path / "network.pt", m3gnet())
    for source, format, message in (
        (ours, "mattersim", "EAMInteraction has no counterpart in MatterSim"),
        (network, "matdeeplearn", "M3GNet has no counterpart in MatDeepLearn"),
        (tmp_path / "nothing.pt", None, "no such file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert_checkpoint(source, tmp_path / "out.pt", format)
    for source, target, format, message in (
        (ours, "out.pt", "mattertune", "are read, not written"),
        (ours, "out.pt", "matersim", "did you mean 'mattersim'"),
        (ours, "ours.pt", None, "is the checkpoint that is read"),
        ("calculator:ase.calculators.emt.EMT", "out.pt", None, "is no checkpoint"),
    ):
        with pytest.raises(ConfigError, match=message):
            convert_checkpoint(source, tmp_path / target, format)
    assert {p.name for p in tmp_path.iterdir()} == {"ours.pt", "network.pt"}


def test_a_yaml_does_not_make_our_checkpoint_matdeeplearn_s(tmp_path):
    """Its parameters have the same names, so it would be read without energy scale, envelope and elements."""
    ours, own = save_potential(tmp_path / "best.pt", cgcnn(elements=["Si", "O"], energy_scale=2.0)), tmp_path / "own.pt"
    convert_checkpoint(ours, tmp_path / "host" / "s.pt", "matdeeplearn")
    config = tmp_path / "host" / "s.yml"
    for source, message in (
        ("best.pt", r"best\.pt: no checkpoint of MatDeepLearn: it lacks best_metric, identifier; open it without"),
        ("nothing.pt", r"nothing\.pt: no such checkpoint"),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert_checkpoint(tmp_path / source, own, config=config)
    result = CliRunner().invoke(app, ["convert-checkpoint", str(ours), str(own), "--config", str(config)])
    assert result.exit_code != 0 and not own.exists()


def test_a_run_configuration_beside_the_target_is_left_alone(tmp_path):
    ours = save_potential(tmp_path / "ours.pt", eam())
    (tmp_path / "run.yml").write_text("physpre: {}\n")
    refused = {"run.pt": r"run\.yml: is there already", "run.yml": "the name of a YAML", "x.YAML": "the name of a YAML"}
    for target, message in refused.items():
        with pytest.raises(ConfigError, match=message):
            convert_checkpoint(ours, tmp_path / target, "matdeeplearn")
    assert (tmp_path / "run.yml").read_text() == "physpre: {}\n"
    assert {p.name for p in tmp_path.iterdir()} == {"ours.pt", "run.yml"}


def test_the_commands(tmp_path):
    """convert-checkpoint with a YAML elsewhere, and export, as a user calls them."""

    def called(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == 0, (arguments, result.output, result.exception)
        return result.output

    ours = save_potential(tmp_path / "eam.pt", eam())
    told = called("convert-checkpoint", ours, tmp_path / "host.pt", "--format", "matdeeplearn")
    assert "written; nothing is lost" in told
    (tmp_path / "host.yml").rename(tmp_path / "elsewhere.yml")
    called("convert-checkpoint", tmp_path / "host.pt", tmp_path / "b.pt", "--config", tmp_path / "elsewhere.yml")
    assert predicted(tmp_path / "b.pt")[0] == pytest.approx(predicted(ours)[0], rel=1e-5)
    told = called("export", ours, tmp_path / "sio.eam.fs", "--n-r", 500, "--n-rho", 500)
    assert told.endswith(f"  pair_coeff * * {tmp_path / 'sio.eam.fs'} Si O\n")
    assert (tmp_path / "sio.eam.fs").read_text().splitlines()[3] == "2 Si O"

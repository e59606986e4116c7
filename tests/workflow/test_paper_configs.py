"""The paper's nine set-ups: their values, and two training steps of each arm at a reduced size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms

from mdl_physpre import label, write_structures
from mdl_physpre.potentials import EAMInteraction
from mdl_physpre.potentials.backbones.registry import build_backbone
from mdl_physpre.workflow.config.file import load_config
from mdl_physpre.workflow.run import run

FOLDER = Path(__file__).parents[2] / "configs" / "paper"
ELEMENTS = {"silica": ["Si", "O"], "phosphorus": ["P"], "li-mn-o-p": ["Li", "Mn", "O", "P"]}

# the paper's Table A.1: part of the data, copies, pairs, pull, sites, displacement
TABLE_A1 = {
    "silica_cgcnn": (1.0, 5, 4, 1.0, 5, 1.0),
    "silica_torchmd": (0.1, 5, 4, 1.0, 5, 1.0),
    "silica_m3gnet": (0.1, 5, 2, 1.0, 5, 1.0),
    "phosphorus_cgcnn": (1.0, 5, 2, 1.0, 5, 1.0),
    "phosphorus_torchmd": (0.05, 20, 2, 2.0, 5, 2.0),
    "phosphorus_m3gnet": (0.05, 5, 2, 1.0, 5, 0.5),
    "li-mn-o-p_cgcnn": (1.0, 10, 2, 0.5, 5, 0.25),
    "li-mn-o-p_torchmd": (0.1, 25, 2, 1.0, 5, 0.5),
    "li-mn-o-p_m3gnet": (0.1, 25, 2, 1.0, 5, 0.5),
}
# parameters of the networks in the paper's size, from the sizes of their layers; M3GNet: of MatterSim's checkpoint
PARAMETERS = {
    "cgcnn": 100 * 101 + 4 * 2 * (250 * 100 + 100) + 100 * 150 + 150 + 2 * 150 * 151 + 151,
    "torchmd": 2 * 50  # radial functions
    + 2 * 100 * 128 + 51 * 128 + 257 * 128  # embeddings, neighbour embedding
    + 8 * (2 * 128 + 129 * 128 * (1 + 1 + 3 + 3) + 3 * 128**2 + 51 * 128 * 4)  # attention layers
    + 2 * 128 + 2 * 129 * 128 + 129,  # after them
    "m3gnet": 890_034,
}  # fmt: skip
SMALL = {
    "cgcnn": ["model.dim1=8", "model.dim2=8", "model.gc_count=2", "model.post_fc_count=1", "model.edge_dim=8"],
    "torchmd": [
        "model.hidden_channels=8", "model.num_layers=2", "model.num_rbf=8", "model.num_heads=2",
        "model.post_hidden_channels=8",
    ],
    "m3gnet": ["model.units=8", "model.num_blocks=2", "model.max_l=2", "model.max_n=2", "model.threebody_cutoff=3.0"],
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight small periodic structures of the elements of each data set, labelled by a potential."""
    folder = tmp_path_factory.mktemp("data")
    for name, elements in ELEMENTS.items():
        rng = np.random.default_rng(5)
        structures = []
        for _ in range(8):
            grid = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * 2.4
            symbols = rng.permutation((elements * 8)[:8])
            positions = grid + rng.normal(0, 0.1, (8, 3))
            structures.append(Atoms(symbols, positions=positions, cell=np.eye(3) * 4.8, pbc=True))
        torch.manual_seed(0)
        teacher = EAMInteraction(elements, cutoff=4.0, n_basis=2)
        write_structures(folder / f"{name}.extxyz", label(structures, teacher, progress=False))
    return folder


def test_there_are_nine():
    assert {p.stem for p in FOLDER.iterdir()} == set(TABLE_A1)


@pytest.mark.parametrize("name", TABLE_A1)
def test_values_are_those_of_the_paper(name, monkeypatch, tmp_path):
    monkeypatch.setenv("PHYSPRE_DATA", str(tmp_path))
    config = load_config(FOLDER / f"{name}.yml")
    kind, backbone = name.rsplit("_", 1)
    fraction, n_aug, n_pairs, pull, n_sites, perturb = TABLE_A1[name]
    perturbation = config.physpre.perturbation
    assert config.dataset.fraction == fraction
    assert (perturbation.n_aug, perturbation.n_pairs, perturbation.n_sites) == (n_aug, n_pairs, n_sites)
    assert (tuple(perturbation.pull), tuple(perturbation.perturb)) == ((pull, 0.0), (perturb, 0.0))
    assert config.optim.weights() == {
        "energy": 0.01, "forces": 50, "stress": 0 if kind == "phosphorus" else 50,
    }  # fmt: skip
    dynamics = config.dynamics_settings()
    assert (dynamics.steps, config.physpre.dynamics.n_structures) == (5000, 100)
    assert dynamics.temperature == {"silica": 2000, "phosphorus": 1250}.get(kind, 500 if backbone == "cgcnn" else 1000)
    assert dynamics.timestep == (2.0 if kind == "silica" else 1.0)
    arms = ["baseline", "pretrain"] if backbone == "m3gnet" else ["baseline", "sam", "pretrain", "hybrid"]
    assert config.physpre.arms == arms
    network = build_backbone(
        config.model.name,
        elements=ELEMENTS[kind],
        cutoff=config.model.cutoff,
        **config.model.hyperparameters,
    )
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[backbone]


@pytest.mark.parametrize("name", TABLE_A1)
def test_every_line_says_what_it_is(name):
    text = (FOLDER / f"{name}.yml").read_text()
    sections = yaml.safe_load(text)
    assert sections.pop("recipe") == "paper" and all(isinstance(section, dict) for section in sections.values())
    for line in text.splitlines():
        heading = line.rstrip().endswith(":")
        assert heading or "#" in line or line.strip().startswith(("name:", "scheduler_type:")), line


@pytest.mark.parametrize("name", TABLE_A1)
def test_two_steps_of_every_arm(name, data, tmp_path):
    kind, backbone = name.rsplit("_", 1)
    changes = [
        f"dataset.src={data / kind}.extxyz", "dataset.fraction=1.0", "dataset.split.test=2", "dataset.split.val=2",
        "model.cutoff=4.0", "optim.max_epochs=1", "optim.batch_size=2",
        "physpre.eam.cutoff=5.0", "physpre.eam.n_basis=2", "physpre.eam.epochs=2", "physpre.perturbation.n_aug=1",
        "physpre.perturbation.n_pairs=1", "physpre.pretrain.max_epochs=1", "physpre.pretrain.batch_size=2",
        "physpre.dynamics.n_structures=0", "physpre.report.formats=[]",
        "physpre.arms=[baseline, sam, pretrain, hybrid]",
    ]  # fmt: skip
    summary = run(FOLDER / f"{name}.yml", [*changes, *SMALL[backbone]], out=tmp_path / "run")
    gradients = {"baseline": 2, "sam": 4, "pretrain": 4, "hybrid": 2}
    for arm, expected in gradients.items():
        assert summary.arms[arm].spent()["total"].gradients == expected
        errors = summary.arms[arm].errors["test"]
        assert np.isfinite([errors.energy_mae, errors.forces_mae, errors.stress_mae]).all()
        # the reference energies were fitted: a network of random weights is not tens of eV per atom off
        assert errors.energy_mae_mev_per_atom < 5000
    assert len({summary.arms[arm].errors["test"].forces_mae for arm in gradients}) == 4

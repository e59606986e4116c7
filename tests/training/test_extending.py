"""The examples of docs/extending/arm.md and loss.md, as files of somebody else's package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mdl_physpre import load_potential, write_structures
from mdl_physpre.errors import ConfigError
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.training import Material, TrainingSettings, initial_potential, parse_arm, train_arm, train_potential
from mdl_physpre.training.loss import label_errors
from tests.helpers.tiny_potential import CUTOFF, TinyPotential, cells, labelled
from tests.training.test_loss import case

PAGES = Path(__file__).parents[2] / "docs" / "extending"
QUICK = {"batch_size": 4, "device": "cpu"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """``of_somebody``: a module for each example of the pages, with entry points for some."""
    root = tmp_path / "site"
    (root / "of_somebody").mkdir(parents=True)
    pages = [(PAGES / f"{page}.md").read_text() for page in ("arm", "loss")]
    codes = [code for page in pages for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]
    for name, code in zip(("freeze", "other_set", "losses"), codes, strict=True):
        (root / "of_somebody" / f"{name}.py").write_text(code)
    registered = root / "of_somebody-1.dist-info"
    registered.mkdir()
    (registered / "METADATA").write_text("Metadata-Version: 2.1\nName: of_somebody\nVersion: 1\n")
    (registered / "entry_points.txt").write_text(
        "[mdl_physpre.arms]\nother_set = of_somebody.other_set:OtherSet\n"
        "[mdl_physpre.losses]\nlogcosh = of_somebody.losses:LogCosh\n"
    )
    monkeypatch.syspath_prepend(root)
    return root


def structures(n, seed, teacher=11):
    return labelled(cells(n, seed=seed), seed=teacher)


def test_layers_that_are_frozen_stay_as_pretraining_left_them(package, tmp_path):
    teacher = structures(8, 1, teacher=5), structures(4, 2, teacher=5)
    material = Material(structures(8, 3), structures(4, 4), pretraining_set=lambda: teacher)
    sections = {"pretrain": {"max_epochs": 2, "lr": 1e-2}, "freeze": {"layers": ["layers.0."]}}
    arm = parse_arm("pretrain+of_somebody.freeze:Freeze", sections)
    assert arm.name == "pretrain+freeze"
    for epochs in (2, 3):  # the second goes on after the first, with the same layers frozen
        settings = TrainingSettings(max_epochs=epochs, lr=1e-2, **QUICK)
        trained = train_arm(arm, initial_potential(TinyPotential, arm, material), material, settings, tmp_path / "out")
        first, second = (load_potential(found.best_checkpoint) for found in trained.stages.values())
        assert torch.equal(first.layers[0].weight, second.layers[0].weight)
        assert not torch.equal(first.layers[2].weight, second.layers[2].weight)
    with pytest.raises(ConfigError, match="this arm has no pretraining; write 'pretrain[+]sam[+]freeze'"):
        parse_arm("sam+of_somebody.freeze:Freeze")


def test_another_set_is_trained_on_first(package, tmp_path):
    for name, n in (("train", 8), ("val", 4)):
        write_structures(tmp_path / f"{name}.extxyz", structures(n, n, teacher=5))
    section = {"train": str(tmp_path / "train.extxyz"), "val": str(tmp_path / "val.extxyz"), "max_epochs": 3}
    arm = parse_arm("other_set", {"other_set": section})
    assert arm.stages == ("other_set",) and not arm.uses_pretraining_set
    material = Material(structures(8, 3), structures(4, 4))
    settings = TrainingSettings(max_epochs=2, lr=1e-2, **QUICK)
    trained = train_arm(arm, initial_potential(TinyPotential, arm, material), material, settings, tmp_path / "out")
    assert {name: found.epochs for name, found in trained.stages.items()} == {"other_set": 3, "finetune": 2}
    best = trained.stages["other_set"].history[trained.stages["other_set"].best_epoch]
    assert best["validation_forces_mae"] > 0
    assert parse_arm("sam+other_set").name == "sam+other_set"  # as a report reads it, without the settings
    with pytest.raises(ConfigError, match="train: missing"):
        parse_arm("other_set").parts[0].settings  # noqa: B018


@pytest.mark.parametrize("name", ["logcosh", "of_somebody.losses:LogCosh"])
def test_a_loss_of_ones_own(package, tmp_path, name):
    graph, predictions = case()
    found = label_errors(predictions, graph, TrainingSettings(loss=name, huber_force=2.0))["forces"]
    expected = 2.0 * torch.log(torch.cosh(torch.tensor([0.5, 0, 1, 3, 0, 2]).double() / 2.0)).sum()
    assert float(found.loss.detach()) == pytest.approx(float(expected), rel=1e-6)
    assert float(found.absolute) == pytest.approx(6.5)
    train, val = GraphDataset(structures(8, 3), CUTOFF), GraphDataset(structures(4, 4), CUTOFF)
    torch.manual_seed(0)
    settings = TrainingSettings(max_epochs=8, lr=2e-2, loss=name, **QUICK)
    result = train_potential(TinyPotential(), train, val, settings, tmp_path / "out")
    assert result.best_loss < result.history[0]["validation_loss"]


def test_an_unknown_loss_is_named():
    with pytest.raises(ConfigError, match="loss: found 'hubr'; unknown loss 'hubr': did you mean 'huber'?"):
        TrainingSettings(loss="hubr")

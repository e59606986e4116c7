"""Recipes: what they fill in, what they leave alone, and that the configuration of a run says it all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import bulk

from mdl_physpre import write_structures
from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.hosts.matdeeplearn.settings import engine_config
from mdl_physpre.structures.labels import set_labels
from mdl_physpre.workflow.by_data import suited
from mdl_physpre.workflow.config.file import load_config, parse_config
from mdl_physpre.workflow.config.recipes import NETWORKS, RECIPES, with_recipe
from mdl_physpre.workflow.run import fit_only

ROOT = Path(__file__).parents[2]
LEAST = {"dataset": {"src": "a.xyz"}, "model": {"name": "CGCNN"}}
DEFAULT = {"recipe": "default", "dataset": {"src": "a.xyz"}}


def leaves(values, name=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{name}{key}.")
        else:
            yield f"{name}{key}", value


def at(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


def test_the_paper_is_the_default():
    plain, named = parse_config(LEAST), parse_config({**LEAST, "recipe": "paper"})
    assert plain == named and plain.recipe == "paper"
    assert plain.optim.max_steps is None and plain.optim.weight_energy == 0.01 and plain.optim.ema_decay is None


def test_every_value_of_the_recipe_arrives():
    config = parse_config(DEFAULT)
    for key, value in leaves(RECIPES["default"]):
        found = at(config, key)
        assert (list(found) if isinstance(found, tuple) else found) == value, key
    own = NETWORKS["default"][config.model.name]
    assert config.model.cutoff == own["cutoff"]
    assert config.model.hyperparameters == {k: v for k, v in own.items() if k != "cutoff"}
    stage = config.pretraining_settings()
    assert (stage.max_steps, stage.schedule, stage.ema_decay) == (1000, "cosine", 0.99)


def test_what_is_given_stays():
    given = {
        "model": {"name": "torchmd_etEarly", "num_layers": 2},
        "optim": {"weight_force": 7.0, "ema_decay": None, "max_epochs": 30},
        "physpre": {"pretrain": {"max_epochs": 5}, "arms": ["baseline"]},
    }
    config = parse_config({**DEFAULT, **given})
    assert config.optim.weight_force == 7.0 and config.optim.weight_energy == 10.0
    assert config.optim.ema_decay is None, "null is a value that was given"
    assert (config.optim.max_epochs, config.optim.max_steps) == (30, None), "one stands in place of the other"
    assert config.pretraining_settings().max_epochs == 5 and config.pretraining_settings().max_steps is None
    assert config.model.hyperparameters["num_layers"] == 2 and config.model.hyperparameters["hidden_channels"] == 64
    other = parse_config({**DEFAULT, "model": {"name": "CGCNN"}}).model
    assert other.hyperparameters == {} and other.cutoff == 8.0, "sizes are of one network"


def test_a_teacher_of_ones_own_stays_alone():
    for own in ({"teacher": None}, {"teacher": {"calculator": "ase.calculators.emt.EMT"}}, {"eam": {"epochs": 3}}):
        config = parse_config({**DEFAULT, "physpre": own})
        assert config.physpre.hot_frames.n == 0 and config.physpre.arms == ["baseline", "pretrain"], own
        assert config.physpre.teacher is None or config.physpre.teacher.fit is None, own
    found = parse_config({**DEFAULT, "physpre": {"hot_frames": {"n": 4}}}).physpre
    assert found.teacher.fit == "angular_eam" and found.arms == ["baseline", "hybrid"]
    trained = with_recipe({**DEFAULT, "model": {"start_from": "a.pt"}})["physpre"]
    assert trained["teacher"] == {"fit": "angular_eam"} and "arms" not in trained


def test_many_elements_have_the_plain_teacher(tmp_path):
    def of(n):
        return [Atoms(numbers=range(3, 3 + n), positions=2.0 * np.arange(n)[:, None] * np.ones(3)) for _ in range(2)]

    config = load_config_of(tmp_path)
    few, _ = suited(config, of(8), of(8))
    many, said = suited(config, of(9), of(9))
    assert few.physpre.teacher.fit == "angular_eam" and few.physpre.hot_frames.n == 9
    assert many.physpre.teacher is None and many.physpre.hot_frames.n == 0 and "9 elements" in said[-1]
    assert (few.physpre.arms, many.physpre.arms) == (["baseline", "hybrid"], ["baseline", "pretrain"])


def load_config_of(folder):
    (folder / "a.yml").write_text(yaml.safe_dump(DEFAULT))
    return load_config(folder / "a.yml")


def test_the_written_configuration_says_it_all(tmp_path):
    config = parse_config(DEFAULT)
    written = yaml.safe_load(yaml.safe_dump(yaml.safe_load(config.model_dump_json())))
    assert written["recipe"] == "default" and written["optim"]["max_steps"] == RECIPES["default"]["optim"]["max_steps"]
    assert parse_config(written).model_dump() == config.model_dump()
    (tmp_path / "a.yml").write_text("dataset: {src: a.xyz}\nmodel: {name: CGCNN}\n")
    assert load_config(tmp_path / "a.yml", ["recipe=default"]).optim.ema_decay == 0.99
    assert load_config(tmp_path / "a.yml", ["recipe=default", "optim.ema_decay=0.9"]).optim.ema_decay == 0.9


def silicon(n, stress=True):
    """Rattled cells with made-up labels."""
    rng, made = np.random.default_rng(n), []
    for _ in range(n):
        atoms = bulk("Si", "diamond", 5.43)
        atoms.positions += rng.normal(0, 0.05, (2, 3))
        made.append(set_labels(atoms, rng.normal(), rng.normal(size=(2, 3)), 0.01 * np.eye(3) if stress else None))
    return made


@pytest.mark.parametrize(
    ("n", "given", "steps", "before"),
    [(27, {}, 3000, 1000), (120, {}, 3000, 1000), (121, {}, 3100, 1033), (205, {}, 5200, 1733),
     (5000, {}, 20_000, 6666), (5000, {"batch_size": 64}, 7900, 2633), (205, {"batch_atoms": 4}, 10_300, 3433),
     (205, {"max_steps": 500}, 500, 1000), (205, {"max_epochs": 7}, None, 1000)],
)  # fmt: skip
def test_larger_sets_get_more_steps(n, given, steps, before):
    config = parse_config({**DEFAULT, "optim": given})
    found, said = suited(config, silicon(1) * n, silicon(4))
    assert (found.optim.max_steps, found.physpre.pretrain.max_steps) == (steps, before)
    assert bool(said) == (config.optim.max_steps != steps), "a sentence where it is not the recipe's own number"
    again, nothing = suited(found, silicon(1), silicon(1))
    assert again.model_dump() == found.model_dump() and not nothing
    own = parse_config({**DEFAULT, "optim": given, "physpre": {"pretrain": {"max_steps": 77}}})
    assert suited(own, silicon(1) * n, silicon(4))[0].physpre.pretrain.max_steps == 77


def test_small_sets_and_what_is_given_keep_their_keys():
    """What a run depends on is what it was before the data had a say."""
    for raw in (DEFAULT, {**LEAST, "recipe": "paper"}, LEAST):
        config = parse_config(raw)
        found, said = suited(config, silicon(100), silicon(10))
        assert found.model_dump() == config.model_dump() and not said


@pytest.mark.parametrize("sets", [(False, False), (True, False), (False, True)])
def test_without_stresses_none_is_trained_on(sets):
    train, val = (silicon(n, stress) for n, stress in zip((30, 5), sets))
    found, (said,) = suited(parse_config(DEFAULT), train, val)
    assert found.optim.weight_stress == 0 and found.pretraining_settings().weight_stress == 0
    assert said.startswith(f"no {'training' if not sets[0] else 'validation'} structure has a stress")
    for own in ({"optim": {"weight_stress": 3.0}}, {"recipe": "paper", "model": {"name": "CGCNN"}}):
        assert suited(parse_config({**DEFAULT, **own}), train, val)[0].optim.weight_stress > 0


def test_a_stress_under_another_name_is_asked_for():
    train = silicon(5, stress=False)
    for atoms in train:
        atoms.info["dft_virial"] = np.eye(3)
    found, said = suited(parse_config(DEFAULT), train, train)
    assert found.optim.weight_stress == 50 and not said


def test_data_without_stresses_are_read_and_written_so(tmp_path, caplog):
    """From the file to the log and the written configuration; a weight that the user gives stays an error."""
    write_structures(tmp_path / "si.extxyz", silicon(30, stress=False))
    file = tmp_path / "a.yml"
    file.write_text("recipe: default\ndataset: {src: si.extxyz}\nphyspre: {eam: {epochs: 2}}\n")
    with caplog.at_level("INFO", logger="mdl_physpre"):
        fit_only(file, out=tmp_path / "run")
    assert "recipe: default: no training structure has a stress" in caplog.text
    written = load_config(tmp_path / "run" / "config.yml")
    assert written.optim.weight_stress == 0 and written.optim.max_steps == 3000
    with pytest.raises(DataError, match="none of 25 structures has stress.*optim.weight_stress"):
        fit_only(file, ["optim.weight_stress=1"], out=tmp_path / "other")


@pytest.mark.parametrize(
    ("more", "words"),
    [({"recipe": "papers"}, "recipe: found 'papers'; expected 'paper' or 'default'"),
     ({"optim": {"lr": -1}}, "optim.lr: found -1; expected more than 0"),
     ({"optim": 3}, "optim: found 3; expected a section of keys")],
)  # fmt: skip
def test_mistakes_name_the_key_as_it_was_given(more, words):
    with pytest.raises(ConfigError, match=words):
        parse_config({**DEFAULT, **more})


def test_the_papers_configurations_say_so():
    for path in (*(ROOT / "configs" / "paper").glob("*.yml"), *(ROOT / "configs").glob("phosphorus_*.yml")):
        assert yaml.safe_load(path.read_text())["recipe"] == "paper", path.name


def test_a_host_refuses_what_it_has_no_place_for():
    with pytest.raises(ConfigError, match="recipe: 'default' sets what MatDeepLearn's trainer has no place for"):
        engine_config({**LEAST, "recipe": "default"})

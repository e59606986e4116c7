"""Recipes: what they fill in, what they leave alone, and that the configuration of a run says it all."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mdl_physpre.errors import ConfigError
from mdl_physpre.hosts.matdeeplearn.settings import engine_config
from mdl_physpre.workflow.config.file import load_config, parse_config
from mdl_physpre.workflow.config.recipes import NETWORKS, RECIPES

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


def test_the_written_configuration_says_it_all(tmp_path):
    config = parse_config(DEFAULT)
    written = yaml.safe_load(yaml.safe_dump(yaml.safe_load(config.model_dump_json())))
    assert written["recipe"] == "default" and written["optim"]["max_steps"] == RECIPES["default"]["optim"]["max_steps"]
    assert parse_config(written) == config
    (tmp_path / "a.yml").write_text("dataset: {src: a.xyz}\nmodel: {name: CGCNN}\n")
    assert load_config(tmp_path / "a.yml", ["recipe=default"]).optim.ema_decay == 0.99
    assert load_config(tmp_path / "a.yml", ["recipe=default", "optim.ema_decay=0.9"]).optim.ema_decay == 0.9


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

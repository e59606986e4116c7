"""Recipes: values of keys that a configuration leaves open. Every value stands here, and nowhere else.

Some of them the data decide, once they are read (``BY_DATA``): the recipe fills in what suits a small set with all
labels, and :mod:`mdl_physpre.workflow.by_data` changes that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Recipe = Literal["paper", "default"]

RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},  # the defaults of the settings themselves
    "default": {
        "model": {"name": "torchmd_etEarly"},
        "dataset": {"energies_of_elements": "isolated_atoms", "split": {"test": 0.1}},
        "optim": {
            "max_steps": 3000,
            "lr": 2e-3,
            "schedule": "cosine",
            "warmup_steps": 100,
            "batch_size": 4,
            "ema_decay": 0.99,
            "clip_grad_norm": 10.0,
            "loss": "huber",
            "energy_per_atom": True,
            "weight_energy": 10.0,
            "weight_force": 50.0,
            "weight_stress": 50.0,
            "refit_reference": True,
        },
        "physpre": {
            "perturbation": {
                "n_aug": 10, "n_pairs": 2, "pull": [1.0, 0.0], "n_sites": 5, "perturb": [0.5, 0.0], "max_force": 200.0,
            },
            "teacher": {"fit": "angular_eam"},
            "hot_frames": {"n": 9},
            "arms": ["baseline", "hybrid"],
            "pretrain": {"max_steps": 1000, "lr": 1e-3, "batch_size": 8, "force_tail": 10.0},
        },
    },
}  # fmt: skip
NETWORKS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {
        "torchmd_etEarly": {"cutoff": 5.0, "hidden_channels": 64, "num_layers": 3, "num_heads": 4, "num_rbf": 24}
    },
}
"""Hyperparameters of networks by their names; those of another network are its own defaults."""
BY_DATA = {
    "optim.max_steps": "with more than 30 steps in an epoch, as many as 100 epochs have, at most 20000",
    "optim.weight_stress": "0 where no training structure, or no validation structure, has a stress",
    "physpre.teacher.fit": "if neither physpre.teacher nor physpre.eam is given, up to 8 elements; hot frames likewise",
    "physpre.arms": "under the same conditions, and without model.start_from; baseline and pretrain otherwise",
    "physpre.pretrain.max_steps": "a third of optim.max_steps, where that is not given either",
}
"""Keys whose value under ``recipe: default`` depends on the data, and how."""
EPOCHS, MOST_STEPS, MOST_ELEMENTS = 100, 20_000, 8
VOID = {
    "max_steps": ("max_epochs",), "batch_atoms": ("batch_size",),
    "teacher": ("teacher", "eam"), "hot_frames": ("teacher", "eam"), "arms": ("teacher", "eam"),
}  # fmt: skip
"""Keys that are not filled in where one of these is given in the same section."""


def with_recipe(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a configuration with what its ``recipe`` says of keys that are not given.

    A name that is none is left to the check of the configuration.
    """
    found = dict(raw)
    name = str(raw.get("recipe") or "paper")
    values = RECIPES.get(name, {})
    if values and _section(raw, ["model"]).get("start_from"):  # nothing is added to a network that gives whole energies
        values = values | {"physpre": {key: value for key, value in values["physpre"].items() if key != "arms"}}
    _fill(found, values)
    model = found.get("model")
    if isinstance(model, dict) and isinstance(model.get("name"), str) and not model.get("start_from"):
        _fill(model, NETWORKS.get(name, {}).get(model["name"], {}))
    return found


def left_to_data(raw: Mapping[str, Any]) -> frozenset[str]:
    """The keys of ``BY_DATA`` that the recipe of a configuration fills in, because they are not given."""
    filled, found = with_recipe(raw), set()
    for key in BY_DATA if raw.get("recipe") == "default" else ():
        *path, last = key.split(".")
        given, own = (_section(sections, path) for sections in (raw, filled))
        if last not in given and last in own:
            found.add(key)
    return frozenset(found)


def steps_of_recipe(per_epoch: int) -> int:
    """Steps of finetuning under ``recipe: default``, of a training set that has ``per_epoch`` steps in an epoch."""
    least: int = RECIPES["default"]["optim"]["max_steps"]
    return min(max(least, EPOCHS * per_epoch), MOST_STEPS)


def _section(sections: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    here: Any = sections
    for part in path:
        here = here.get(part) or {}
    return here if isinstance(here, Mapping) else {}


def _fill(section: dict[str, Any], values: Mapping[str, Any]) -> None:
    given = set(section)
    for key, value in values.items():
        if not given.isdisjoint(VOID.get(key, ())):
            continue
        if isinstance(value, Mapping) and isinstance(section.get(key) or {}, Mapping):
            section[key] = dict(section.get(key) or {})
            _fill(section[key], value)
        elif key not in section:
            section[key] = value

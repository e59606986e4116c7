"""One configuration for both: what MatDeepLearn needs and its YAML leaves out, and what this package reads of it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdl_physpre.errors import ConfigError
from mdl_physpre.hosts.matdeeplearn.names import host
from mdl_physpre.hosts.matdeeplearn.plugin import wants_complete_edges
from mdl_physpre.hosts.matdeeplearn.spellings import SAME
from mdl_physpre.potentials.backbones.cgcnn.network import CGCNN
from mdl_physpre.potentials.backbones.torchmd_et.network import TorchMDET
from mdl_physpre.potentials.checkpoints.matdeeplearn_models import LATE
from mdl_physpre.training.settings import OptimSettings, TrainingSettings
from mdl_physpre.workflow.config.file import numbers, parse_config, with_absolute_paths
from mdl_physpre.workflow.config.schema import Config

COUNTERPARTS: dict[str, type] = {"CGCNN": CGCNN, "torchmd_etEarly": TorchMDET}
"""Models of MatDeepLearn that this package has too, with the same parameters."""
EDGES = "mdl_physpre.hosts.matdeeplearn.CompleteEdges"

TASK = {"run_mode": "train", "parallel": False, "seed": 12345678, "save_dir": None, "continue_job": False,
        "checkpoint_path": None, "write_output": ["val", "test"], "output_frequency": 0, "model_save_frequency": 1,
        "use_amp": False, "labels": True}  # fmt: skip
MODEL = {"model_ensemble": 1, "otf_edge_index": True, "otf_edge_attr": True, "otf_node_attr": False, "gradient": True,
         "prediction_level": "graph"}  # fmt: skip
OPTIM = {"verbosity": 1, "batch_tqdm": False, "max_checkpoint_epochs": 0}
DATASET = {"processed": True, "target_path": None, "prediction_level": "graph", "data_format": "json",
           "verbose": True, "num_workers": 0, "dataset_device": "cpu"}  # fmt: skip
GRAPH = {"edge_calc_method": "ocp", "preprocess_edges": False, "preprocess_edge_features": False,
         "preprocess_node_features": True, "node_dim": 100, "edge_dim": 50, "self_loop": True,
         "node_representation": "onehot", "all_neighbors": True, "n_neighbors": 10_000}  # fmt: skip
HOST_PARTS = ("sam", "pretrain")  # parts of arms that can be trained in MatDeepLearn
UNBOUNDED = 1e30  # a norm of gradients that is never reached; MatDeepLearn cannot do without a number


def engine_config(config: Mapping[str, Any]) -> Config:
    """What this package reads of MatDeepLearn's configuration: data, split, teacher, perturbation, stages.

    A loss, optimiser or scheduler that only MatDeepLearn knows is left to it.

    Raises
    ------
    ConfigError : unknown or wrong keys, and what MatDeepLearn cannot do.
    """
    raw = {k: v for k, v in config.items() if k in Config.model_fields}
    optim = dict(raw.get("optim") or {})
    if (optim.get("loss") or {}).get("loss_type") not in (None, "ForceLoss", "ForceStressLoss"):
        del optim["loss"]
    if (optim.get("optimizer") or {}).get("optimizer_type", "AdamW") != "AdamW":
        del optim["optimizer"]
    if (optim.get("scheduler") or {}).get("scheduler_type", "ReduceLROnPlateau") != "ReduceLROnPlateau":
        del optim["scheduler"]
    raw["optim"] = optim
    raw["dataset"] = _with_split(dict(raw.get("dataset") or {}))
    task = dict(raw.get("task") or {})
    raw["task"] = {k: v for k, v in task.items() if v is not None}
    parsed = parse_config(raw, "MatDeepLearn's configuration", own_network=False)
    found = with_absolute_paths(parsed, folder_of_configuration())
    if found.recipe != "paper":
        raise ConfigError(
            f"recipe: {found.recipe!r} sets what MatDeepLearn's trainer has no place for; run it with physpre run, or "
            "leave recipe out"
        )
    if found.model.start_from is not None:
        raise ConfigError("model.start_from: is for physpre run; MatDeepLearn builds its network itself, leave it out")
    for arm in found.arms:
        if any(part.name not in HOST_PARTS for part in arm.parts):
            raise ConfigError(
                f"physpre.arms: {arm.name!r} cannot be trained in MatDeepLearn, whose models have no place for a "
                "second potential and whose batches none for a second set; run it with physpre run, or leave it out"
            )
    return found


def folder_of_configuration() -> Path:
    """Where the file is that MatDeepLearn's main.py was given, which it does not tell; else the working directory."""
    words = [part for word in sys.argv for part in word.split("=", 1)]
    for option, value in zip(words, words[1:]):
        if option.startswith("--config") and Path(value).is_file():
            return Path(value).resolve().parent
    return Path.cwd()


def _with_split(dataset: dict[str, Any]) -> dict[str, Any]:
    """MatDeepLearn's ratios of the whole set as the split of this package, where there is none."""
    ratios = [dataset.get(f"{name}_ratio") for name in ("train", "val", "test")]
    if "split" in dataset or isinstance(dataset.get("src"), Mapping) or any(r is None for r in ratios):
        return dataset
    train, val, test = (float(r) for r in ratios if r is not None)
    if not 0 < train + val <= 1 - test + 1e-9:
        raise ConfigError(
            f"dataset.train_ratio, val_ratio and test_ratio are {train:g}, {val:g} and {test:g}: give positive ratios "
            "whose sum is at most 1, or dataset.split"
        )
    dataset["split"] = {"test": test, "val": val / (train + val)}
    dataset["fraction"] = min((train + val) / (1 - test), 1.0)
    return dataset


def complete(config: dict[str, Any], engine: Config, num_offsets: int) -> list[str]:
    """Put into MatDeepLearn's configuration, in place, what it needs and lacks, with the values of this package.

    Parameters
    ----------
    engine : the same configuration as :func:`engine_config` read it.
    num_offsets : images along an axis that the data need, where the YAML does not say.

    Returns
    -------
    What was decided that matters, a sentence each.
    """
    said: list[str] = []
    config.update(numbers(config))
    for section in ("task", "model", "optim", "dataset"):
        config[section] = dict(config.get(section) or {})
    task, model, optim, dataset = (config[s] for s in ("task", "model", "optim", "dataset"))
    _fill(task, TASK)
    _fill(model, MODEL)
    said += _complete_model(model)
    own = {key: getattr(engine.optim, key) for key in ("max_epochs", "lr", "batch_size", "clip_grad_norm")}
    _fill(optim, {**own, **OPTIM, **_host_training(engine.optim)})
    optim["clip_grad_norm"] = optim["clip_grad_norm"] or UNBOUNDED
    optim["verbosity"] = optim["verbosity"] or 10**9
    for part, inside in (("optimizer", "optimizer_args"), ("scheduler", "scheduler_args"), ("loss", "loss_args")):
        optim[part] = {**optim[part], inside: optim[part].get(inside) or {}}
    _fill(dataset, {"name": task.get("identifier") or "data", **DATASET})
    dataset["preprocess_params"] = dict(dataset.get("preprocess_params") or {})
    graph = {**GRAPH, "num_offsets": num_offsets, "cutoff_radius": engine.model.cutoff}
    _fill(dataset["preprocess_params"], graph)
    transforms = [dict(t) for t in dataset.get("transforms") or []]
    perturbing = [t["name"] for t in transforms if str(t["name"]).rpartition(".")[2] in ("Perturb", "physpre_perturb")]
    if perturbing:
        said.append(
            f"dataset.transforms: {perturbing[0]} is left out: labels of finetuning, validation and test are those of "
            "the data here, and structures are perturbed for pretraining alone, as physpre.perturbation says"
        )
        transforms = [t for t in transforms if t["name"] not in perturbing]
    if not any(t["name"] == "GetY" for t in transforms):
        transforms.insert(0, {"name": "GetY", "args": {"index": -1}})
    given = any(str(t["name"]).rpartition(".")[2] in ("CompleteEdges", "physpre_edges") for t in transforms)
    if complete_edges(model) and not given:
        cutoff = dataset["preprocess_params"]["cutoff_radius"]
        transforms.append({"name": EDGES, "otf_transform": True, "args": {"cutoff": cutoff}})
    dataset["transforms"] = [{**t, "args": t.get("args") or {}} for t in transforms]
    return said


def complete_edges(model: Mapping[str, Any]) -> bool:
    """Whether a model of MatDeepLearn takes complete edges in place of MatDeepLearn's.

    Raises ConfigError for ``model.edges`` of MatDeepLearn's own models other than ``host`` or ``physpre``.
    """
    made = host().registry.get_model_class(model["name"])
    if hasattr(made, "complete_edges"):
        return model.get("edges") != "host"
    return wants_complete_edges(model.get("edges"))


def _fill(section: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if section.get(key) is None:
            section[key] = value


def _complete_model(model: dict[str, Any]) -> list[str]:
    """Keys of the network that the YAML leaves open, as this package has them."""
    if "name" not in model:
        raise ConfigError("model.name is missing")
    counterpart = COUNTERPARTS.get(str(model["name"]))
    try:
        made = host().registry.get_model_class(model["name"])
    except RuntimeError as error:
        raise ConfigError(f"model.name: {error}") from error
    known = inspect.signature(made).parameters
    if hasattr(made, "network"):  # of this package, under a name of MatDeepLearn's
        ours = inspect.signature(made.network).parameters
        taken = {k: ours[k].default for k in made.keys if k not in ("edge_dim", *model) and k in ours}
    elif counterpart is not None:
        ours = inspect.signature(counterpart).parameters
        sizes = ("node_dim", "edge_dim", "output_dim")  # MatDeepLearn passes them by itself
        open_keys = {k: p.default for k, p in ours.items() if k in known and k not in sizes}
        taken = {k: v for k, v in open_keys.items() if k not in model}
    elif "pool" in known and "pool" not in model:
        taken = {"pool": "global_add_pool"}
    else:
        taken = {}
    model.update(taken)
    said = []
    if model.pop("energy_reference", None) is not None:
        said.append("model.energy_reference is left out: physpre.energy_reference takes these energies off the labels")
    if "pool" in taken:
        said.append("model.pool was not given: atoms are summed (global_add_pool): energy grows with the structure")
    if counterpart is TorchMDET and "pool_order" not in known and model.setdefault("pool_order", "late") == "late":
        model["name"] = LATE
        said.append(
            "its torchmd_etEarly of this version sums atomic features before the output network, whatever pool_order "
            f"says, and its energy does not grow with the structure; {LATE}, which sums atomic energies, takes its "
            "place. pool_order: early keeps MatDeepLearn's"
        )
    return said


def _host_training(optim: OptimSettings) -> dict[str, Any]:
    """Loss, optimiser and scheduler in MatDeepLearn's words."""
    found: dict[str, Any] = {
        "loss": {"loss_type": "ForceStressLoss" if optim.weight_stress else "ForceLoss", "loss_args": {}},
        "optimizer": {"optimizer_type": "AdamW", "optimizer_args": {}},
        "scheduler": {"scheduler_type": "ReduceLROnPlateau", "scheduler_args": {"mode": "min"}},
    }
    for host_key, ours in SAME.items():
        _, section, *inside = host_key.split(".")
        if section in found and inside and (ours != "optim.weight_stress" or optim.weight_stress):
            found[section][inside[0]][inside[1]] = getattr(optim, ours.removeprefix("optim."))
    return found


def stage_optim(optim: Mapping[str, Any], settings: TrainingSettings, pretraining: bool) -> dict[str, Any]:
    """MatDeepLearn's section ``optim`` for a stage.

    The stage's loss is MatDeepLearn's own, unless the settings say what only this package's loss can: then that.
    """
    found = dict(optim)
    own_loss = optim["loss"]["loss_type"] not in ("ForceLoss", "ForceStressLoss")
    if pretraining:
        found.update(max_epochs=settings.max_epochs, lr=settings.lr, batch_size=settings.batch_size)
    weights = {k: getattr(settings, k) for k in ("weight_energy", "weight_force", "weight_stress")}
    special = settings.loss != "mae" or settings.force_tail or settings.stress_tail or settings.energy_per_atom
    if not own_loss and (special or pretraining):
        kind = "ForceStressLoss" if weights["weight_stress"] else "ForceLoss"
        arguments = weights if weights["weight_stress"] else {k: weights[k] for k in list(weights)[:2]}
        found["loss"] = {"loss_type": kind, "loss_args": arguments}
        if special:
            keys = ("loss", "huber_energy", "huber_force", "huber_stress", "force_tail", "stress_tail",
                    "energy_per_atom")  # fmt: skip
            arguments = {**weights, **{k: getattr(settings, k) for k in keys}}
            found["loss"] = {"loss_type": "PhyspreLoss", "loss_args": arguments}
    return found

"""MatDeepLearn's spelling of a configuration in the words of this package: one table, for every command.

Registered in the entry-point group ``mdl_physpre.spellings``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mdl_physpre.errors import ConfigError, nearest

SAME = {
    "optim.loss.loss_args.weight_energy": "optim.weight_energy",
    "optim.loss.loss_args.weight_force": "optim.weight_force",
    "optim.loss.loss_args.weight_stress": "optim.weight_stress",
    "optim.loss_function": "optim.loss",
    "optim.optimizer.optimizer_args.weight_decay": "optim.weight_decay",
    "optim.scheduler.scheduler_args.factor": "optim.scheduler_factor",
    "optim.scheduler.scheduler_args.patience": "optim.scheduler_patience",
    "optim.scheduler.scheduler_args.threshold": "optim.scheduler_threshold",
    "optim.scheduler.scheduler_args.min_lr": "optim.min_lr",
    "physpre.pretrain.loss_function": "physpre.pretrain.loss",
    "dataset.preprocess_params.cutoff_radius": "model.cutoff",
}
"""MatDeepLearn's key, or that of an earlier version: ours."""

ONLY = {
    "optim.loss.loss_type": ("ForceStressLoss", "ForceLoss"),
    "optim.optimizer.optimizer_type": ("AdamW",),
    "optim.scheduler.scheduler_type": ("ReduceLROnPlateau",),
}
"""What MatDeepLearn gives a choice of, and what is had here; ForceLoss is a weight_stress of 0."""

HOST_ONLY = {
    "": "trainer",
    "task": "run_mode parallel save_dir continue_job load_training_state checkpoint_path write_output use_amp log_id "
    "max_epochs_per_job output_frequency model_save_frequency labels",
    "model": "model_ensemble edge_steps self_loop prediction_level gradient load_model otf_edge_index otf_edge_attr "
    "otf_node_attr edges",
    "optim": "max_checkpoint_epochs verbosity batch_tqdm",
    "optim.optimizer.optimizer_args": "betas eps",
    "optim.scheduler.scheduler_args": "mode",
    "dataset": "name target_path pt_path prediction_level transforms data_format additional_attributes verbose "
    "train_ratio val_ratio test_ratio processed num_workers otf_edge_index otf_edge_attr otf_node_attr dataset_device "
    "use_precomputed_edges predict_ratio image_selfloop self_loop device",
    "dataset.preprocess_params": "edge_calc_method n_neighbors num_offsets edge_steps self_loop all_neighbors "
    "use_degree node_representation preprocess_edges preprocess_edge_features preprocess_node_features "
    "preprocess_nodes node_dim edge_dim prediction_level output_dim",
    "physpre": "energy_reference training_energies",
}
"""By section, keys that only MatDeepLearn acts on; one file serves both."""

OURS = "physpre."
"""Before the names of networks of this package in MatDeepLearn."""

NESTED = ("optim.loss", "optim.optimizer", "optim.scheduler", "dataset.preprocess_params")
"""Sections that MatDeepLearn alone has."""


def translate(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A configuration, as nested mappings, with each of MatDeepLearn's keys under our name.

    Keys that are no one's are left where they are, for the reader to name.

    Raises
    ------
    ConfigError : a key of MatDeepLearn's sections that neither has; a value that is not had here; a key that is given
        in both spellings with different values.
    """
    found: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in raw.items()}
    for section, names in HOST_ONLY.items():
        inside = _at(found, section)
        for name in names.split() if section not in NESTED and isinstance(inside, dict) else ():
            inside.pop(name, None)
    if _at(found, "physpre.report") is True:  # there on request, here always
        found["physpre"].pop("report")
    if str(named := _at(found, "model.name")).startswith(OURS):
        found["model"]["name"] = str(named).removeprefix(OURS)
    said: dict[str, Any] = {}
    for section in NESTED:
        parent, _, name = section.rpartition(".")
        if isinstance(_at(found, section), Mapping):
            said.update(_leaves(found[parent].pop(name), section, source))
    for key in SAME:
        section, _, name = key.rpartition(".")
        inside = _at(found, section)
        if section not in NESTED and isinstance(inside, dict) and name in inside:
            if section.count("."):
                inside = found[section.split(".")[0]][section.split(".")[1]] = dict(inside)
            said[key] = inside.pop(name)
    if said.get("optim.loss.loss_type") == "ForceLoss":
        said["optim.loss.loss_args.weight_stress"] = 0.0
    for key, value in said.items():
        if key in ONLY and value not in ONLY[key]:
            raise ConfigError(f"{source}: {key}: found {value!r}; {nearest(str(value), ONLY[key])}")
        if key in SAME:
            section, _, name = SAME[key].rpartition(".")
            inside = found
            for part in section.split("."):
                inside[part] = inside.get(part) or {}
                inside = inside[part]
            if inside.setdefault(name, value) != value:
                raise ConfigError(
                    f"{source}: {key} is {value!r} and {SAME[key]} is {inside[name]!r}, two names of one thing; "
                    "give one of them"
                )
    return found


def _at(raw: Mapping[str, Any], section: str) -> Any:
    found: Any = raw
    for part in section.split(".") if section else ():
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _leaves(inside: Mapping[str, Any], section: str, source: str) -> Iterator[tuple[str, Any]]:
    """Keys and values of one of MatDeepLearn's own sections, without those that it alone acts on."""
    known = {key for key in (*SAME, *ONLY) if key.startswith(f"{section}.")}
    below = {key.removeprefix(f"{section}.").split(".")[0] for key in known}
    for name, value in inside.items():
        key = f"{section}.{name}"
        if key in known:
            yield key, value
        elif name in below and (value is None or isinstance(value, Mapping)):
            yield from _leaves(value or {}, key, source)
        elif name not in HOST_ONLY.get(section, "").split():
            raise ConfigError(f"{source}: {key}: unknown key; {nearest(name, below)}")

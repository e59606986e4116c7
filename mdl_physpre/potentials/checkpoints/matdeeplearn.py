"""Checkpoints of MatDeepLearn: ``checkpoint.pt`` and ``best_checkpoint.pt`` with the YAML of the run, read and written.

Models: ``CGCNN``, ``torchmd_etEarly`` (pooled after the output network) and the reference's embedded-atom potential,
``eam_interaction``. A potential that is read gives the host's energies and forces wherever the host has all edges: it
looks at no more than ``num_offsets`` images along an axis and ``n_neighbors`` neighbours of an atom; here nothing is
left out. Energies of the elements that the YAML has under ``physpre.energy_reference`` (eV by symbol) are added;
``physpre.training_energies`` are those that it was trained on.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from ase.data import atomic_numbers, chemical_symbols

from mdl_physpre.errors import CheckpointError, ConfigError
from mdl_physpre.potentials.backbones.cgcnn.network import CGCNN, NODE_DIM
from mdl_physpre.potentials.backbones.torchmd_et.network import TorchMDET
from mdl_physpre.potentials.base import Backbone, Potential
from mdl_physpre.potentials.checkpoints.archive import read_archive
from mdl_physpre.potentials.checkpoints.matdeeplearn_models import (
    EARLY_POOLING,
    MODELS,
    eam_keys,
    eam_state,
    lost_of_network,
    network_keys,
    network_state,
)
from mdl_physpre.potentials.eam.potential import EAMInteraction
from mdl_physpre.potentials.training_energies import TrainingEnergies
from mdl_physpre.utils.devices import available_device
from mdl_physpre.utils.files import replacing

logger = logging.getLogger(__name__)

CALCULATOR = "mdl_physpre.hosts.matdeeplearn.MatDeepLearnCalculator"
"""Import path of the calculator that needs the host and knows all of its models."""
MARKS = {"best_metric", "identifier"}
"""What the host's trainer writes beside the parameters, and no other format has."""


def is_matdeeplearn_checkpoint(content: Any) -> bool:
    """Whether this is the content of a checkpoint that MatDeepLearn's trainer wrote."""
    return isinstance(content, dict) and content.keys() >= MARKS and isinstance(content.get("state_dict"), Mapping)


def read_matdeeplearn_checkpoint(
    path: str | Path, config: str | Path | Mapping[str, Any] | None = None, map_location: str | torch.device = "cpu"
) -> Potential:
    """The potential in a checkpoint of MatDeepLearn, in evaluation mode.

    Parameters
    ----------
    path : the checkpoint; nothing in it is executed.
    config : the YAML of the run, or what it holds. Where None: a file of the checkpoint's name with ``.yml``, or
        ``config.yml``, beside it or up to two folders above.
    map_location : device.

    Raises
    ------
    CheckpointError : a file that is missing, damaged or of another kind; no YAML; a model that is not supported, with
        the reason; a YAML that does not fit the checkpoint, with the keys that differ.
    ConfigError : a device that is not there.
    """
    path, device = Path(path), available_device(map_location)
    content = load_checkpoint(path, device)
    if not content.keys() >= MARKS:
        raise CheckpointError(
            f"{path}: no checkpoint of MatDeepLearn: it lacks {', '.join(sorted(MARKS - content.keys()))}; open it "
            "without a YAML (no config, no --config), and its format is recognised by its content"
        )
    where, keys = read_config(path, config)
    state = {name.removeprefix("module."): value for name, value in content["state_dict"].items()}
    try:
        model, graph = keys["model"], keys["dataset"]["preprocess_params"]
        name = str(model["name"])
        cutoff = float(graph["cutoff_radius"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{where}: {error} is missing or no number; MatDeepLearn's YAML has model.name and "
            "dataset.preprocess_params.cutoff_radius"
        ) from error
    known = MODELS.get(name.rpartition(".")[2].lower())
    if known is None:
        raise CheckpointError(
            f"{where}: model.name is {name!r}; CGCNN, torchmd_etEarly and eam_interaction can be read. Where "
            f"MatDeepLearn is installed, all of its models can: calculator:{CALCULATOR}?checkpoint={path}"
        )
    try:
        sizes = known.sizes(state)
    except KeyError as error:
        raise CheckpointError(f"{where} says that {path} holds a {name}, but that has no parameter {error}") from None
    given = {**known.defaults, **graph, **model, "cutoff": cutoff}
    different = {key: value for key, value in sizes.items() if given.get(key, value) != value}
    if different:
        told = ", ".join(f"{key} {given[key]!r} but the checkpoint {value!r}" for key, value in different.items())
        raise CheckpointError(f"{where} does not fit {path}: it says {told}; take the YAML of the run that wrote it")
    try:
        potential = known.build(given, state)
    except (ConfigError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:500]
        raise CheckpointError(f"{path} with {where}: {reason}") from error
    if name.lower() == "torchmd_etearly":
        logger.warning("%s: %s; if such a one trained it, open calculator:%s?checkpoint=%s", path, EARLY_POOLING,
                       CALCULATOR, path)  # fmt: skip
    _take_energies(potential, keys.get("physpre") or {}, where)
    return potential.to(device).eval()


def _take_energies(potential: Backbone, keys: Mapping[str, Any], where: str) -> None:
    """The energies of the elements, and those that it was trained on, from the section ``physpre``."""
    if keys.get("energy_reference"):
        potential.shift_reference(_reference(where, keys["energy_reference"]))
    if keys.get("training_energies"):
        potential.training_energies = TrainingEnergies.read(keys["training_energies"], where)


def _energies_of(potential: Backbone) -> dict[str, Any]:
    """The section ``physpre`` with what the host's format has no place for; empty where there is nothing."""
    found: dict[str, Any] = {}
    reference = {} if isinstance(potential, EAMInteraction) else potential.reference.as_dict()
    if reference:
        found["energy_reference"] = {chemical_symbols[z]: e for z, e in reference.items()}
    if potential.training_energies is not None:
        found["training_energies"] = potential.training_energies.plain()
    return {"physpre": found} if found else {}


def _reference(where: str, energies: Mapping[str, float]) -> torch.Tensor:
    table = torch.zeros(len(chemical_symbols), dtype=torch.float64)
    for symbol, energy in energies.items():
        if symbol not in atomic_numbers:
            raise CheckpointError(f"{where}: physpre.energy_reference: {symbol!r} is no element")
        table[atomic_numbers[symbol]] = float(energy)
    return table


def write_matdeeplearn_checkpoint(
    path: str | Path, potential: Potential, config: str | Path | None = None
) -> list[str]:
    """Write a potential as a checkpoint of MatDeepLearn, and a YAML with which the host's calculator loads it.

    Parameters
    ----------
    path : the checkpoint, usually ``best_checkpoint.pt``.
    potential : a CGCNN, TorchMDET or EAMInteraction.
    config : the YAML; ``path`` with the ending ``.yml`` where None. One that is there is only replaced where this
        function wrote it for a checkpoint of the same name, and nobody has changed it since.

    Returns
    -------
    What the format cannot carry, a sentence each; they are also logged as warnings. With an empty list the host gives
    the same energies and forces.

    Raises
    ------
    CheckpointError : another potential, or files that cannot be written.
    ConfigError : a checkpoint that ends in ``.yml`` or ``.yaml``; another YAML in the place of this one.
    """
    path = Path(path)
    config = path.with_suffix(".yml") if config is None else Path(config)
    if path.suffix.lower() in (".yml", ".yaml"):
        raise ConfigError(f"{path}: is the name of a YAML file, which is written beside the checkpoint; end it in .pt")
    if config.exists() and not _is_ours(config, path):
        raise ConfigError(
            f"{config}: is there already and is not the YAML that was written with {path.name}, as it was written; "
            f"{path} needs a YAML in its place. Move that away, or give the checkpoint another name"
        )
    lost: list[str] = []
    if isinstance(potential, EAMInteraction):
        state, model, edge_dim = eam_state(potential), eam_keys(potential), 50
        if potential.repulsion is not None:
            lost = ["the short-range repulsion is left out: energies and forces differ where atoms are close"]
    elif isinstance(potential, (CGCNN, TorchMDET)):
        state, model, lost = network_state(potential), network_keys(potential), lost_of_network(potential)
        edge_dim = getattr(potential, "edge_dim", 50)
    else:
        raise CheckpointError(
            f"{path}: {type(potential).__name__} has no counterpart in MatDeepLearn; CGCNN, TorchMDET and "
            "EAMInteraction have"
        )
    content = {"epoch": 0, "step": 0, "state_dict": state, "optimizer": None, "scheduler": None, "scaler": None,
               "best_metric": 1e10, "identifier": "mdl_physpre", "seed": None}  # fmt: skip
    switches = {"prediction_level": "graph", "model_ensemble": 1, "gradient": True, "otf_edge_index": True,
                "otf_edge_attr": True, "otf_node_attr": True}  # fmt: skip
    graph = {"edge_calc_method": "ocp", "cutoff_radius": potential.cutoff, "n_neighbors": 250, "num_offsets": 2,
             "node_dim": NODE_DIM, "edge_dim": edge_dim, "self_loop": True, "node_representation": "onehot",
             "all_neighbors": True, "prediction_level": "graph", "output_dim": 1}  # fmt: skip
    keys = {
        "task": {"checkpoint_path": str(path)},
        "model": {**model, **switches},
        "dataset": {"preprocess_params": graph},
    }
    keys |= _energies_of(potential)
    with replacing(path, CheckpointError) as checkpoint, replacing(config, CheckpointError) as beside:
        torch.save(content, checkpoint)
        text = yaml.safe_dump(keys, sort_keys=False)
        beside.write_text(_first_line(path, text) + text)
    for sentence in lost:
        logger.warning("%s: %s", path, sentence)
    return lost


def _first_line(path: Path, text: str) -> str:
    """The comment by which a YAML is known that was written with the checkpoint ``path`` and is unchanged."""
    return f"# Written by mdl_physpre with {path.name}; sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}\n"


def _is_ours(config: Path, path: Path) -> bool:
    try:
        first, end, text = config.read_text().partition("\n")
    except (OSError, UnicodeDecodeError):  # a folder, or no text
        return False
    return first + end == _first_line(path, text)


def load_checkpoint(path: Path, map_location: str | torch.device) -> dict[str, Any]:
    """The content of a checkpoint of MatDeepLearn; nothing in it is executed. Raises CheckpointError."""
    content = read_archive(path, map_location)
    if not isinstance(content.get("state_dict"), Mapping):
        raise CheckpointError(f"{path}: no checkpoint of MatDeepLearn: it has no state_dict")
    return content


def read_config(path: Path, config: str | Path | Mapping[str, Any] | None) -> tuple[str, Mapping[str, Any]]:
    """Where the keys of a checkpoint come from, and the keys; see :func:`read_matdeeplearn_checkpoint`."""
    if isinstance(config, Mapping):
        return "the configuration", config
    if config is None:
        folders = [path.parent, *list(path.absolute().parents)[1:3]]
        names = [path.stem, "config"]
        beside = [f / f"{name}{end}" for f in folders for name in names for end in (".yml", ".yaml")]
        config = next((file for file in beside if file.is_file()), None)
        if config is None:
            raise CheckpointError(
                f"{path}: a checkpoint of MatDeepLearn, which does not say what model it holds; put the YAML of its "
                f"run beside it as {path.with_suffix('.yml').name} or config.yml"
            )
    try:
        keys = yaml.safe_load(Path(config).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise CheckpointError(f"{config}: the configuration cannot be read: {error}") from error
    if not isinstance(keys, Mapping):
        raise CheckpointError(f"{config}: holds no keys, expected MatDeepLearn's YAML with the section model")
    return str(config), keys

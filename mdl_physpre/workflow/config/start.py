"""``model.start_from``: a trained network of any readable format in place of random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers

from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.backbones.registry import backbone_class, backbone_name
from mdl_physpre.potentials.base import Backbone, element_names
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.energy_reference import EnergyReference


def starting_network(file: str, elements: Sequence[str] = ()) -> Backbone:
    """The network in a checkpoint, in single precision, to be trained further.

    Raises
    ------
    ConfigError : no such file; a potential that cannot be trained; one that lacks some of ``elements``.
    CheckpointError : a file that is no checkpoint, or is damaged.
    """
    if not Path(file).is_file():
        raise ConfigError(f"model.start_from: {file}: no such file")
    network = load_potential(file)
    if not isinstance(network, Backbone):
        raise ConfigError(f"model.start_from: {file} holds a {type(network).__name__}, which is no network to train")
    known = network.known_elements()
    missing = [symbol for symbol in elements if known is not None and atomic_numbers[symbol] not in known]
    if missing:
        raise ConfigError(
            f"model.start_from: {file} knows {element_names(network)}; the data hold {', '.join(missing)}, too: start "
            "from a network that knows these elements, or leave such structures out"
        )
    if any(p.dtype != torch.float32 for p in network.parameters()):
        energies = network.reference_energies()  # which stay in double precision
        network.float().reference = EnergyReference(dict(enumerate(energies.tolist())))
    return network


def with_start(model: Mapping[str, Any]) -> dict[str, Any]:
    """The section ``model`` with name and cutoff of the network that it starts from; hyperparameters stay in the file.

    Raises ConfigError as :func:`starting_network`, and where a key of the section contradicts the file.
    """
    file = str(model["start_from"])
    network = starting_network(file)
    own = {**network.hyperparameters(), "cutoff": float(network.cutoff), "name": backbone_name(network)}
    given = {key: value for key, value in model.items() if key != "start_from"}
    if "name" in given and backbone_class(str(given["name"])) is type(network):
        own["name"] = given["name"]
    for key, value in given.items():
        if key not in own or own[key] != value:
            there = f"it is {own[key]!r}" if key in own else "there is no such key"
            raise ConfigError(f"model.{key} is {value!r}, and in {file} (model.start_from) {there}; leave the key out")
    return {**given, "start_from": file, "name": own["name"], "cutoff": own["cutoff"]}

"""The M3GNet that the backbone starts with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols

from mdl_physpre.errors import CheckpointError, ConfigError
from mdl_physpre.potentials.backbones.m3gnet.layers import GatedMLP
from mdl_physpre.potentials.backbones.m3gnet.network import M3GNet
from mdl_physpre.potentials.checkpoints.archive import content_of
from mdl_physpre.potentials.checkpoints.mattertune import is_mattertune_checkpoint, read_mattertune_checkpoint
from mdl_physpre.potentials.open import open_potential

SIZES = (
    "elements", "num_blocks", "units", "max_l", "max_n", "cutoff", "threebody_cutoff", "max_z", "energy_scale",
)  # fmt: skip
"""Arguments of :class:`~mdl_physpre.potentials.M3GNet` that the backbone's configuration has too."""


def build_network(checkpoint: str | None, sizes: Mapping[str, Any], normalizers: Mapping[str, Any]) -> M3GNet:
    """An M3GNet, in training mode.

    Parameters
    ----------
    checkpoint : a checkpoint of this package, of MatterSim or of MatterTune; None: random weights.
    sizes : arguments of the network that are given; beside a checkpoint they have to agree with it.
    normalizers : of the configuration. The weights of a MatterTune checkpoint with the same ones are taken as they
        are; with others, so that the network alone gives total energies.

    Raises
    ------
    CheckpointError : no such file, or no M3GNet in it.
    ConfigError : sizes that are not the checkpoint's.
    """
    if checkpoint is None:
        return M3GNet(**sizes).train()
    path = Path(checkpoint).expanduser()
    if is_mattertune_checkpoint(content_of(path)):
        potential: Any = read_mattertune_checkpoint(path, same_normalizers=normalizers)
    else:
        potential = open_potential(path)
    if not isinstance(potential, M3GNet):
        raise CheckpointError(f"{path}: holds a {type(potential).__name__}; physpre-m3gnet starts from an M3GNet")
    has = potential.hyperparameters()
    for key, value in sizes.items():
        if key == "elements":  # a choice among those that the network has vectors for
            potential.elements = M3GNet(elements=value, max_z=potential.max_z, units=1, num_blocks=1).elements
        elif value != has[key]:
            raise ConfigError(f"model.{key} is {value}, but {path} holds a network with {has[key]}; leave the key out")
    return potential.train()


def fresh_output_head(network: M3GNet) -> GatedMLP:
    """A read-out with random weights, of the size of the network's own."""
    fresh = M3GNet(num_blocks=1, units=network.units, max_z=1).final
    return fresh.to(network.atom_embedding.weight)


def element_symbols(network: M3GNet) -> list[str] | None:
    """Symbols of the elements that a network knows, or None for all."""
    return None if network.elements is None else [chemical_symbols[z] for z in network.elements]

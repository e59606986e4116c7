"""graph-pes's ``model.pt``, written and read.

The file is a pickle of the whole model, which graph-pes runs when it loads it. Here nothing in it is run: parameters
are taken out of it, and the model is built anew from its arguments. These the file holds where this package wrote it.
Otherwise they stand in ``train-config.yaml``, which ``graph-pes-train`` leaves beside it.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from ase.data import chemical_symbols
from torch import Tensor

from mdl_physpre.errors import CheckpointError, ConfigError
from mdl_physpre.potentials.backbones.graph_pes import PREFIX, GraphPES
from mdl_physpre.potentials.backbones.registry import build_backbone
from mdl_physpre.potentials.base import Backbone, Potential
from mdl_physpre.potentials.checkpoints.archive import Inert, read_anything, write_archive
from mdl_physpre.potentials.checkpoints.single_precision import lost_in_single_precision
from mdl_physpre.potentials.energy_reference import N_ELEMENTS
from mdl_physpre.potentials.sum import SumPotential
from mdl_physpre.utils.devices import available_device

CONFIG = "train-config.yaml"
ARGUMENTS = "mdl_physpre_arguments"  # attribute of a network that this package wrote
OFFSETS = ("FixedOffset", "LearnableOffset")
SUM = "AdditionModel"


def write_graph_pes_model(path: str | Path, potential: Potential) -> list[str]:
    """Write a model of graph-pes, with a ``FixedOffset`` of its energies of the elements, as graph-pes's ``model.pt``.

    Returns
    -------
    What the file cannot carry, a sentence each; they are also logged as warnings. With an empty list graph-pes gives
    the same energies, forces and stress, to the rounding of single precision.

    Raises
    ------
    CheckpointError : a potential that is not a model of graph-pes, or a file that cannot be written.
    """
    path = Path(path)
    if not isinstance(potential, GraphPES):
        raise CheckpointError(
            f"{path}: {type(potential).__name__} has no counterpart in graph-pes; its own models have, such as "
            f"{PREFIX}PaiNN"
        )
    lost = []
    network, ours = potential.new_network(), potential.network.state_dict()
    one_hot = any(type(module).__name__ == "AtomicOneHot" for module in network.modules())
    if potential.elements is not None and not one_hot:
        lost.append("the list of elements that the potential knows is not kept: this model takes any element")
    lost += lost_in_single_precision(potential)
    network.load_state_dict({name: ours[name] for name in network.state_dict()})
    for parameter in network.parameters():
        if hasattr(parameter, "register_elements"):
            parameter.register_elements(potential.elements or ())
    setattr(network, ARGUMENTS, potential.hyperparameters())
    models, energies = import_module("graph_pes.models"), potential.reference_energies().tolist()
    offset = models.FixedOffset(**{chemical_symbols[z]: e for z, e in enumerate(energies) if e})
    return write_archive(path, models.AdditionModel(offset=offset, network=network).eval(), lost)


def is_graph_pes_model(path: Path) -> bool:
    """Whether a file is a pickle of one of graph-pes's own models, or of a compiled one."""
    try:
        with zipfile.ZipFile(path) as archive:
            text = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
        first = next(str(argument) for operation, argument, _ in pickletools.genops(text) if operation.name == "GLOBAL")
    except (OSError, zipfile.BadZipFile, StopIteration, ValueError):
        return False
    return first.removeprefix("__torch__.").startswith("graph_pes.")


def read_graph_pes_model(path: str | Path, map_location: str | torch.device = "cpu") -> Backbone:
    """The potential in graph-pes's ``model.pt``, in evaluation mode. Nothing in the file is run.

    Returns
    -------
    One model of graph-pes, with the energies of offsets added to its reference energies: what can be trained and saved.
    A :class:`.SumPotential` where the file adds up several, which can only predict and be a teacher.

    Raises
    ------
    CheckpointError : a file that is missing, damaged or of another kind; arguments that are neither in it nor beside
        it, or do not fit its parameters; a model that is not graph-pes's own; one that was compiled.
    ConfigError : a device that is not there; graph-pes is not installed.
    """
    path, device = Path(path), available_device(map_location)
    energies, networks = torch.zeros(N_ELEMENTS, dtype=torch.float64), {}
    try:
        parts = list(_parts(_content(path), "network"))
        offsets = [dict(part.tensors())["_offsets"] for _, part in parts if type(part).__name__ in OFFSETS]
    except KeyError as error:
        raise CheckpointError(f"{path}: the model.pt is damaged: it lacks {error}") from error
    for offset in offsets:
        energies += _values(offset).detach().reshape(-1)[:N_ELEMENTS].double()
    for name, part in parts:
        if type(part).__name__ not in OFFSETS:
            networks[name] = _network(path, part)
    if not networks:
        raise CheckpointError(f"{path}: holds energies of elements alone, and no model of what lies beyond them")
    potential = SumPotential(**networks) if len(networks) > 1 else next(iter(networks.values()))
    potential.shift_reference(energies)
    return potential.to(device).eval()


def graph_pes_calculator(path: str, device: str = "cpu") -> Any:
    """graph-pes's own ASE calculator of any of its files, which **runs what the file holds**.

    For a model that cannot be read otherwise:
    ``calculator:mdl_physpre.potentials.checkpoints.graph_pes:graph_pes_calculator?path=model.pt``.
    """
    return import_module("graph_pes.models").load_model(path).ase_calculator(device=device, skin=0.0)


def _values(found: Tensor | Inert) -> Tensor:
    """The values of a parameter; one by element was to be built of values, whether they are trained, and elements."""
    return found if isinstance(found, Tensor) else found.arguments[0]


def _elements(found: Tensor | Inert) -> list[int]:
    """The elements for which a parameter was trained, as far as it knows."""
    counted = {} if isinstance(found, Tensor) else found.arguments[2]
    seen = counted.get("_accessed_Zs")  # a set, as an object
    return list(seen.arguments[0]) if isinstance(seen, Inert) and seen.arguments else []


def _content(path: Path) -> Inert:
    if not is_graph_pes_model(path):
        raise CheckpointError(f"{path}: no model.pt of graph-pes; nothing in it was run")
    with zipfile.ZipFile(path) as archive:
        if any("/code/" in name for name in archive.namelist()):
            raise CheckpointError(
                f"{path}: a model that was compiled, as for LAMMPS; give the model.pt that it was made of"
            )
    found = read_anything(path, skip_objects=True)
    if not isinstance(found, Inert):
        raise CheckpointError(f"{path}: no model.pt of graph-pes: it holds a {type(found).__name__}")
    return found


def _parts(model: Inert, name: str) -> Iterator[tuple[str, Inert]]:
    """The model, or those that it adds up, with their names."""
    if type(model).__name__ != SUM:
        yield name, model
        return
    for inner, part in model.children["models"].children.items():
        yield from _parts(part, inner)


def _network(path: Path, model: Inert) -> Backbone:
    """The backbone of a model, with its parameters."""
    kept, kind = dict(model.tensors()), type(model).__name__
    found = {name: _values(value) for name, value in kept.items()}
    arguments = model.members.get(ARGUMENTS)
    if arguments is None:
        seen = {z for value in kept.values() for z in _elements(value)}
        arguments = {"elements": sorted(seen) or None, **_arguments_beside(path, kind)}
    try:
        potential = build_backbone(PREFIX + kind, **arguments)
    except ConfigError as error:
        origin = f"{type(model).__module__}.{kind}"
        raise CheckpointError(f"{path}: its {origin} cannot be built again: {error}") from error
    network: Any = potential.network
    wanted = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    missing = [name for name, _ in network.named_parameters() if name not in found]
    strange = [name for name in found if name not in wanted]
    if missing or strange:
        first = (missing or strange)[0]
        raise CheckpointError(
            f"{path}: its {kind} does not fit the arguments {arguments}: {len(missing)} parameters are missing "
            f"and {len(strange)} are too many, the first {first}"
        )
    for name, value in found.items():
        if value.shape != wanted[name].shape:
            raise CheckpointError(
                f"{path}: {name} has the shape {tuple(value.shape)}, but the arguments {arguments} ask for "
                f"{tuple(wanted[name].shape)}"
            )
    network.load_state_dict(found, strict=False)
    return potential


def _arguments_beside(path: Path, kind: str) -> dict[str, Any]:
    """The arguments of a model in the configuration that graph-pes-train leaves beside its ``model.pt``."""
    config = path.parent / CONFIG
    try:
        model = yaml.safe_load(config.read_text())["model"]
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: a {kind} of graph-pes, which does not say what it was built of; put the {CONFIG} of its training "
            "beside it, or open it by calculator:mdl_physpre.potentials.checkpoints.graph_pes:graph_pes_calculator"
            f"?path={path}, which runs what the file holds"
        ) from None
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise CheckpointError(f"{config}: cannot be read as a configuration of graph-pes: {error}") from error
    found = list(_calls(model, kind))
    if len(found) != 1:
        raise CheckpointError(f"{config}: names {len(found)} models {kind}, expected one, as in {path.name}")
    return found[0]


def _calls(config: Any, kind: str) -> Iterator[dict[str, Any]]:
    """Arguments of each ``+kind: {…}`` or ``+kind()`` in a configuration."""
    if isinstance(config, str) and config.startswith("+"):
        config = {config.removesuffix("()"): {}}
    if isinstance(config, Mapping):
        for key, value in config.items():
            if str(key).startswith("+") and str(key)[1:].rpartition(".")[2] == kind:
                yield dict(value or {})
            else:
                yield from _calls(value, kind)

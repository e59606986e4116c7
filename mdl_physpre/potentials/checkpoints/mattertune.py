"""Checkpoints of MatterTune with an M3GNet, its MatterSim backbone or ours: Lightning's ``.ckpt`` files, read.

The parameters stand under ``backbone.model.`` (``backbone.`` for ``physpre-m3gnet``), the configuration under
``hyper_parameters``. Our backbone states the sizes of the network there; with the host's they follow from the shapes.
What the host's normalizers do to a predicted energy becomes part of the scale and reference energy of each element.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdl_physpre.errors import CheckpointError
from mdl_physpre.potentials.backbones.m3gnet.network import M3GNet
from mdl_physpre.potentials.checkpoints.archive import read_archive
from mdl_physpre.potentials.checkpoints.mattersim import m3gnet_from_state
from mdl_physpre.utils.devices import available_device

PREFIXES = {"mattersim": "backbone.model.", "physpre-m3gnet": "backbone."}
"""Where the parameters of the network stand, by the name of the backbone."""
SIZES = ("num_blocks", "units", "max_n", "max_l", "cutoff", "threebody_cutoff", "max_z", "elements", "energy_scale")
THREEBODY_CUTOFF = 4.0
"""Å; that of the MatterSim models that the host starts from."""


def is_mattertune_checkpoint(content: Any) -> bool:
    """Whether this is the content of a checkpoint of MatterTune."""
    if not isinstance(content, dict) or "pytorch-lightning_version" not in content:
        return False
    parameters = content.get("hyper_parameters")
    return isinstance(parameters, Mapping) and "properties" in parameters


def read_mattertune_checkpoint(
    path: str | Path,
    map_location: str | torch.device = "cpu",
    *,
    same_normalizers: Mapping[str, Any] | None = None,
) -> M3GNet:
    """The M3GNet in a checkpoint of MatterTune, in evaluation mode; its energies are those that the host predicts.

    With ``same_normalizers``, where these are the file's own ones, the network is given as it is, without what they do.

    Raises
    ------
    CheckpointError : a file that is missing, damaged or of another kind; another backbone; neighbours within other
        cutoffs than the network's; normalizers after which energies are no sum over atoms, or forces not their
        derivative.
    ConfigError : a device that is not there.
    """
    path, device = Path(path), available_device(map_location)
    content = read_archive(path, skip_objects=True)
    parameters, state = content.get("hyper_parameters"), content.get("state_dict")
    if not isinstance(parameters, Mapping) or not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: no checkpoint of MatterTune: it lacks hyper_parameters or state_dict")
    name = parameters.get("name")
    prefix = PREFIXES.get(str(name), " ")
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if "edge_encoder.mlp.0.linear.weight" not in own:
        raise CheckpointError(
            f"{path}: a checkpoint of MatterTune with the backbone {name!r}; only an M3GNet is read "
            f"({', '.join(PREFIXES)})"
        )
    if name == "physpre-m3gnet":
        missing = [key for key in SIZES if key not in parameters]
        if missing:
            raise CheckpointError(f"{path}: its hyper_parameters lack {', '.join(missing)}")
        sizes = {key: parameters[key] for key in SIZES}
    else:
        sizes = _sizes(path, own)
    graph = parameters.get("graph_convertor") or {}
    for key, expected in (("twobody_cutoff", sizes["cutoff"]), ("threebody_cutoff", THREEBODY_CUTOFF)):
        if isinstance(graph, Mapping) and not math.isclose(float(graph.get(key, expected)), expected, rel_tol=1e-6):
            raise CheckpointError(
                f"{path}: graph_convertor.{key} is {graph[key]} Å, but the network was made for {expected} Å: its "
                "energy is not smooth there and has no counterpart here"
            )
    if isinstance(graph, Mapping) and not graph.get("has_threebody", True):
        raise CheckpointError(f"{path}: graph_convertor.has_threebody is false, but the network has three-body terms")
    potential = m3gnet_from_state(path, own, sizes)
    if same_normalizers is None or not _equal(same_normalizers, parameters.get("normalizers") or {}):
        _apply_normalizers(path, potential, parameters, state)
    return potential.to(device)


def _equal(one: Any, other: Any) -> bool:
    """Whether two configurations say the same, be their keys numbers or text."""
    return json.loads(json.dumps(one, default=str)) == json.loads(json.dumps(other, default=str))


def _sizes(path: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of the network, from the shapes of its parameters."""
    try:
        units, max_n = state["edge_encoder.mlp.0.linear.weight"].shape
        blocks = {name.split(".")[1] for name in state if name.startswith("graph_conv.")}
        products = len(state["graph_conv.0.three_body.atom_mlp.linear.bias"])
        return {
            "num_blocks": len(blocks),
            "units": units,
            "max_n": max_n,
            "max_l": products // max_n,
            "cutoff": round(float(state["rbf.r_max"]), 6),
            "threebody_cutoff": THREEBODY_CUTOFF,
            "max_z": state["atom_embedding.mlp.0.linear.weight"].shape[1] - 1,
        }
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: its M3GNet lacks {error}") from error


def _apply_normalizers(
    path: Path, potential: M3GNet, parameters: Mapping[str, Any], state: Mapping[str, Tensor]
) -> None:
    """Undo the normalisation of the energy, last normalizer first, as the host does when it predicts."""
    kinds = {"energy": "energy", "forces": "forces", "stresses": "stress"}
    names: dict[str, str] = {}
    for entry in parameters.get("properties") or ():
        if isinstance(entry, Mapping) and "name" in entry:
            names[kinds.get(str(entry.get("type", entry["name"])), str(entry["name"]))] = str(entry["name"])
    normalizers = parameters.get("normalizers") or {}
    factors = {
        kind: _undo(path, kind, normalizers.get(name) or (), f"normalizers.{name}.normalizers.", state, potential)
        for kind, name in {"energy": "energy", **names}.items()
        if kind in ("energy", "forces", "stress")
    }
    if any(not math.isclose(factor, factors["energy"], rel_tol=1e-6) for factor in factors.values()):
        told = ", ".join(f"{kind} {factor:g}" for kind, factor in factors.items())
        raise CheckpointError(
            f"{path}: its normalizers multiply predictions by different factors ({told}): forces or stress would not "
            "be the derivative of the energy"
        )


def _undo(path: Path, kind: str, configured: Any, prefix: str, state: Mapping[str, Tensor], potential: M3GNet) -> float:
    """The factor by which a prediction is multiplied; those of the energy change the potential."""
    normalizer, total = potential.normalizer, 1.0
    for k, settings in reversed(list(enumerate(configured))):
        values = {
            name.removeprefix(f"{prefix}{k}."): v for name, v in state.items() if name.startswith(f"{prefix}{k}.")
        }
        only_target = bool(settings.get("only_for_target", bool(values)))
        if not only_target:
            continue  # the host leaves predictions as they are
        if not values:
            raise CheckpointError(
                f"{path}: a {kind} for each atom is no sum over atoms; its normalizer is not supported"
            )
        if "references" in values and kind == "energy":
            count = min(len(values["references"]), len(normalizer.shift) - 1)
            normalizer.shift[1 : count + 1] += values["references"][:count].to(normalizer.shift)
            continue
        if float(values.get("mean", torch.zeros(()))) != 0.0:
            raise CheckpointError(
                f"{path}: the normalizer of the {kind} adds {float(values['mean']):g} to each structure, whatever its "
                "size; only a mean of zero has a counterpart here"
            )
        factor = float(values.get("std", values.get("rms", torch.ones(()))))
        total *= factor
        if kind == "energy":
            normalizer.shift *= factor
            normalizer.scale *= factor
    return total

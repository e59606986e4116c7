"""The models of MatDeepLearn that have a counterpart here: keys of the YAML, names of parameters, defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from ase.data import chemical_symbols
from torch import Tensor

from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.backbones.cgcnn.network import CGCNN
from mdl_physpre.potentials.backbones.torchmd_et.network import TorchMDET
from mdl_physpre.potentials.base import Backbone
from mdl_physpre.potentials.eam.potential import EAMInteraction

EARLY_POOLING = (
    "a MatDeepLearn whose torchmd_etEarly takes no pool_order (its main of 2024-03) adds up atoms before the output "
    "network, and has other energies"
)
LATE = "mdl_physpre.hosts.matdeeplearn.TorchMDETLate"
"""Import path of MatDeepLearn's transformer with atomic energies."""

EAM_PREFIX = "eam_params.param_dict."
EAM_NAMES = {"D": "D", "rm": "r_e", "alpha": "alpha", "A": "A", "beta": "beta", "B": "b", "rho0": "rho0",
             "base_atomic_energy": "E0"}  # fmt: skip
"""The host's names of parameters, one tensor for each pair or element, and ours."""

CGCNN_DEFAULTS = {"dim1": 64, "dim2": 64, "pre_fc_count": 1, "gc_count": 3, "post_fc_count": 1, "batch_norm": True,
                  "act": "relu", "dropout_rate": 0.0, "pool": "global_mean_pool", "pool_order": "early"}  # fmt: skip
ET_DEFAULTS = {"hidden_channels": 128, "num_layers": 6, "num_rbf": 50, "num_heads": 8, "num_post_layers": 1,
               "post_hidden_channels": 64, "max_z": 100, "rbf_type": "expnorm", "trainable_rbf": True,
               "activation": "silu", "attn_activation": "silu", "neighbor_embedding": True,
               "distance_influence": "both", "pool": "global_mean_pool", "pool_order": "late",
               "aggr": "add"}  # fmt: skip

EAM_DEFAULTS = {"n_basis": 10}

State = Mapping[str, Tensor]


class Model(NamedTuple):
    """A model of the host."""

    defaults: dict[str, Any]  # what the host takes where its YAML is silent
    sizes: Callable[[State], dict[str, Any]]  # the YAML's keys as the shapes of the parameters tell them
    build: Callable[[Mapping[str, Any], State], Backbone]  # from keys and parameters


def _count(state: State, pattern: str) -> int:
    """How many parameters ``pattern`` names, with 0, 1, … in place of its ``#``."""
    number = 0
    while pattern.replace("#", str(number)) in state:
        number += 1
    return number


def _cgcnn_sizes(state: State) -> dict[str, Any]:
    gate, out = state["conv_list.0.lin_f.weight"], state["lin_out.weight"]
    before, after = _count(state, "pre_lin_list.#.weight"), _count(state, "post_lin_list.#.weight")
    found = {
        "pre_fc_count": before,
        "gc_count": _count(state, "conv_list.#.lin_f.weight"),
        "post_fc_count": after,
        "edge_dim": gate.shape[1] - 2 * gate.shape[0],
        "batch_norm": "bn_list.0.weight" in state,
        "cutoff_radius": round(float(state["distance_expansion.offset"][-1]), 4),
    }
    return {**found, **({"dim1": gate.shape[0]} if before else {}), **({"dim2": out.shape[1]} if after else {})}


def _et_sizes(state: State) -> dict[str, Any]:
    after = _count(state, "post_lin_list.#.weight") - 1
    return {
        "hidden_channels": state["embedding.weight"].shape[1],
        "max_z": state["embedding.weight"].shape[0],
        "num_rbf": len(state["distance_expansion.means"]),
        "num_layers": _count(state, "attention_layers.#.q_proj.weight"),
        "num_post_layers": after,
        "neighbor_embedding": "neighbor_embedding.combine.weight" in state,
        **({"post_hidden_channels": len(state["post_lin_list.0.weight"])} if after > 0 else {}),
    }


def _eam_sizes(state: State) -> dict[str, Any]:
    return {"n_basis": state[f"{EAM_PREFIX}A.0"].numel()}


def _build_cgcnn(given: Mapping[str, Any], state: State) -> Backbone:
    keys = ("cutoff", "dim1", "dim2", "pre_fc_count", "gc_count", "post_fc_count", "edge_dim", "batch_norm",
            "dropout_rate", "act", "pool", "pool_order")  # fmt: skip
    return _with_weights(CGCNN(envelope=False, **{key: given[key] for key in keys if key in given}), state)


def _build_et(given: Mapping[str, Any], state: State) -> Backbone:
    keys = ("cutoff", *ET_DEFAULTS)
    return _with_weights(TorchMDET(envelope=False, **{key: given[key] for key in keys}), state)


def _with_weights(potential: CGCNN | TorchMDET, state: State) -> Backbone:
    potential.load_state_dict({**state, "reference.energies": potential.reference.energies})
    return potential


def _build_eam(given: Mapping[str, Any], state: State) -> Backbone:
    if "atom_types" not in given:
        raise ConfigError("model.atom_types is missing: the elements, whose order is that of the parameters")
    potential = EAMInteraction(
        given["atom_types"], given["cutoff"], int(given["n_basis"]), init="reference", signed_embedding=True
    )
    for theirs, ours in EAM_NAMES.items():
        parameter, pattern = getattr(potential, ours), f"{EAM_PREFIX}{theirs}.#"
        number = _count(state, pattern)
        if number != len(parameter):
            raise ConfigError(
                f"model.atom_types {list(given['atom_types'])} needs {len(parameter)} values of {theirs}, but the "
                f"checkpoint has {number}"
            )
        values = [state[pattern.replace("#", str(k))].double().reshape(parameter.shape[1:]) for k in range(number)]
        parameter.data = torch.stack(values)
    return potential


MODELS = {
    "cgcnn": Model({**CGCNN_DEFAULTS, "edge_dim": 50}, _cgcnn_sizes, _build_cgcnn),
    "torchmd_etearly": Model(ET_DEFAULTS, _et_sizes, _build_et),
    "torchmdet": Model(ET_DEFAULTS, _et_sizes, _build_et),
    "torchmdetlate": Model(ET_DEFAULTS, _et_sizes, _build_et),
    "torchmd_et_early": Model(ET_DEFAULTS, _et_sizes, _build_et),
    "eam_interaction": Model(EAM_DEFAULTS, _eam_sizes, _build_eam),
    "eaminteractionmodel": Model(EAM_DEFAULTS, _eam_sizes, _build_eam),
}
"""By the last part of the host's ``model.name``, in lower case."""


def eam_state(potential: EAMInteraction) -> dict[str, Tensor]:
    """The parameters under the host's names."""
    state = {}
    for theirs, ours in EAM_NAMES.items():
        values = potential.B if ours == "b" else getattr(potential, ours)
        for k, value in enumerate(values.detach().cpu().float()):
            state[f"{EAM_PREFIX}{theirs}.{k}"] = value.reshape(-1).clone()
    return state


def eam_keys(potential: EAMInteraction) -> dict[str, Any]:
    """The host's keys of the section ``model``."""
    return {
        "name": "eam_interaction",
        "atom_types": [chemical_symbols[z] for z in potential.elements],
        "n_basis": potential.n_basis,
    }


def network_state(potential: CGCNN | TorchMDET) -> dict[str, Tensor]:
    """The parameters under the host's names, with ``energy_scale`` in the last layer."""
    state = {name: p.detach().cpu().float().clone() for name, p in potential.state_dict().items()}
    del state["reference.energies"]
    last = "lin_out" if isinstance(potential, CGCNN) else f"post_lin_list.{potential.num_post_layers}"
    for part in ("weight", "bias"):
        state[f"{last}.{part}"] *= potential.energy_scale
    return state


def network_keys(potential: CGCNN | TorchMDET) -> dict[str, Any]:
    """The host's keys of the section ``model``."""
    defaults = CGCNN_DEFAULTS if isinstance(potential, CGCNN) else ET_DEFAULTS
    sizes = {key: value for key, value in potential.hyperparameters().items() if key in defaults}
    if isinstance(potential, CGCNN):
        fixed = {"batch_norm": False, "act": "silu", "dropout_rate": 0.0}
    else:
        fixed = {key: value for key, value in ET_DEFAULTS.items() if key not in sizes and not key.startswith("pool")}
    name = "CGCNN" if isinstance(potential, CGCNN) else "torchmd_etEarly"
    return {"name": name, **sizes, **fixed, "pool": "global_add_pool", "pool_order": "late"}


def lost_of_network(potential: CGCNN | TorchMDET) -> list[str]:
    """What of a network MatDeepLearn's format has no place for."""
    lost = []
    reference = potential.reference.as_dict()
    if reference:
        energies = ", ".join(f"{chemical_symbols[z]} {energy:.6g}" for z, energy in reference.items())
        lost.append(f"the energies of the elements ({energies} eV) stand in the YAML alone: the host's lack them")
    if potential.envelope:
        lost.append(
            "the envelope is left out: the host's energies and forces jump at the cutoff, and a network that was "
            "trained with one is spoilt there until it is finetuned (for use there, train with model.envelope: false)"
        )
    if potential.elements is not None:
        lost.append("the elements are left out: the host does not refuse others")
    if isinstance(potential, CGCNN) and potential.edge_width != 0.2:
        lost.append(f"the host's Gaussians are 0.2 of the cutoff wide, not {potential.edge_width}: its energies differ")
    if isinstance(potential, TorchMDET):
        lost.append(f"{EARLY_POOLING}; for such a one, name the model {LATE} in the YAML")
    return lost

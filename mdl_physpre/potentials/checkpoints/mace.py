"""Models of MACE: ``.model`` files, read and written.

Such a file is the pickled network itself, and ``torch.load`` runs whatever code one names. Here nothing in it is run:
what the pickle says of the network's classes, sizes and tensors is read as values, and MACE's class is built anew.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mdl_physpre.errors import CheckpointError, ConfigError
from mdl_physpre.potentials.backbones.mace import MACE
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.checkpoints.archive import Inert, read_anything, write_archive
from mdl_physpre.utils.devices import available_device

READ = ("ScaleShiftMACE", "MACE")
"""Classes of MACE that are read."""
FLAGS = (
    "use_reduced_cg", "use_so3", "use_agnostic_product", "use_last_readout_only", "use_edge_irreps_first",
)  # fmt: skip
BASES = {"BesselBasis": "bessel", "GaussianBasis": "gaussian", "ChebychevBasis": "chebyshev"}


def is_mace_model(content: Any) -> bool:
    """Whether this is the content of a model of MACE, of whatever class."""
    return isinstance(content, Inert) and type(content).__module__.split(".")[0] == "mace"


def read_mace_model(path: str | Path, map_location: str | torch.device = "cpu") -> MACE:
    """The network in a model of MACE, in evaluation mode and the precision it was saved in.

    Raises
    ------
    CheckpointError : a file that is missing, damaged or of another kind; a model with long-range electrostatics,
        dipoles, several heads, inputs beside the structure, or one that was converted for an accelerator.
    ConfigError : MACE is not installed; a device that is not there.
    """
    path, device = Path(path), available_device(map_location)
    saved = read_anything(path, skip_objects=True)
    if not isinstance(saved, Inert):
        raise CheckpointError(f"{path}: no model of MACE: it holds a {type(saved).__name__}, expected a network")
    _refuse_what_has_no_counterpart(path, saved)
    tensors = {name: value for name, value in saved.tensors() if isinstance(value, Tensor)}
    try:
        arguments = _arguments(saved, tensors)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its architecture cannot be read ({type(error).__name__}: {error}); it may be of a version of "
            "MACE that is not known here (0.3.16 is)"
        ) from error
    try:
        potential = MACE(elements=tensors["atomic_numbers"].tolist(), **arguments)
    except ConfigError as error:
        if "cannot be imported" in str(error):
            raise
        raise CheckpointError(f"{path}: its network cannot be built: {error}") from error
    _fill(path, potential, tensors)
    return potential.to(device).eval()


def write_mace_model(path: str | Path, potential: Potential) -> list[str]:
    """Write a MACE as the file that ``mace.calculators.MACECalculator`` and MACE's other tools load.

    The energies of the elements stand in MACE's own table, in double precision. Returns what the format cannot carry:
    nothing. Raises CheckpointError for another potential, and where the file cannot be written.
    """
    path = Path(path)
    if not isinstance(potential, MACE):
        raise CheckpointError(f"{path}: {type(potential).__name__} has no counterpart in MACE; a network MACE has")
    network = potential.build_network(scripted=True)
    state = {name: value.detach().to("cpu", copy=True) for name, value in potential.network.state_dict().items()}
    network.to(next(potential.network.parameters()).dtype)
    network.load_state_dict({**network.state_dict(), **state})
    energies = potential.reference_energies()[list(potential.elements or ())]
    network.atomic_energies_fn.atomic_energies = energies[None]
    network.requires_grad_(True)
    return write_archive(path, network.eval())


def _refuse_what_has_no_counterpart(path: Path, saved: Inert) -> None:
    """Raise CheckpointError, with what to do, for a model that cannot be read."""
    kind, heads = type(saved).__name__, list(saved.state.get("heads") or ["Default"])
    for_itself = f"it can still label and be simulated: calculator:mace.calculators.MACECalculator?model_paths={path}"
    if kind not in READ:
        raise CheckpointError(
            f"{path}: a model of MACE's class {kind}; only {' and '.join(READ)} are read, whose energies are sums over "
            f"atoms (long-range electrostatics and dipoles are not); {for_itself}"
        )
    if len(heads) > 1:
        raise CheckpointError(
            f"{path}: a model of MACE with the heads {', '.join(map(str, heads))}; take one out of it first: "
            f"mace_select_head --head_name {heads[-1]} --output_file one.model {path}"
        )
    names = {type(module).__name__ for module in saved.modules()}
    settings = [module.members.get(key) for module in saved.modules() for key in ("cueq_config", "oeq_config")]
    if any(isinstance(one, Inert) and one.state.get("enabled") for one in settings):
        raise CheckpointError(
            f"{path}: a model of MACE that was converted for cuEquivariance or OpenEquivariance; convert it back "
            f"first: mace_cueq_to_e3nn --return_model {path} (python -m mace.cli.convert_oeq_e3nn … for the other)"
        )
    if saved.state.get("embedding_specs") or "joint_embedding" in saved.state["_modules"]:
        raise CheckpointError(
            f"{path}: a model of MACE that takes more than the structure (embedding_specs), such as a charge or a "
            f"temperature; {for_itself}"
        )
    if any("LoRA" in name for name in names):
        raise CheckpointError(
            f"{path}: a model of MACE with LoRA layers; merge them in MACE (merge_lora_weights) first"
        )


def _child(module: Inert, *names: str | int) -> Inert:
    for name in names:
        children = module.state["_modules"]
        module = list(children.values())[name] if isinstance(name, int) else children[name]
    return module


def _irreps(saved: Inert | None) -> str | None:
    """``64x0e + 64x1o`` from e3nn's ``Irreps``: a tuple of pairs of a number and an irrep, a pair (l, parity)."""
    if saved is None:
        return None
    pairs = ((number, *irrep.arguments[0]) for number, irrep in (one.arguments[0] for one in saved.arguments[0]))
    return " + ".join(f"{number}x{degree}{'e' if parity == 1 else 'o'}" for number, degree, parity in pairs)


def _arguments(saved: Inert, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The arguments of :class:`MACE`, ``elements`` aside."""
    interactions, products = _child(saved, "interactions"), _child(saved, "products")
    first, last = _child(interactions, 0), _child(interactions, -1)
    radial, readout = _child(saved, "radial_embedding"), _child(saved, "readouts", -1)
    neighbours = {float(_child(interactions, k).state["avg_num_neighbors"]) for k in range(_length(interactions))}
    if len(neighbours) > 1:
        raise ValueError(f"avg_num_neighbors differs between layers: {sorted(neighbours)}")
    basis = type(_child(radial, "bessel_fn")).__name__
    widths = {"BesselBasis": "bessel_weights", "GaussianBasis": "gaussian_weights", "ChebychevBasis": "n"}[basis]
    transform = radial.state["_modules"].get("distance_transform")
    arguments = {
        "cutoff": round(float(tensors["r_max"]), 6),
        "hidden_irreps": _irreps(_child(products, 0, "linear").state["irreps_out"]),
        "num_interactions": _length(interactions),
        "correlation": [_correlation(tensors, k) for k in range(_length(interactions))],
        "max_ell": int(_child(saved, "spherical_harmonics").state["_lmax"]),
        "num_radial_basis": tensors[f"radial_embedding.bessel_fn.{widths}"].numel(),
        "num_cutoff_basis": int(tensors["radial_embedding.cutoff_fn.p"]),
        "radial_type": BASES[basis],
        "distance_transform": None if transform is None else type(transform).__name__.removesuffix("Transform"),
        "radial_MLP": [int(width) for width in _child(first, "conv_tp_weights").state["hs"][1:-1]],
        "apply_cutoff": bool(saved.state.get("apply_cutoff", True)),
        "interaction": type(last).__name__,
        "interaction_first": type(first).__name__,
        "pair_repulsion": "pair_repulsion_fn" in saved.state["_modules"],
        "edge_irreps": _irreps(saved.state.get("edge_irreps")),
        "avg_num_neighbors": neighbours.pop(),
        "atomic_inter_scale": float(np.ravel(tensors.get("scale_shift.scale", torch.ones(1)))[0]),
        "atomic_inter_shift": float(np.ravel(tensors.get("scale_shift.shift", torch.zeros(1)))[0]),
        **{flag: bool(saved.state.get(flag, False)) for flag in FLAGS},
    }
    if "hidden_irreps" in readout.state:
        arguments["readout_cls"] = type(readout).__name__
        arguments["MLP_irreps"] = _irreps(readout.state["hidden_irreps"])
        if "non_linearity" in readout.state["_modules"]:
            activation = _child(readout, "non_linearity", "acts").state["_modules"]["0"]
            arguments["gate"] = None if activation is None else _name(activation.state["f"])
    return arguments


def _name(function: Any) -> str:
    """Of a function that was pickled by its name, or as an attribute of something."""
    return function.__name__ if isinstance(function, type) else str(function.arguments[-1])


def _length(modules: Inert) -> int:
    return len(modules.state["_modules"])


def _correlation(tensors: dict[str, Tensor], layer: int) -> int:
    matrix = re.compile(rf"products\.{layer}\.symmetric_contractions\.contractions\.0\.U_matrix_(\d+)")
    return max(int(found[1]) for name in tensors if (found := matrix.fullmatch(name)))


def _fill(path: Path, potential: MACE, tensors: dict[str, Tensor]) -> None:
    """Put the tensors of a file into a network. Raises CheckpointError where they do not fit."""
    parameters, own = dict(potential.network.named_parameters()), potential.network.state_dict()
    given = {name: value for name, value in tensors.items() if name != "atomic_energies_fn.atomic_energies"}
    state = {}
    for name, value in own.items():
        found = given.get(name)
        if found is not None and found.numel() != value.numel():
            raise CheckpointError(f"{path}: {name} has the shape {tuple(found.shape)}, expected {tuple(value.shape)}")
        if found is None and name in parameters and value.numel():
            raise CheckpointError(f"{path}: lacks the parameter {name} of its network")
        state[f"network.{name}"] = value if found is None else found.detach().reshape(value.shape)
    strange = sorted(name for name in set(given) - set(own) if isinstance(given[name], nn.Parameter))
    if strange:
        raise CheckpointError(f"{path}: has parameters that its network does not have: {', '.join(strange[:4])}")
    potential.to(tensors["node_embedding.linear.weight"].dtype)
    reference = torch.zeros(len(potential.reference.energies), dtype=torch.float64)
    reference[tensors["atomic_numbers"]] = tensors["atomic_energies_fn.atomic_energies"].double().reshape(-1)
    potential.reference.energies = reference
    potential.load_state_dict({**potential.state_dict(), **state})

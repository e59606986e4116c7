"""MACE as a backbone: its own network, class ``ScaleShiftMACE`` of the package ``mace-torch``, behind our contract."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from torch import Tensor, nn

from mdl_physpre.errors import ConfigError, nearest
from mdl_physpre.potentials.backbones.arguments import element_numbers, require_at_least, require_positive
from mdl_physpre.potentials.base import Backbone, edge_vectors
from mdl_physpre.potentials.energy_reference import N_ELEMENTS, EnergyReference
from mdl_physpre.structures.graph import AtomGraph
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.structures.neighbours import pairs_within

TRAINED = ("scale_shift.", "atomic_energies_fn.")
"""Beginnings of the names of buffers that do not follow from the architecture."""
MOST_STRUCTURES = 500
"""Structures, evenly spaced in the training set, in which neighbours are counted."""


class MACE(Backbone):
    """Batatia, Kovács, Simm, Ortner and Csányi, NeurIPS 2022, arXiv:2206.07697.

        E = Σ_i E0(z_i) + Σ_i [s Σ_t R_t(h_i^t) + m]

    with the features h_i^t of atom i after layer t, read-outs R_t, scale s and shift m. The arguments have the names
    and, unless said otherwise, the defaults of MACE's trainer, ``mace_run_train``; ``cutoff`` is its ``r_max``. E0 is
    :attr:`reference`; MACE's own table of them is zero inside, and filled when a ``.model`` is written.

    Parameters
    ----------
    elements : atomic numbers or symbols that the potential knows; at least one.
    cutoff : Å.
    num_channels, max_L : hidden_irreps are ``num_channels`` of each l up to ``max_L``.
    hidden_irreps : in place of these two, such as ``64x0e + 64x1o``.
    num_interactions : layers.
    correlation : body order less one of the product basis, one number or one for each layer.
    max_ell : largest l of the spherical harmonics.
    num_radial_basis, radial_type, distance_transform, radial_MLP : functions of the distance.
    num_cutoff_basis : p of the cutoff function.
    apply_cutoff : whether it multiplies the radial functions, or the weights that are made of them.
    MLP_irreps, gate, readout_cls : of the last read-out; ``gate`` is silu, tanh, abs or None.
    interaction, interaction_first : names of MACE's classes. The first layer's is that of MACE's ``--model MACE``.
    pair_repulsion : MACE's own ZBL term.
    use_reduced_cg, use_so3, use_agnostic_product, use_last_readout_only, edge_irreps, use_edge_irreps_first : of MACE.
    avg_num_neighbors : divides the sums over neighbours; where ``None``, :meth:`prepare_for` counts it in the training
        structures, and it is 1 until then.
    atomic_inter_scale : s, eV; where ``None``, :meth:`prepare_for` takes the root mean square of the training forces,
        as MACE's ``rms_forces_scaling`` does, and it is 1 until then.
    atomic_inter_shift : m, eV for each atom.
    reference : energies of the elements, eV; zero if not given.

    Raises ConfigError where MACE is not installed, and for a value that it does not take.
    """

    arguments = (
        "cutoff", "num_channels", "max_L", "hidden_irreps", "num_interactions", "correlation", "max_ell",
        "num_radial_basis", "num_cutoff_basis", "radial_type", "distance_transform", "radial_MLP", "apply_cutoff",
        "MLP_irreps", "gate", "readout_cls", "interaction", "interaction_first", "pair_repulsion", "use_reduced_cg",
        "use_so3", "use_agnostic_product", "use_last_readout_only", "edge_irreps", "use_edge_irreps_first",
        "avg_num_neighbors", "atomic_inter_scale", "atomic_inter_shift",
    )  # fmt: skip

    columns: Tensor

    def __init__(
        self,
        elements: Iterable[int | str] | None = None,
        cutoff: float = 5.0,
        num_channels: int = 128,
        max_L: int = 1,
        hidden_irreps: str | None = None,
        num_interactions: int = 2,
        correlation: int | Sequence[int] = 3,
        max_ell: int = 3,
        num_radial_basis: int = 8,
        num_cutoff_basis: int = 5,
        radial_type: str = "bessel",
        distance_transform: str | None = None,
        radial_MLP: Sequence[int] = (64, 64, 64),
        apply_cutoff: bool = True,
        MLP_irreps: str = "16x0e",
        gate: str | None = "silu",
        readout_cls: str = "NonLinearReadoutBlock",
        interaction: str = "RealAgnosticResidualInteractionBlock",
        interaction_first: str = "RealAgnosticInteractionBlock",
        pair_repulsion: bool = False,
        use_reduced_cg: bool = False,
        use_so3: bool = False,
        use_agnostic_product: bool = False,
        use_last_readout_only: bool = False,
        edge_irreps: str | None = None,
        use_edge_irreps_first: bool = False,
        avg_num_neighbors: float | None = None,
        atomic_inter_scale: float | None = None,
        atomic_inter_shift: float = 0.0,
        reference: EnergyReference | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in self.arguments}
        super().__init__(reference)
        for name, value in given.items():
            setattr(self, name, list(value) if isinstance(value, tuple) else value)
        self.cutoff = float(cutoff)
        self.elements = element_numbers(elements, N_ELEMENTS - 1, "MACE")
        self._check()
        self.network: Any = self.build_network()
        self._constants = {
            name: value.clone() for name, value in self.network.named_buffers() if not name.startswith(TRAINED)
        }
        columns = torch.zeros(N_ELEMENTS, len(self.elements or ()))
        columns[list(self.elements or ()), range(columns.shape[1])] = 1.0
        self.register_buffer("columns", columns, persistent=False)
        self.network.to(torch.get_default_dtype())
        self.register_load_state_dict_post_hook(_sharpen_loaded)

    def _check(self) -> None:
        if not self.elements:
            raise ConfigError("MACE: elements is not given; name the elements, each has parameters of its own")
        require_positive("MACE", cutoff=self.cutoff, num_cutoff_basis=self._get("num_cutoff_basis"))
        require_at_least("MACE", 1, **{key: self._get(key) for key in ("num_channels", "num_interactions")})
        for key in ("avg_num_neighbors", "atomic_inter_scale"):
            if self._get(key) is not None:
                require_positive("MACE", **{key: self._get(key)})
        radii = 2 * max(float(covalent_radii[z]) for z in self.elements)
        if self._get("pair_repulsion") and radii > self.cutoff:
            widest = chemical_symbols[max(self.elements, key=lambda z: covalent_radii[z])]
            raise ConfigError(
                f"MACE: cutoff is {self.cutoff:g} Å, but pair_repulsion of {widest} and {widest} reaches to "
                f"{radii:.2f} Å, where it is not zero; raise cutoff, or set pair_repulsion to false"
            )
        if self._get("apply_cutoff") and "NonLinear" in str(self._get("interaction")) + self._get("interaction_first"):
            raise ConfigError(
                "MACE: apply_cutoff is true, and with a NonLinear interaction the energy would jump at the cutoff; "
                "set apply_cutoff to false"
            )

    def _get(self, name: str) -> Any:
        return getattr(self, name)

    def build_network(self, scripted: bool = False) -> Any:
        """A new ``ScaleShiftMACE`` of this architecture with random parameters, in double precision.

        ``scripted`` : with parts compiled by TorchScript, as MACE saves it; the same in tensor operations otherwise,
        which ``torch.compile`` can take.
        """
        modules = import_mace()
        from e3nn.o3 import Irreps
        from mace.tools.compile import disable_e3nn_codegen, simplify

        get, before = self._get, torch.get_default_dtype()
        hidden = get("hidden_irreps") or " + ".join(
            f"{get('num_channels')}x{degree}{'eo'[degree % 2]}" for degree in range(get("max_L") + 1)
        )
        elements = list(self.elements or ())
        torch.set_default_dtype(torch.float64)
        try:
            with contextlib.nullcontext() if scripted else disable_e3nn_codegen():
                network = modules.ScaleShiftMACE(
                    r_max=self.cutoff,
                    num_bessel=get("num_radial_basis"),
                    num_polynomial_cutoff=get("num_cutoff_basis"),
                    interaction_cls=_named(modules.interaction_classes, get("interaction"), "interaction"),
                    interaction_cls_first=_named(
                        modules.interaction_classes, get("interaction_first"), "interaction_first"
                    ),
                    readout_cls=_named(modules.readout_classes, get("readout_cls"), "readout_cls"),
                    gate=_named(modules.gate_dict, str(get("gate")), "gate"),
                    num_elements=len(elements),
                    atomic_numbers=elements,
                    atomic_energies=np.zeros((1, len(elements))),
                    hidden_irreps=Irreps(hidden),
                    MLP_irreps=Irreps(get("MLP_irreps")),
                    edge_irreps=None if get("edge_irreps") is None else Irreps(get("edge_irreps")),
                    avg_num_neighbors=float(get("avg_num_neighbors") or 1.0),
                    atomic_inter_scale=float(get("atomic_inter_scale") or 1.0),
                    distance_transform=str(get("distance_transform")),
                    heads=["Default"],
                    **{key: get(key) for key in SAME_NAME},
                )
                return network if scripted else simplify(network)
        finally:
            torch.set_default_dtype(before)

    def prepare_for(self, structures: Sequence[Atoms]) -> None:
        """``avg_num_neighbors`` and ``atomic_inter_scale`` from training structures, where they were not given."""
        if self._get("avg_num_neighbors") is None:
            some = structures[:: max(1, len(structures) // MOST_STRUCTURES)]
            counts = [np.bincount(pairs_within(atoms, self.cutoff)[0]) for atoms in some]
            found = [int(n) for of_structure in counts for n in of_structure if n > 0]
            self.avg_num_neighbors = float(np.mean(found)) if found else 1.0
            for interaction in self.network.interactions:
                interaction.avg_num_neighbors = self.avg_num_neighbors
        if self._get("atomic_inter_scale") is None:
            known = [forces.ravel() for atoms in structures if (forces := get_labels(atoms).forces) is not None]
            values = np.concatenate(known or [np.zeros(0)])
            rms = float(np.sqrt(np.square(values[np.isfinite(values)]).mean())) if len(values) else 0.0
            self.atomic_inter_scale = rms if rms > 0 else 1.0
            self.network.scale_shift.scale.fill_(self.atomic_inter_scale)

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        """Energy of each atom (N,) in eV, differentiable in positions, cell and parameters.

        MACE's vectors point from the neighbour (sender) to the centre (receiver). Here they are its ``shifts``, between
        positions of zero, so that they are those of every other backbone.
        """
        centre, neighbour = graph.edge_index[0], graph.edge_index[1]
        n_atoms, zero = len(graph.z), graph.pos.new_zeros
        with torch.autocast(graph.pos.device.type, enabled=False):  # its sums over edges take one precision alone
            found = self.network(
                {
                    "positions": zero((n_atoms, 3)),
                    "shifts": -edge_vectors(graph),
                    "edge_index": torch.stack([neighbour, centre]),
                    "node_attrs": self.columns.index_select(0, graph.z).to(graph.pos.dtype),
                    "batch": torch.zeros_like(graph.z),  # energies of atoms are asked for: any one structure will do
                    "ptr": graph.z.new_zeros(2),
                    "cell": zero((1, 3, 3)),
                },
                compute_force=False,
            )
        return self.reference(graph.z) + found["node_energy"]

    def undecayed(self) -> list[nn.Parameter]:
        """Those on which MACE's trainer lets no weight decay act."""
        decays = ("linear.weight", "skip_tp_full.weight")
        return [
            parameter
            for name, parameter in self.network.named_parameters()
            if not name.startswith("products.") and not (name.startswith("interactions.") and name.endswith(decays))
        ]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MACE:
        """Moves and casts: constants come from double precision, and are not cast in turn."""
        super()._apply(fn, recurse)
        self._sharpen()
        return self

    def _sharpen(self) -> None:
        """Constants that are those of this architecture to rounding, as exact as the precision allows."""
        for name, value in self.network.named_buffers():
            exact = self._constants.get(name)
            if exact is None or not value.is_floating_point() or value.shape != exact.shape:
                continue
            exact = exact.to(value)
            if torch.allclose(value, exact, rtol=1e-5, atol=1e-6):
                value.copy_(exact)


SAME_NAME = (
    "max_ell", "num_interactions", "correlation", "radial_type", "radial_MLP", "apply_cutoff", "pair_repulsion",
    "use_reduced_cg", "use_so3", "use_agnostic_product", "use_last_readout_only", "use_edge_irreps_first",
    "atomic_inter_shift",
)  # fmt: skip
"""Arguments that MACE's class calls as we do."""


def _sharpen_loaded(potential: MACE, _: Any) -> None:
    potential._sharpen()


def import_mace() -> Any:
    """The module ``mace.modules``.

    On import MACE lets ``torch.load`` run whatever stands in a file, by an environment variable. This is undone here.
    Raises ConfigError where it is not installed.
    """
    name = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints which accelerators are missing
            import mace.modules as modules
    except ImportError as error:
        raise ConfigError(
            f'MACE cannot be imported ({error}); install it with: pip install "mdl-physpre[mace]"'
        ) from error
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
    return modules


def _named(known: dict[str, Any], name: str, key: str) -> Any:
    if name not in known:
        raise ConfigError(f"MACE: {key} is {name!r}; {nearest(name, known)}")
    return known[name]

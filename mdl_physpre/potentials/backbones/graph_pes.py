"""The models of graph-pes as backbones: ``graph_pes:PaiNN``, ``graph_pes:MACE`` and every other that it offers.

graph-pes, J. L. A. Gardner (https://github.com/jla-gardner/graph-pes), is an optional package. Each of its models is a
class of this module, made when it is first asked for: ``mdl_physpre.potentials.backbones.graph_pes:PaiNN``.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib import import_module
from typing import Any, ClassVar

import torch
from ase import Atoms
from ase.data import chemical_symbols
from torch import Tensor, nn

from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.backbones.arguments import atomic_number, require_positive
from mdl_physpre.potentials.base import Backbone, edge_vectors, within, worth_cutting
from mdl_physpre.potentials.energy_reference import fit_energy_reference
from mdl_physpre.structures.graph import AtomGraph, build_graph
from mdl_physpre.structures.labels import get_labels

PREFIX = "graph_pes:"
CUTOFF = 5.0  # Å; graph-pes's default

ENVELOPED = {"MACE", "ZEmbeddingMACE", "NequIP", "ZEmbeddingNequIP", "PaiNN", "TensorNet"}
"""Models that multiply each message by a function that is 0 from the cutoff on."""

MOST_ATOMS = 50_000
"""Atoms of the structures that scales are taken from; a twenty-fifth of it where there are three-body terms."""


class GraphPES(Backbone):
    """E = Σ_i (E0(z_i) + ε_i), with ε_i the local energies of a model of graph-pes.

    A subclass for each model stands in this module under the model's name.

    Parameters
    ----------
    elements : numbers or symbols. The model knows these alone; needed where it has an argument of this name.
    cutoff : Å; graph-pes's default where ``None``.
    arguments : the other arguments of the model, under graph-pes's names. Forces are always derivatives of the energy:
        ``conservative`` (Orb) is true by default, and ``direct_force_predictions`` must be false.

    Raises
    ------
    ConfigError : arguments that the model does not take or that it cannot be built of; forces that are not derivatives;
        a model that reaches farther than the cutoff.
    """

    model: ClassVar[str]

    def __init__(
        self, elements: Iterable[int | str] | None = None, cutoff: float | None = None, **arguments: Any
    ) -> None:
        super().__init__()
        if elements is not None:  # in this order: in some models parameters stand in it
            self.elements = tuple(dict.fromkeys(atomic_number(e, where=f"{self.name}: elements: ") for e in elements))
        own = {name: parameter.default for name, parameter in _own_arguments(self.model).items()}
        if "conservative" in own:
            own["conservative"] = True
        self.given = {name: _plain(value) for name, value in {**own, **arguments}.items() if name not in OURS}
        self.network = self.new_network(own.get("cutoff") if cutoff is None else cutoff)
        reach = float(self.network.cutoff)
        self.cutoff = reach if cutoff is None else float(cutoff)
        require_positive(self.name, cutoff=self.cutoff)
        if abs(reach - self.cutoff) > 1e-3:
            raise ConfigError(
                f"{self.name}: its other arguments make it reach to {reach:.5f} Å, but cutoff is {cutoff}"
            )
        if "forces" in self.network.implemented_properties:
            raise ConfigError(f"{self.name}: predicts forces beside the energy; only their derivatives are supported")
        self.three_body_cutoff = float(self.network.three_body_cutoff)
        self.graph_class = import_module("graph_pes.atomic_graph").AtomicGraph
        counted = ("MeanNeighbours", "VariancePreservingSumNeighbours")  # what divides by the number of neighbours
        counts = any(type(module).__name__ in counted for module in self.network.modules())
        self.enveloped = self.model in ENVELOPED and not counts
        for parent in list(self.network.modules()):
            for name, child in list(parent.named_children()):
                if type(child).__name__ == "AtomicOneHot":
                    setattr(parent, name, OneHot(child))
        self.register_load_state_dict_post_hook(_without_extra_state)

    @property
    def name(self) -> str:
        """The name of the backbone."""
        return PREFIX + self.model

    def new_network(self, cutoff: float | None = None) -> Any:
        """The model of graph-pes itself, with random parameters."""
        theirs, arguments = _own_arguments(self.model), dict(self.given)
        if "elements" in theirs:
            if self.elements is None:
                raise ConfigError(f"{self.name}: give its elements; ZEmbedding{self.model} or PaiNN need none")
            arguments["elements"] = [chemical_symbols[z] for z in self.elements]
        if "cutoff" in theirs:
            arguments["cutoff"] = float(self.cutoff if cutoff is None else cutoff)
        for name in ("expansion", "radial_expansion"):
            if isinstance(arguments.get(name), str):
                components = import_module("graph_pes.models.components.distances")
                arguments[name] = components.get_distance_expansion(arguments[name])
        try:
            return _graph_pes().__dict__[self.model](**arguments)
        except Exception as error:  # whatever is raised in it follows from the arguments
            raise ConfigError(
                f"{self.name}: cannot be built of {arguments}: {error or type(error).__name__}"
            ) from error

    def hyperparameters(self) -> dict[str, Any]:
        """``elements``, ``cutoff`` and all other arguments of the model."""
        elements = None if self.elements is None else list(self.elements)
        return {"elements": elements, "cutoff": self.cutoff, **self.given}

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Parameters and buffers; graph-pes's version and the like, which are no tensors, are left out."""
        found = super().state_dict(*args, **kwargs)
        for key in [key for key in found if key.endswith("_extra_state")]:
            del found[key]
        return found

    def undecayed(self) -> list[nn.Parameter]:
        """Scales of energies."""
        return list(self.network.non_decayable_parameters())

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        """E0(z_i) + ε_i, (n_atoms,), eV."""
        graph = worth_cutting(graph, self.cutoff) if self.enveloped else within(graph, self.cutoff)
        no_edges = graph.edge_index.shape[1] == 0
        with _precision(graph.pos.dtype) if no_edges else nullcontext():
            local = self.network(self.their_graph(graph))["local_energies"]
        return self.reference(graph.z) + local.reshape(-1)  # theirs has no axis where there is one atom

    def their_graph(self, graph: AtomGraph) -> Any:
        """The same batch as graph-pes's ``AtomicGraph``."""
        made = self.graph_class(
            Z=graph.z,
            R=graph.pos,
            cell=graph.cell,
            neighbour_list=graph.edge_index,
            neighbour_cell_offsets=graph.cell_offsets,
            properties={},
            cutoff=self.cutoff,
            other={},
            batch=graph.batch,
            ptr=nn.functional.pad(graph.n_atoms.cumsum(0), (1, 0)),
        )
        if self.three_body_cutoff > 0:  # theirs goes through the atoms one by one
            first, second = edge_pairs(graph, self.three_body_cutoff)
            of_edge = (graph.edge_index, graph.cell_offsets)
            terms = [t for k in (first, second) for t in (of_edge[0][:, k], of_edge[1][k])]
            import_module("graph_pes.utils.threebody")._cache_threebody_terms(made, self.three_body_cutoff, *terms)
        return made

    @torch.no_grad()
    def prepare_for(self, structures: Sequence[Atoms]) -> None:
        """What graph-pes calls pre-fitting: scales of energies, numbers of neighbours, and whatever a model asks for.

        The energies are those beyond the fitted energies of the elements, so that E0 stands in ``reference`` alone. A
        model that has been pre-fitted stays as it is, as in graph-pes.
        """
        if self.network._has_been_pre_fit:
            return
        most = MOST_ATOMS // 25 if self.three_body_cutoff > 0 else MOST_ATOMS
        atoms = sum(len(one) for one in structures)
        chosen = list(structures)[:: max(1, -(-atoms // most))]
        graph = self.their_graph(within(build_graph(chosen, self.cutoff, dtype=torch.float32), self.cutoff))
        energies = [energy for one in chosen if (energy := get_labels(one).energy) is not None]
        if len(energies) == len(chosen):
            reference = fit_energy_reference(chosen).energies
            beyond = [energy - float(reference[one.numbers].sum()) for energy, one in zip(energies, chosen)]
            graph.properties["energy"] = torch.tensor(beyond, dtype=torch.float32)
        log = logging.getLogger("graph-pes")  # speaks of energies of the elements, which are not its business here
        level = log.level
        log.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="No energy data")
                for module in self.network.modules():
                    if hasattr(module, "pre_fit"):
                        module.pre_fit(graph)
        finally:
            log.setLevel(level)
        self.network._has_been_pre_fit.fill_(1)


class OneHot(nn.Module):
    """graph-pes's ``AtomicOneHot`` in the precision of the network, and without a look at values of tensors."""

    Z_to_idx: Tensor
    one: Tensor

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.n_elements = int(theirs.n_elements)
        self.register_buffer("Z_to_idx", theirs.Z_to_idx)
        self.register_buffer("one", torch.ones(()))  # of the network's precision

    def forward(self, Z: Tensor) -> Tensor:
        """(n_atoms, n_elements), of atomic numbers (n_atoms,)."""
        return nn.functional.one_hot(self.Z_to_idx[Z], self.n_elements).to(self.one.dtype)


def edge_pairs(graph: AtomGraph, cutoff: float) -> tuple[Tensor, Tensor]:
    """All pairs of different edges with one centre that are shorter than ``cutoff`` Å, (n_pairs,) each, both orders."""
    with torch.no_grad():
        near = torch.nonzero(edge_vectors(graph).norm(dim=1) < cutoff)[:, 0]
        centre = graph.edge_index[0].index_select(0, near)  # sorted
        count = torch.bincount(centre, minlength=len(graph.z))
        partners = count.index_select(0, centre)
        first = torch.arange(len(near), device=near.device).repeat_interleave(partners)
        start = (count.cumsum(0) - count).index_select(0, centre) - (partners.cumsum(0) - partners)
        second = torch.arange(len(first), device=near.device) + start.index_select(0, first)
        different = first != second
        return near[first[different]], near[second[different]]


OURS = ("elements", "cutoff")


def _plain(value: Any) -> Any:
    """A class of functions of the distance by its name, a tuple as a list; anything else as it is."""
    if isinstance(value, type):
        return value.__name__
    return list(value) if isinstance(value, tuple) else value


@contextmanager
def _precision(dtype: torch.dtype) -> Iterator[None]:
    """torch's default precision, in which graph-pes makes the vectors of edges where there are none."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _without_extra_state(module: nn.Module, incompatible: Any) -> None:
    missing = incompatible.missing_keys
    missing[:] = [key for key in missing if not key.endswith("_extra_state")]


@cache
def _graph_pes() -> Any:
    """The module of graph-pes's models. Raises ConfigError where it cannot be imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module("graph_pes.models")
    except ImportError as error:
        raise ConfigError(
            f'graph-pes cannot be imported ({error}); its models need it: pip install "mdl-physpre[graph-pes]"'
        ) from error


def _own_arguments(model: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(_graph_pes().__dict__[model]).parameters)


@cache
def _class_of(model: str) -> type[GraphPES]:
    theirs = _graph_pes().__dict__.get(model)
    base = import_module("graph_pes.graph_pes_model").GraphPESModel
    if not (inspect.isclass(theirs) and issubclass(theirs, base) and theirs is not base):
        raise AttributeError(f"graph-pes has no model {model!r}")
    own = [p.replace(kind=p.KEYWORD_ONLY) for name, p in _own_arguments(model).items() if name not in OURS]
    ours = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in OURS]
    doc = f"graph-pes's ``{model}``: see :class:`GraphPES`."
    made = type(model, (GraphPES,), {"model": model, "__module__": __name__, "__doc__": doc})
    made.__signature__ = inspect.Signature([*ours, *own])  # type: ignore[attr-defined]
    return made


def __getattr__(name: str) -> type[GraphPES]:
    if not name[0].isupper():  # no model; graph-pes may not be there to ask
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _class_of(name)

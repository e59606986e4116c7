"""The crystal graph convolutional network (CGCNN) in the form that MatDeepLearn gives it.

Parameter names and shapes are MatDeepLearn's, so that a state dictionary passes from one to the other.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor, nn
from torch.nn import functional

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials import cgcnn_native
from mdl_physpre.potentials.base import Potential, Predictions, edge_vectors, sum_by_structure, volumes
from mdl_physpre.potentials.cgcnn_edges import Edges, cut_edges
from mdl_physpre.potentials.cgcnn_kernels import EnergiesAndSlopes, energies_and_slopes
from mdl_physpre.potentials.cgcnn_radial import (
    GaussianBasis,
    compress_basis,
    piecewise_polynomials,
    smoothstep,
    smoothstep_slope,
)
from mdl_physpre.potentials.reference import EnergyReference
from mdl_physpre.structures.graph import AtomGraph

NODE_DIM = 100
"""Length of the one-hot element vector: atomic numbers 1 to 100."""


class GatedConvolution(nn.Module):
    """The two linear maps of one convolution; rows of their weights act on (centre, neighbour, edge) in this order."""

    def __init__(self, dim: int, edge_dim: int) -> None:
        super().__init__()
        self.lin_f = nn.Linear(2 * dim + edge_dim, dim)
        self.lin_s = nn.Linear(2 * dim + edge_dim, dim)


class LinearList(nn.ModuleList):
    """A list of linear maps."""

    def __iter__(self) -> Iterator[nn.Linear]:
        return super().__iter__()  # type: ignore[return-value]


class ConvolutionList(nn.ModuleList):
    """A list of convolutions."""

    def __iter__(self) -> Iterator[GatedConvolution]:
        return super().__iter__()  # type: ignore[return-value]


class CGCNN(Potential):
    """Crystal graph convolutional network, Xie and Grossman, Phys. Rev. Lett. 120, 145301 (2018).

        h_i⁰ = silu(W_pre e_{z_i} + b_pre)
        h_i  ← h_i + (1/n_i) Σ_j f(r_ij) sigmoid(a^f_ij) softplus(a^s_ij),    a_ij = W [h_i, h_j, g(r_ij)] + b
        ε_i  = w_out · silu(… silu(W_post h_i + b_post)) + b_out
        E    = Σ_i (E0_{z_i} + energy_scale · ε_i)

    with ``gc_count`` convolutions, ``post_fc_count`` layers after them, and ``edge_dim`` Gaussians g of the distance.

    ``envelope=True``: f is 1 up to ``envelope_start`` · cutoff and falls to 0 at the cutoff by the quintic smoothstep
    (twice continuously differentiable), and n_i = 1 + Σ_j f(r_ij). A mean needs a smooth count as well: dividing by the
    number of neighbours would let every message jump when one more enters, and dividing by Σ_j f alone would keep the
    weight of an atom's only neighbour at 1 up to the cutoff. The 1 counts the atom itself, needs no fitting to a data
    set, and changes the host's mean by less than one per cent at its usual hundred and more neighbours.

    ``envelope=False``: f = 1 and n_i is the number of neighbours, which reproduces MatDeepLearn; energy and forces are
    then discontinuous where an edge enters.

    Parameters
    ----------
    elements: atomic numbers or symbols that the potential knows; None accepts 1 to 100.
    cutoff: Å.
    dim1, dim2: channels of the convolutions and of the layers after them.
    pre_fc_count, gc_count, post_fc_count: numbers of layers.
    edge_dim, edge_width: number of Gaussians, and their width as a fraction of the cutoff.
    envelope, envelope_start: see above.
    energy_scale: eV for each unit of the network's output.
    reference: energies of the elements (eV); zero if not given.
    batch_norm, dropout_rate, act, pool, pool_order: MatDeepLearn's keys; only the default values are supported.

    Raises ConfigError for a value that is not supported, DataError for an atomic number outside 1 to 100.
    """

    concurrent = True

    def __init__(
        self,
        elements: Iterable[int | str] | None = None,
        cutoff: float = 8.0,
        dim1: int = 100,
        dim2: int = 150,
        pre_fc_count: int = 1,
        gc_count: int = 4,
        post_fc_count: int = 3,
        edge_dim: int = 50,
        edge_width: float = 0.2,
        envelope: bool = True,
        envelope_start: float = 0.66,
        energy_scale: float = 1.0,
        reference: EnergyReference | None = None,
        batch_norm: bool = False,
        batch_track_stats: bool = True,
        dropout_rate: float = 0.0,
        act: str = "silu",
        pool: str = "global_add_pool",
        pool_order: str = "late",
    ) -> None:
        super().__init__()
        _refuse_unsupported(batch_norm=batch_norm, dropout_rate=dropout_rate, act=act, pool=pool, pool_order=pool_order)
        _require_positive(cutoff=cutoff, dim1=dim1, dim2=dim2, gc_count=gc_count, edge_width=edge_width)
        _require_positive(energy_scale=energy_scale, edge_dim=edge_dim - 1, pre_fc_count=pre_fc_count + 1)
        _require_positive(post_fc_count=post_fc_count + 1)
        if not 0.0 <= envelope_start < 1.0:
            raise ConfigError(f"CGCNN: envelope_start is {envelope_start}, expected a fraction of the cutoff in [0, 1)")
        self.elements = element_numbers(elements)
        self.cutoff = float(cutoff)
        self.dim1, self.dim2 = int(dim1), int(dim2)
        self.pre_fc_count, self.gc_count, self.post_fc_count = int(pre_fc_count), int(gc_count), int(post_fc_count)
        self.edge_dim, self.edge_width = int(edge_dim), float(edge_width)
        self.envelope, self.envelope_start = bool(envelope), float(envelope_start)
        self.energy_scale = float(energy_scale)

        dim = self.dim1 if pre_fc_count else NODE_DIM
        pre = [NODE_DIM, *[dim] * self.pre_fc_count]
        post = [dim, *[self.dim2] * self.post_fc_count]
        self.distance_expansion = GaussianBasis(self.cutoff, self.edge_dim, self.edge_width)
        self.pre_lin_list = LinearList(nn.Linear(a, b) for a, b in zip(pre, pre[1:]))
        self.conv_list = ConvolutionList(GatedConvolution(dim, self.edge_dim) for _ in range(self.gc_count))
        self.post_lin_list = LinearList(nn.Linear(a, b) for a, b in zip(post, post[1:]))
        self.lin_out = nn.Linear(post[-1], 1)
        self.reference = EnergyReference() if reference is None else reference
        self._columns: dict[Any, Tensor] = {}

    def hyperparameters(self) -> dict[str, Any]:
        """What ``CGCNN(**…)`` needs to be built again, as plain values; weights and energy reference not included."""
        names = (
            "cutoff", "dim1", "dim2", "pre_fc_count", "gc_count", "post_fc_count", "edge_dim", "edge_width",
            "envelope", "envelope_start", "energy_scale",
        )  # fmt: skip
        elements = None if self.elements is None else list(self.elements)
        return {"elements": elements, **{name: getattr(self, name) for name in names}}

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        """Energy of each atom (N,) in eV, differentiable in positions, cell and parameters."""
        check_atomic_numbers(graph.z)
        distances = edge_vectors(graph).norm(dim=1)
        h = self.embed(graph.z)
        centre, neighbour = graph.edge_index
        gaussians = self.distance_expansion(distances)
        weights = self.edge_weights(distances, centre, len(h))
        for convolution in self.conv_list:
            z = torch.cat([h[centre], h[neighbour], gaussians], dim=1)
            gate = torch.sigmoid(convolution.lin_f(z)) * functional.softplus(convolution.lin_s(z))
            h = h + torch.zeros_like(h).index_add(0, centre, weights[:, None] * gate)
        return self.reference(graph.z) + self.energy_scale * self.read_out(h)

    def embed(self, z: Tensor) -> Tensor:
        """Node vectors (N, dim) before the first convolution."""
        h: Tensor = functional.one_hot(z - 1, NODE_DIM).to(self.lin_out.weight.dtype)
        for linear in self.pre_lin_list:
            h = functional.silu(linear(h))
        return h

    def read_out(self, h: Tensor) -> Tensor:
        """Network output (N,) of each node vector."""
        for linear in self.post_lin_list:
            h = functional.silu(linear(h))
        return self.lin_out(h)[:, 0]

    def edge_weights(self, distances: Tensor, centre: Tensor, n_atoms: int) -> Tensor:
        """f(r_ij) / n_i for every edge (E,); 0 at and beyond the cutoff."""
        if self.envelope:
            f = smoothstep(distances, self.envelope_start * self.cutoff, self.cutoff)
        else:
            f = (distances <= self.cutoff).to(distances.dtype)
        norm = f.new_full((n_atoms,), 1.0 if self.envelope else 0.0).index_add(0, centre, f)
        return f / norm.index_select(0, centre).clamp_min(torch.finfo(f.dtype).tiny)

    def predictions(self, graph: AtomGraph, forces: bool, stress: bool) -> Predictions:
        """Energies, forces and stress with derivatives by hand, not differentiable."""
        check_atomic_numbers(graph.z)
        with torch.no_grad():
            vectors, distances, index = self._within_cutoff(graph)
            edges = self._edges(distances, index, len(graph.z))
            energies, slopes, _ = energies_and_slopes(
                edges, self.embed(graph.z), self._packed_parameters(), self.gc_count, forces or stress
            )
            return self._assemble(graph, energies, slopes, vectors, distances, index, forces, stress)

    def differentiable_predictions(self, graph: AtomGraph, forces: bool, stress: bool) -> Predictions:
        """As :meth:`predictions`, and one backward pass gives the gradient in the parameters (not in positions)."""
        check_atomic_numbers(graph.z)
        with torch.no_grad():
            vectors, distances, index = self._within_cutoff(graph)
            edges = self._edges(distances, index, len(graph.z))
        h, parameters = self.embed(graph.z), self._packed_parameters()
        energies, slopes = EnergiesAndSlopes.apply(edges, self.gc_count, h, *parameters)
        return self._assemble(graph, energies, slopes, vectors, distances, index, forces, stress)

    def _within_cutoff(self, graph: AtomGraph) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors, distances and index of the edges that count: a list with a skin holds others."""
        vectors, index = edge_vectors(graph), graph.edge_index
        distances = vectors.norm(dim=1)
        near = distances <= self.cutoff
        if not bool(near.all()):
            vectors, distances, index = vectors[near], distances[near], index[:, near]
        return vectors, distances, index

    def _edges(self, distances: Tensor, index: Tensor, n_atoms: int) -> Edges:
        weights = self.edge_weights(distances, index[0], n_atoms)
        weight_slope = torch.zeros_like(weights)
        if self.envelope:
            start = self.envelope_start * self.cutoff
            f = smoothstep(distances, start, self.cutoff)
            norm = f.new_ones(n_atoms).index_add(0, index[0], f)
            weight_slope = smoothstep_slope(distances, start, self.cutoff) / norm.index_select(0, index[0])
        if (library := cgcnn_native.library_for(distances)) is not None:
            sweeps = cgcnn_native.NativeSweeps(
                library, index, distances, weights, n_atoms, self.cutoff, self._n_pieces
            )
            return Edges(n_atoms, [], sweeps, weights, weight_slope, index[0])
        columns = self._radial_columns(distances)
        gaussians = self.distance_expansion(distances)
        slopes = self.distance_expansion.slopes(distances, gaussians)
        return cut_edges(index[0], index[1], gaussians @ columns, slopes @ columns, weights, weight_slope, n_atoms)

    @property
    def _n_pieces(self) -> int:
        """Pieces half as long as the Gaussians are wide: polynomials of degree 7 are then exact to rounding."""
        return math.ceil(2.0 / self.edge_width)

    def _radial_columns(self, like: Tensor) -> Tensor:
        """(edge_dim, K): what turns weights of the Gaussians into weights of the functions that the sweeps use.

        :func:`piecewise_polynomials` in C, :func:`compress_basis` in tensor operations; in the precision and on the
        device of ``like``; made once.
        """
        library = cgcnn_native.library_for(like)
        key = (like.dtype, like.device, library is None)
        if key not in self._columns:
            if library is not None:
                terms = cgcnn_native.terms(library)
                columns = piecewise_polynomials(self.distance_expansion, self.cutoff, self._n_pieces, terms)
            else:
                samples = torch.linspace(0.0, self.cutoff, 40 * self.edge_dim, dtype=torch.float64)
                exact = copy.deepcopy(self.distance_expansion).to("cpu", torch.float64)
                columns = compress_basis(exact(samples), 1e-8 if like.dtype == torch.float32 else 1e-15)
            self._columns[key] = columns.to(like)
        return self._columns[key]

    def _packed_parameters(self) -> list[Tensor]:
        """Parameters as the kernels take them: node and edge parts apart, the softplus channel with its sign turned."""
        packed: list[Tensor] = []
        columns = self._radial_columns(self.lin_out.weight)
        for convolution in self.conv_list:
            f, s = convolution.lin_f, convolution.lin_s
            dim = len(f.bias)
            parts = [f.weight[:, :dim], -s.weight[:, :dim], f.weight[:, dim : 2 * dim], -s.weight[:, dim : 2 * dim]]
            bias = torch.cat([f.bias, -s.bias, torch.zeros_like(f.bias), torch.zeros_like(s.bias)])
            radial = torch.stack([f.weight[:, 2 * dim :], -s.weight[:, 2 * dim :]])
            packed += [torch.cat(parts).T, bias, (radial @ columns).transpose(1, 2)]
        for linear in (*self.post_lin_list, self.lin_out):
            packed += [linear.weight, linear.bias]
        return packed

    def _assemble(
        self,
        graph: AtomGraph,
        energies: Tensor,
        slopes: Tensor | None,
        vectors: Tensor,
        distances: Tensor,
        index: Tensor,
        forces: bool,
        stress: bool,
    ) -> Predictions:
        """F_i = Σ_j (γ_ij + γ_ji) r_ij / |r_ij| and σ = (1/V) Σ_ij γ_ij r_ij r_ijᵀ / |r_ij| with γ = dE/d|r_ij|."""
        found = Predictions(sum_by_structure(self.reference(graph.z) + self.energy_scale * energies, graph))
        if slopes is None or not (forces or stress):
            return found
        pull = (self.energy_scale * slopes / distances)[:, None] * vectors
        if forces:
            found.forces = torch.zeros_like(graph.pos).index_add(0, index[0], pull).index_add(0, index[1], -pull)
        if stress:
            by_atom = pull.new_zeros(len(graph.z), 3, 3).index_add(0, index[0], pull[:, :, None] * vectors[:, None, :])
            virial = torch.zeros_like(graph.cell).index_add(0, graph.batch, by_atom)
            volume = volumes(graph)[:, None, None]
            # divided where there is a volume: backpropagation through a division by NaN would spoil the gradient
            known = torch.isfinite(volume)
            found.stress = torch.where(known, virial / torch.where(known, volume, 1.0), torch.nan)
        return found


def element_numbers(elements: Iterable[int | str] | None) -> tuple[int, ...] | None:
    """Atomic numbers, ascending, of elements given by number or by symbol. Raises ConfigError for an unknown one."""
    if elements is None:
        return None
    numbers = set()
    for element in elements:
        number = atomic_numbers.get(element) if isinstance(element, str) else int(element)
        if number is None or not 1 <= number <= NODE_DIM:
            raise ConfigError(f"CGCNN: elements contains {element!r}, expected symbols or numbers of H to Fm")
        numbers.add(number)
    if not numbers:
        raise ConfigError("CGCNN: elements is empty; name at least one, or give None to accept all")
    return tuple(sorted(numbers))


def check_atomic_numbers(z: Tensor) -> None:
    """Raises DataError where an atomic number has no place in the one-hot element vector."""
    bad = z[(z < 1) | (z > NODE_DIM)]
    if len(bad):
        number = int(bad[0])
        name = chemical_symbols[number] if 0 <= number < len(chemical_symbols) else "no element"
        raise DataError(f"CGCNN knows atomic numbers 1 to {NODE_DIM}; found {number} ({name})")


def _refuse_unsupported(**given: Any) -> None:
    supported: dict[str, Sequence[Any]] = {
        "batch_norm": (False,),
        "dropout_rate": (0.0,),
        "act": ("silu",),
        "pool": ("global_add_pool",),
        "pool_order": ("late",),
    }
    reasons = {
        "batch_norm": "batch statistics make the energy of a structure depend on its batch",
        "dropout_rate": "forces would not be the derivative of one energy",
        "act": "a potential needs a smooth activation",
        "pool": "the energy must be a sum over atoms",
        "pool_order": "the energy must be a sum over atoms",
    }
    for name, value in given.items():
        if value not in supported[name]:
            raise ConfigError(f"CGCNN: {name} is {value!r}; only {supported[name][0]!r} is supported ({reasons[name]})")


def _require_positive(**given: float) -> None:
    for name, value in given.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"CGCNN: {name} is too small: {value}")

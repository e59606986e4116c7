"""The crystal graph convolutional network (CGCNN) in the form that MatDeepLearn gives it.

Parameter names and shapes are MatDeepLearn's, so that a state dictionary passes from one to the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor, nn
from torch.nn import functional

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials.base import Potential, edge_vectors
from mdl_physpre.potentials.reference import EnergyReference
from mdl_physpre.structures.graph import AtomGraph

NODE_DIM = 100
"""Length of the one-hot element vector: atomic numbers 1 to 100."""


class GaussianBasis(nn.Module):
    """``n`` Gaussians of the distance, evenly spaced on ``[0, cutoff]``:

        g_k(r) = exp(-(r - r_k)² / (2 (width · cutoff)²)),   r_k = k · cutoff / (n - 1)

    Distances (E,) in Å give values (E, n).
    """

    offset: Tensor

    def __init__(self, cutoff: float, n: int, width: float) -> None:
        super().__init__()
        self.coefficient = -0.5 / (cutoff * width) ** 2
        self.register_buffer("offset", torch.linspace(0.0, cutoff, n))

    def forward(self, distances: Tensor) -> Tensor:
        return torch.exp(self.coefficient * (distances[:, None] - self.offset) ** 2)


class GatedConvolution(nn.Module):
    """The two linear maps of one convolution; rows of their weights act on (centre, neighbour, edge) in this order."""

    def __init__(self, dim: int, edge_dim: int) -> None:
        super().__init__()
        self.lin_f = nn.Linear(2 * dim + edge_dim, dim)
        self.lin_s = nn.Linear(2 * dim + edge_dim, dim)


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
        self.pre_lin_list = nn.ModuleList(nn.Linear(a, b) for a, b in zip(pre, pre[1:]))
        self.conv_list = nn.ModuleList(GatedConvolution(dim, self.edge_dim) for _ in range(self.gc_count))
        self.post_lin_list = nn.ModuleList(nn.Linear(a, b) for a, b in zip(post, post[1:]))
        self.lin_out = nn.Linear(post[-1], 1)
        self.reference = EnergyReference() if reference is None else reference

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
        h = functional.one_hot(z - 1, NODE_DIM).to(self.lin_out.weight.dtype)
        for linear in self.pre_lin_list:
            h = functional.silu(linear(h))
        return h

    def read_out(self, h: Tensor) -> Tensor:
        """Network output (N,) of each node vector."""
        for linear in self.post_lin_list:
            h = functional.silu(linear(h))
        return self.lin_out(h)[:, 0]

    def edge_weights(self, distances: Tensor, centre: Tensor, n_atoms: int) -> Tensor:
        """f(r_ij) / n_i for every edge (E,)."""
        if not self.envelope:
            counts = torch.bincount(centre, minlength=n_atoms).to(distances.dtype)
            return 1.0 / counts[centre]
        f = smoothstep(distances, self.envelope_start * self.cutoff, self.cutoff)
        norm = torch.ones(n_atoms, dtype=f.dtype, device=f.device).index_add(0, centre, f)
        return f / norm[centre]


def smoothstep(distances: Tensor, start: float, stop: float) -> Tensor:
    """1 below ``start``, 0 above ``stop`` and 6s⁵ - 15s⁴ + 10s³ with s = (stop - r)/(stop - start) between them."""
    s = ((stop - distances) / (stop - start)).clamp(0.0, 1.0)
    return s**3 * (s * (6.0 * s - 15.0) + 10.0)


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

"""The sums over edges of the crystal graph network as an operator in C, compiled on first use.

One pass over the edges does what takes a dozen tensor operations otherwise. With a_e = P_i + P'_j + C φ(d_e) of both
channels for the edge e = (i, j), the operator, its gradient and the gradient of that are

    messages    m_i = Σ_e w_e g_e,    g = sigmoid(a^f) softplus(a^s)
    backward    from λ = ∂L/∂m, ∂L/∂(P, P') and either ∂L/∂(d, w), for forces, or ∂L/∂C, for the loss
    second      for rates of change of P, P', d and w the rate of m, and the gradient of λ · rate in P, P' and C

``second`` is what backpropagation through ``backward`` asks for when a loss depends on forces. All recompute what
belongs to an edge. Without a compiler, with ``MDL_PHYSPRE_NATIVE=0``, in double precision and on other devices, tensor
operations are used (:mod:`mdl_physpre.potentials.backbones.cgcnn.network`); both give the same to rounding.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdl_physpre.potentials.kernels.c_code import VECTOR_BYTES, Call, CCode, PerThread, address, first_edges, structure
from mdl_physpre.potentials.kernels.edge_op import arguments_of, operator, register_gradients

# double precision gains little, because its exponentials are not vectorised
CODE = CCode(Path(__file__).with_name("operators.c"), {torch.float32: "float"}, "the CGCNN")
LAYER = structure(
    "n_atoms n_pieces stride", "start order neighbour distance weight centre_sum neighbour_sum coefficient",
    doubles="pieces_per_length",
)  # fmt: skip


def terms(found: ctypes.CDLL) -> int:
    """Number of coefficients of the polynomials in the distance."""
    return ctypes.c_int64.in_dll(found, "terms").value


def lanes(like: Tensor) -> int:
    """Channels are padded to a multiple of this."""
    return VECTOR_BYTES // like.element_size()


def arranged(centre: Tensor, distance: Tensor, n_atoms: int, per_length: float, n_pieces: int) -> tuple[Tensor, Tensor]:
    """First edge of each atom (N + 1,), and the edges of each atom piece by piece (E,)."""
    start = first_edges(centre, n_atoms)
    order, count = start.new_empty(len(centre)), start.new_empty(n_pieces + 1)
    found, distance = CODE.library_for(distance), distance.detach().contiguous()
    found.arrange(  # type: ignore[union-attr]
        ctypes.c_int64(n_atoms), ctypes.c_int64(n_pieces), ctypes.c_double(per_length),
        *(address(t) for t in (start, distance, order, count)),
    )  # fmt: skip
    return start, order


class Layer(NamedTuple):
    """What the operators take of a convolution; S channels are whole vectors."""

    nodes: Tensor  # (4, N, S), both channels of P, then of P'; the softplus channel has its sign turned
    coefficient: Tensor  # (2, n_pieces · terms, S), C by cgcnn_radial.piecewise_polynomials
    distance: Tensor  # (E,), Å, sorted by centre
    weight: Tensor  # (E,), w
    start: Tensor  # and order: as :func:`arranged` has them
    neighbour: Tensor  # (E,)
    order: Tensor
    per_length: float  # pieces in 1 Å
    n_pieces: int

    def zeros(self) -> Tensor:
        """Zeros for sums over the edges of an atom (2, N, S)."""
        return self.nodes.new_zeros(2, *self.nodes.shape[1:])

    def call(self) -> Call:
        """These as the C functions take them."""
        _, n_atoms, stride = self.nodes.shape
        centre, neighbour = self.nodes.contiguous().split(2)
        return Call(CODE, LAYER, self, n_atoms=n_atoms, stride=stride, pieces_per_length=self.per_length,
                    centre_sum=centre, neighbour_sum=neighbour)  # fmt: skip


ARGUMENTS = arguments_of(Layer)


def _joined(centre: Tensor, neighbour: PerThread) -> Tensor:
    return torch.cat([centre, neighbour.total()])


@operator("cgcnn_messages", ARGUMENTS, results=1)
def messages(*layer: Any) -> Tensor:
    """m (N, S) of a :class:`Layer`."""
    given = Layer(*layer)
    found = given.zeros()[0]
    given.call().run("messages", found)
    return found


@operator("cgcnn_messages_by_geometry", f"Tensor adjoint, {ARGUMENTS}", like=("nodes", "distance", "weight"))
def by_geometry(adjoint: Tensor, *layer: Any) -> tuple[Tensor, ...]:
    """Gradients in nodes, distance and weight."""
    given = Layer(*layer)
    call = given.call()
    centre, neighbour = given.zeros(), call.sums(given.nodes[:2])
    edges = torch.zeros_like(given.distance), torch.zeros_like(given.weight)
    call.run("by_geometry", adjoint, centre, neighbour, *edges)
    return _joined(centre, neighbour), *edges


@operator("cgcnn_messages_by_parameters", f"Tensor adjoint, {ARGUMENTS}", like=("nodes", "coefficient"))
def by_parameters(adjoint: Tensor, *layer: Any) -> tuple[Tensor, ...]:
    """Gradients in nodes and coefficient."""
    given = Layer(*layer)
    call = given.call()
    centre, neighbour, coefficient = given.zeros(), call.sums(given.nodes[:2]), call.sums(given.coefficient)
    call.run("by_parameters", adjoint, centre, neighbour, coefficient)
    return _joined(centre, neighbour), coefficient.total()


RATES = "Tensor node_rates, Tensor distance_rates, Tensor weight_rates"


@operator("cgcnn_messages_second", f"{RATES}, Tensor adjoint, {ARGUMENTS}", like=("adjoint", "nodes", "coefficient"))
def second(
    node_rates: Tensor, distance_rates: Tensor, weight_rates: Tensor, adjoint: Tensor, *layer: Any
) -> tuple[Tensor, ...]:
    """The rate of m, and the gradients of adjoint · rate in nodes and coefficient."""
    given = Layer(*layer)
    call = given.call()
    rate, centre = given.zeros()[0], given.zeros()
    neighbour, coefficient = call.sums(given.nodes[:2]), call.sums(given.coefficient)
    rates = *node_rates.contiguous().split(2), distance_rates, weight_rates
    call.run("second", adjoint, *rates, rate, centre, neighbour, coefficient)
    return rate, _joined(centre, neighbour), coefficient.total()


register_gradients(messages, by_geometry, by_parameters)
register_gradients(by_geometry, second)


@messages.register_fake
def _(nodes: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(nodes[0])

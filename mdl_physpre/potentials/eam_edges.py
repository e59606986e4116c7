"""Edges of a batch as the embedded-atom potential needs them: their terms, and the forces and virials they add up to.

By tensor operations on any device (:class:`TensorEdges`), or in C on the processor (:class:`NativeEdges`), compiled on
first use where there is a compiler. Both have the same methods and give the same to rounding.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from mdl_physpre.potentials.edge_sums import fixed_edge_vectors, last_edges, virial_sums
from mdl_physpre.potentials.native import compiled, ranges_of_atoms, thread_pool
from mdl_physpre.potentials.radial_functions import RadialTable
from mdl_physpre.structures.graph import AtomGraph

SOURCE = Path(__file__).with_name("eam_native.c")
DTYPES = {torch.float32: "float", torch.float64: "double"}


@lru_cache(maxsize=4)
def library(real: str) -> ctypes.CDLL | None:
    """The compiled functions in precision ``real`` (``float`` or ``double``), or None where they cannot be had."""
    return compiled(SOURCE, real, ("terms", "sums"), "the embedded-atom potential")


def library_for(graph: AtomGraph, element: Tensor) -> ctypes.CDLL | None:
    """The compiled functions for a batch, or None where tensor operations have to do.

    They look elements up without asking, and take the edges of an atom to stand together: edges in another order, and
    elements that the potential does not know (``element`` below 0), are left to tensor operations.
    """
    real = DTYPES.get(graph.pos.dtype) if graph.pos.device.type == "cpu" else None
    found, centre = None if real is None else library(real), graph.edge_index[0]
    if found is None or bool((element < 0).any()) or bool((centre[1:] < centre[:-1]).any()):
        return None
    return found


class TensorEdges:
    """The edges of a batch by tensor operations.

    Parameters
    ----------
    graph : the batch.
    functions : gives φ, dφ/dr, ρ, dρ/dr of distances (n_edges,).

    Attributes
    ----------
    distance, phi_slope, rho_slope : |r_ij|, φ'(r_ij), ρ'(r_ij) of each edge, (n_edges,).
    phi, rho : Σ_j φ(r_ij) and Σ_j ρ(r_ij) of each atom, (n_atoms,).
    """

    def __init__(self, graph: AtomGraph, functions: Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]) -> None:
        self.graph, self.ends = graph, last_edges(graph)
        self.vectors = fixed_edge_vectors(graph, self.ends)
        self.distance = torch.linalg.vector_norm(self.vectors, dim=1)
        phi, self.phi_slope, rho, self.rho_slope = functions(self.distance)
        self.phi, self.rho = self._atomic_sum(phi), self._atomic_sum(rho)

    def _atomic_sum(self, values: Tensor) -> Tensor:
        out = values.new_zeros((self.graph.z.shape[0], *values.shape[1:]))
        return out.index_add(0, self.graph.edge_index[0], values)

    def forces_and_virials(self, embedding_slope: Tensor) -> tuple[Tensor, Tensor]:
        """Forces (n_atoms, 3), eV/Å, and Σ_ij g_ij r_ij⊗r_ij/|r_ij| of each structure (n_structures, 3, 3), eV.

        g_ij = φ'(r_ij) + [F'(ρ_i) + F'(ρ_j)] ρ'(r_ij), with F' (n_atoms,) = ``embedding_slope``.
        """
        i, j = self.graph.edge_index
        both = embedding_slope.index_select(0, i) + embedding_slope.index_select(0, j)
        g = torch.addcmul(self.phi_slope, self.rho_slope, both)
        along = self.vectors * (g / self.distance.clamp(min=1e-12))[:, None]
        return self._atomic_sum(along), virial_sums(self.vectors, along, self.graph, self.ends)


class _Edges(ctypes.Structure):
    """edges_t of eam_native.c."""

    _fields_ = [
        ("n_elements", ctypes.c_int64), ("intervals", ctypes.c_int64), ("scale", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in (
            "start", "neighbour", "batch", "element", "pair_of", "position", "cell", "offset", "table",
            "vector", "distance", "phi_slope", "rho_slope", "phi", "rho")),
    ]  # fmt: skip


class NativeEdges:
    """As :class:`TensorEdges`, in C, with the radial functions on a table.

    Each thread (``torch.get_num_threads()``) takes a range of atoms with about the same number of edges.

    Parameters
    ----------
    found : the compiled functions.
    graph : the batch, on the processor.
    element, pair_of : place of each atom's element (n_atoms,), and the pair of two such, (n_elements²,).
    table : the radial functions, in the precision of the graph.
    """

    def __init__(
        self, found: ctypes.CDLL, graph: AtomGraph, element: Tensor, pair_of: Tensor, table: RadialTable
    ) -> None:
        n_atoms, n_edges = graph.z.shape[0], graph.edge_index.shape[1]
        self.library = found
        centre, neighbour = graph.edge_index.to(torch.int64)
        start = torch.searchsorted(centre.contiguous(), torch.arange(n_atoms + 1))
        scratch = graph.pos.new_empty(6, n_edges)  # vectors take three rows
        self.distance, self.phi_slope, self.rho_slope = scratch[3:]
        self.phi, self.rho = graph.pos.new_empty(2, n_atoms)
        given = {
            "start": start, "neighbour": neighbour, "batch": graph.batch.to(torch.int64), "element": element,
            "pair_of": pair_of, "position": graph.pos.detach(), "cell": graph.cell.detach().to(graph.pos.dtype),
            "offset": graph.cell_offsets.to(graph.pos.dtype),
            "table": table.coefficients, "vector": scratch, "distance": self.distance, "phi_slope": self.phi_slope,
            "rho_slope": self.rho_slope, "phi": self.phi, "rho": self.rho,
        }  # fmt: skip
        self.held = {name: tensor.contiguous() for name, tensor in given.items()}
        pointers = {name: tensor.data_ptr() for name, tensor in self.held.items()}
        n_elements = round(len(pair_of) ** 0.5)
        self.edges = _Edges(n_elements=n_elements, intervals=table.intervals, scale=table.scale, **pointers)
        self.n_structures = graph.n_atoms.shape[0]
        self.ranges = ranges_of_atoms(start)
        self._run("terms", lambda _: [])

    def _run(self, name: str, tensors: Callable[[int], list[Tensor]]) -> None:
        """Call the C function for each range of atoms with the tensors ``tensors(thread)``."""
        function = getattr(self.library, name)

        def work(thread: int) -> None:
            first, last = (ctypes.c_int64(n) for n in self.ranges[thread])
            held = tensors(thread)
            function(ctypes.byref(self.edges), first, last, *(ctypes.c_void_p(t.data_ptr()) for t in held))

        if len(self.ranges) == 1:
            work(0)
        else:
            list(thread_pool(os.getpid(), len(self.ranges)).map(work, range(len(self.ranges))))

    def forces_and_virials(self, embedding_slope: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`TensorEdges.forces_and_virials`."""
        slope = embedding_slope.contiguous()
        forces = slope.new_empty(len(slope), 3)
        virials = torch.zeros(len(self.ranges), self.n_structures, 3, 3, dtype=torch.float64)
        self._run("sums", lambda thread: [slope, forces, virials[thread]])
        return forces, virials.sum(0).to(slope.dtype)

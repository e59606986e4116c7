"""Energies of some of the atoms."""

from __future__ import annotations

from torch import Tensor

from mdl_physpre.potentials.backbones.m3gnet.network import M3GNet
from mdl_physpre.potentials.base import AtomicPotential
from mdl_physpre.structures.graph import AtomGraph


class RootAtoms(AtomicPotential):
    """E = Σ_i m_i E_i of a network, with m (n_atoms,) 1 for atoms that count, or all where it is None.

    After an evaluation ``energies`` holds E_i, (n_atoms,), eV, of all atoms.
    """

    def __init__(self, network: M3GNet, mask: Tensor | None = None) -> None:
        super().__init__()
        self.cutoff, self.elements = network.cutoff, network.elements
        self._of_network, self.mask = network.atomic_energies, mask
        self.energies: Tensor | None = None

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        """Energy of each atom that counts and zero for the others, (n_atoms,), eV."""
        self.energies = self._of_network(graph)
        return self.energies if self.mask is None else self.energies * self.mask

"""Small potentials, good and bad, for tests of molecular dynamics."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import Tensor

from mdl_physpre.potentials.base import AtomicPotential, edge_vectors
from mdl_physpre.structures.graph import AtomGraph


class PairPotential(AtomicPotential):
    """½ Σ_j pair(r_ij) for each atom."""

    elements = None

    def __init__(self, cutoff: float = 5.0) -> None:
        super().__init__()
        self.cutoff = cutoff

    def pair(self, r: Tensor) -> Tensor:
        raise NotImplementedError

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        r = edge_vectors(graph).norm(dim=1)
        energies = torch.zeros(graph.pos.shape[0], dtype=graph.pos.dtype)
        return energies.index_add(0, graph.edge_index[0], 0.5 * self.pair(r))


class Morse(PairPotential):
    """D [(1 − e^(−a(r − r0)))² − 1] (1 − (r/rc)²)³, which vanishes smoothly at the cutoff rc."""

    def __init__(self, cutoff: float = 5.0, depth: float = 0.4, a: float = 1.8, r0: float = 2.5) -> None:
        super().__init__(cutoff)
        self.depth, self.a, self.r0 = depth, a, r0
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))

    def pair(self, r: Tensor) -> Tensor:
        well = self.depth * ((1 - torch.exp(-self.a * (r - self.r0))) ** 2 - 1)
        return self.scale * well * (1 - (r / self.cutoff) ** 2) ** 3


class Slow(Morse):
    """Takes its time, so that a run can be killed in the middle."""

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        time.sleep(0.01)
        return super().atomic_energies(graph)


class Abrupt(Morse):
    """The same without the factor: the energy jumps at the cutoff, and an edge beyond it would be seen."""

    def pair(self, r: Tensor) -> Tensor:
        return self.depth * ((1 - torch.exp(-self.a * (r - self.r0))) ** 2 - 1)


class Attraction(PairPotential):
    """A constant force of 0.5 eV/Å that pulls every pair together."""

    def pair(self, r: Tensor) -> Tensor:
        return 0.5 * r


class FalseWell(Morse):
    """Morse, and a well at 2 Å that is not there: a hot structure falls into it, and its atoms do not overlap."""

    def pair(self, r: Tensor) -> Tensor:
        return super().pair(r) - torch.exp(-(((r - 2.0) / 0.12) ** 2))


class AttractiveGold(Morse):
    """Morse, but gold attracts without a wall. The process is interrupted at evaluation ``at``."""

    def __init__(self, at: int = -1) -> None:
        super().__init__()
        self.at = at

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        self.at -= 1
        if self.at == 0:
            raise KeyboardInterrupt
        attraction = Attraction(self.cutoff).atomic_energies(graph)
        return torch.where(graph.z == 79, attraction, super().atomic_energies(graph))


class Frozen(PairPotential):
    """No forces at all."""

    def pair(self, r: Tensor) -> Tensor:
        return 0.0 * r


class NanForGold(Morse):
    """Morse, but NaN for gold from the fourth evaluation on; its derivative, 0 · NaN, reaches every atom of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        self.calls += 1
        energies = super().atomic_energies(graph)
        gold = graph.z == 79
        if self.calls <= 3 or not bool(gold.any()):
            return energies
        return torch.where(gold, torch.nan * energies, energies)


class RaisesForGold(Morse):
    """Morse, but an error for a batch that holds gold, from the fourth evaluation on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        self.calls += 1
        if self.calls > 3 and bool((graph.z == 79).any()):
            raise RuntimeError("no gold, please")
        return super().atomic_energies(graph)


class Killed(Morse):
    """Morse, but the process is interrupted at one evaluation."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        self.at -= 1
        if self.at == 0:
            raise KeyboardInterrupt
        return super().atomic_energies(graph)


class Dying(Morse):
    """Morse, but the process ends at once at the twentieth evaluation of gold, the first time."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.marker, self.calls = Path(marker), 0

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        self.calls += bool((graph.z == 79).any())
        if self.calls == 20 and not self.marker.exists():
            self.marker.touch()
            os._exit(9)
        return super().atomic_energies(graph)


class RaisesAtOnce(Morse):
    """An error at every evaluation."""

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        raise RuntimeError("no way")

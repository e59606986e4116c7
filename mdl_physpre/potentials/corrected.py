"""A potential with a core of nuclear repulsion and another zero of energy: what a teacher is made of."""

from __future__ import annotations

import torch
from torch import Tensor

from mdl_physpre.errors import CheckpointError
from mdl_physpre.potentials.base import Potential, Predictions, evaluate
from mdl_physpre.potentials.hybrid import graph_within
from mdl_physpre.potentials.reference import EnergyReference
from mdl_physpre.potentials.zbl import ZBL
from mdl_physpre.structures.graph import AtomGraph


class Correction(Potential):
    """Σ_i E0(z_i) + ½ Σ_ij f V(r_ij): energies of the elements, zero at first, and a core where there is one."""

    def __init__(self, core: ZBL | None = None) -> None:
        super().__init__()
        self.core, self.reference = core, EnergyReference()
        self.cutoff = 0.0 if core is None else core.cutoff

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        """Energy of each atom, (n_atoms,), eV."""
        energies = self.reference(graph.z).to(graph.pos.dtype)
        return energies if self.core is None else energies + self.core.atomic_energies(graph)


class CorrectedPotential(Potential):
    """E = E_base + Σ_i E0(z_i) + ½ Σ_ij f(r_ij) V(r_ij).

    The energies E0 are zero until :meth:`shift_reference` is called; f V is the core of
    :class:`~mdl_physpre.potentials.zbl.ZBL`. The graph reaches to the larger cutoff of the two parts, and each sees the
    edges within its own.

    Parameters
    ----------
    base : any potential, an ASE calculator among them (:class:`~mdl_physpre.CalculatorPotential`).
    core : where ``None``, only the zero of energy is another.
    """

    def __init__(self, base: Potential, core: ZBL | None = None) -> None:
        super().__init__()
        self.base, self.correction = base, Correction(core)
        self.elements, self.gives_stress, self.concurrent = base.elements, base.gives_stress, base.concurrent
        self.cutoff = max(base.cutoff, self.correction.cutoff)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"core={self.correction.core is not None}"

    def hyperparameters(self) -> dict:
        """Raises CheckpointError: the base may be anything, and is stored by whoever made it."""
        raise CheckpointError("a corrected potential is not saved; keep its base, the core and the energies apart")

    def shift_reference(self, energies: Tensor) -> bool:
        """Add ``energies`` (119,), eV by atomic number, to E0."""
        return self.correction.shift_reference(energies)

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        """Energies of the base plus those of the correction, (n_atoms,), eV."""
        return sum(part.atomic_energies(self._within(graph, part)) for part in self._parts())  # type: ignore[return-value]

    def predictions(self, graph: AtomGraph, forces: bool = True, stress: bool = True) -> Predictions:
        """Energies, forces and stress: sums over both parts."""
        found = [
            evaluate(part, self._within(graph, part), forces=forces, stress=stress)  # type: ignore[arg-type]
            for part in self._parts()
        ]
        total = Predictions(found[0].energies + found[1].energies)
        if found[0].forces is not None and found[1].forces is not None:
            total.forces = found[0].forces + found[1].forces
        if found[0].stress is not None and found[1].stress is not None:
            total.stress = found[0].stress + found[1].stress
        return total

    def _parts(self) -> tuple[Potential, Potential]:
        return self.base, self.correction

    def _within(self, graph: AtomGraph, part: Potential) -> AtomGraph:
        with torch.no_grad():
            return graph_within(graph, part.cutoff, self.cutoff)

"""ASE calculator for any potential of this package."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import build_graph
from mdl_physpre.structures.state import same_state, state_of
from mdl_physpre.utils.devices import precision_and_device


class PotentialCalculator(Calculator):
    """Energy, free energy (the same), forces and stress (Voigt order, eV/Å³) of a potential.

    Of a committee also ``energy_spread`` (eV) and ``force_spread`` (n_atoms,) eV/Å, with ``get_property``, or among the
    ``results``.

    Parameters
    ----------
    potential : a :class:`Potential`; it is put into evaluation mode.
    device : where it runs; its own device where ``None``.
    dtype : precision; that of its parameters where ``None``.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(
        self, potential: Potential, device: str | None = None, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        own_dtype, own_device = precision_and_device(potential)
        self.dtype, self.device = dtype or own_dtype, torch.device(device or own_device)
        self.potential = potential.to(device=self.device, dtype=self.dtype).eval()
        if potential.gives_spread:
            self.implemented_properties = [*self.implemented_properties, "energy_spread", "force_spread"]

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation, charges in ``info`` and tags among it."""
        changes: list[str] = super().check_state(atoms, tol)
        if changes or self.atoms is None or same_state(state_of(self.atoms), state_of(atoms)):
            return changes
        return ["info"]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        graph = build_graph(self.atoms, cutoff=self.potential.cutoff, dtype=self.dtype).to(self.device)
        periodic = bool(np.all(self.atoms.pbc)) and self.atoms.cell.rank == 3
        found = evaluate(self.potential, graph, forces=True, stress=periodic)
        energy = float(found.energies[0])
        self.results = {"energy": energy, "free_energy": energy}
        assert found.forces is not None
        self.results["forces"] = found.forces.detach().cpu().double().numpy()
        if found.energy_spread is not None and found.force_spread is not None:
            self.results["energy_spread"] = float(found.energy_spread[0])
            self.results["force_spread"] = found.force_spread.detach().cpu().double().numpy()
        if found.stress is not None:
            self.results["stress"] = full_3x3_to_voigt_6_stress(found.stress[0].detach().cpu().double().numpy())

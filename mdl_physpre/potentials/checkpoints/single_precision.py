"""What formats in single precision cannot carry."""

from __future__ import annotations

import torch

from mdl_physpre.potentials.base import Backbone


def lost_in_single_precision(potential: Backbone) -> list[str]:
    """A sentence each on parameters in double precision, and on energies of the elements beyond seven digits."""
    lost = []
    if any(p.dtype == torch.float64 for p in potential.parameters()):
        lost.append("double precision is not kept: parameters are rounded to single precision")
    energies = potential.reference_energies()
    rounding = float((energies.float().double() - energies).abs().max())
    if rounding > 1e-6:
        lost.append(f"energies of the elements are rounded to single precision, by up to {rounding:.1e} eV per atom")
    return lost

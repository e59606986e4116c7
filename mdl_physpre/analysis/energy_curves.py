"""Energy of two atoms against their distance: by any potential, and by the parts of an embedded-atom potential.

    E(r) = E(two atoms at distance r) − E(the two atoms far apart)

For the embedded-atom potential E = pair + embedding + atomic, each less its value at infinite distance:

    pair       φ(r), with the short-range repulsion where there is one
    embedding  Σ_{i=1,2} [F_i(ρ(r)) − F_i(0)]
    atomic     Σ_{i=1,2} E0_i, a constant, and so 0 here; its value is given beside the curves
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Annotated

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from pydantic import BeforeValidator

from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.eam.covalent_radii import covalent_radius
from mdl_physpre.potentials.eam.potential import EAMInteraction, pair_parts
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import build_graph
from mdl_physpre.utils.devices import precision_and_device
from mdl_physpre.utils.record import Record

CLOSEST = 0.3  # Å
STEP = 0.02  # Å

Number = Annotated[float, BeforeValidator(lambda value: np.nan if value is None else value)]
"""A number that is not finite is ``None`` in JSON."""


class EAMParts(Record):
    """Parts of the energy of two atoms by an embedded-atom potential, eV, each (n,); ``atomic`` is a number, Σ E0."""

    pair: tuple[Number, ...]
    embedding: tuple[Number, ...]
    atomic: float


class PairCurves(Record):
    """Of a pair of elements: sum of covalent radii, Å; potential → energies, eV, (n,); potential → parts."""

    covalent_distance: float
    curves: dict[str, tuple[Number, ...]]
    parts: dict[str, EAMParts]


class EnergyCurves(Record):
    """Curves of several potentials on common distances (n,), Å, from 0.3; ``pairs`` by name."""

    distances: tuple[float, ...]
    pairs: dict[str, PairCurves]

    @property
    def names(self) -> set[str]:
        """Potentials that have a curve."""
        return {name for found in self.pairs.values() for name in found.curves}


class EAMElement(Record):
    """Parameters of an element in an embedded-atom potential: B, eV, ρ0, and E0, eV."""

    element: str
    B_eV: float
    rho0: float
    E0_eV: float


def pair_name(pair: tuple[int, int]) -> str:
    """``O-Si``: the lower atomic number first."""
    return "-".join(chemical_symbols[z] for z in sorted(pair))


def element_pairs(elements: Sequence[int]) -> list[tuple[int, int]]:
    """Every pair of elements once, lower atomic number first."""
    return list(combinations_with_replacement(sorted(elements), 2))


def dimer_energies(potential: Potential, pair: tuple[int, int], distances: np.ndarray) -> np.ndarray:
    """Energy of two atoms at each distance (n,), Å, less that of the two atoms far apart, (n,), eV.

    Raises DataError for an element that the potential does not know.
    """
    dimers = [Atoms(numbers=pair, positions=[[0, 0, 0], [r, 0, 0]]) for r in distances]
    far = Atoms(numbers=pair, positions=[[0, 0, 0], [10 * potential.cutoff, 0, 0]])
    dtype, device = precision_and_device(potential)
    graph = build_graph([*dimers, far], potential.cutoff, dtype=dtype).on(device)
    with torch.no_grad():
        energies = evaluate(potential, graph, forces=False, stress=False).energies.cpu().double().numpy()
    return energies[:-1] - energies[-1]


def eam_parts(potential: EAMInteraction, pair: tuple[int, int], distances: np.ndarray) -> EAMParts:
    """The parts of :func:`dimer_energies` at distances (n,), Å; pair and embedding add up to it."""
    with torch.no_grad():
        phi, embedding = pair_parts(potential, *pair, distances)
        atomic = sum(float(potential.E0[potential.element_of[z]]) for z in pair)
    return EAMParts(pair=phi.tolist(), embedding=embedding.tolist(), atomic=atomic)


def energy_curves(
    potentials: Mapping[str, Potential], pairs: Sequence[tuple[int, int]], r_max: float | None = None
) -> EnergyCurves:
    """Curves of several potentials on common distances.

    Parameters
    ----------
    potentials : name → potential. Parts are given of those that are embedded-atom potentials.
    pairs : of atomic numbers.
    r_max : Å; the largest cutoff where ``None``.
    """
    end = max(p.cutoff for p in potentials.values()) if r_max is None else r_max
    distances = np.round(np.arange(CLOSEST, end + STEP / 2, STEP), 6)
    found: dict[str, PairCurves] = {}
    for pair in pairs:
        curves: dict[str, list[float]] = {}
        parts: dict[str, EAMParts] = {}
        for name, potential in potentials.items():
            if potential.elements is not None and not set(pair) <= set(potential.elements):
                continue
            if isinstance(potential, EAMInteraction):
                own = parts[name] = eam_parts(potential, pair, distances)
                curves[name] = np.add(own.pair, own.embedding).tolist()
            else:
                curves[name] = dimer_energies(potential, pair, distances).tolist()
        covalent = covalent_radius(pair[0]) + covalent_radius(pair[1])
        found[pair_name(pair)] = PairCurves(covalent_distance=covalent, curves=curves, parts=parts)
    return EnergyCurves(distances=distances.tolist(), pairs=found)


def eam_elements(potential: EAMInteraction) -> list[EAMElement]:
    """A row for each element of an embedded-atom potential."""
    b, rho0, e0 = (p.detach().tolist() for p in (potential.B, potential.rho0, potential.E0))
    return [
        EAMElement(element=chemical_symbols[z], B_eV=b[k], rho0=rho0[k], E0_eV=e0[k])
        for k, z in enumerate(potential.elements)
    ]

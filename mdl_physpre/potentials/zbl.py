"""Screened repulsion of nuclei, and the short-range repulsion that is made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor, nn

from mdl_physpre.errors import ConfigError, nearest
from mdl_physpre.potentials.backbones.arguments import atomic_number
from mdl_physpre.potentials.base import AtomicPotential, edge_vectors
from mdl_physpre.potentials.eam.covalent_radii import covalent_radius
from mdl_physpre.potentials.energy_reference import N_ELEMENTS
from mdl_physpre.potentials.envelopes import cutoff_function
from mdl_physpre.structures.graph import AtomGraph
from mdl_physpre.structures.neighbours import closest_by_elements, pairs_within

COULOMB = 14.399645  # e²/(4π ε0), eV·Å
SCREENING = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))
# The repulsion is whole up to this fraction of the radius at which it has vanished: later, and it weighs on bonds.
SWITCH_START = 1 / 3
RADII = (
    "Where the repulsion of a pair, such as Si-O, has vanished; for other pairs the shortest distance in the training "
    "structures, or the covalent distance where they do not meet."
)
"""What ``short_range_radii`` is, wherever it is a key of the configuration."""
MEETS = 5.0  # Å; atoms that stay farther apart do not meet


def nuclear_repulsion(zi: int | Tensor, zj: int | Tensor, r: Tensor) -> Tensor:
    """Universal screened Coulomb repulsion of two nuclei, eV, of distances r in Å.

    V = Z_i Z_j e²/(4πε0 r) χ(r/a), a = 0.46850/(Z_i^0.23 + Z_j^0.23) Å,
    χ(x) = 0.18175 e^{−3.19980x} + 0.50986 e^{−0.94229x} + 0.28022 e^{−0.40290x} + 0.02817 e^{−0.20162x}.

    Source: J. F. Ziegler, J. P. Biersack, U. Littmark, The Stopping and Range of Ions in Matter (1985).
    """
    x = r * (zi**0.23 + zj**0.23) / 0.46850
    return COULOMB * zi * zj / r * sum(c * torch.exp(-d * x) for c, d in SCREENING)  # type: ignore[operator]


class ZBL(AtomicPotential):
    """Ziegler–Biersack–Littmark repulsion of nuclei, switched off smoothly at short range.

    E = ½ Σ_{i,j} f(r_ij) V(r_ij)

    with V of :func:`nuclear_repulsion`, over all neighbours, periodic images included. f is the quintic smoothstep that
    is 1 up to a third of the pair's radius and 0 from the radius on: energy, force and curvature are continuous.
    Nothing is fitted; the energy diverges where two atoms meet.

    Parameters
    ----------
    elements : symbols or atomic numbers that it is for; any where ``None``.
    radii : where the repulsion of a pair has vanished, Å, by names such as ``Si-O``, in either order; the sum of the
        covalent radii (Pyykkö and Atsumi 2009) for pairs that are not named.

    Raises
    ------
    ConfigError : a name that is no pair of the elements, a pair named twice, a radius that is not positive.
    """

    radius: Tensor  # (119, 119) Å

    concurrent = True

    def __init__(self, elements: Sequence[str | int] | None = None, radii: Mapping[str, float] | None = None) -> None:
        super().__init__()
        known = range(1, N_ELEMENTS)
        if elements is not None:
            self.elements = tuple(atomic_number(e) for e in elements)
            known = self.elements  # type: ignore[assignment]
        single = torch.tensor([0.0, *(covalent_radius(z) for z in range(1, N_ELEMENTS))], dtype=torch.float64)
        radius = single[:, None] + single[None, :]
        self.radii: dict[str, float] = {}
        for name, value in (radii or {}).items():
            zi, zj = _pair(name, known)
            if not (isinstance(value, (int, float)) and 0 < value < float("inf")):
                raise ConfigError(f"short_range_radii: {name}: found {value!r}, expected a distance in Å")
            symbols = f"{chemical_symbols[zi]}-{chemical_symbols[zj]}"
            if symbols in self.radii:
                raise ConfigError(f"short_range_radii: the pair {symbols} is given twice")
            self.radii[symbols] = float(value)
            radius[zi, zj] = radius[zj, zi] = float(value)
        self.register_buffer("radius", radius, persistent=False)
        index = torch.tensor(list(known))
        self.cutoff = float(radius[index][:, index].max())

    def hyperparameters(self) -> dict[str, Any]:
        """Arguments that build the same repulsion again."""
        elements = None if self.elements is None else [chemical_symbols[z] for z in self.elements]
        return {"elements": elements, "radii": self.radii}

    def pair_radius(self, zi: int, zj: int) -> float:
        """Where the repulsion of a pair has vanished, Å."""
        return float(self.radius[zi, zj])

    def pair_energy(self, zi: Tensor, zj: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """f(r) V(r) and its derivative with respect to r, each (n,), eV and eV/Å, of atomic numbers and distances."""
        zi, zj = zi.to(r.dtype), zj.to(r.dtype)
        f, df = cutoff_function(r, self.radius.to(r.dtype)[zi.long(), zj.long()], SWITCH_START)
        scale = (zi**0.23 + zj**0.23) / 0.46850
        strength = COULOMB * zi * zj / r
        terms = [c * torch.exp(-d * scale * r) for c, d in SCREENING]
        value = strength * sum(terms)
        slope = -value / r - strength * scale * sum(d * t for (_, d), t in zip(SCREENING, terms))
        return f * value, f * slope + df * value

    def atomic_energies(self, graph: AtomGraph) -> Tensor:
        """½ Σ_j f V of each atom, (n_atoms,), eV; differentiable to any order."""
        i, j = graph.edge_index
        r = torch.linalg.vector_norm(edge_vectors(graph), dim=1)
        value, _ = self.pair_energy(graph.z.index_select(0, i), graph.z.index_select(0, j), r)
        return r.new_zeros(graph.z.shape[0]).index_add(0, i, 0.5 * value)


def shortest_distances(structures: Sequence[Atoms], within: float = MEETS) -> dict[tuple[int, int], float]:
    """The shortest distance of each pair of elements (lower atomic number first) that meets within a distance, Å.

    Periodic images count. Rounded down to 0.0001 Å.
    """
    shortest: dict[tuple[int, int], float] = {}
    for atoms in structures:
        for pair, distance in closest_by_elements(atoms.numbers, *pairs_within(atoms, within)).items():
            shortest[pair] = min(distance, shortest.get(pair, math.inf))
    return {pair: math.floor(distance * 1e4) / 1e4 for pair, distance in sorted(shortest.items())}


def repulsion_beside_data(
    structures: Sequence[Atoms],
    elements: Sequence[str | int] | None = None,
    radii: Mapping[str, float] | None = None,
    within: float = MEETS,
) -> ZBL:
    """A repulsion that ends where the data begin: it changes no energy, force or stress of the structures given.

    Parameters
    ----------
    structures : the radius of a pair is the shortest distance that it has in them.
    elements, radii : of :class:`ZBL`; radii of pairs that are named win over those of the structures. Pairs that do not
        meet within a distance (``within``, Å) end at the sum of the covalent radii.

    Raises
    ------
    ConfigError : as :class:`ZBL`.
    """
    given = ZBL(elements, radii)
    known = None if given.elements is None else set(given.elements)
    found = {
        f"{chemical_symbols[zi]}-{chemical_symbols[zj]}": distance
        for (zi, zj), distance in shortest_distances(structures, min(within, MEETS)).items()
        if known is None or {zi, zj} <= known
    }
    return ZBL(elements, {**found, **given.radii})


def repulsion_radii(potential: nn.Module) -> dict[str, float]:
    """Where the repulsion of nuclei within a potential ends, Å by pair of its elements; empty where it has none."""
    for part in potential.modules():
        if isinstance(part, ZBL):
            known = sorted(part.elements or {atomic_numbers[s] for pair in part.radii for s in pair.split("-")})
            pairs = [(zi, zj) for k, zi in enumerate(known) for zj in known[k:]]
            return {f"{chemical_symbols[i]}-{chemical_symbols[j]}": part.pair_radius(i, j) for i, j in pairs}
    return {}


def radii_text(radii: Mapping[str, float], most: int = 10) -> str:
    """``O-O 2.31, O-Si 1.52 Å``, of at most so many pairs."""
    named = [f"{pair} {radius:.3g}" for pair, radius in list(radii.items())[:most]]
    more = len(radii) - most
    return ", ".join(named) + " Å" + (f" and {more} more pairs" if more > 0 else "")


def short_range_repulsion(
    short_range: str | None,
    radii: Mapping[str, float] | None,
    elements: Sequence[str | int] | None = None,
    structures: Sequence[Atoms] | None = None,
) -> ZBL | None:
    """The short-range repulsion that ``short_range`` names: ``zbl``, or ``None`` for none.

    It ends where ``structures`` begin (:func:`repulsion_beside_data`); without any, at the sum of the covalent radii.

    Raises ConfigError for another name, and for radii without it.
    """
    if short_range is None:
        if radii:
            raise ConfigError("short_range_radii are given, but no short-range repulsion; add short_range: zbl")
        return None
    if short_range != "zbl":
        raise ConfigError(f"short_range is {short_range!r}; expected zbl, or nothing for no short-range repulsion")
    return ZBL(elements, radii) if structures is None else repulsion_beside_data(structures, elements, radii)


def _pair(name: str, known: Sequence[int]) -> tuple[int, int]:
    """Atomic numbers of a pair such as ``Si-O``, the smaller first."""
    numbers = [atomic_numbers.get(symbol.strip()) for symbol in str(name).split("-")]
    if len(numbers) != 2 or not all(numbers):
        raise ConfigError(f"short_range_radii: {name!r} is no pair of elements; expected two symbols, such as Si-O")
    for z in numbers:
        if z not in known:
            symbols = [chemical_symbols[k] for k in known]
            raise ConfigError(
                f"short_range_radii: {name}: the potential does not hold {chemical_symbols[z]}; "  # type: ignore[index]
                f"{nearest(chemical_symbols[z], symbols)}"  # type: ignore[index]
            )
    first, second = sorted(numbers)  # type: ignore[type-var]
    return first, second  # type: ignore[return-value]

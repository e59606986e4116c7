"""The embedded-atom potential as tables for LAMMPS: Finnis–Sinclair setfl, ``pair_style eam/fs``.

For elements α, β:  F_α(ρ) = E0_α + B_α (ρ − ρ0_α)²,  ρ_αβ(r),  r φ_αβ(r), each on a uniform grid, in eV and Å.

φ includes the short-range repulsion, whose r φ is finite at r = 0. The energies of the elements stand in F, so that
total energies are those of the potential.

The format's grid of densities begins at 0. Where the densities of an element are negative, it gets −ρ, which with −ρ0
is the same energy. Where an element has densities of both signs, the potential becomes three tables, whose energies add
up (``pair_style hybrid/overlay``): ρ = p − m, the terms with positive and those with negative amplitude A, and
ρ² = 2p² + 2m² − (p + m)².

The first three values of F stand on a line, so that LAMMPS goes on with that line, and not with a cubic, below 0; the
third is off by 2 B (step of the grid)².
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_masses, chemical_symbols
from torch import Tensor

from mdl_physpre import __version__
from mdl_physpre.errors import CheckpointError, ConfigError, DataError
from mdl_physpre.potentials.base import Potential, edge_vectors
from mdl_physpre.potentials.eam.covalent_radii import covalent_radius
from mdl_physpre.potentials.eam.potential import EAMInteraction
from mdl_physpre.potentials.envelopes import cutoff_function
from mdl_physpre.structures.check import describe
from mdl_physpre.structures.graph import GraphDataset, batch_by_edges
from mdl_physpre.utils.files import write_text

logger = logging.getLogger(__name__)

MARGIN = 1.5  # the grid of densities goes so far beyond the largest density of the structures
CROWD = 24  # neighbours at half the covalent distance that the grid has room for where there are no structures


@dataclass
class Setfl:
    """Tables that were written.

    files : one table, or three whose energies add up.
    symbols : elements in the order of the tables.
    notes : what the tables cannot do, a sentence each.
    """

    files: list[Path]
    symbols: list[str]
    notes: list[str]

    def lammps_commands(self) -> list[str]:
        """Lines of input for LAMMPS, with atom types in the order of ``symbols``."""
        elements = " ".join(self.symbols)
        if len(self.files) == 1:
            return ["units metal", "pair_style eam/fs", f"pair_coeff * * {self.files[0]} {elements}"]
        numbered = [f"pair_coeff * * eam/fs {k} {file} {elements}" for k, file in enumerate(self.files, start=1)]
        return ["units metal", f"pair_style hybrid/overlay{' eam/fs' * len(self.files)}", *numbered]


@dataclass
class _Part:
    """What one table holds: F(ρ) = c0 + c1 ρ + c2 ρ² of each element, a density, and pair terms if it is the first."""

    density: Tensor  # (n_pairs, n_r)
    coefficients: np.ndarray  # (n_elements, 3) c0, c1, c2; eV
    sign: np.ndarray  # (n_elements,) of the density at an atom
    largest: np.ndarray  # (n_elements,) density that occurs
    rho_max: float  # end of the grid
    r_phi: Tensor | None = None  # (n_pairs, n_r) eV·Å


def write_setfl(
    path: str | Path,
    potential: Potential,
    *,
    structures: Sequence[Atoms] | None = None,
    rho_max: float | None = None,
    n_r: int = 10_000,
    n_rho: int = 20_000,
    isolated_atoms_zero: bool = False,
) -> Setfl:
    """Write an embedded-atom potential for LAMMPS (``pair_style eam/fs``) and ASE (``ase.calculators.eam.EAM``).

    Parameters
    ----------
    path : usually ``NAME.eam.fs``; three tables are called ``NAME.1.eam.fs`` and so on.
    potential : an :class:`EAMInteraction`.
    structures : what is to be simulated; the grid of densities covers 1.5 times their largest density. Without them
        one table is written, with a warning where densities of an element may have either sign.
    rho_max : the end of that grid. Without it and without structures there is room for 24 neighbours at half the
        covalent distance.
    n_r, n_rho : points of the grids of distances and densities.
    isolated_atoms_zero : take F_α(0) off F_α, as usual in published tables: an isolated atom then has no energy.

    Returns
    -------
    The files, and what they cannot do; that is also logged as warnings.

    Raises
    ------
    ConfigError : another potential; grids of fewer than 100 points; a ``rho_max`` that is not positive.
    DataError : a structure with an element that the potential does not know.
    CheckpointError : a file cannot be written.
    """
    path = Path(path)
    if not isinstance(potential, EAMInteraction):
        kind = type(potential).__name__
        raise ConfigError(f"{path}: a {kind} cannot be written as a table for LAMMPS; an embedded-atom potential can")
    if n_r < 100 or n_rho < 100 or (rho_max is not None and not 0 < rho_max < float("inf")):
        found = f"n_r is {n_r}, n_rho {n_rho}, rho_max {rho_max}"
        raise ConfigError(f"{found}; expected at least 100 points, and rho_max > 0")
    with torch.no_grad():
        parts, notes = _parts(potential, structures, n_r, rho_max, isolated_atoms_zero)
        texts = [_table(potential, part, n_rho) for part in parts]
    name = path.name.removesuffix(".eam.fs")
    files = [path] if len(parts) == 1 else [path.with_name(f"{name}.{k}.eam.fs") for k in (1, 2, 3)]
    for file, text in zip(files, texts):
        write_text(file, text, CheckpointError)
    for sentence in notes:
        logger.warning("%s: %s", path, sentence)
    return Setfl(files, [chemical_symbols[z] for z in potential.elements], notes)


def _parts(
    potential: EAMInteraction, structures: Sequence[Atoms] | None, n_r: int, rho_max: float | None, zero: bool
) -> tuple[list[_Part], list[str]]:
    """One table, or three where densities of both signs occur at an element; and what they cannot do."""
    ranges = _density_ranges(potential, structures, potential.A)[0] if structures else _range_of_crowds(potential)
    sign = np.where(np.abs(ranges[:, 0]) > np.abs(ranges[:, 1]), -1.0, 1.0)
    low, high = np.sort(ranges * sign[:, None], axis=1).T
    both = low < -1e-9
    if structures and both.any():
        parts = _three_parts(potential, structures, n_r, rho_max, zero)
    else:
        parts = [_one_part(potential, sign, high, n_r, rho_max, zero)]
    return parts, _notes(potential, both, parts) if structures else _notes_without_structures(potential, sign, both)


def _one_part(
    potential: EAMInteraction, sign: np.ndarray, largest: np.ndarray, n_r: int, rho_max: float | None, zero: bool
) -> _Part:
    r, pair = _distances(potential, n_r)
    phi, _, rho, _ = (x.reshape(len(potential.pairs), n_r) for x in potential.pair_functions(pair, r))
    c0, c1, c2 = _embedding(potential, zero)
    coefficients = np.stack([c0, sign * c1, c2], axis=1)
    return _Part(rho, coefficients, sign, largest, _end(largest, rho_max), r.reshape(-1, n_r) * phi)


def _three_parts(
    potential: EAMInteraction, structures: Sequence[Atoms], n_r: int, rho_max: float | None, zero: bool
) -> list[_Part]:
    """2p² + 2m² − (p + m)², with the linear and the constant term of F and the pair terms in the first two."""
    plus, minus = potential.A.clamp(min=0.0), (-potential.A).clamp(min=0.0)
    amplitudes = (plus, minus, plus + minus)
    r, pair = _distances(potential, n_r)
    c0, c1, c2 = _embedding(potential, zero)
    none = np.zeros_like(c0)
    coefficients = ([c0, c1, 2 * c2], [none, -c1, 2 * c2], [none, none, -c2])
    phi = potential.pair_functions(pair, r)[0]
    parts = []
    for ranges, A, own in zip(_density_ranges(potential, structures, *amplitudes), amplitudes, coefficients):
        density = _density(potential, A, pair, r).reshape(-1, n_r)
        largest = ranges[:, 1]
        parts.append(_Part(density, np.stack(own, axis=1), np.ones(len(c0)), largest, _end(largest, rho_max)))
    parts[0].r_phi = (r * phi).reshape(-1, n_r)
    return parts


def _end(largest: np.ndarray, rho_max: float | None) -> float:
    """Where the grid of densities ends."""
    return MARGIN * max(float(largest.max()), 1e-3) if rho_max is None else rho_max


def _distances(potential: EAMInteraction, n_r: int) -> tuple[Tensor, Tensor]:
    """Distances of the grid for all pairs one after another, and the number of the pair of each."""
    r = torch.arange(n_r, dtype=torch.float64) * (potential.cutoff / (n_r - 1))
    r[0] = 1e-3 * r[1]  # r φ of the repulsion is finite at zero, but φ is not
    return r.repeat(len(potential.pairs)), torch.arange(len(potential.pairs)).repeat_interleave(n_r)


def _embedding(potential: EAMInteraction, isolated_atoms_zero: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients of F: E0 + B ρ0², −2 B ρ0 and B, each (n_elements,)."""
    b, rho0 = (p.numpy() for p in potential.element_parameters(torch.float64))
    constant = potential.E0.double().numpy() + b * rho0**2
    return (np.zeros_like(b) if isolated_atoms_zero else constant), -2.0 * b * rho0, b


def _density(potential: EAMInteraction, amplitudes: Tensor, pair: Tensor, r: Tensor) -> Tensor:
    """f(r) Σ_k A_k exp(−β_k r) with other amplitudes than the potential's, (n,)."""
    beta, amplitudes = potential.beta.double()[pair.long()], amplitudes.double()[pair.long()]
    return cutoff_function(r, potential.cutoff)[0] * (amplitudes * torch.exp(-beta * r[:, None])).sum(1)


def _density_ranges(potential: EAMInteraction, structures: Sequence[Atoms], *amplitudes: Tensor) -> list[np.ndarray]:
    """Smallest and largest density of the atoms of each element, (n_elements, 2), with each of these amplitudes."""
    for k, atoms in enumerate(structures):
        if strange := sorted({int(z) for z in atoms.numbers} - set(potential.elements)):
            which = f"structure {describe(atoms, k)} holds {', '.join(chemical_symbols[z] for z in strange)}"
            raise DataError(f"{which}, which this potential does not know; leave it out")
    dataset = GraphDataset(structures, potential.cutoff, dtype=torch.float64, labels=False)
    found = [np.zeros((len(potential.elements), 2)) for _ in amplitudes]
    for indices in batch_by_edges(dataset.n_edges, 200_000):
        graph = dataset.batch(indices)
        element = potential.element_of.index_select(0, graph.z)
        i, j = graph.edge_index
        pair = potential.pair_of.index_select(0, element[i] * len(potential.elements) + element[j])
        r = torch.linalg.vector_norm(edge_vectors(graph), dim=1)
        for ranges, A in zip(found, amplitudes):
            rho = torch.zeros(len(element), dtype=r.dtype).index_add(0, i, _density(potential, A, pair, r))
            for k in element.unique():
                own = rho[element == k]
                ranges[k] = min(ranges[k, 0], float(own.min())), max(ranges[k, 1], float(own.max()))
    return found


def _range_of_crowds(potential: EAMInteraction) -> np.ndarray:
    """The same for :data:`CROWD` neighbours of one element at half the covalent distance or further."""
    ranges = np.zeros((len(potential.elements), 2))
    for p, pair in enumerate(potential.pairs):
        r = torch.linspace(0.5 * sum(covalent_radius(z) for z in pair), potential.cutoff, 1000, dtype=torch.float64)
        rho = CROWD * _density(potential, potential.A, torch.full((1000,), p), r)
        for z in pair:
            k = int(potential.element_of[z])
            ranges[k] = min(ranges[k, 0], float(rho.min())), max(ranges[k, 1], float(rho.max()))
    return ranges


def _table(potential: EAMInteraction, part: _Part, n_rho: int) -> str:
    n, symbols = len(potential.elements), [chemical_symbols[z] for z in potential.elements]
    repulsion = "none" if potential.repulsion is None else "Ziegler-Biersack-Littmark, in pair terms"
    n_r, drho = part.density.shape[1], part.rho_max / (n_rho - 1)
    rho = np.arange(n_rho) * drho
    number = potential.pair_of.reshape(n, n).numpy()
    lines = [
        f"UNITS: metal Embedded-atom potential of {', '.join(symbols)}, written by mdl_physpre {__version__}",
        "Finnis-Sinclair setfl, pair_style eam/fs",
        f"short-range repulsion: {repulsion}",
        f"{n} {' '.join(symbols)}",
        f"{n_rho} {drho:.16e} {n_r} {potential.cutoff / (n_r - 1):.16e} {potential.cutoff:.16e}",
    ]
    for k, z in enumerate(potential.elements):
        c0, c1, c2 = part.coefficients[k]
        embedding = c0 + rho * (c1 + c2 * rho)
        embedding[2] = 2.0 * embedding[1] - embedding[0]
        lines += [f"{z} {atomic_masses[z]:.6f} 0.0 none", *_rows(embedding)]
        for other in range(n):  # what an atom of this element gives to the density at an atom of the other
            lines += _rows(part.sign[other] * part.density[number[k, other]].numpy())
    for a in range(n):
        for b in range(a + 1):
            lines += _rows(np.zeros(n_r) if part.r_phi is None else part.r_phi[number[a, b]].numpy())
    return "\n".join(lines) + "\n"


def _rows(values: np.ndarray) -> list[str]:
    return [" ".join(f"{v:.16e}" for v in values[k : k + 5]) for k in range(0, len(values), 5)]


def _notes(potential: EAMInteraction, both: np.ndarray, parts: Sequence[_Part]) -> list[str]:
    notes = []
    if len(parts) > 1:
        symbols = ", ".join(chemical_symbols[z] for z, mixed in zip(potential.elements, both) if mixed)
        notes.append(
            f"densities of both signs occur at {symbols}, and the format's grid begins at 0: three tables were "
            "written, whose energies add up (pair_style hybrid/overlay)"
        )
    for part in parts:
        notes += [
            f"the structures have densities at {chemical_symbols[z]} up to {largest:.4g}, and the grid ends at "
            f"{part.rho_max:.4g}: beyond it the embedding energy goes on as a straight line; raise rho_max"
            for z, largest in zip(potential.elements, part.largest)
            if largest > part.rho_max
        ]
    return notes


def _notes_without_structures(potential: EAMInteraction, sign: np.ndarray, both: np.ndarray) -> list[str]:
    """What the one table does not hold: densities of the other sign, which neighbours at some distance make."""
    missing = [
        f"{'below' if own > 0 else 'above'} 0 at {chemical_symbols[z]}"
        for z, own, mixed in zip(potential.elements, sign, both)
        if mixed
    ]
    if not missing:
        return []
    return [
        f"densities may have both signs, and the grid does not hold those {', '.join(missing)}: LAMMPS goes on with a "
        "straight line there, and energies and forces are not those of the potential. Give what is to be simulated as "
        "--structures (structures=…): that shows whether such densities occur, and writes what they need"
    ]

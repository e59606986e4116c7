"""The embedded-atom potential as a table for LAMMPS: Finnis–Sinclair setfl, ``pair_style eam/fs``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_masses, chemical_symbols

from mdl_physpre import __version__
from mdl_physpre.errors import CheckpointError, ConfigError, DataError
from mdl_physpre.potentials.base import Potential, edge_vectors
from mdl_physpre.potentials.covalent_radii import covalent_radius
from mdl_physpre.potentials.eam import EAMInteraction
from mdl_physpre.structures.files import replacing
from mdl_physpre.structures.graph import GraphDataset, batch_by_edges

logger = logging.getLogger(__name__)

MARGIN = 1.5  # the grid of densities goes so far beyond the largest density of the structures
CROWD = 24  # neighbours at half the covalent distance that the grid has room for where there are no structures
NUMBERS_PER_LINE = 5


def write_setfl(
    path: str | Path,
    potential: Potential,
    *,
    structures: Sequence[Atoms] | None = None,
    rho_max: float | None = None,
    n_r: int = 10_000,
    n_rho: int = 20_000,
    isolated_atoms_zero: bool = False,
) -> list[str]:
    r"""Write an embedded-atom potential for LAMMPS (``pair_style eam/fs``) and ASE (``ase.calculators.eam.EAM``).

    For elements α, β:  F_α(ρ) = E0_α + B_α (ρ − ρ0_α)²,  ρ_αβ(r),  r φ_αβ(r), each on a uniform grid, in eV and Å.

    φ includes the short-range core, whose r φ is finite at r = 0. The energies of the elements stand in F, so that
    total energies are those of the potential. Where the densities of an element are negative, it gets −ρ, which with
    −ρ0 is the same energy: the format's grid of densities begins at 0. The first three values of F stand on a line, so
    that LAMMPS goes on with that line, and not with a cubic, below 0; the third is off by 2 B (step of the grid)².

    Parameters
    ----------
    path : usually ``NAME.eam.fs``.
    potential : an :class:`EAMInteraction`.
    structures : what is to be simulated; the grid of densities covers 1.5 times their largest density.
    rho_max : the end of that grid. Without it and without structures there is room for 24 neighbours at half the
        covalent distance.
    n_r, n_rho : points of the grids of distances and densities.
    isolated_atoms_zero : take F_α(0) off F_α, as usual in published tables: an isolated atom then has no energy.

    Returns
    -------
    What the file cannot do, a sentence each; they are also logged as warnings.

    Raises
    ------
    ConfigError : another potential; grids of fewer than 100 points; a ``rho_max`` that is not positive.
    DataError : a structure with an element that the potential does not know.
    CheckpointError : the file cannot be written.
    """
    path = Path(path)
    if not isinstance(potential, EAMInteraction):
        raise ConfigError(
            f"{path}: a {type(potential).__name__} cannot be written as a table for LAMMPS; an embedded-atom potential "
            "can"
        )
    if n_r < 100 or n_rho < 100 or (rho_max is not None and not 0 < rho_max < float("inf")):
        raise ConfigError(
            f"n_r is {n_r}, n_rho {n_rho}, rho_max {rho_max}; expected at least 100 points, and rho_max > 0"
        )
    with torch.no_grad():
        ranges = _density_ranges(potential, structures) if structures else _ranges_of_crowds(potential)
        sign = np.where(np.abs(ranges[:, 0]) > np.abs(ranges[:, 1]), -1.0, 1.0)
        low, high = np.sort(ranges * sign[:, None], axis=1).T
        end = rho_max if rho_max is not None else MARGIN * max(float(high.max()), 1e-3)
        text = _table(potential, sign, end, n_r, n_rho, isolated_atoms_zero)
    try:
        with replacing(path) as temporary:
            temporary.write_text(text)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    notes = _notes(potential, low, high, end) if structures else []
    for sentence in notes:
        logger.warning("%s: %s", path, sentence)
    return notes


def atomic_densities(potential: EAMInteraction, dataset: GraphDataset, indices: Sequence[int]) -> tuple:
    """ρ_i of every atom of some structures, (n_atoms,), and its number in ``potential.elements``, (n_atoms,)."""
    graph = dataset.batch(indices)
    element = potential.element_of.index_select(0, graph.z)
    i, j = graph.edge_index
    pair = potential.pair_of.index_select(0, element[i] * len(potential.elements) + element[j])
    rho = potential.pair_functions(pair, torch.linalg.vector_norm(edge_vectors(graph), dim=1))[2]
    return torch.zeros(len(element), dtype=rho.dtype).index_add(0, i, rho), element


def _density_ranges(potential: EAMInteraction, structures: Sequence[Atoms]) -> np.ndarray:
    """Smallest and largest density of the atoms of each element, (n_elements, 2); 0 where there are none."""
    for k, atoms in enumerate(structures):
        strange = sorted({int(z) for z in atoms.numbers} - set(potential.elements))
        if strange:
            which = atoms.info.get("structure_id", "no id")
            raise DataError(
                f"structure {k} ({which}) holds {', '.join(chemical_symbols[z] for z in strange)}, which this "
                "potential does not know; leave it out"
            )
    dataset = GraphDataset(structures, potential.cutoff, labels=False)
    ranges = np.zeros((len(potential.elements), 2))
    for indices in batch_by_edges(dataset.n_edges, 200_000):
        rho, element = (t.numpy() for t in atomic_densities(potential, dataset, indices))
        for k in np.unique(element):
            own = rho[element == k]
            ranges[k] = min(ranges[k, 0], own.min()), max(ranges[k, 1], own.max())
    return ranges


def _ranges_of_crowds(potential: EAMInteraction) -> np.ndarray:
    """The same for :data:`CROWD` neighbours of one element at half the covalent distance or further."""
    ranges = np.zeros((len(potential.elements), 2))
    for p, pair in enumerate(potential.pairs):
        r = torch.linspace(0.5 * sum(covalent_radius(z) for z in pair), potential.cutoff, 1000, dtype=torch.float64)
        rho = CROWD * potential.pair_functions(torch.full((1000,), p), r)[2]
        for z in pair:
            k = int(potential.element_of[z])
            ranges[k] = min(ranges[k, 0], float(rho.min())), max(ranges[k, 1], float(rho.max()))
    return ranges


def _table(
    potential: EAMInteraction, sign: np.ndarray, rho_max: float, n_r: int, n_rho: int, isolated_atoms_zero: bool
) -> str:
    n, symbols = len(potential.elements), [chemical_symbols[z] for z in potential.elements]
    dr, drho = potential.cutoff / (n_r - 1), rho_max / (n_rho - 1)
    rho = np.arange(n_rho) * drho
    r = torch.arange(n_r, dtype=torch.float64) * dr
    r[0] = 1e-3 * dr  # r φ of the core is finite at zero, but φ is not
    density, r_phi = {}, {}
    for p, pair in enumerate(potential.pairs):
        phi, _, own, _ = potential.pair_functions(torch.full((n_r,), p), r)
        a, b = (int(potential.element_of[z]) for z in pair)
        density[a, b] = density[b, a] = own.numpy()
        r_phi[a, b] = r_phi[b, a] = (r * phi).numpy()
    curvature, rho0 = (p.numpy() for p in potential.element_parameters(torch.float64))
    energies = (
        "their energies of isolated atoms taken off" if isolated_atoms_zero else "energies of the elements included"
    )
    lines = [
        f"UNITS: metal Embedded-atom potential of {', '.join(symbols)}, written by mdl_physpre {__version__}",
        f"Finnis-Sinclair setfl (pair_style eam/fs); {energies}",
        f"short-range core: {'none' if potential.core is None else 'Ziegler-Biersack-Littmark, in the pair terms'}",
        f"{n} {' '.join(symbols)}",
        f"{n_rho} {drho:.16e} {n_r} {dr:.16e} {potential.cutoff:.16e}",
    ]
    for k, z in enumerate(potential.elements):
        zero = 0.0 if isolated_atoms_zero else float(potential.E0[k]) + curvature[k] * rho0[k] ** 2
        embedding = zero + curvature[k] * rho * (rho - 2.0 * sign[k] * rho0[k])
        embedding[2] = 2.0 * embedding[1] - embedding[0]
        lines += [f"{z} {atomic_masses[z]:.6f} 0.0 none", *_rows(embedding)]
        for other in range(n):  # what an atom of this element gives to the density at an atom of the other
            lines += _rows(sign[other] * density[k, other])
    for a in range(n):
        for b in range(a + 1):
            lines += _rows(r_phi[a, b])
    return "\n".join(lines) + "\n"


def _rows(values: np.ndarray) -> list[str]:
    numbers = [f"{v:.16e}" for v in values]
    return [" ".join(numbers[k : k + NUMBERS_PER_LINE]) for k in range(0, len(numbers), NUMBERS_PER_LINE)]


def _notes(potential: EAMInteraction, low: np.ndarray, high: np.ndarray, end: float) -> list[str]:
    notes = []
    for z, smallest, largest in zip(potential.elements, low, high):
        symbol = chemical_symbols[z]
        if largest > end:
            notes.append(
                f"the structures have densities at {symbol} up to {largest:.4g}, and the grid ends at {end:.4g}: "
                "beyond it the embedding energy goes on as a straight line; raise rho_max"
            )
        if smallest < -1e-9:
            notes.append(
                f"the structures have densities at {symbol} down to {smallest:.4g}, and the format's grid begins at 0: "
                "below it the embedding energy goes on as a straight line, and energies differ"
            )
    return notes

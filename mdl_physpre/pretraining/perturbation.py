"""Two-step perturbation of atomic positions: close pairs are pulled together, then random sites are displaced.

Source: Algorithm 1 and Table A.1 of the paper. Departures from its printed form are named where they are made. What is
not in it: a random strain at the end, where that is asked for, so that pressure and shear are learnt, too.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from numpy.typing import NDArray

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.pretraining.copies import displaced_copy, inherited_info, random_strain
from mdl_physpre.pretraining.perturbation_settings import PerturbationSettings as PerturbationSettings
from mdl_physpre.pretraining.perturbation_settings import strengths as strengths
from mdl_physpre.structures.neighbours import neighbour_list

# Distances closer than this count as equal, so that the choice among symmetry-equivalent pairs does not hang on
# the last bits of a coordinate but on the order of the atoms.
TIE = 1e-6


@dataclass(frozen=True)
class ClosePairs:
    """Closest pairs, no atom in two of them: atoms i, j (n,), vectors r_ij (n, 3) and distances (n,) in Å."""

    i: NDArray[np.int64]
    j: NDArray[np.int64]
    vectors: NDArray[np.float64]
    distances: NDArray[np.float64]


def close_pairs(atoms: Atoms, n: int) -> ClosePairs:
    """Greedy choice of the n closest pairs of atoms, none sharing an atom, by minimum image.

    The closest pair comes first, then the closest among the atoms left, and so on: min over i < j and over lattice
    vectors T of |r_j + T - r_i|. The images of an atom itself are no pair. A structure with fewer than 2 n atoms gives
    floor(N/2) pairs. Among equal distances (1e-6 Å) the atoms that come first win.

    A neighbour list finds every image within its cutoff, whatever the cell, so its shortest entry for a pair is the
    minimum image. Atoms that stay single are searched again among themselves with a larger cutoff.

    Raises
    ------
    DataError : a position or cell that is not finite, or two atoms in one place.
    """
    positions, cell, pbc = atoms.get_positions(), atoms.cell.array, atoms.pbc
    if not (np.isfinite(positions).all() and np.isfinite(cell).all()):
        raise DataError(f"structure {atoms.info.get('structure_id', '?')}: position or cell is not finite")
    wanted = min(n, len(atoms) // 2)
    chosen: list[tuple[int, int]] = []
    vectors: list[NDArray[np.float64]] = []
    free = np.arange(len(atoms))
    cutoff = 3.0
    while len(chosen) < wanted:
        i, j, shifts = neighbour_list(positions[free], cell, pbc, cutoff)
        half = i < j
        i, j, shifts = i[half], j[half], shifts[half]
        r = positions[free[j]] - positions[free[i]] + shifts @ cell
        d = np.sqrt(np.einsum("ij,ij->i", r, r))
        order = np.lexsort((shifts[:, 2], shifts[:, 1], shifts[:, 0], j, i, np.round(d / TIE)))
        taken = np.zeros(len(free), dtype=bool)
        for k, a, b in zip(order.tolist(), i[order].tolist(), j[order].tolist()):
            if taken[a] or taken[b]:
                continue
            taken[a] = taken[b] = True
            chosen.append((int(free[a]), int(free[b])))
            vectors.append(r[k])
            if len(chosen) == wanted:
                break
        free = free[~taken]
        cutoff *= 1.5
    pairs = np.array(chosen, dtype=np.int64).reshape(-1, 2)
    r_ij = np.array(vectors, dtype=np.float64).reshape(-1, 3)
    distances = np.linalg.norm(r_ij, axis=1)
    if (distances < TIE).any():
        a, b = pairs[int(np.argmin(distances))]
        raise DataError(
            f"structure {atoms.info.get('structure_id', '?')}: atoms {a} and {b} are in one place, so the direction "
            "in which to pull them is undefined; remove one of them"
        )
    return ClosePairs(pairs[:, 0], pairs[:, 1], r_ij, distances)


def displacements(
    rng: np.random.Generator,
    n_atoms: int,
    pairs: ClosePairs,
    pull: float,
    n_sites: int,
    perturb: float,
    pull_share: float = 0.5,
) -> NDArray[np.float64]:
    """Random displacements of Algorithm 1, (n_atoms, 3) in Å.

    For each close pair s ~ U(0, pull); i moves by +c s e_ij and j by -c s e_ij, with e_ij the unit vector of the
    minimum image in the unperturbed structure and c = pull_share. Then min(n_sites, n_atoms) distinct sites k move
    by r v, with v uniform on the sphere and r ~ U(0, perturb). A site may belong to a pair; moves add up.
    """
    moves = np.zeros((n_atoms, 3))
    if len(pairs.i):
        share = pull_share * pull * rng.random(len(pairs.i)) / pairs.distances
        along = share[:, None] * pairs.vectors
        moves[pairs.i] = along
        moves[pairs.j] = -along
    count = min(n_sites, n_atoms)
    if count:
        sites = rng.permutation(n_atoms)[:count]
        directions = rng.standard_normal((count, 3))
        length = perturb * rng.random(count) / np.sqrt((directions * directions).sum(1))
        moves[sites] += length[:, None] * directions
    return moves


def structure_key(atoms: Atoms, index: int) -> str:
    """Name of a structure in seeds and provenance: `info["structure_id"]`, or its index where it has none."""
    return str(atoms.info.get("structure_id", index))


def generator(seed: int, structure: str, round_: int, epoch: int = 0, attempt: int = 0) -> np.random.Generator:
    """Random numbers of one draw, independent of every other draw and of the order in which draws are made."""
    name = int.from_bytes(hashlib.blake2b(structure.encode(), digest_size=8).digest(), "little")
    return np.random.default_rng([seed, name, round_, epoch, attempt])


def perturb(
    atoms: Atoms,
    n_pairs: int = 2,
    pull: float = 1.0,
    n_sites: int = 5,
    perturb: float = 1.0,
    pull_share: float = 0.5,
    strain: float = 0.0,
    rng: np.random.Generator | None = None,
    seed: int | None = None,
) -> Atoms:
    """One perturbed copy of a structure (Algorithm 1): close pairs pulled together, then random sites displaced.

    r'_i = r_i + c s e_ij and r'_j = r_j - c s e_ij for the n_pairs closest pairs that share no atom, s ~ U(0, pull);
    then r'_k += u v for n_sites distinct sites, u ~ U(0, perturb), v uniform on the unit sphere.

    Parameters
    ----------
    atoms : structure; any cell and periodicity. One atom alone is displaced but has no pair.
    pull, perturb : largest pull and largest random displacement, Å.
    strain : largest component of a random strain that all follow at the end, in a cell periodic in three directions.
    n_pairs, n_sites, pull_share : as in :class:`PerturbationSettings`; c is pull_share.
    rng, seed : random numbers, or what to seed them with. Give one of the two.

    Returns
    -------
    A copy with displaced positions (not wrapped into the cell), same elements and periodicity, without strain the same
    cell, without labels; ``info`` keeps the parent's names and gains ``parent``, ``pull_strength`` and
    ``perturb_strength``.

    Raises
    ------
    ConfigError : both or neither of rng and seed, or a setting out of range.
    DataError : a position that is not finite, or two atoms in one place.
    """
    if (rng is None) == (seed is None):
        raise ConfigError("perturb: give either rng or seed")
    settings = PerturbationSettings(
        n_aug=1, n_pairs=n_pairs, pull=(pull, 0.0), n_sites=n_sites, perturb=(perturb, 0.0), pull_share=pull_share,
        strain=(strain, 0.0),
    )  # fmt: skip
    if rng is None:
        rng = np.random.default_rng(seed)
    pairs = close_pairs(atoms, settings.n_pairs)
    moves = displacements(rng, len(atoms), pairs, pull, n_sites, perturb, pull_share)
    info = inherited_info(atoms)
    info["parent"] = str(info.pop("structure_id", ""))
    info["pull_strength"], info["perturb_strength"] = float(pull), float(perturb)
    follows = random_strain(rng, strain) if strain and atoms.pbc.all() else None
    return displaced_copy(atoms, atoms.get_positions() + moves, info, follows)


class PerturbedParent:
    """A structure with what its draws share: close pairs, inherited names, and the pairs that may come too close.

    Parameters
    ----------
    atoms : the unperturbed structure.
    index : its place in the set; names it where ``info`` has no ``structure_id``.
    settings : settings of the set.

    Raises
    ------
    DataError : a position that is not finite, or two atoms in one place.
    """

    def __init__(self, atoms: Atoms, index: int, settings: PerturbationSettings) -> None:
        self.atoms = atoms
        self.key = structure_key(atoms, index)
        self.settings = settings
        self.positions = atoms.get_positions()
        self.close = close_pairs(atoms, settings.n_pairs)
        self.info = inherited_info(atoms)
        self.pull, self.perturb = settings.round_strengths()
        self.strain = settings.round_strains() * bool(atoms.pbc.all())
        self.shrinks = 1.0 - 3.0 * float(self.strain.max())  # no distance falls by more through a strain
        self.bound = settings.min_distance
        if self.bound and len(atoms) > 1:
            self._find_near_pairs()
        else:
            self.bound = 0.0

    def _find_near_pairs(self) -> None:
        """Every pair that some draw can bring under the bound: no atom moves further than ``reach``."""
        radii = covalent_radii[self.atoms.numbers]
        largest = 2 * float(radii.max())
        settings = self.settings
        reach = settings.pull_share * max(settings.pull) + max(settings.perturb)
        cutoff = max(2 * self.bound * largest, self.bound * largest / self.shrinks + 2 * reach) + TIE
        cell = self.atoms.cell.array
        i, j, shifts = neighbour_list(self.positions, cell, self.atoms.pbc, cutoff)
        half = i < j
        self.i, self.j = i[half], j[half]
        self.r = self.positions[self.j] - self.positions[self.i] + shifts[half] @ cell
        self.d = np.sqrt(np.einsum("ij,ij->i", self.r, self.r))
        self.radii_sum = radii[self.i] + radii[self.j]
        if len(self.d):
            self.bound = min(self.bound, 0.5 * float((self.d / self.radii_sum).min()))

    def draw(self, round_: int, attempt: int, seed: int, epoch: int = 0) -> tuple[Atoms | None, int]:
        """The first draw of a round, from number ``attempt`` on, in which no pair comes too close.

        The strengths of attempt a are those of the round times 2^-w, with w = floor(a / (max_redraws + 1)).

        Returns
        -------
        copy, attempt : the perturbed structure and the number of its draw; ``None`` and ``settings.max_attempts``
            where every draw brings atoms too close.
        """
        settings = self.settings
        for number in range(attempt, settings.max_attempts):
            scale = settings.scale(number)
            pull, perturb = float(self.pull[round_] * scale), float(self.perturb[round_] * scale)
            rng = generator(seed, self.key, round_, epoch, number)
            moves = displacements(
                rng, len(self.positions), self.close, pull, settings.n_sites, perturb, settings.pull_share
            )
            strain = float(self.strain[round_] * scale)
            follows = random_strain(rng, strain) if strain else None
            if not self.too_close(moves, follows):
                info = dict(self.info)
                info["structure_id"] = f"{self.key}-{round_}" if epoch == 0 else f"{self.key}-{round_}-{epoch}"
                info["parent"], info["round"], info["attempt"] = self.key, round_, number
                info["pull_strength"], info["perturb_strength"] = pull, perturb
                if strain:
                    info["strain_strength"] = strain
                return displaced_copy(self.atoms, self.positions + moves, info, follows), number
        return None, settings.max_attempts

    def too_close(self, moves: NDArray[np.float64], strain: NDArray[np.float64] | None = None) -> bool:
        """Whether displacements (n_atoms, 3), then a strain, bring a pair under the bound r_ij < bound (R_i + R_j)."""
        if not self.bound:
            return False
        length = np.sqrt(np.einsum("ij,ij->i", moves, moves))
        least = self.bound * self.radii_sum
        # |r + u_j - u_i| >= r - |u_i| - |u_j|: most pairs are ruled out without their vectors.
        maybe = np.flatnonzero(self.d - length[self.i] - length[self.j] < least / self.shrinks)
        if not len(maybe):
            return False
        r = self.r[maybe] + moves[self.j[maybe]] - moves[self.i[maybe]]
        r = r if strain is None else r @ strain
        return bool((np.einsum("ij,ij->i", r, r) < least[maybe] ** 2).any())

"""What the checks of a potential share: the potential, structures, bounds, a check's result."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from mdl_physpre.analysis.energy_curves import element_pairs
from mdl_physpre.errors import DataError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import GraphDataset, batch_by_edges

logger = logging.getLogger(__name__)

PASSED, FAILED, WARNING, NOT_APPLICABLE = "passed", "failed", "warning", "n/a"
MAX_EDGES, MAX_ATOMS = 100_000, 20_000  # in one evaluation
MAX_ELEMENTS = 8  # of a potential that is examined on all its elements


@dataclass(frozen=True)
class Check:
    """One check: what it is called, its verdict, and the number that decided it.

    name : what was checked.
    verdict : ``passed``, ``failed``, ``warning`` or ``n/a``.
    number, unit : what was measured; ``None`` where nothing was.
    bound : what the number may be at most, or at least where ``at_least``; ``None`` where it has no bound.
    text : what the number is, and where it was found.
    """

    name: str
    verdict: str
    number: float | None = None
    unit: str = ""
    bound: float | None = None
    text: str = ""
    at_least: bool = False


@dataclass(frozen=True)
class Bounds:
    """Largest differences that pass, for a potential in double precision unless told otherwise.

    energy : eV/atom; force : eV/Å; stress : eV/Å³: for values up to 1, and in proportion to larger ones.
    repeat : of what must be the same number, eV/atom or eV/Å, in the same way.
    force_slope, stress_slope : against finite differences, as a part of the largest force or stress component; to which
    comes what the resolution of the energy does to a difference.
    energy_jump, force_jump : at the cutoff, eV and eV/Å, for forces up to 1 eV/Å and in proportion to larger ones.
    drop : of a pair curve that should rise, eV.
    step, strain, gap : of the finite differences, Å and 1, and on both sides of the cutoff, Å.
    """

    energy: float = 1e-8
    force: float = 1e-7
    stress: float = 1e-8
    repeat: float = 1e-10
    force_slope: float = 1e-6
    stress_slope: float = 1e-6
    energy_jump: float = 1e-6
    force_jump: float = 1e-5
    drop: float = 1e-3
    step: float = 1e-4
    strain: float = 1e-5
    gap: float = 1e-4


DOUBLE = Bounds()
SINGLE = Bounds(
    energy=1e-4, force=2e-3, stress=1e-4, repeat=1e-6, force_slope=3e-2, stress_slope=2e-3, energy_jump=1e-3,
    force_jump=1e-2, drop=1e-2, step=1e-2, strain=2e-3, gap=5e-3,
)  # fmt: skip


@dataclass
class Results:
    """Energies (n_structures,) eV; forces of each structure (n_atoms, 3) eV/Å; stress (n_structures, 3, 3) eV/Å³.

    no_stress : without stress, the verdict and the reason of the checks that need it.
    """

    energies: np.ndarray
    forces: list[np.ndarray] = field(default_factory=list)
    stress: np.ndarray | None = None
    no_stress: tuple[str, str] = (NOT_APPLICABLE, "the potential gives no stress")


class Subject:
    """A potential that is being examined, and what it is examined on.

    Parameters
    ----------
    potential : stays as it is: a copy is examined, in double precision if it can be.
    structures : what it is examined on.
    cutoff : Å; that of the potential where it is above 0.
    seed : of rotations, displacements and samples.

    Attributes
    ----------
    resolution : eV; how far the energy along a straight line of 2e-4 Å is from a smooth curve.
    double : whether that is the resolution of double precision.
    converted : whether the potential is kept in single precision, and was converted.
    """

    def __init__(
        self, potential: Potential, structures: Sequence[Atoms], cutoff: float | None = None, seed: int = 0
    ) -> None:
        self.given = potential
        self.structures = list(structures)
        self.cutoff = float(potential.cutoff) if potential.cutoff > 0 else cutoff
        self.seed = seed
        tensors = [t for t in (*potential.parameters(), *potential.buffers()) if t.is_floating_point()]
        # the precision of parameters decides; energies of the elements are double in every potential
        learned = [p for p in potential.parameters() if p.is_floating_point()] or tensors
        self.dtype = learned[0].dtype if learned else torch.float64
        self.stored_dtype = self.dtype
        self.device = tensors[0].device if tensors else torch.device("cpu")
        self.potential = potential
        self.converted = False
        if self.dtype != torch.float64:
            self._convert()
        self.resolution = max(1e-13, *(self._resolution(k) for k in range(len(self.structures))))
        sizes = np.abs(self.predict(self.structures, forces=False).energies)
        self.double = self.resolution < 1e-11 * max(1.0, float(sizes.max()))
        self.bounds = DOUBLE if self.double else SINGLE

    def _convert(self) -> None:
        stored = self.potential, self.dtype
        try:
            self.potential, self.dtype = copy.deepcopy(self.given).double(), torch.float64
            self.predict(self.structures[:1])
            self.converted = True
        except DataError:
            raise
        except Exception:  # a network with its precision written into it
            self.potential, self.dtype = stored

    def _resolution(self, k: int) -> float:
        atoms, rng = self.structures[k], self.random("resolution", k)
        steps = np.linspace(-1e-4, 1e-4, 17)
        left = [np.inf]
        for _ in range(3):  # the smallest counts: a line may cross the cutoff of a pair
            direction = rng.normal(size=atoms.positions.shape)
            direction /= np.linalg.norm(direction)
            energies = self.predict([moved(atoms, s * direction) for s in steps], forces=False).energies
            if np.isfinite(energies).all():
                curve = np.polynomial.Polynomial.fit(steps, energies, 4)(steps)
                left.append(float(np.abs(energies - curve).max()))
        return min(left)

    def random(self, *purpose: str | int) -> np.random.Generator:
        """Random numbers that depend on the seed and on what they are for."""
        return np.random.default_rng([self.seed, *(b for part in purpose for b in str(part).encode())])

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that are examined: all that the potential knows, or those of the structures."""
        known = self.potential.elements
        if known is not None and len(known) <= MAX_ELEMENTS:
            return sorted(known)
        return sorted({int(z) for atoms in self.structures for z in atoms.numbers})

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Every pair of these elements once."""
        return element_pairs(self.elements)

    @property
    def far(self) -> float:
        """A distance at which nothing interacts, Å."""
        return 10 * self.cutoff if self.cutoff else 100.0

    def predict(
        self, structures: Sequence[Atoms], forces: bool = True, stress: bool = False, potential: Potential | None = None
    ) -> Results:
        """Energies, forces and stress of structures, in batches.

        Where stress cannot be had, energies and forces are there all the same, and ``no_stress`` says why.

        Raises
        ------
        ValueError : results of a wrong shape; besides, whatever the potential raises on energies and forces.
        """
        if not (stress and self.potential.gives_stress):
            return self._predict(structures, forces, False, potential)
        try:
            return self._predict(structures, forces, True, potential)
        except Exception as error:
            logger.debug("energies, forces and stress raised; asking without stress", exc_info=True)
            found = self._predict(structures, forces, False, potential)
            found.no_stress = _why_no_stress(error)
            return found

    def _predict(self, structures: Sequence[Atoms], forces: bool, stress: bool, potential: Potential | None) -> Results:
        dtype = self.dtype if potential is None else self.stored_dtype
        potential = potential or self.potential
        data = GraphDataset(structures, potential.cutoff, dtype=dtype, workers=1, labels=False)
        found = Results(np.zeros(len(structures)), stress=np.zeros((len(structures), 3, 3)) if stress else None)
        sizes = np.maximum(data.n_edges, data.n_atoms * (MAX_EDGES // MAX_ATOMS))
        for batch in batch_by_edges(sizes, MAX_EDGES):
            graph = data.batch(batch).on(self.device)
            predicted = evaluate(potential, graph, forces=forces, stress=stress)
            found.energies[batch] = _numbers("energies", predicted.energies, (len(batch),))
            if forces:
                ends = np.cumsum(data.n_atoms[batch])
                found.forces += np.split(_numbers("forces", predicted.forces, (int(ends[-1]), 3)), ends[:-1])
            if found.stress is not None:
                found.stress[batch] = _numbers("stress", predicted.stress, (len(batch), 3, 3))
        return found

    def count_edges(self, structures: Sequence[Atoms]) -> np.ndarray:
        """Edges within the cutoff of each structure; 0 where the cutoff is not known."""
        return GraphDataset(structures, self.cutoff or 0.0, torch.float64, workers=1, labels=False).n_edges


def _numbers(name: str, values: Tensor | None, shape: tuple[int, ...]) -> np.ndarray:
    """A result as float64. Raises ValueError where it is missing or has another shape."""
    if values is None:
        raise ValueError(f"{name}: none given, though asked for")
    if tuple(values.shape) != shape:
        raise ValueError(f"{name}: shape {tuple(values.shape)}, expected {shape}")
    return values.detach().double().cpu().numpy()


def verdict_on(error: Exception) -> tuple[str, str]:
    """Verdict and reason of a check that raised: ``n/a`` for what is not implemented, else ``failed``."""
    if isinstance(error, NotImplementedError):
        return NOT_APPLICABLE, str(error) or "not implemented"
    if isinstance(error, DataError):  # a sentence for users
        return FAILED, str(error)
    return FAILED, f"raised {type(error).__name__}: {error}"


def _why_no_stress(error: Exception) -> tuple[str, str]:
    # how the wrapper of a calculator passes on that stress is not implemented; a wrong shape is a DataError, too
    if isinstance(error, DataError) and "gives no stress" in str(error):
        return NOT_APPLICABLE, "the potential says that it has stress, and then that stress is not implemented"
    return verdict_on(error)


def moved(atoms: Atoms, displacements: np.ndarray) -> Atoms:
    """A copy with displaced atoms."""
    other = atoms.copy()
    other.positions += displacements
    return other


def is_periodic(atoms: Atoms) -> bool:
    """Whether a structure has a full periodic cell, so that stress means something."""
    return bool(atoms.pbc.all()) and atoms.cell.rank == 3


def worst(
    name: str, differences: Sequence[float], bounds: Sequence[float], unit: str, text: str, where: Sequence[str] = ()
) -> Check:
    """The check of the difference that is largest against its bound; ``where`` says what each belongs to."""
    values, limits = np.asarray(differences, dtype=float), np.asarray(bounds, dtype=float)
    if not len(values):
        return Check(name, NOT_APPLICABLE, text="nothing to check it on")
    broken = np.flatnonzero(~np.isfinite(values))
    k = int(broken[0]) if len(broken) else int(np.argmax(values / limits))
    place = f"; {where[k]}" if len(where) else ""
    if len(broken):
        return Check(name, FAILED, None, unit, float(limits[k]), f"not finite{place}")
    verdict = PASSED if values[k] <= limits[k] else FAILED
    return Check(name, verdict, float(values[k]), unit, float(limits[k]), text + place)

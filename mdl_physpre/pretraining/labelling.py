"""Labels from a teacher: a potential of this package, or any ASE calculator, over a list of structures."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import FileIOCalculator
from ase.calculators.genericfileio import GenericFileIOCalculator

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials.adapters.from_ase import CalculatorPotential, attach, reset
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.sum import SumPotential
from mdl_physpre.pretraining.teacher import CALCULATOR_ERRORS, CalculatorFactory, Teacher, resolve_teacher
from mdl_physpre.structures.graph import GraphDataset, batch_by_edges
from mdl_physpre.structures.labels import Labels, as_stress_matrix, set_labels
from mdl_physpre.structures.state import is_label
from mdl_physpre.utils.devices import device_of_parameters
from mdl_physpre.utils.progress import progress as show_progress
from mdl_physpre.utils.worker_pool import run_chunks, start_method

logger = logging.getLogger(__name__)

PARALLEL_FROM = 2_000  # atoms: below this a potential is done before a second process has started
# Structures given by name in the log when they fail; the rest are counted.
NAMED_FAILURES = 10


@dataclass(frozen=True)
class LabelFailure:
    """A structure that the teacher could not label, and why."""

    reason: str


def label(
    structures: Sequence[Atoms],
    teacher: Teacher,
    *,
    kwargs: Mapping[str, Any] | None = None,
    batch_edges: int = 200_000,
    dtype: torch.dtype = torch.float32,
    workers: int | None = None,
    progress: bool = True,
    on_error: str = "raise",
) -> list[Atoms]:
    """Copies of structures with energy, forces and stress by a teacher.

    Parameters
    ----------
    structures : what to label; they stay as they are.
    teacher : a :class:`Potential`; a callable that returns one, or an ASE calculator; or a string: a checkpoint file, a
        name registered in the entry-point group ``mdl_physpre.teachers``, or the import path ``package.module.Class``.
    kwargs : arguments for the callable or class.
    batch_edges : edges in a batch (potentials only).
    dtype : precision of a potential; energies are summed in float64 either way.
    workers : processes, at least 1; as many as there are cores where ``None``. 1 stays in this process.
    progress : show how far it is.
    on_error : ``"raise"`` where a structure cannot be labelled, or ``"skip"``: leave it out with a warning.

    Returns
    -------
    Labelled copies, in order: energy (eV), forces (eV/Å), and stress (eV/Å³, tension positive) where the structure is
    periodic in three directions and the teacher gives it. Older labels in ``info`` and ``arrays`` are taken off.

    Raises
    ------
    DataError : structures without labels, named (always where none could be labelled).
    ConfigError : a teacher that cannot be found or built; fewer than one process.
    """
    if on_error not in ("raise", "skip"):
        raise ConfigError(f"on_error: found {on_error!r}, expected 'raise' or 'skip'")
    structures = list(structures)
    options: dict[str, Any] = {"batch_edges": batch_edges, "dtype": dtype, "workers": workers, "progress": progress}
    found = compute_labels(structures, teacher, kwargs=kwargs, **options)
    labels = without_failures(structures, found, on_error=on_error)
    return [labelled_copy(atoms, one) for atoms, one in zip(structures, labels) if one is not None]


def compute_labels(
    structures: Sequence[Atoms],
    teacher: Teacher,
    *,
    kwargs: Mapping[str, Any] | None = None,
    batch_edges: int = 200_000,
    dtype: torch.dtype = torch.float32,
    workers: int | None = None,
    progress: bool = True,
) -> list[Labels | LabelFailure]:
    """The labels of each structure, or why there are none; arguments as in :func:`label`."""
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}; expected at least 1 process, or None for as many as there are cores")
    resolved = resolve_teacher(teacher, kwargs)
    if not structures:
        return []
    if isinstance(resolved, SumPotential) and isinstance(base := resolved.parts.get("base"), CalculatorPotential):
        bare = compute_labels(structures, base, workers=workers, progress=progress)
        return _corrected(structures, bare, resolved.without("base"))
    name = partial(_named, structures)
    if isinstance(resolved, Potential):
        potential = deepcopy(resolved).to(dtype).eval()
        chunks = batch_by_edges(estimated_edges(structures, potential.cutoff), batch_edges)
        if sum(len(a) for a in structures) < PARALLEL_FROM:
            workers = 1
        # workers build graphs, most of the work of an embedded-atom potential; this process alone evaluates, with all
        # its threads or on a GPU: automatic differentiation does not survive a fork
        task = partial(_batch_graphs, structures, potential.cutoff, _dtype(potential))
        batches = run_chunks(task, chunks, workers, "fork", name)
        results: Iterable[list[Labels | LabelFailure]]
        results = (_evaluate_batch(structures, potential, batch) for batch in batches)
    else:
        chunks = [[k] for k in range(len(structures))]
        results = run_chunks(partial(_label_by_calculator, structures, resolved), chunks, workers, start_method(), name)
    if progress:
        results = show_progress(results, total=len(chunks), description="labels")
    return [one for part in results for one in part]


def _corrected(
    structures: Sequence[Atoms], found: Sequence[Labels | LabelFailure], correction: Potential
) -> list[Labels | LabelFailure]:
    """Labels of calculators, with a short-range repulsion and energies of the elements added in this process."""
    added = compute_labels(structures, correction, dtype=torch.float64, workers=1, progress=False)
    results: list[Labels | LabelFailure] = []
    for one, other in zip(found, added):
        if isinstance(one, LabelFailure) or isinstance(other, LabelFailure):
            results.append(one if isinstance(one, LabelFailure) else other)
            continue
        assert one.energy is not None and other.energy is not None
        assert one.forces is not None and other.forces is not None
        stress = None if one.stress is None or other.stress is None else one.stress + other.stress
        results.append(Labels(one.energy + other.energy, one.forces + other.forces, stress))
    return results


def estimated_edges(structures: Sequence[Atoms], cutoff: float) -> list[int]:
    """Edges expected from the mean density: n (4/3) pi rc^3 n / V, or all pairs where there is no cell to speak of."""
    sphere = 4 / 3 * np.pi * cutoff**3
    edges = []
    for atoms in structures:
        n = len(atoms)
        volume = abs(float(np.linalg.det(atoms.cell.array)))
        neighbours = sphere * n / volume if volume > 0 and atoms.pbc.all() else n - 1
        edges.append(max(1, int(n * neighbours)))
    return edges


def labelled_copy(atoms: Atoms, labels: Labels) -> Atoms:
    """A copy with these labels, and without older ones in ``info`` and ``arrays``, which readers would prefer."""
    copy: Atoms = atoms.copy()
    for store in (copy.info, copy.arrays):
        for key in [key for key in store if is_label(key)]:
            del store[key]
    return set_labels(copy, labels.energy, labels.forces, labels.stress)


def without_failures(
    structures: Sequence[Atoms], found: Sequence[Labels | LabelFailure], subject: str = "", on_error: str = "skip"
) -> list[Labels | None]:
    """The labels, None where there are none, which a warning names, after the subject.

    Raises DataError instead for ``on_error="raise"``, and where no structure could be labelled.
    """
    failures = {k: result.reason for k, result in enumerate(found) if isinstance(result, LabelFailure)}
    if failures:
        text = (f"{subject}: " if subject else "") + failure_text(structures, failures)
        if len(failures) == len(structures):
            raise DataError(f"{text}. Look at the elements, the arguments and the installation of the teacher")
        if on_error == "raise":
            raise DataError(
                f"{text}. Take these structures out of the data, or label the others alone: physpre label "
                "--skip-failed, from Python label(…, on_error='skip')"
            )
        logger.warning("%s; they are left out", text)
    return [None if isinstance(result, LabelFailure) else result for result in found]


def failure_text(structures: Sequence[Atoms], failures: Mapping[int, str]) -> str:
    """Which structures have no label, and why, in one line."""
    named = [f"{_named(structures, k)}: {reason}" for k, reason in list(failures.items())[:NAMED_FAILURES]]
    rest = f"; and {len(failures) - len(named)} more" if len(failures) > len(named) else ""
    return f"{len(failures)} of {len(structures)} structures could not be labelled: {'; '.join(named)}{rest}"


def _dtype(potential: Potential) -> torch.dtype:
    tensors = [*potential.parameters(), *potential.buffers()]
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.float64)


def _named(structures: Sequence[Atoms], k: int) -> str:
    return f"{k} ({structures[k].info.get('structure_id', 'no id')})"


def _batch_graphs(
    structures: Sequence[Atoms], cutoff: float, dtype: torch.dtype, chunk: list[int]
) -> tuple[list[int], GraphDataset | str]:
    try:
        part = [structures[k] for k in chunk]
        return chunk, GraphDataset(part, cutoff, dtype=dtype, workers=1, labels=False)
    except Exception as error:
        return chunk, f"{type(error).__name__}: {error}"


def _evaluate_batch(
    structures: Sequence[Atoms], potential: Potential, batch: tuple[list[int], GraphDataset | str]
) -> list[Labels | LabelFailure]:
    chunk, graphs = batch
    reason = graphs
    if not isinstance(graphs, str):
        try:
            graph = graphs.batch().on(device_of_parameters(potential))
            found = evaluate(potential, graph)
            assert found.forces is not None and found.stress is not None
            energies, forces, stress = (
                x.detach().double().cpu().numpy() for x in (found.energies, found.forces, found.stress)
            )
            ends = np.cumsum(graphs.n_atoms)
            return [
                _checked(structures[k], energies[b], forces[end - len(structures[k]) : end], stress[b])
                for b, (k, end) in enumerate(zip(chunk, ends))
            ]
        except CALCULATOR_ERRORS as error:
            reason = f"{type(error).__name__}: {error}"
    if len(chunk) == 1:
        return [LabelFailure(str(reason))]
    # One structure spoils its batch: take them one at a time, to say which it is and to label the others.
    alone = (_batch_graphs(structures, potential.cutoff, _dtype(potential), [k]) for k in chunk)
    return [result for one in alone for result in _evaluate_batch(structures, potential, one)]


def _checked(atoms: Atoms, energy: Any, forces: Any, stress: Any) -> Labels | LabelFailure:
    """Copies of what a teacher gave as labels, or what is wrong with their shapes or values.

    The stress, (3, 3) or in Voigt order, is left out where the structure is not periodic in three directions.
    """
    energy, forces = np.array(energy, dtype=float), np.array(forces, dtype=float)
    if energy.size != 1:
        return LabelFailure(f"energy has shape {energy.shape}; expected one number")
    if forces.shape != (len(atoms), 3):
        return LabelFailure(f"forces have shape {forces.shape}; expected ({len(atoms)}, 3)")
    try:
        periodic = atoms.pbc.all() and atoms.cell.rank == 3
        stress = as_stress_matrix(np.array(stress, dtype=float)) if periodic and stress is not None else None
    except DataError as error:
        return LabelFailure(str(error))
    for name, value in (("energy", energy), ("forces", forces), ("stress", stress)):
        if value is not None and not np.isfinite(value).all():
            return LabelFailure(f"{name} is not finite")
    return Labels(float(energy.reshape(())), forces, stress)


_calculators: dict[int, tuple[CalculatorFactory, Any]] = {}


def _calculator(factory: CalculatorFactory) -> Any:
    """The calculator of this process, built once; one that writes files gets a folder of its own."""
    key = os.getpid()
    known = _calculators.get(key)
    if known is None or known[0] is not factory:
        calculator = factory()
        if isinstance(calculator, (FileIOCalculator, GenericFileIOCalculator)):
            calculator.directory = Path(calculator.directory) / f"worker-{key}"
        _calculators.clear()
        _calculators[key] = (factory, calculator)
    return _calculators[key][1]


def _label_by_calculator(
    structures: Sequence[Atoms], factory: CalculatorFactory, chunk: list[int]
) -> list[Labels | LabelFailure]:
    (number,) = chunk
    structure = structures[number]
    calculator = _calculator(factory)  # a calculator that cannot be built is an error, not a failed structure
    atoms = structure.copy()
    attach(atoms, calculator)
    try:
        energy, forces = atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False)
        stress = None
        if "stress" in calculator.implemented_properties and atoms.pbc.all() and atoms.cell.rank == 3:
            stress = calculator.get_stress(atoms)  # atoms.get_stress asserts a shape without a word
        return [_checked(structure, energy, forces, stress)]
    except CALCULATOR_ERRORS as error:
        reset(calculator)  # it must not take what it had half done for done
        return [LabelFailure(f"{type(error).__name__}: {error}")]

"""Fitting the embedded-atom potential to DFT labels."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols

from mdl_physpre.analysis.errors import Errors, prediction_errors
from mdl_physpre.eam_fit.objective import BLOCK_EDGES, FitObjective
from mdl_physpre.eam_fit.report import FittedPair, carries_labels, describe, fit_warnings, pair_table
from mdl_physpre.eam_fit.routes import BestState, fit_fast, fit_reference, parameters_of, set_parameters
from mdl_physpre.eam_fit.settings import EAMFitSettings
from mdl_physpre.eam_fit.wall import WallPrior
from mdl_physpre.errors import DataError, FitError
from mdl_physpre.potentials.eam.potential import EAMInteraction, element_numbers
from mdl_physpre.potentials.energy_reference import composition_matrix
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.training_energies import TrainingEnergies
from mdl_physpre.potentials.zbl import repulsion_beside_data
from mdl_physpre.structures.graph import GraphDataset, batch_by_edges
from mdl_physpre.structures.labels import LABELS
from mdl_physpre.utils.progress import progress as show_progress

logger = logging.getLogger(__name__)


@dataclass
class EAMFit:
    """A fitted potential and how it came about.

    Attributes
    ----------
    potential : the state of lowest validation loss.
    history : a row for each epoch (``reference``) or step (``fast``): ``epoch`` (passes over the training data),
        ``train_loss``, ``val_loss``, ``val_energy`` (eV), ``val_forces`` (eV/Å), ``val_stress`` (eV/Å³), ``seconds``.
    errors : of ``train`` and ``val`` (None without labels to compare with).
    table : a row for each pair.
    text : all of this in words.
    seconds : wall time.
    """

    potential: EAMInteraction
    history: list[dict[str, float]]
    errors: dict[str, Errors | None]
    table: list[FittedPair]
    text: str
    seconds: float


def fit_eam(
    train: Sequence[Atoms],
    val: Sequence[Atoms] | None = None,
    settings: EAMFitSettings | None = None,
    *,
    elements: Sequence[str | int] | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> EAMFit:
    """Fit an :class:`~mdl_physpre.potentials.eam.potential.EAMInteraction` to energies, forces and stresses.

    loss = w_E · mean |E − E_ref| + w_F · mean |F − F_ref| + w_S · mean |σ − σ_ref|

    with total energies, and means over structures, force components and stress components that carry a label (the
    paper's loss). With ``init="spread"`` E0 starts at the least-squares fit to composition of what the other terms
    leave of the total energies. The state of lowest validation loss is kept.

    The route ``reference`` is the paper's (:func:`~mdl_physpre.eam_fit.routes.fit_reference`). ``fast``
    (:func:`~mdl_physpre.eam_fit.routes.fit_fast`) keeps every Morse term within bounds that make it a well with a wall,
    and holds every pair curve repulsive below the distances that occur in the data, because there nothing else would. A
    short-range repulsion ends at the shortest distance of a pair in ``train``, but for ``short_range_radii``.

    Parameters
    ----------
    train, val : labelled structures; without labels in ``val`` the training structures choose the best state.
    settings : form of the potential, route and weights w; the defaults, which are the paper's, where None.
    elements : symbols or atomic numbers, in the order of the parameters; those of the structures where None.
    seed : of the order of the mini-batches; the fast route draws no random numbers.
    cache_dir : where neighbour lists are kept between runs.
    progress : show progress.

    Raises
    ------
    ConfigError : an unknown element.
    DataError : a structure with an element that is not in ``elements``.
    FitError : no structure, no label that the loss weighs, or a fit that diverged, with its epoch and parameter.
    """
    started = time.perf_counter()
    settings = settings or EAMFitSettings()
    weights = settings.weights
    if not len(train):
        raise FitError("the fit has no training structures; look at the sizes of the split")
    potential = _unfitted(train, _elements(train, val or [], elements), settings)
    parts = {"train": train, "val": val or []}
    sets = {name: GraphDataset(part, settings.cutoff, cache_dir=cache_dir) for name, part in parts.items() if part}
    best, closest = _fitted(potential, sets, settings, seed, progress)
    errors = {
        name: prediction_errors(potential, sets[name], weights=weights)
        if name in sets and any(map(sets[name].label_count, LABELS))
        else None
        for name in parts
    }
    table, seconds = pair_table(potential, closest), time.perf_counter() - started
    warnings = fit_warnings(potential, table, sets, weights)
    for warning in warnings:
        logger.warning("%s", warning)
    how = _how(settings, sets["train"], best, seconds)
    text = describe(potential, table, errors, how=how, warnings=warnings)
    return EAMFit(potential, best.history, errors, table, text, seconds)


def _unfitted(train: Sequence[Atoms], elements: tuple[int, ...], settings: EAMFitSettings) -> EAMInteraction:
    form = settings.potential
    if settings.short_range:
        repulsion = repulsion_beside_data(train, elements, settings.short_range_radii, settings.cutoff)
        form["short_range_radii"] = repulsion.radii
    return EAMInteraction(elements, **form)


def _how(settings: EAMFitSettings, train: GraphDataset, best: BestState, seconds: float) -> str:
    chosen = min(best.history, key=lambda row: row["val_loss"] + row.get("wall", 0.0))
    counts = ", ".join(f"{name} on {train.label_count(name)}" for name in LABELS)
    return (
        f"Fitted by the {settings.route} route to {len(train)} structures ({counts}) in {seconds:.0f} s; best state "
        f"after {chosen['epoch']} of {best.history[-1]['epoch']} passes over the data, validation loss "
        f"{chosen['val_loss']:.4f}."
    )


def _fitted(
    potential: EAMInteraction,
    sets: dict[str, GraphDataset],
    settings: EAMFitSettings,
    seed: int,
    progress: bool,
) -> tuple[BestState, list[float]]:
    """Give a potential the parameters of lowest validation loss; how it went, and the closest distances in the data."""
    train, weights = sets["train"], settings.weights
    if not carries_labels(train, weights):
        raise FitError(
            f"none of the {len(train)} training structures carries a label that the loss weighs (weights of energy, "
            f"forces, stress: {weights}); look at the label counts of the data"
        )
    objective = FitObjective(train, potential, weights)
    judged = "val" in sets and carries_labels(sets["val"], weights)
    validation = FitObjective(sets["val"], potential, weights) if judged else objective
    if settings.init == "spread":
        start_energies(potential, train)
    start, closest = parameters_of(potential), objective.closest()
    best = BestState(validation)
    passes: Iterable[int] = range(1, settings.epochs + 1)
    if progress:
        passes = show_progress(passes, settings.epochs, "fitting the embedded-atom potential")
    if settings.route == "reference":
        fit_reference(potential, train, best, passes, settings, seed)
    else:
        atoms = torch.from_numpy(composition_matrix(train.structures, potential.elements).sum(0))
        wall = WallPrior(potential, objective.pair, objective.r, objective.distance_counts(), atoms)
        fit_fast(potential, objective, wall, best, passes, settings.epochs)
    final = best.parameters
    for p, distance in enumerate(closest):
        if distance == float("inf"):  # weight decay and penalties do not count as knowledge of a pair
            for name in ("A", "beta", "D", "alpha", "r_e"):
                final[name][p] = start[name][p]
    set_parameters(potential, final)
    potential.training_energies = TrainingEnergies.of(train.structures)
    return best, closest


def start_energies(potential: EAMInteraction, dataset: GraphDataset) -> None:
    """Set E0 to the least-squares fit, to composition, of what the other terms leave of the total energies.

    Each structure weighs 1/n_atoms; the solution has minimum norm where it is not unique. Without energies E0 stays.
    """
    rows, targets = [], []
    for indices in batch_by_edges(dataset.n_edges, 2 * BLOCK_EDGES):
        graph = dataset.batch(indices)
        left = graph.energy - evaluate(potential, graph, forces=False, stress=False).energies
        rows.append(composition_matrix([dataset.structures[k] for k in indices], potential.elements))
        targets.append(left.numpy())
    matrix, target = np.concatenate(rows), np.concatenate(targets)
    known = np.isfinite(target)
    if known.any():
        weight = 1.0 / matrix[known].sum(1)
        solution = np.linalg.lstsq(matrix[known] * weight[:, None], target[known] * weight, rcond=1e-8)[0]
        with torch.no_grad():
            potential.E0.add_(torch.from_numpy(solution))


def _elements(train: Sequence[Atoms], val: Sequence[Atoms], elements: Sequence[str | int] | None) -> tuple[int, ...]:
    if elements is None:
        return tuple(sorted({int(z) for a in [*train, *val] for z in a.numbers}))
    numbers = element_numbers(elements)
    for name, part in (("training", train), ("validation", val)):
        for k, atoms in enumerate(part):
            strange = sorted({int(z) for z in atoms.numbers} - set(numbers))
            if strange:
                which = atoms.info.get("structure_id", k)
                raise DataError(
                    f"{name} structure {which} (index {k}) holds {_symbols(strange)}, but the potential is for "
                    f"{_symbols(numbers)}; add the element, or leave the structure out"
                )
    return numbers


def _symbols(numbers: Iterable[int]) -> str:
    return ", ".join(chemical_symbols[z] for z in numbers)

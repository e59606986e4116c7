"""Fitting the embedded-atom potential to DFT labels."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols

from mdl_physpre.analysis.errors import prediction_errors
from mdl_physpre.eam_fit.objective import BLOCK_EDGES, LABELS, FitObjective
from mdl_physpre.eam_fit.report import describe, pair_table
from mdl_physpre.eam_fit.routes import BestState, fit_fast, fit_reference, parameters_of, set_parameters
from mdl_physpre.eam_fit.wall import WallPrior
from mdl_physpre.errors import ConfigError, DataError, FitError
from mdl_physpre.potentials.base import evaluate
from mdl_physpre.potentials.eam.potential import EAMInteraction, element_numbers
from mdl_physpre.potentials.energy_reference import composition_matrix
from mdl_physpre.structures.graph import GraphDataset, batch_by_edges
from mdl_physpre.utils.progress import progress as show_progress

logger = logging.getLogger(__name__)

ROUTES = ("fast", "reference")


@dataclass
class EAMFit:
    """A fitted potential and how it came about.

    Attributes
    ----------
    potential : the state of lowest validation loss.
    history : a row for each epoch (``reference``) or step (``fast``): ``epoch`` (passes over the training data),
        ``train_loss``, ``val_loss``, ``val_energy`` (eV), ``val_forces`` (eV/Å), ``val_stress`` (eV/Å³), ``seconds``.
    errors : of ``train`` and ``val`` (None without a validation set), as
        :func:`mdl_physpre.analysis.errors.prediction_errors` gives them.
    table : a row for each pair, see :func:`mdl_physpre.eam_fit.report.pair_table`.
    text : all of this in words.
    seconds : wall time.
    """

    potential: EAMInteraction
    history: list[dict[str, float]]
    errors: dict[str, Any]
    table: list[dict[str, Any]]
    text: str
    seconds: float


def fit_eam(
    train: Sequence[Atoms],
    val: Sequence[Atoms] | None = None,
    *,
    elements: Sequence[str | int] | None = None,
    cutoff: float = 8.0,
    n_basis: int = 10,
    init: str = "spread",
    route: str = "fast",
    epochs: int = 200,
    lr: float = 2e-3,
    batch_size: int = 4,
    seed: int = 0,
    loss_weights: Sequence[float] = (0.01, 50.0, 50.0),
    signed_embedding: bool = False,
    short_range: str | None = None,
    short_range_radii: Mapping[str, float] | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> EAMFit:
    """Fit an :class:`~mdl_physpre.potentials.eam.potential.EAMInteraction` to energies, forces and stresses.

    loss = w_E · mean |E − E_ref| + w_F · mean |F − F_ref| + w_S · mean |σ − σ_ref|

    with total energies, and means over structures, force components and stress components that carry a label (the
    paper's loss). With ``init="spread"`` E0 starts at the least-squares fit to composition of what the other terms
    leave of the total energies. The state of lowest validation loss is kept.

    ``route="reference"`` is the paper's: AdamW on mini-batches for ``epochs`` epochs, see
    :func:`~mdl_physpre.eam_fit.routes.fit_reference`. ``route="fast"`` is L-BFGS on all structures at once with
    tabulated distances, in at most ``epochs`` evaluations. It keeps every Morse term within bounds that make it a well
    with a wall, and holds every pair curve repulsive below the distances that occur in the data
    (:class:`~mdl_physpre.eam_fit.wall.WallPrior`), because there nothing else would.

    Parameters
    ----------
    train, val : labelled structures; without labels in ``val`` the training structures choose the best state.
    elements : symbols or atomic numbers, in the order of the parameters; those of the structures where None.
    cutoff : Å.
    n_basis, init, signed_embedding : as in :class:`~mdl_physpre.potentials.eam.potential.EAMInteraction`.
    short_range, short_range_radii : likewise; the core is there during the fit, so that the sum fits the data.
    epochs : passes over the training data.
    lr, batch_size, seed : of the reference route; the fast route draws no random numbers.
    loss_weights : w_E (1/eV), w_F (Å/eV), w_S (Å³/eV).
    cache_dir : where neighbour lists are kept between runs.
    progress : show progress.

    Raises
    ------
    ConfigError : an unknown route or init, an unknown element.
    DataError : a structure with an element that is not in ``elements``.
    FitError : no structure, no label that the loss weighs, or a fit that diverged, with its epoch and parameter.
    """
    started = time.perf_counter()
    if route not in ROUTES:
        raise ConfigError(f"the route of the fit is {route!r}; expected one of {', '.join(ROUTES)}")
    if len(loss_weights) != 3 or epochs < 1 or batch_size < 1:
        raise ConfigError(
            f"loss_weights is {tuple(loss_weights)}, epochs {epochs}, batch_size {batch_size}; expected three weights "
            "(energy, forces, stress) and positive numbers"
        )
    if not len(train):
        raise FitError("the fit has no training structures; look at the sizes of the split")
    weights = (float(loss_weights[0]), float(loss_weights[1]), float(loss_weights[2]))
    numbers = _elements(train, val or [], elements)
    potential = EAMInteraction(
        numbers, cutoff, n_basis, init, signed_embedding, short_range=short_range, short_range_radii=short_range_radii
    )

    train_set = GraphDataset(train, cutoff, dtype=torch.float32, cache_dir=cache_dir)
    val_set = GraphDataset(val, cutoff, dtype=torch.float32, cache_dir=cache_dir) if val else None
    weighed = [n for n, w in zip(LABELS, weights) if w and train_set.label_count(n)]
    if not weighed:
        raise FitError(
            f"none of the {len(train)} training structures carries a label that the loss weighs (weights of energy, "
            f"forces, stress: {weights}); look at the label counts of the data"
        )
    objective = FitObjective(train_set, potential, weights)
    judged = val_set is not None and any(w and val_set.label_count(n) for n, w in zip(LABELS, weights))
    validation = FitObjective(val_set, potential, weights) if judged and val_set is not None else objective
    if init == "spread":
        start_energies(potential, train_set)
    start, closest = parameters_of(potential), objective.closest()
    best = BestState(validation)

    def show(passes: Iterable[int]) -> Iterable[int]:
        return show_progress(passes, epochs, "fitting the embedded-atom potential") if progress else passes

    if route == "reference":
        fit_reference(
            potential, train_set, best,
            weights=weights, epochs=epochs, lr=lr, batch_size=batch_size, seed=seed, show=show,
        )  # fmt: skip
    else:
        wall = WallPrior(potential, objective.pair, objective.r, objective.distance_counts(), _atoms_of(train, numbers))
        fit_fast(potential, objective, wall, best, epochs=epochs, show=show)
    final = best.parameters
    for p, distance in enumerate(closest):
        if distance == float("inf"):  # weight decay and penalties do not count as knowledge of a pair
            for name in ("A", "beta", "D", "alpha", "r_e"):
                final[name][p] = start[name][p]
    set_parameters(potential, final)

    errors = {
        "train": prediction_errors(potential, train_set, weights=weights),
        "val": _errors_or_none(potential, val_set, weights),
    }
    table = pair_table(potential, closest)
    seconds = time.perf_counter() - started
    warnings = _warnings(potential, table, train, weights, train_set, judged)
    for warning in warnings:
        logger.warning("%s", warning)
    chosen = min(best.history, key=lambda row: row["val_loss"] + row.get("wall", 0.0))
    how = (
        f"Fitted by the {route} route to {len(train)} structures ({', '.join(_label_words(train_set))}) in "
        f"{seconds:.0f} s; best state after {chosen['epoch']} of {best.history[-1]['epoch']} passes over the data, "
        f"validation loss {chosen['val_loss']:.4f}."
    )
    text = describe(potential, table, errors, how=how, warnings=warnings)
    return EAMFit(potential, best.history, errors, table, text, seconds)


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


def _atoms_of(structures: Sequence[Atoms], numbers: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(composition_matrix(structures, numbers).sum(0))


def _errors_or_none(
    potential: EAMInteraction, dataset: GraphDataset | None, weights: tuple[float, float, float]
) -> dict[str, Any] | None:
    if dataset is None or not any(dataset.label_count(n) for n in LABELS):
        return None
    return prediction_errors(potential, dataset, weights=weights)


def _label_words(dataset: GraphDataset) -> list[str]:
    return [f"{name} on {dataset.label_count(name)}" for name in LABELS]


def _warnings(
    potential: EAMInteraction,
    table: Sequence[dict[str, Any]],
    train: Sequence[Atoms],
    weights: tuple[float, float, float],
    dataset: GraphDataset,
    judged: bool,
) -> list[str]:
    found = {int(z) for a in train for z in a.numbers}
    lines = [
        f"no training structure holds {chemical_symbols[z]}: its parameters keep their start values"
        for z in potential.elements if z not in found
    ]  # fmt: skip
    lines += [
        f"{row['pair']} never meets within {potential.cutoff:g} Å in the training data: its parameters keep their "
        "start values"
        for row in table if row["closest_A"] is None
    ]  # fmt: skip
    lines += [
        f"{row['pair']} does not rise at short distance (two atoms at 0.5 Å: {row['wall_at_0.5_A_eV']:.3g} eV): in the "
        "labels of structures in which this pair is pushed together it would attract"
        for row in table if not row["rises"]
    ]  # fmt: skip
    lines += [
        f"no training structure carries {name}: that part of the loss (weight {w:g}) counts for nothing"
        for name, w in zip(LABELS, weights) if w and not dataset.label_count(name)
    ]  # fmt: skip
    if not judged:
        lines.append("no validation structure carries a label of the loss: the training set chose the best state")
    return lines

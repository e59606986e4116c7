"""Errors of a potential against labels, in the paper's units and per atom.

energy_mae   mean over structures of |E − E_ref|, total energies, eV (the paper's figure)
forces_mae   mean over all force components, eV/Å
stress_mae   mean over all nine stress components, eV/Å³
total        0.01·energy_mae + 50·forces_mae + 50·stress_mae (Table 2), over the labels that exist

Beside them energy_mae_mev_per_atom (mean over structures of |E − E_ref|/n_atoms, meV/atom), root mean squares of each,
and stress_mae_gpa. A label that no structure carries has ``None``, shown as "–" and never as 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.units import GPa

from mdl_physpre.analysis.batches import MAX_EDGES, graphs_of, numbers, predicted_batches
from mdl_physpre.errors import DataError
from mdl_physpre.potentials.base import Potential, Predictions
from mdl_physpre.structures.graph import AtomGraph, GraphDataset
from mdl_physpre.structures.labels import LABELS, get_labels, set_labels
from mdl_physpre.utils.record import Record
from mdl_physpre.utils.text_table import MISSING, aligned, shown

WEIGHTS = (0.01, 50.0, 50.0)  # energy, forces, stress: Table 2 of the paper


class Errors(Record):
    """Errors of a potential on a set of structures; ``None`` where no structure carries the label.

    counts : structures with each label.
    energy_mae, energy_rmse : eV; ``…_mev_per_atom``: meV/atom. forces_mae, forces_rmse : eV/Å.
    stress_mae, stress_rmse : eV/Å³. stress_mae_gpa : GPa.
    total, total_of, weights : the weighted sum of the mean absolute errors, the labels in it, and their weights.
    groups : errors of each value of an ``info`` key, where they were asked for.
    """

    n_structures: int
    n_atoms: int
    counts: dict[str, int]
    energy_mae: float | None = None
    energy_rmse: float | None = None
    energy_mae_mev_per_atom: float | None = None
    energy_rmse_mev_per_atom: float | None = None
    forces_mae: float | None = None
    forces_rmse: float | None = None
    stress_mae: float | None = None
    stress_rmse: float | None = None
    stress_mae_gpa: float | None = None
    total: float | None = None
    total_of: tuple[str, ...] = ()
    weights: dict[str, float] = {}
    groups: dict[str, Errors] = {}


def prediction_errors(
    potential: Potential,
    data: GraphDataset | Sequence[Atoms],
    *,
    weights: Sequence[float] = WEIGHTS,
    by: str | None = None,
    max_edges: int = MAX_EDGES,
    device: str | torch.device | None = None,
    see: Callable[[AtomGraph, Predictions], None] | None = None,
) -> Errors:
    """Errors of ``potential`` on labelled structures.

    Parameters
    ----------
    potential : evaluated in its own precision, in evaluation mode.
    data : a :class:`GraphDataset`, or structures. Stress labels are left out where the potential has no stress.
    weights : of energy, forces and stress in ``total``.
    by : an ``info`` key; the errors of each of its values are added under ``groups``.
    max_edges : of a batch; a limit on memory.
    device : where to compute; where the potential is, if ``None``.
    see : called with the graph of each batch, labels included, and what was predicted of it.

    Raises
    ------
    DataError : no structures, no label at all, or an element that the potential does not know.
    """
    dataset = graphs_of(potential, data)
    if len(dataset) == 0:
        raise DataError("there are no structures to compare predictions with")
    counts = {label: dataset.label_count(label) for label in LABELS}
    if not any(counts.values()):
        raise DataError(f"none of the {len(dataset)} structures carries an energy, forces or stress to compare with")
    if not potential.gives_stress:
        counts["stress"] = 0
    table = error_table(dataset.n_atoms)
    asked = {label: counts[label] > 0 for label in ("forces", "stress")}
    for batch in predicted_batches(potential, dataset, max_edges=max_edges, device=device, **asked):
        if see is not None:
            see(*batch[1:])
        for label, owners, found, true in predicted_and_labelled(*batch):
            add_errors(table, label, owners, found, true)
    result = _summary(table, np.arange(len(dataset)), weights)
    if by is not None:
        values = [str(atoms.info.get(by, MISSING)) for atoms in dataset.structures]
        groups = {
            value: _summary(table, np.array([k for k, v in enumerate(values) if v == value]), weights)
            for value in sorted(set(values))
        }
        return result.model_copy(update={"groups": groups})
    return result


def label_errors(predicted: Sequence[Atoms], structures: Sequence[Atoms], weights: Sequence[float] = WEIGHTS) -> Errors:
    """As :func:`prediction_errors`, of the labels of ``predicted`` against those of the same ``structures``.

    A label that one of the two lacks is left out.
    """
    table = error_table(np.array([len(atoms) for atoms in structures]))
    for k, (guess, atoms) in enumerate(zip(predicted, structures, strict=True)):
        found, true = get_labels(guess), get_labels(atoms)
        for label in LABELS:
            one, other = getattr(found, label), getattr(true, label)
            if one is not None and other is not None:
                add_errors(table, label, np.array([k]), np.reshape(one, (1, -1)), np.reshape(other, (1, -1)))
    return _summary(table, np.arange(len(structures)), weights)


def null_model_errors(structures: Sequence[Atoms], reference: Mapping[str, float] | None = None) -> Errors:
    """Errors of a model that has learnt nothing but composition: no forces, no stress, and E = Σ_i E0(z_i).

    A potential whose errors are not below these is not trained.

    Parameters
    ----------
    structures : labelled.
    reference : E0, eV by symbol, such as :attr:`.TrainingEnergies.reference`, which is fitted to the training
        structures; an element that is not named has 0. Energies are left out where ``None``.
    """
    predicted = []
    for atoms in structures:
        energy = None if reference is None else sum(reference.get(symbol, 0.0) for symbol in atoms.symbols)
        predicted.append(set_labels(atoms.copy(), energy, np.zeros((len(atoms), 3)), np.zeros((3, 3))))
    return label_errors(predicted, structures)


def error_table(n_atoms: np.ndarray) -> dict[str, np.ndarray]:
    """Summed absolute and squared errors of each structure, and how many numbers they are of, for each label: zeros."""
    kinds = ("absolute", "squared", "count")
    zeros = {f"{label}_{kind}": np.zeros(len(n_atoms)) for label in LABELS for kind in kinds}
    return zeros | {"n_atoms": np.asarray(n_atoms)}


def add_errors(
    table: dict[str, np.ndarray], label: str, owners: np.ndarray, predicted: np.ndarray, true: np.ndarray
) -> None:
    """Add the errors of rows that belong to the structures ``owners`` (n,); a label that is NaN does not count."""
    error = predicted.reshape(len(owners), -1) - true.reshape(len(owners), -1)
    present = ~np.isnan(true.reshape(len(owners), -1))
    error[~present] = 0.0
    for kind, value in (("absolute", np.abs(error)), ("squared", error**2), ("count", present)):
        np.add.at(table[f"{label}_{kind}"], owners, value.sum(1))


def predicted_and_labelled(
    rows: np.ndarray, graph: AtomGraph, predicted: Predictions
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """For each label that was predicted: its name, the structure of each row, the predictions and the labels."""
    for label, values in zip(LABELS, (predicted.energies, predicted.forces, predicted.stress)):
        if values is not None:
            owners = rows[graph.batch.cpu().numpy()] if label == "forces" else rows
            yield label, owners, numbers(values), numbers(graph[label])


def _summary(table: Mapping[str, np.ndarray], rows: np.ndarray, weights: Sequence[float]) -> Errors:
    n_atoms = table["n_atoms"][rows]
    result: dict[str, Any] = {"n_structures": len(rows), "n_atoms": int(n_atoms.sum())}
    result["counts"] = {label: int((table[f"{label}_count"][rows] > 0).sum()) for label in LABELS}
    for label in LABELS:
        absolute, squared, count = (table[f"{label}_{kind}"][rows] for kind in ("absolute", "squared", "count"))
        total = count.sum()
        result[f"{label}_mae"] = float(absolute.sum() / total) if total else None
        result[f"{label}_rmse"] = math.sqrt(squared.sum() / total) if total else None
        if label == "energy":
            per_atom = 1000.0 / n_atoms
            result["energy_mae_mev_per_atom"] = float((absolute * per_atom).sum() / total) if total else None
            result["energy_rmse_mev_per_atom"] = math.sqrt((squared * per_atom**2).sum() / total) if total else None
    stress = result["stress_mae"]
    result["stress_mae_gpa"] = None if stress is None else stress / GPa
    known = [k for k, label in enumerate(LABELS) if result[f"{label}_mae"] is not None]
    result["total"] = sum(weights[k] * result[f"{LABELS[k]}_mae"] for k in known) if known else None
    result["total_of"] = [LABELS[k] for k in known]
    result["weights"] = {label: float(weights[k]) for k, label in enumerate(LABELS)}
    return Errors(**result)


_COLUMNS = (
    ("structures", "n_structures", "{:d}"),
    ("E, eV", "energy_mae", "{:.4g}"),
    ("F, eV/Å", "forces_mae", "{:.4g}"),
    ("S, eV/Å³", "stress_mae", "{:.3g}"),
    ("total", "total", "{:.4g}"),
    ("E, meV/atom", "energy_mae_mev_per_atom", "{:.4g}"),
    ("E rms, meV/atom", "energy_rmse_mev_per_atom", "{:.4g}"),
    ("F rms, eV/Å", "forces_rmse", "{:.4g}"),
    ("S, GPa", "stress_mae_gpa", "{:.3g}"),
)


def format_errors(errors: Mapping[str, Errors], groups: bool = True) -> str:
    """A text table of mean absolute errors ("rms" where root mean square), one row for each name.

    A figure without labels shows "–". Where a total lacks a label, a line under the table says what it is made of.

    Parameters
    ----------
    errors : results of :func:`prediction_errors` by name.
    groups : add a row for each group, where there are any.
    """
    named: list[tuple[str, Errors]] = []
    for name, result in errors.items():
        named.append((name, result))
        if groups:
            named += [(f"  {value}", group) for value, group in result.groups.items()]
    rows = [["", *(title for title, _, _ in _COLUMNS)]]
    for name, result in named:
        rows.append([name, *(shown(getattr(result, key), form) for _, key, form in _COLUMNS)])
    lines = aligned(rows)
    first = next(iter(errors.values()), None)
    if first is not None:
        terms = {label: f"{weight:g}·{label[0].upper()}" for label, weight in first.weights.items()}
        lines.append("total = " + " + ".join(terms.values()))
        for name, result in errors.items():
            missing = [label for label in LABELS if label not in result.total_of]
            if missing:
                lines.append(f"{name}: no label for {' and '.join(missing)}; the total is without")
    return "\n".join(lines)

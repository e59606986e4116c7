"""The loss: energy, force and stress errors, weighted, with missing labels left out.

L = w_E · mean_b e(E_b) + w_F · mean_{i,x} e(F_ix) + w_S · mean_{b,xy} e(σ_b,xy)

where each mean runs over the labels that exist in the batch (a missing label is NaN), b over structures, i over atoms.
e is the error function of the loss that the settings name (:mod:`mdl_physpre.training.losses`). With ``mae``, the
absolute error of total energy (eV), force component (eV/Å) and stress component (eV/Å³), and w = 0.01, 50, 50, L is
the paper's loss.

Tails: with ``force_tail`` = F0, the error of an atom's force is divided by 1 + |F_i|/F0, and with ``stress_tail`` = σ0
that of a structure's stress by 1 + ‖σ_b‖/σ0 (Frobenius norm). Labels much below F0 count as without it; far above, what
counts is the relative error times F0. Perturbed structures hold atoms pushed into each other, whose forces are a
hundred times those near equilibrium.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.base import Predictions
from mdl_physpre.structures.graph import AtomGraph, GraphDataset
from mdl_physpre.training.losses import find_loss
from mdl_physpre.training.settings import TrainingSettings

WEIGHTS = {"energy": "weight_energy", "forces": "weight_force", "stress": "weight_stress"}


@dataclass
class LabelError:
    """Error of one label summed over a batch: ``loss`` (differentiable), ``absolute``, and ``count`` of the numbers."""

    loss: Tensor
    absolute: Tensor
    count: Tensor


def wanted_labels(settings: TrainingSettings) -> tuple[str, ...]:
    """The labels whose weight is not zero."""
    return tuple(label for label, key in WEIGHTS.items() if getattr(settings, key) > 0)


def check_labels(dataset: GraphDataset, split: str, settings: TrainingSettings) -> None:
    """Raise ConfigError where a label has a weight in the loss and no structure of the split carries it."""
    for label in wanted_labels(settings):
        if dataset.label_count(label) == 0:
            key = WEIGHTS[label]
            raise ConfigError(
                f"{key} is {getattr(settings, key)}, but none of the {len(dataset)} structures of the {split} set "
                f"carries a label '{label}'; set {key} to 0, or check the names of the labels in the file"
            )


def label_errors(predictions: Predictions, graph: AtomGraph, settings: TrainingSettings) -> dict[str, LabelError]:
    """Summed errors of each label with a weight, (scalars), over the labels that exist."""
    s, result = settings, {}
    for label in wanted_labels(s):
        if label == "energy":
            size = graph.n_atoms.to(graph.energy.dtype) if s.energy_per_atom else None
            result[label] = _sums(label, predictions.energies, graph.energy, s.huber_energy, s, size)
        elif label == "forces":
            assert predictions.forces is not None
            tail = _tail(graph.forces, s.force_tail)
            result[label] = _sums(label, predictions.forces, graph.forces, s.huber_force, s, tail=tail)
        else:
            assert predictions.stress is not None
            tail = _tail(graph.stress, s.stress_tail)
            result[label] = _sums(label, predictions.stress, graph.stress, s.huber_stress, s, tail=tail)
    return result


def total_loss(errors: dict[str, LabelError], settings: TrainingSettings) -> Tensor:
    """Weighted sum of the mean errors, a scalar; a label that the batch lacks adds nothing."""
    terms = [getattr(settings, WEIGHTS[k]) * e.loss / e.count.clamp(min=1) for k, e in errors.items()]
    return torch.stack(terms).sum()


def _sums(
    kind: str,
    predicted: Tensor,
    label: Tensor,
    delta: float,
    settings: TrainingSettings,
    divide: Tensor | None = None,
    tail: Tensor | None = None,
) -> LabelError:
    present = ~torch.isnan(label)
    difference = torch.where(present, predicted - label, 0.0)
    if divide is not None:
        difference = difference / divide
    absolute = difference.abs()
    error = find_loss(settings.loss).error(absolute, delta, label, kind)
    if tail is not None:
        error = error * tail
    # sums in double precision: a batch holds up to a million components
    double = torch.float64
    total = error.sum(dtype=double)
    plain = total.detach() if error is absolute else absolute.detach().sum(dtype=double)
    return LabelError(total, plain, present.sum())


def _tail(label: Tensor, scale: float | None) -> Tensor | None:
    if scale is None:
        return None
    dims = tuple(range(1, label.dim()))
    length = torch.nan_to_num(label).square().sum(dim=dims, keepdim=True).sqrt()
    return 1.0 / (1.0 + length / scale)

"""The loss of this package behind MatDeepLearn's interface, for what MatDeepLearn's own losses cannot say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mdl_physpre.potentials.base import Predictions
from mdl_physpre.structures.graph import AtomGraph
from mdl_physpre.training.loss import label_errors, total_loss, wanted_labels
from mdl_physpre.training.settings import TrainingSettings


class PhyspreLoss(nn.Module):
    """Weighted errors of energy, forces and stress, see :mod:`mdl_physpre.training.loss`.

    With the defaults this is MatDeepLearn's ``ForceStressLoss``. A label that is missing is NaN, and is left out.

    Parameters
    ----------
    settings : ``weight_energy``, ``weight_force``, ``weight_stress``, ``loss`` (mae, huber, conditional_huber),
        ``force_tail``, ``stress_tail`` and the other keys of :class:`~mdl_physpre.training.TrainingSettings`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = TrainingSettings(**settings)
        self.wanted = wanted_labels(self.settings)

    def forward(self, predictions: dict[str, Tensor | None], target: Any) -> Tensor:
        """The loss of a batch, a scalar.

        predictions : MatDeepLearn's ``output`` (n_structures, 1) eV, ``pos_grad`` (n_atoms, 3) eV/Å, ``cell_grad``
            (n_structures, 3, 3) eV/Å³.
        target : its batch, with ``y``, ``forces``, ``stress`` and ``n_atoms``.
        """
        output = predictions["output"]
        assert output is not None
        labels = {"energy": target.y.reshape(-1)}
        labels |= {name: target[name] for name in ("forces", "stress") if name in self.wanted}
        graph = AtomGraph.from_tensors(None, n_atoms=target.n_atoms, **labels)
        predicted = Predictions(output.reshape(-1), predictions.get("pos_grad"), predictions.get("cell_grad"))
        # sums in double precision end here: MatDeepLearn's scaler and tables expect single
        return total_loss(label_errors(predicted, graph, self.settings), self.settings).to(torch.get_default_dtype())

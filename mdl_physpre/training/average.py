"""A moving average of the weights: what is validated, kept and used, while training itself goes on from the weights.

w̄ ← w̄ + (1 − d)(w − w̄) after every step that is taken,    d = min(decay, (1 + n)/(10 + n)) in step n, from 0

A step of AdamW is as long at the end as the learning rate says, so that weights go round a minimum; their average is
nearer to it. With decay 0.99 it covers about the last hundred steps. The smaller d of the first ones forgets the
weights at the start. Buffers of a network, such as the statistics of batch normalisation, are not averaged.

Source: Polyak and Juditsky, SIAM J. Control Optim. 30, 838 (1992), for averages of iterates; the exponential form with
this d is that of TensorFlow's ``ExponentialMovingAverage``, which MACE uses, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """The moving average of parameters, from their values of now on.

    Parameters
    ----------
    parameters : those that are trained.
    decay : of the average, 0 to 1; 0 is the weights themselves.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.decay, self.steps = decay, 0
        self._parameters = list(parameters)
        self.averages: list[Tensor] = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of now, after a step."""
        self._follow_device()
        d = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for average, parameter in zip(self.averages, self._parameters):
            average.lerp_(parameter, 1.0 - d)
        self.steps += 1

    @torch.no_grad()
    def exchange(self) -> None:
        """Put the average in the place of the weights and keep these; once more, and all is as before, exactly."""
        self._follow_device()
        for average, parameter in zip(self.averages, self._parameters):
            weight = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(weight)

    def _follow_device(self) -> None:
        self.averages = [a.to(p.device) for a, p in zip(self.averages, self._parameters)]

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs."""
        return {"steps": self.steps, "averages": self.averages}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from an earlier part of the same training."""
        self.steps, self.averages = state["steps"], [average.clone() for average in state["averages"]]

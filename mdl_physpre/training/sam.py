"""Sharpness-aware minimisation: the gradient is taken at the worst weights nearby, and the step from where one is.

g  = ∇L(w)
e  = ρ T² g / ‖T g‖,    T = |w| element by element (adaptive), or T = 1 (plain)
w ← w + AdamW(∇L(w + e))

e is the step within ‖e/T‖ ≤ ρ that raises L most, to first order: what is minimised is the loss of the worst weights
nearby, which is low in wide minima alone. With T = |w|, a rescaling of two layers that leaves the network as it is
leaves the sharpness as it is, too, and a weight of zero stays at zero.

Both gradients are clipped, in the training module; e does not depend on the length of g. The optimiser that takes the
step is the one that the learning-rate schedule acts on.

Sources: Foret, Kleiner, Mobahi and Neyshabur, arXiv:2010.01412 (plain); Kwon, Kim, Park and Choi, arXiv:2102.11600
(adaptive); for interatomic potentials Ibayashi et al., arXiv:2303.08169.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SMALLEST = 1e-12  # added to ‖T g‖, so that a gradient of zero makes no step


@torch.no_grad()
def climb(parameters: Sequence[nn.Parameter], rho: float, adaptive: bool) -> list[Tensor]:
    """Move parameters from w to w + e by their gradients, in place; the values w, to go back to.

    Parameters
    ----------
    parameters : those without a gradient stay.
    rho : ρ. Plain: in units of the weights. Adaptive: a fraction of them.
    adaptive : whether T is the size of each weight.
    """
    before = [p.detach().clone() for p in parameters]
    scaled = [None if p.grad is None else p.abs() * p.grad if adaptive else p.grad for p in parameters]
    squares = [s.double().square().sum() for s in scaled if s is not None]
    length = torch.stack(squares).sum().sqrt() + SMALLEST
    for parameter, step in zip(parameters, scaled):
        if step is not None:
            direction = parameter.abs() * step if adaptive else step
            parameter.add_(direction * (rho / length).to(step.dtype))
    return before


@torch.no_grad()
def go_back(parameters: Sequence[nn.Parameter], before: Sequence[Tensor]) -> None:
    """Put the values that :func:`climb` returned back in place; exactly, as subtracting e again would not."""
    for parameter, value in zip(parameters, before):
        parameter.copy_(value)

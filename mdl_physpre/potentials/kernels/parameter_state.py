"""Whether parameters are still what they were when something was computed from them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class ParameterState:
    """Copies of parameters, to be compared with what they are later.

    The values themselves are compared: a tensor's count of changes does not see every change, that of a fused optimiser
    for one (torch 2.13).
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.seen = [p.detach().clone() for p in parameters]

    def holds(self, parameters: Sequence[Tensor]) -> bool:
        """Whether these parameters have the same values, precision and device."""
        return len(parameters) == len(self.seen) and all(
            p.dtype == q.dtype and p.device == q.device and p.equal(q) for p, q in zip(parameters, self.seen)
        )

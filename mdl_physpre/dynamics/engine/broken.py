"""Which structures break at a step, and why."""

from __future__ import annotations

import torch
from torch import Tensor


class Broken(dict[int, dict[str, str]]):
    """Structure -> reason -> sentence, of those that break at this step."""

    def add(self, structure: int, reason: str, text: str) -> None:
        """Note that ``structure`` breaks at this step."""
        self.setdefault(structure, {})[reason] = text

    def lost(self) -> list[int]:
        """Those that have been put elsewhere, because no forces can be had where they are."""
        return [k for k, reasons in self.items() if {"not_finite", "escaped", "cell_collapsed"} & set(reasons)]

    def which(self, mask: Tensor, structure: Tensor | None = None) -> list[int]:
        """The structures for which ``mask`` holds, sorted; ``structure`` is that of each element, if not its own."""
        if not bool(mask.any()):
            return []
        found = mask.nonzero().flatten() if structure is None else torch.unique(structure[mask])
        return found.tolist()

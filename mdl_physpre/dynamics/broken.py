"""Which structures break at a step, and why: read at once, or gathered on the device and read some steps later."""

from __future__ import annotations

import torch
from torch import Tensor


class Broken(dict[int, dict[str, str]]):
    """Structure -> reason -> sentence, of those that break at this step."""

    def add(self, structure: int, reason: str, text: str) -> None:
        """Note that ``structure`` breaks at this step."""
        self.setdefault(structure, {})[reason] = text

    def which(self, mask: Tensor, structure: Tensor | None = None) -> list[int]:
        """The structures for which ``mask`` holds, sorted; ``structure`` is that of each element, if not its own."""
        if not bool(mask.any()):
            return []
        found = mask.nonzero().flatten() if structure is None else torch.unique(structure[mask])
        return found.tolist()


class NotJudged(Exception):
    """Something happened that only a step that is judged at once can deal with."""


class Unread(Broken):
    """Says of no structure that it breaks, and keeps on the device whether one did; always empty.

    The steps of a window are taken with it. If :meth:`happened` says so in the end, they are taken again from the state
    before the first, judged one by one: nothing that followed a break counts, whatever became of the atoms.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flags: list[Tensor] = []

    def add(self, structure: int, reason: str, text: str) -> None:
        """Give the window up."""
        raise NotJudged(f"structure {structure}, {reason}: {text}")

    def which(self, mask: Tensor, structure: Tensor | None = None) -> list[int]:
        """None, for now."""
        self.flags.append(mask.any())
        return []

    def happened(self) -> Tensor:
        """Whether anything was found since the window began, () bool, on the device."""
        return torch.stack(self.flags).any()

"""Windows: steps after which the host reads whether anything broke, instead of waiting for the device at each.

As a rule nothing did. Otherwise all is put back to where it was before the first step of the window, and its steps are
taken again, each judged at once: nothing that followed a break counts, whatever became of the atoms.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mdl_physpre.dynamics.engine.broken import Broken

READ_EVERY = 8


def steps_between_readings(device: torch.device) -> int:
    """Steps after which the host reads at the latest whether a structure has broken: waiting for a device is dear."""
    return 1 if device.type == "cpu" else READ_EVERY


class NotJudged(Exception):
    """Something happened that only a step that is judged at once can deal with."""


class Unread(Broken):
    """Says of no structure that it breaks, and keeps on the device whether one did; always empty."""

    def __init__(self) -> None:
        super().__init__()
        self.flags: list[Tensor] = []

    def add(self, structure: int, reason: str, text: str) -> None:
        """Give the window up."""
        raise NotJudged(f"structure {structure}, {reason}: {text}")

    def which(self, mask: Tensor, structure: Tensor | None = None) -> list[int]:
        """No structure: whether there was one is read at the end of the window."""
        self.flags.append(mask.any())
        return []

    def happened(self) -> Tensor:
        """Whether anything was found since the window began, () bool, on the device."""
        return torch.stack(self.flags).any()


class Window:
    """A window of at most ``length`` steps after ``step``.

    ``parts`` are the objects whose attributes the steps change. Of these nothing is changed in place, so that the
    attributes as they are before the first step keep the state.
    """

    def __init__(self, parts: Iterable[object], step: int, length: int) -> None:
        self.unread, self.step, self.end = Unread(), step, step + length
        self.before = [(part, dict(vars(part))) for part in parts]

    def read(self, more: Tensor | None) -> tuple[bool, list[float]]:
        """Whether anything happened, and ``more`` numbers, in one transfer."""
        happened = self.unread.happened()[None].to(torch.float64)
        found = (happened if more is None else torch.cat([happened, more])).tolist()
        return bool(found[0]), found[1:]

    def put_back(self) -> None:
        """The state before the first step."""
        for part, values in self.before:
            vars(part).update(values)

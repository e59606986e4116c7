"""The record of a training: means over each epoch, and the CSV file that shows them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdl_physpre.training.loss import WEIGHTS, LabelError, wanted_labels
from mdl_physpre.training.ranks import Ranks
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.utils.files import replacing


class EpochSums:
    """Errors of each label summed over an epoch in double precision, so that the means do not depend on the batches.

    The sums stay on the device, and those of the ranks are added up, when the summary is asked for.
    """

    def __init__(self, settings: TrainingSettings, ranks: Ranks) -> None:
        self.settings, self.ranks = settings, ranks
        self.sums: Tensor | None = None  # (labels, 3): loss, absolute error, count

    def add(self, errors: dict[str, LabelError]) -> None:
        """Add the errors of one batch, or of this rank's share of it."""
        new = torch.stack(
            [torch.stack([e.loss.detach(), e.absolute, e.count.to(torch.float64)]) for e in errors.values()]
        )
        self.sums = new if self.sums is None else self.sums + new

    def summary(self, split: str) -> dict[str, float]:
        """``SPLIT_loss`` and the mean absolute error of each label in eV (eV/atom), eV/Å, eV/Å³; NaN where none is."""
        loss = math.nan if self.sums is None else 0.0
        row = {}
        values = [] if self.sums is None else self.ranks.sum(self.sums.clone()).tolist()
        for label, (summed, absolute, count) in zip(wanted_labels(self.settings), values):
            if count:
                loss += getattr(self.settings, WEIGHTS[label]) * summed / count
            row[f"{split}_{label}_mae"] = absolute / count if count else math.nan
        return {f"{split}_loss": loss, **row}


class EpochLog:
    """A row for each epoch, kept in a CSV file and, as text, in a checkpoint.

    An epoch costs as much to keep after a thousand others as at the start: a row is added to the file, and the text of
    the others is not made again.

    text : rows of an earlier part of the training, as ``text()`` gave them.
    """

    def __init__(self, text: str = "") -> None:
        self._lines = text.splitlines()
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in self._lines]
        self._columns: list[str] = []  # of the file, once this log has written it

    def text(self) -> str:
        """All rows."""
        return "\n".join(self._lines)

    def append(self, row: dict[str, Any]) -> None:
        """Take the row of one epoch."""
        self.rows.append(row)
        self._lines.append(json.dumps(row))

    def write(self, path: Path) -> None:
        """Bring the file up to the newest row; in one piece at first, and where that row brings a new column."""
        if all(key in self._columns for key in self.rows[-1]):
            with open(path, "a", newline="") as file:
                csv.DictWriter(file, self._columns, restval="").writerow(self.rows[-1])
            return
        self._columns = list(dict.fromkeys(key for row in self.rows for key in row))
        with replacing(path) as part, open(part, "w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)


def training_record(best: Mapping[str, Any], settings: TrainingSettings) -> dict[str, Any]:
    """What a checkpoint of the potential says about its training, as plain values."""
    return {"epoch": best["epoch"], "validation_loss": best["loss"], "settings": settings.model_dump(mode="json")}

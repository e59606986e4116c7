"""The record of a training: means over each epoch, and the CSV file that shows them."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdl_physpre.training.loss import WEIGHTS, LabelError
from mdl_physpre.training.settings import TrainingSettings


class EpochSums:
    """Errors of each label summed over an epoch in double precision, so that the means do not depend on the batches."""

    def __init__(self, settings: TrainingSettings) -> None:
        self.settings = settings
        self.sums: dict[str, Tensor] = {}

    def add(self, errors: dict[str, LabelError]) -> None:
        """Add the errors of one batch."""
        for label, error in errors.items():
            new = torch.stack([error.loss.detach(), error.absolute, error.count.to(torch.float64)])
            self.sums[label] = self.sums[label] + new if label in self.sums else new

    def summary(self, split: str) -> dict[str, float]:
        """``SPLIT_loss`` and the mean absolute error of each label in eV (eV/atom), eV/Å, eV/Å³; NaN where none is."""
        loss = 0.0 if self.sums else math.nan
        row = {}
        for label, values in self.sums.items():
            summed, absolute, count = values.tolist()
            if count:
                loss += getattr(self.settings, WEIGHTS[label]) * summed / count
            row[f"{split}_{label}_mae"] = absolute / count if count else math.nan
        return {f"{split}_loss": loss, **row}


class EpochLog:
    """A row for each epoch, kept in a CSV file and, as text, in a checkpoint.

    An epoch costs as much to keep after a thousand others as at the start: a row is added to the file, and the text of
    the others is not made again.

    Parameters
    ----------
    path : the CSV file.
    text : rows of an earlier part of the training, as ``text()`` gave them; the file is then written anew.
    """

    def __init__(self, path: Path, text: str = "") -> None:
        self.path = path
        self._lines = text.splitlines()
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in self._lines]
        self._columns: list[str] = []
        if self.rows:
            self._write()

    def text(self) -> str:
        """All rows."""
        return "\n".join(self._lines)

    def append(self, row: dict[str, Any]) -> None:
        """Take the row of one epoch; ``write`` adds it to the file."""
        self.rows.append(row)
        self._lines.append(json.dumps(row))

    def write(self) -> None:
        """Bring the file up to the newest row, in one piece where it brings a new column."""
        row = self.rows[-1]
        if any(key not in self._columns for key in row):
            return self._write()
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(row)

    def _write(self) -> None:
        self._columns = list(dict.fromkeys(key for row in self.rows for key in row))
        part = self.path.with_name(self.path.name + ".part")
        with open(part, "w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(part, self.path)


def training_record(best: Mapping[str, Any], settings: TrainingSettings) -> dict[str, Any]:
    """What a checkpoint of the potential says about its training, as plain values."""
    plain = asdict(settings) | {"loggers": list(settings.loggers)}
    return {"epoch": best["epoch"], "validation_loss": best["loss"], "settings": plain}

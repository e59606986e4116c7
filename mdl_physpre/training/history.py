"""The record of a training: means over each epoch, and the CSV file that shows them."""

from __future__ import annotations

import csv
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


def write_log(path: Path, history: list[dict[str, Any]]) -> None:
    """Write the record of all epochs as CSV, in one piece."""
    columns = list(dict.fromkeys(key for row in history for key in row))
    part = path.with_name(path.name + ".part")
    with open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(history)
    os.replace(part, path)


def training_record(best: Mapping[str, Any], settings: TrainingSettings) -> dict[str, Any]:
    """What a checkpoint of the potential says about its training, as plain values."""
    plain = asdict(settings) | {"loggers": list(settings.loggers)}
    return {"epoch": best["epoch"], "validation_loss": best["loss"], "settings": plain}

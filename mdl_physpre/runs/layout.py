"""Where a run keeps what: one folder for each stage, named after the steps of the method.

1-eam/  1-teacher/                  the potential that labels
2-pretraining-set/                  structures perturbed and labelled
3-networks/pretrain-2/pretrain/     the second network of an arm: its training on labels of the teacher,
                       finetune/    its training on DFT labels,
                       errors/      its errors on the test sets, and the angles between forces,
                       dynamics/    its molecular dynamics
report/  report.html  summary.json
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mdl_physpre.training.arms import Arm

CONFIG, ENVIRONMENT, DATA, SUMMARY = "config.yml", "environment.json", "data.json", "summary.json"
LOG, REPORT, REPORT_FILES = "log.txt", "report.html", "report"
EAM, TEACHER, PRETRAINING_SET, NETWORKS = "1-eam", "1-teacher", "2-pretraining-set", "3-networks"
PRETRAIN, FINETUNE, ERRORS, DYNAMICS = "pretrain", "finetune", "errors", "dynamics"


@dataclass(frozen=True)
class Network:
    """One network of an arm: its number from 1, and the seed of its weights, its batches and its velocities."""

    arm: Arm
    number: int
    seed: int

    @property
    def name(self) -> str:
        """``baseline``, ``baseline-2``, …: the name of its folder."""
        return self.arm.name if self.number == 1 else f"{self.arm.name}-{self.number}"

    def folder(self, run: Path) -> Path:
        """Its folder in that of a run."""
        return run / NETWORKS / self.name


def networks_of(arms: Sequence[Arm], n_networks: int, seed: int) -> list[Network]:
    """All networks of a run, the first of each arm first, so that the arms can be compared early."""
    return [Network(arm, k, seed + k - 1) for k in range(1, n_networks + 1) for arm in arms]

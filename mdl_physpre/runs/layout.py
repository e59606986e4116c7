"""Where a run keeps what: one folder for each stage, named after the steps of the method.

<<<<<<< HEAD
1-eam/  1-teacher/                  the potential that labels
=======
1-eam/  1-teacher/                  the potential that labels; in errors/, its errors on the test sets
>>>>>>> main
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

from mdl_physpre.errors import DataError
from mdl_physpre.training.arms import Arm

CONFIG, ENVIRONMENT, DATA, SUMMARY = "config.yml", "environment.json", "data.json", "summary.json"
LOG, REPORT, REPORT_FILES = "log.txt", "report.html", "report"
EAM, TEACHER, PRETRAINING_SET, NETWORKS = "1-eam", "1-teacher", "2-pretraining-set", "3-networks"
PRETRAIN, FINETUNE, ERRORS, DYNAMICS = "pretrain", "finetune", "errors", "dynamics"
EAM_FILE, VERDICTS = f"{EAM}/eam.pt", "verdicts.json"
EARLIER = ("3-train", "4-dynamics")  # stage folders of earlier versions


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


def refuse_earlier_layout(folder: Path) -> None:
    """Raise DataError where a folder holds a run of an earlier version, with other folders for its stages."""
    found = [name for name in EARLIER if (folder / name).is_dir()]
    if found:
        raise DataError(
            f"{folder}: holds a run of an earlier version of mdl-physpre (with {' and '.join(found)}), which this "
            f"version cannot go on with or read; run its config.yml again into a new folder: "
            f"physpre run {folder / CONFIG} --out NEW. Its report.html stays as it is"
        )

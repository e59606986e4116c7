"""Where a run keeps what: one folder for each stage, named after the steps of the method.

1-eam/  1-teacher/                  the potential that labels; in errors/, its errors on the test sets
2-pretraining-set/                  structures perturbed and labelled
3-networks/pretrain-2/pretrain/     the second network of an arm: its training on labels of the teacher,
                       finetune/    its training on DFT labels,
                       errors/      its errors on the test sets, and the angles between forces,
                       dynamics/    its molecular dynamics,
                       oracle/      errors along it, where an oracle is given,
                       stress/      its stress tests, a folder for each
3-networks/pretrain/committee/      errors of all networks of the arm as a committee
4-oracle/              the dynamics of the oracle itself, where that is asked for; in motion/, each arm against it
report/  report.html  summary.json  potential.pt    the potential that the run recommends
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdl_physpre.errors import DataError
from mdl_physpre.stress_tests.run import folder_of
from mdl_physpre.training.arms import Arm, parse_arms

CONFIG, ENVIRONMENT, DATA = "config.yml", "environment.json", "data.json"
LOG, REPORT, REPORT_FILES = "log.txt", "report.html", "report"
SUMMARY: str = "summary.json"
POTENTIAL: str = "potential.pt"
EAM, TEACHER, PRETRAINING_SET, NETWORKS = "1-eam", "1-teacher", "2-pretraining-set", "3-networks"
ORACLE_RUN, MOTION = "4-oracle", "motion"
PRETRAIN, FINETUNE, ERRORS, DYNAMICS, ORACLE = "pretrain", "finetune", "errors", "dynamics", "oracle"
COMMITTEE, STRESS = "committee", "stress"
EAM_FILE, FITTED_TEACHER, VERDICTS = f"{EAM}/eam.pt", f"{TEACHER}/teacher.pt", "verdicts.json"
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

    def stress_folder(self, run: Path, test: str) -> Path:
        """The folder of one of its stress tests."""
        return self.folder(run) / STRESS / folder_of(test)


@dataclass(frozen=True)
class Plan:
    """Which stages a run has.

    networks : the first of each arm first, so that the arms can be compared early.
    eam : whether the embedded-atom potential is needed, as the teacher or as a part of hybrids.
    teacher : whether another teacher is, which is a part of hybrids where it is fitted.
    pretraining_set, dynamics : whether these are. stress : names of the tests.
    oracle : whether frames of the dynamics are evaluated by a reference.
    oracle_trajectory : whether that simulates, too.
    """

    arms: tuple[Arm, ...]
    networks: tuple[Network, ...]
    eam: bool
    teacher: bool
    pretraining_set: bool
    dynamics: bool
    stress: tuple[str, ...] = ()
    oracle: bool = False
    oracle_trajectory: bool = False

    def of_arm(self, name: str) -> list[Network]:
        """The networks of an arm, in order."""
        return [network for network in self.networks if network.arm.name == name]

    @property
    def hybrids(self) -> bool:
        """Whether a fitted potential is a part of a network."""
        return any(arm.uses_eam for arm in self.arms)


def plan_of(config: Mapping[str, Any]) -> Plan:
    """What a run has to do, from the content of its ``config.yml``.

    Raises
    ------
    ConfigError : an arm that has no meaning.
    KeyError, TypeError : a key that every configuration has is missing.
    """
    physpre, seed = config["physpre"], int(config["task"]["seed"])
    arms, n = parse_arms(physpre["arms"], physpre), int(physpre.get("n_networks") or 1)
    dynamics = physpre.get("dynamics") or {}
    oracle = bool(dynamics.get("n_structures", 0) and dynamics.get("oracle"))
    labels, other = any(arm.uses_pretraining_set for arm in arms), physpre.get("teacher") is not None
    hybrids, fitted = any(arm.uses_eam for arm in arms), other and bool(physpre["teacher"].get("fit"))
    return Plan(
        arms=tuple(arms),
        networks=tuple(Network(arm, k, seed + k - 1) for k in range(1, n + 1) for arm in arms),
        eam=(hybrids and not fitted) or (labels and not other),
        teacher=(labels and other) or (hybrids and fitted),
        pretraining_set=labels,
        dynamics=bool(dynamics.get("n_structures", 0)),
        stress=tuple((physpre.get("stress") or {}).get("tests") or ()),
        oracle=oracle,
        oracle_trajectory=oracle and bool(dynamics.get("oracle_trajectory")),
    )


def refuse_earlier_layout(folder: Path) -> None:
    """Raise DataError where a folder holds a run of an earlier version, with other folders for its stages."""
    found = [name for name in EARLIER if (folder / name).is_dir()]
    if found:
        raise DataError(
            f"{folder}: holds a run of an earlier version of mdl-physpre (with {' and '.join(found)}), which this "
            f"version cannot go on with or read; run its config.yml again into a new folder: "
            f"physpre run {folder / CONFIG} --out NEW. Its report.html stays as it is"
        )

"""What a run found, as types: ``summary.json`` is a :class:`Summary`, written and read here.

What a stage found stands in its ``done.json``. Results of networks and arms are put together from that here alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pydantic import computed_field

from mdl_physpre.analysis.calibration import CommitteeErrors
from mdl_physpre.analysis.errors import Errors
from mdl_physpre.analysis.force_alignment import ForceAlignment, pooled_alignment
from mdl_physpre.dynamics.oracle_errors import OracleErrors, pooled_oracle_errors
from mdl_physpre.dynamics.verdicts.statistics import pooled_counts
from mdl_physpre.dynamics.verdicts.verdict import Counts
from mdl_physpre.runs.layout import (
    COMMITTEE,
    DATA,
    DYNAMICS,
    EAM,
    ERRORS,
    ORACLE,
    PRETRAINING_SET,
    SUMMARY,
    TEACHER,
    Network,
    Plan,
)
from mdl_physpre.runs.over_networks import over_networks
from mdl_physpre.runs.pairs import ReplicaPair, StructurePair
from mdl_physpre.runs.stage import read_json, stage_result, write_json
from mdl_physpre.utils.record import Record


class SetCounts(Record):
    """Structures, atoms, and structures with each label, of a set of structures.

    in_training : structures that are suspected to be among the training structures, too.
    """

    structures: int
    atoms: int
    labels: dict[str, int] = {}
    in_training: int = 0


class FittedEAM(Record):
    """The embedded-atom potential of a run.

    table : a row for each pair of elements. fit_errors : on training and validation set. errors : on each test set.
    """

    table: tuple[dict[str, Any], ...] = ()
    fit_errors: dict[str, Errors] = {}
    errors: dict[str, Errors] = {}
    seconds: float = 0.0


class TeacherResult(Record):
    """Another teacher than the embedded-atom potential: its zero of energy, and its errors on each test set.

    zero_of_energy : as :func:`~mdl_physpre.pretraining.fit_teacher_zero` found it.
    """

    name: str
    zero_of_energy: dict[str, Any]
    errors: dict[str, Errors] = {}
    seconds: float = 0.0


class PretrainingSetResult(Record):
    """Structures made for training and validation, and how many draws were rejected: by set, then by reason."""

    structures: int
    validation: int = 0
    rejected: dict[str, dict[str, int]] = {}
    seconds: float = 0.0


class Spent(Record):
    """What a training took. steps : of the optimiser. structures : seen, repeats counted."""

    epochs: int | float
    steps: int | float
    gradients: int | float
    structures: int | float
    seconds: float


class TrainingStage(Spent):
    """One stage of a training: its lowest validation loss, the epoch of that, what ended it, and what it took."""

    best_loss: float | None
    best_epoch: int | float
    stopped_by: str


class Dynamics(Record):
    """Molecular dynamics of test structures with one network, or with all of an arm.

    failing_steps : the first failing step of each structure; ``None``: none.
    settings : as :class:`~mdl_physpre.dynamics.DynamicsSettings` has them; of the first network.
    oracle : what a reference says of frames taken along it, without the rows; ``None`` where there is none.
    """

    counts: Counts
    failing_steps: tuple[int | None, ...]
    settings: dict[str, Any]
    seconds: float
    oracle: OracleErrors | None = None


class NetworkResult(Record):
    """What became of one network.

    name, arm : of the network, ``ARM``, ``ARM-2``, …, and of its arm.
    checkpoint : its file, from the folder of the run on.
    errors, errors_before_finetuning, force_angles : by test set; the second where it was pretrained.
    training : by stage, ``pretrain`` and ``finetune``.
    """

    name: str
    arm: str
    seed: int
    checkpoint: str
    errors: dict[str, Errors]
    errors_before_finetuning: dict[str, Errors] = {}
    force_angles: dict[str, ForceAlignment] = {}
    training: dict[str, TrainingStage] = {}
    dynamics: Dynamics | None = None


class ArmResult(Record):
    """What the networks of an arm say together. Errors and trainings are means over the networks.

    committee : of two networks or more, by test set: errors of their mean, and how their spread is calibrated.
    """

    networks: tuple[NetworkResult, ...] = ()
    committee: dict[str, CommitteeErrors] = {}

    @computed_field  # type: ignore[prop-decorator]
    @cached_property
    def errors(self) -> dict[str, Errors]:
        """By test set."""
        return over_networks([n.errors for n in self.networks], Errors, fmean)

    @computed_field  # type: ignore[prop-decorator]
    @cached_property
    def deviation(self) -> dict[str, Errors]:
        """Standard deviations (n − 1) of the errors between networks; empty with fewer than two."""
        return over_networks([n.errors for n in self.networks], Errors, stdev) if len(self.networks) > 1 else {}

    @computed_field  # type: ignore[prop-decorator]
    @cached_property
    def errors_before_finetuning(self) -> dict[str, Errors]:
        """By test set; empty where nothing was pretrained."""
        return over_networks([n.errors_before_finetuning for n in self.networks], Errors, fmean)

    @computed_field  # type: ignore[prop-decorator]
    @cached_property
    def training(self) -> dict[str, TrainingStage]:
        """By stage."""
        return over_networks([n.training for n in self.networks], TrainingStage, fmean)

    @computed_field  # type: ignore[prop-decorator]
    @cached_property
    def force_angles(self) -> dict[str, ForceAlignment]:
        """By test set, all atoms of all networks in one histogram."""
        each = [n.force_angles for n in self.networks if n.force_angles]
        return {name: pooled_alignment([found[name] for found in each]) for name in (each[0] if each else ())}

    @computed_field  # type: ignore[prop-decorator]
    @cached_property
    def dynamics(self) -> Dynamics | None:
        """Of all structures with all networks; the intervals include the spread between networks."""
        each = [n.dynamics for n in self.networks if n.dynamics is not None]
        if not each:
            return None
        settings, steps = each[0].settings, tuple(step for one in each for step in one.failing_steps)
        counts = pooled_counts([one.counts for one in each], steps, settings["timestep"])
        return Dynamics(
            counts=counts,
            failing_steps=steps,
            settings=settings,
            seconds=sum(one.seconds for one in each),
            oracle=pooled_oracle_errors([one.oracle for one in each if one.oracle is not None]),
        )

    def spent(self) -> dict[str, Spent]:
        """What each stage took, and under ``total`` all of them together; means over networks."""
        return spent_with_total(self.training)


class Summary(Record):
    """What a run found. A part that is not there yet, or that the run does not need, is ``None``, or empty.

    data : by set. arms : by the name of an arm, in the order of the configuration.
    pairs : the first arm with each of the others.
    """

    data: dict[str, SetCounts] = {}
    eam: FittedEAM | None = None
    teacher: TeacherResult | None = None
    pretraining_set: PretrainingSetResult | None = None
    arms: dict[str, ArmResult] = {}
    pairs: tuple[StructurePair | ReplicaPair, ...] = ()

    def with_networks(self, *results: NetworkResult) -> Summary:
        """The same with the results of more networks."""
        arms = dict(self.arms)
        for result in results:
            arms[result.arm] = ArmResult(networks=(*arms.get(result.arm, ArmResult()).networks, result))
        return self.model_copy(update={"arms": arms})

    def with_committee(self, arm: str, found: dict[str, CommitteeErrors]) -> Summary:
        """The same with what the networks of an arm are as a committee."""
        return self.model_copy(
            update={"arms": {**self.arms, arm: ArmResult(networks=self.arms[arm].networks, committee=found)}}
        )

    def write(self, folder: Path) -> None:
        """Write ``summary.json`` of the run in a folder."""
        write_json(folder / SUMMARY, self.plain())


def eam_result(folder: Path) -> FittedEAM:
    """What the fit of the embedded-atom potential, which is done, found."""
    return FittedEAM(**_with_errors(folder / EAM))


def teacher_result(folder: Path) -> TeacherResult:
    """What is known of another teacher, whose zero of energy is fitted."""
    return TeacherResult(**_with_errors(folder / TEACHER))


def pretraining_set_result(folder: Path) -> PretrainingSetResult:
    """What the pretraining set, which is made, holds."""
    return PretrainingSetResult(**stage_result(folder / PRETRAINING_SET))


def network_result(folder: Path, network: Network, plan: Plan) -> NetworkResult | None:
    """What became of a network of the run in a folder; ``None`` until it is trained and tested."""
    place = network.folder(folder)
    trained, tested = stage_result(place), stage_result(place / ERRORS)
    if not trained or not tested:
        return None
    simulated = stage_result(place / DYNAMICS) if plan.dynamics else {}
    if simulated and plan.oracle:
        simulated["oracle"] = stage_result(place / ORACLE) or None
    return NetworkResult(
        name=network.name,
        arm=network.arm.name,
        seed=network.seed,
        checkpoint=trained["checkpoint"],
        training=trained["training"],
        dynamics=simulated or None,
        **{key: found for key, found in tested.items() if key != "seconds"},
    )


def committee_result(folder: Path, plan: Plan, arm: str) -> dict[str, CommitteeErrors]:
    """What the networks of an arm are as a committee, by test set; empty until that is computed."""
    found = stage_result(plan.of_arm(arm)[0].folder(folder) / COMMITTEE).get("committee", {})
    return {name: CommitteeErrors.model_validate(one) for name, one in found.items()}


def summary_of_stages(folder: Path, plan: Plan) -> Summary:
    """As much of a summary as the finished stages in a folder give."""
    done = {name for name in (EAM, TEACHER, PRETRAINING_SET) if stage_result(folder / name)}
    begun = Summary(
        data=read_json(folder / DATA).get("sets", {}),
        eam=eam_result(folder) if plan.eam and EAM in done else None,
        teacher=teacher_result(folder) if plan.teacher and TEACHER in done else None,
        pretraining_set=pretraining_set_result(folder) if plan.pretraining_set and PRETRAINING_SET in done else None,
    )
    summary = begun.with_networks(*(found for n in plan.networks if (found := network_result(folder, n, plan))))
    for arm in summary.arms:
        summary = summary.with_committee(arm, committee_result(folder, plan, arm))
    return summary


def _with_errors(folder: Path) -> dict[str, Any]:
    return {**stage_result(folder), **stage_result(folder / ERRORS), "seconds": stage_result(folder)["seconds"]}


def spent_with_total(stages: Mapping[str, Spent]) -> dict[str, Spent]:
    """What each stage of a training took, and under ``total`` all of them together."""
    total = {key: sum(getattr(stage, key) for stage in stages.values()) for key in Spent.model_fields}
    return {**stages, "total": Spent(**total)} if stages else {}

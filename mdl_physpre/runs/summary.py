"""What a run found, as types: ``summary.json`` is a :class:`Summary`, written and read here.

What a stage found stands in its ``done.json``. Results of networks and arms are put together from that here alone.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pydantic import computed_field

from mdl_physpre.analysis.calibration import CommitteeErrors
from mdl_physpre.analysis.errors import Errors
from mdl_physpre.analysis.force_alignment import ForceAlignment, pooled_alignment
from mdl_physpre.dynamics.oracle_errors import OracleErrors, pooled_oracle_errors
from mdl_physpre.dynamics.verdicts.log_rank import BreakingComparison, compare_breaking
from mdl_physpre.dynamics.verdicts.statistics import pooled_counts
from mdl_physpre.dynamics.verdicts.survival import BreakingStatistics, Observation, breaking_statistics
from mdl_physpre.dynamics.verdicts.verdict import Counts
from mdl_physpre.runs.layout import (
    COMMITTEE,
    DATA,
    DYNAMICS,
    EAM,
    ERRORS,
    ORACLE,
    PRETRAINING_SET,
    STRESS,
    SUMMARY,
    TEACHER,
    Network,
    Plan,
)
from mdl_physpre.runs.over_networks import over_networks
from mdl_physpre.runs.pairs import ReplicaPair, StructurePair
from mdl_physpre.runs.results import (
    FittedEAM,
    PretrainingSetResult,
    Recommendation,
    SetCounts,
    Spent,
    TeacherResult,
    TrainingStage,
    Untrained,
    eam_result,
    pretraining_set_result,
    spent_with_total,
    teacher_result,
)
from mdl_physpre.runs.stage import read_json, record_of, stage_result, write_json
from mdl_physpre.stress_tests.result import StressResult
from mdl_physpre.training.arms import BASELINE
from mdl_physpre.utils.record import Record


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
    stress : by stress test.
    short_range_radii : where its repulsion of nuclei ends, Å by pair; empty where it has none.
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
    stress: dict[str, StressResult] = {}
    short_range_radii: dict[str, float] = {}

    def breaking_points(self, test: str) -> list[Observation]:
        """Where each structure broke in a stress test; of ``dynamics`` at a fixed temperature, when, in fs."""
        if test in self.stress:
            return self.stress[test].observations(self.name)
        if test != DYNAMICS or self.dynamics is None:
            return []
        steps, settings = self.dynamics.failing_steps, self.dynamics.settings
        ends = [settings["steps"] if step is None else step for step in steps]
        return [
            Observation(end * settings["timestep"], step is not None, k, self.name)
            for k, (step, end) in enumerate(zip(steps, ends))
        ]


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

    @computed_field  # type: ignore[prop-decorator]
    @cached_property
    def stress(self) -> dict[str, BreakingStatistics]:
        """Where structures broke, by stress test."""
        tests = {name: found for n in self.networks for name, found in n.stress.items()}
        return {t: breaking_statistics(self.breaking_points(t), r.quantity, r.unit) for t, r in tests.items()}

    @computed_field  # type: ignore[prop-decorator]
    @cached_property
    def failure_times(self) -> BreakingStatistics | None:
        """When structures failed in molecular dynamics at a fixed temperature, fs."""
        found = self.breaking_points(DYNAMICS)
        return breaking_statistics(found, "time", "fs") if found else None

    def breaking_points(self, test: str) -> list[Observation]:
        """Of all networks, see :meth:`NetworkResult.breaking_points`."""
        return [point for network in self.networks for point in network.breaking_points(test)]

    def spent(self) -> dict[str, Spent]:
        """What each stage took, and under ``total`` all of them together; means over networks."""
        return spent_with_total(self.training)


class Summary(Record):
    """What a run found. A part that is not there yet, or that the run does not need, is ``None``, or empty.

    data : by set. arms : by the name of an arm, in the order of the configuration.
    pairs : the first arm with each of the others. null_model : its errors by set.
    untrained : networks that are no better than it. recommended : the potential to use, of a finished run.
    """

    data: dict[str, SetCounts] = {}
    eam: FittedEAM | None = None
    teacher: TeacherResult | None = None
    pretraining_set: PretrainingSetResult | None = None
    arms: dict[str, ArmResult] = {}
    pairs: tuple[StructurePair | ReplicaPair, ...] = ()
    null_model: dict[str, Errors] = {}
    untrained: tuple[Untrained, ...] = ()
    recommended: Recommendation | None = None

    @property
    def reference(self) -> str:
        """What the other arms are compared with: plain training, or the first arm where there is none."""
        return BASELINE if BASELINE in self.arms else next(iter(self.arms))

    @property
    def stress_tests(self) -> list[str]:
        """Names of the stress tests of any arm."""
        return list(dict.fromkeys(test for arm in self.arms.values() for test in arm.stress))

    def breaking(self, test: str) -> dict[str, BreakingStatistics]:
        """Where structures broke in a stress test, by arm."""
        return {name: arm.stress[test] for name, arm in self.arms.items() if test in arm.stress}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def stress_pairs(self) -> dict[str, tuple[BreakingComparison, ...]]:
        """By stress test, the reference arm with each of the others."""
        pairs = {
            test: tuple(
                found
                for arm in self.arms
                if arm != self.reference and (found := self.compare_breaking(test, self.reference, arm))
            )
            for test in self.stress_tests
        }
        return {test: found for test, found in pairs.items() if found}

    def compare_breaking(self, test: str, first: str, second: str) -> BreakingComparison | None:
        """Where structures broke with two arms, see :meth:`NetworkResult.breaking_points`; ``None`` without both."""
        one, other = (self.arms[arm].breaking_points(test) for arm in (first, second))
        return compare_breaking(one, other, (first, second)) if one and other else None

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


def network_result(folder: Path, network: Network, plan: Plan) -> NetworkResult | None:
    """What became of a network of the run in a folder; ``None`` until it is trained and tested."""
    place = network.folder(folder)
    trained, tested = stage_result(place), stage_result(place / ERRORS)
    if not trained or not tested:
        return None
    simulated = stage_result(place / DYNAMICS) if plan.dynamics else {}
    if simulated and plan.oracle:
        simulated["oracle"] = stage_result(place / ORACLE) or None
    found = {key: value for key, value in tested.items() if key != "seconds"}
    found |= {key: trained[key] for key in ("checkpoint", "training", "short_range_radii") if key in trained}
    found |= {"name": network.name, "arm": network.arm.name, "seed": network.seed, "dynamics": simulated or None}
    found["stress"] = {n: one for n in plan.stress if (one := stage_result(network.stress_folder(folder, n)))}
    stages = {"checkpoint": place, "training": place, "dynamics": place / DYNAMICS, "stress": place / STRESS}
    return record_of(NetworkResult, found, place / ERRORS, **stages)


def committee_result(folder: Path, plan: Plan, arm: str) -> dict[str, CommitteeErrors]:
    """What the networks of an arm are as a committee, by test set; empty until that is computed."""
    place = plan.of_arm(arm)[0].folder(folder) / COMMITTEE
    found = stage_result(place).get("committee", {})
    return {name: record_of(CommitteeErrors, one, place) for name, one in found.items()}


def summary_of_stages(folder: Path, plan: Plan) -> Summary:
    """As much of a summary as the finished stages in a folder give."""
    done = {name for name in (EAM, TEACHER, PRETRAINING_SET) if stage_result(folder / name)}
    begun = Summary(
        data=read_json(folder / DATA).get("sets", {}),
        null_model=read_json(folder / DATA).get("null_model", {}),
        eam=eam_result(folder) if plan.eam and EAM in done else None,
        teacher=teacher_result(folder) if plan.teacher and TEACHER in done else None,
        pretraining_set=pretraining_set_result(folder) if plan.pretraining_set and PRETRAINING_SET in done else None,
    )
    summary = begun.with_networks(*(found for n in plan.networks if (found := network_result(folder, n, plan))))
    for arm in summary.arms:
        summary = summary.with_committee(arm, committee_result(folder, plan, arm))
    return summary

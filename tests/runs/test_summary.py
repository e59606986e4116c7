"""What the networks of an arm say together, the plan of a run, and summaries that are written and read."""

from __future__ import annotations

import re
from statistics import stdev

import pytest

from mdl_physpre.analysis.force_alignment import ForceAlignment
from mdl_physpre.dynamics.verdicts.statistics import clustered_interval
from mdl_physpre.dynamics.verdicts.verdict import summarise
from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.runs.layout import plan_of
from mdl_physpre.runs.read import read_run, read_simulation, read_summary
from mdl_physpre.runs.results import TrainingStage
from mdl_physpre.runs.stage import stage_key, write_json
from mdl_physpre.runs.summary import ArmResult, Dynamics, NetworkResult, Summary, summary_of_stages
from tests.helpers.made_up_runs import errors, make_run, verdict

ANGLES = {"edges": (0.0, 90.0, 180.0), "isotropic": (0.5, 0.5), "zero_force_first": 0, "zero_force_second": 1}


def network(number: int, forces: float, failing: list[int | None], steps: int, mean: float) -> NetworkResult:
    found = [verdict(k, step) for k, step in enumerate(failing)]
    return NetworkResult(
        name="pretrain" if number == 1 else f"pretrain-{number}",
        arm="pretrain",
        seed=number,
        checkpoint=f"{number}.pt",
        errors={"test": errors(forces)},
        training={
            stage: TrainingStage(
                best_loss=1.0, best_epoch=3, stopped_by="max_epochs", epochs=5, steps=steps, gradients=steps,
                structures=2 * steps, seconds=1.5,
            )
            for stage in ("pretrain", "finetune")
        },
        force_angles={
            "test": ForceAlignment(
                atoms=(3, 1), weighted=(2.0, 1.0), n_atoms=4, zero_force=1, mean=mean, weighted_mean=mean, **ANGLES
            )
        },
        dynamics=Dynamics(
            counts=summarise(found), failing_steps=tuple(failing), settings={"timestep": 2.0, "steps": 100},
            seconds=10.0,
        ),
    )  # fmt: skip


@pytest.fixture
def arm() -> ArmResult:
    each = (network(1, 0.1, [10, None], 20, 40.0), network(2, 0.3, [None, None], 30, 60.0))
    return ArmResult(networks=each)


def test_times_of_failure_are_those_of_all_networks(arm):
    assert [(p.value, p.broken, p.structure, p.network) for p in arm.breaking_points("dynamics")] == [
        (20.0, True, 0, "pretrain"), (200.0, False, 1, "pretrain"),
        (200.0, False, 0, "pretrain-2"), (200.0, False, 1, "pretrain-2"),
    ]  # fmt: skip
    times = arm.failure_times
    assert (times.n, times.broken, times.median, times.end, times.unit) == (4, 1, None, 200.0, "fs")
    assert times.broken_each == (1, 0) and arm.stress == {} and ArmResult().failure_times is None
    both = Summary(arms={"baseline": arm, "pretrain": arm})
    assert both.compare_breaking("dynamics", "baseline", "pretrain").z == pytest.approx(0)
    assert both.reference == "baseline" and both.stress_pairs == {} and both.stress_tests == []


def test_errors_of_an_arm_are_means_with_deviations(arm):
    assert arm.errors["test"].forces_mae == pytest.approx(0.2)
    assert arm.deviation["test"].forces_mae == pytest.approx(stdev([0.1, 0.3]))
    assert arm.errors["test"].n_structures == 50 and arm.errors["test"].counts["forces"] == 50
    assert arm.errors["test"].stress_mae is None and arm.errors_before_finetuning == {}
    assert ArmResult(networks=arm.networks[:1]).deviation == {} and ArmResult().errors == {}


def test_counts_of_an_arm_are_pooled_and_their_intervals_hold_the_spread(arm):
    found = arm.dynamics.counts
    assert found.networks == 2 and found.n == 4
    assert found.failed.count == 1 and found.failed.each == (1, 0)
    assert found.by_reason["overlap"].each == (1, 0)
    assert found.failed.interval == pytest.approx(clustered_interval([1, 0], [2, 2]))
    assert (found.median_failing_step, found.median_failing_time_fs) == (10, 20.0)
    assert arm.dynamics.failing_steps == (10, None, None, None) and arm.dynamics.seconds == 20.0
    assert ArmResult().dynamics is None


def test_angles_of_an_arm_are_in_one_histogram(arm):
    angles = arm.force_angles["test"]
    assert angles.atoms == (6, 2) and angles.zero_force_second == 2
    assert angles.mean == pytest.approx(50.0) and angles.share_above_90 == pytest.approx(0.25)


def test_what_an_arm_took_has_a_total(arm):
    assert arm.training["finetune"].steps == 25 and arm.training["finetune"].best_epoch == 3
    assert arm.spent()["total"].steps == 50 and arm.spent()["total"].seconds == 3.0
    assert arm.spent()["total"].structures == 100


def test_a_summary_is_read_as_it_was_written(arm, tmp_path):
    summary = Summary().with_networks(*arm.networks)
    assert summary.arms["pretrain"] == arm
    summary.write(tmp_path)
    assert read_summary(tmp_path) == summary and read_summary(tmp_path / "elsewhere") is None
    (tmp_path / "summary.json").write_text('{"arms": ["baseline", "pretrain"]}')
    with pytest.raises(DataError, match="summary.json: cannot be read as the summary of a run"):
        read_summary(tmp_path)


def test_a_plan_names_the_stages_that_the_arms_need():
    config = {"task": {"seed": 7}, "physpre": {"arms": ["baseline", "pretrain"], "n_networks": 2}}
    plan = plan_of(config)
    assert [(n.name, n.seed) for n in plan.networks] == [
        ("baseline", 7), ("pretrain", 7), ("baseline-2", 8), ("pretrain-2", 8)
    ]  # fmt: skip
    assert (plan.eam, plan.teacher, plan.pretraining_set, plan.hybrids, plan.dynamics) == (True, False, True, 0, 0)
    config["physpre"] |= {"teacher": {"potential": "x.pt"}, "dynamics": {"n_structures": 3}}
    plan = plan_of(config)
    assert (plan.eam, plan.teacher, plan.pretraining_set, plan.dynamics) == (False, True, True, True)
    config["physpre"]["arms"] = ["baseline", "hybrid"]
    plan = plan_of(config)
    assert (plan.eam, plan.teacher, plan.pretraining_set, plan.hybrids) == (True, False, False, True)
    with pytest.raises(ConfigError, match="unknown part"):
        plan_of({"task": {"seed": 1}, "physpre": {"arms": ["basline"]}})


def test_a_finished_run_is_read_with_its_simulations(tmp_path):
    each = [[verdict(0, 10), verdict(1, None)], [verdict(0, None), verdict(1, 30)]]
    run = read_run(make_run(tmp_path, {"baseline": each}))
    assert run.finished and not run.missing and run.arms == ["baseline"] and run.n_networks == 2
    assert list(run.simulated()) == ["baseline", "baseline-2"]
    assert run.simulated()["baseline-2"].verdicts[1].first_failing_step == 30
    path = tmp_path / "3-networks" / "baseline-2" / "dynamics" / "verdicts.json"
    path.write_text(path.read_text()[:100])
    assert "verdicts.json is missing" in read_run(tmp_path).missing[0]
    with pytest.raises(DataError, match="cannot be read as verdicts"):
        read_simulation(path, "baseline-2")


@pytest.mark.parametrize(("stage", "key", "named"), [
    ("1-eam", "table", "table.0.rises: Field required"), ("3-networks/baseline", "checkpoint", "checkpoint: Field"),
    ("3-networks/baseline/errors", "errors", "errors: Field required"),
])  # fmt: skip
def test_a_stage_that_lacks_a_key_is_named(tmp_path, stage, key, named):
    plan = plan_of({"task": {"seed": 7}, "physpre": {"arms": ["baseline", "pretrain"]}})
    spent = {"epochs": 1, "steps": 1, "gradients": 1, "structures": 1, "seconds": 1.0}
    spent |= {"best_loss": 1.0, "best_epoch": 1, "stopped_by": "max_epochs"}
    errors = {"errors": {}, "seconds": 1.0}
    pair = {"pair": "O-O", "wall_at_0.5_A_eV": 1.0, **dict.fromkeys(("D_eV", "alpha_per_A", "r_e_A"), 1.0)}
    pair |= {**dict.fromkeys(("well_depth_eV", "well_position_A", "closest_A")), "rises": True}
    results = {
        "1-eam": {"table": [pair], "seconds": 2.0}, "1-eam/errors": errors, "3-networks/baseline/errors": errors,
        "3-networks/baseline": {"checkpoint": "best.pt", "training": {"finetune": spent}, "seconds": 1.0},
    }  # fmt: skip
    for name, result in results.items():
        write_json(tmp_path / name / "done.json", {"key": "k", "result": result})
    whole = summary_of_stages(tmp_path, plan)
    assert whole.eam.seconds == 2.0 and whole.eam.table[0].wall_eV == 1.0
    assert whole.arms["baseline"].networks[0].checkpoint == "best.pt"
    if key == "table":
        del results[stage]["table"][0]["rises"]
    else:
        del results[stage][key]
    write_json(tmp_path / stage / "done.json", {"key": "k", "result": results[stage]})
    where = f"{stage}/done.json: {named}"
    with pytest.raises(DataError, match=re.escape(where) + r".*Delete it, and the same physpre run"):
        summary_of_stages(tmp_path, plan)


def test_a_key_of_a_stage_that_is_not_done_is_empty(tmp_path):
    assert stage_key(tmp_path) == ""
    write_json(tmp_path / "done.json", {"key": "k", "result": {}})
    assert stage_key(tmp_path) == "k"

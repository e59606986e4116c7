"""The potential that a run recommends, and networks that are no better than none."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdl_physpre import load_potential, save_potential
from mdl_physpre.dynamics.oracle_errors import OracleErrors, OracleMeans
from mdl_physpre.dynamics.verdicts.verdict import Count, wilson_interval
from mdl_physpre.potentials import EAMInteraction
from mdl_physpre.report.status import format_status, run_status
from mdl_physpre.runs.read import read_run, read_summary
from mdl_physpre.runs.recommend import (
    first_sentences,
    recommendation,
    recommendation_sentence,
    untrained_networks,
    write_recommended,
)
from mdl_physpre.runs.summary import Summary
from tests.helpers.made_up_runs import errors, make_run, stress_result, verdict

WHOLE = [verdict(k, None) for k in range(8)]
BROKEN = [verdict(k, 100 + k) for k in range(8)]
LOSSES = {"baseline": [0.9, 1.1], "pretrain": [1.4, 1.2], "hybrid": [2.0, 2.0]}


def summary_of(folder: Path, failures=None, **more) -> Summary:
    failures = failures or {arm: [WHOLE, WHOLE] for arm in LOSSES}
    return read_summary(make_run(folder, failures, losses=LOSSES, **more))


def heated(values):
    return [{"heating": stress_result("heating", [v + k for k in range(8)], 6000)} for v in values]


def test_the_lowest_validation_loss_where_nothing_tells_arms_apart(tmp_path):
    found = recommendation(summary_of(tmp_path / "run"))
    assert (found.arm, found.network, found.validation_loss) == ("baseline", "baseline", 0.9)
    assert found.validation_losses == pytest.approx({"baseline": 1.0, "pretrain": 1.3, "hybrid": 2.0})
    assert found.looked_at == ("dynamics",) and not found.worse
    assert "of the arms that are not shown to be worse than another one in molecular dynamics" in (
        recommendation_sentence(found)
    )


def test_an_arm_that_breaks_earlier_is_left_out_and_named(tmp_path):
    dynamics = {"baseline": [BROKEN, BROKEN], "pretrain": [WHOLE, WHOLE], "hybrid": [WHOLE, WHOLE]}
    found = recommendation(summary_of(tmp_path / "dynamics", dynamics))
    assert (found.arm, found.network) == ("pretrain", "pretrain-2")
    assert found.worse == {"baseline": "breaks earlier than pretrain in molecular dynamics"}
    # a stress test is what is looked at where there is one
    stress = {"baseline": heated([5000, 5000]), "pretrain": heated([1000, 1000]), "hybrid": heated([5000, 5000])}
    found = recommendation(summary_of(tmp_path / "stress", dynamics, stress=stress))
    assert (found.arm, found.looked_at) == ("baseline", ("heating",))
    assert found.worse == {"pretrain": "breaks earlier than baseline in heating"}
    assert "Left out: pretrain breaks earlier than baseline in heating." in recommendation_sentence(found)


def test_an_arm_that_an_oracle_finds_wrong_more_often_is_left_out(tmp_path):
    summary = summary_of(tmp_path / "run")
    for arm, wrong in (("baseline", 15), ("pretrain", 1)):
        count = Count(count=wrong, n=16, interval=wilson_interval(wrong, 16))
        none = OracleMeans(frames=0)
        oracle = OracleErrors.model_construct(
            oracle="EMT", bound=0.5, means=none, bins=(), structures=(), wrong=count, whole_and_wrong=count
        )
        summary.arms[arm].__dict__["dynamics"] = summary.arms[arm].dynamics.model_copy(update={"oracle": oracle})
    found = recommendation(summary)
    assert found.arm == "pretrain"
    assert found.worse == {"baseline": "is wrong by EMT more often than pretrain in molecular dynamics"}


def test_by_validation_loss_alone_and_without_any(tmp_path):
    summary = summary_of(tmp_path / "run")
    networks = {a: [n.model_copy(update={"dynamics": None}) for n in r.networks] for a, r in summary.arms.items()}
    alone = Summary().with_networks(*(n for own in networks.values() for n in own))
    said = recommendation_sentence(recommendation(alone))
    assert said.endswith("By validation loss alone: no stress test and no molecular dynamics was run.")
    never = Summary().with_networks(*(n.model_copy(update={"training": {}}) for n in networks["baseline"]))
    assert recommendation(never) is None and first_sentences(never) == []


def test_networks_that_are_no_better_than_none_are_called_untrained(tmp_path):
    forces = {"baseline": [0.297, 0.2], "pretrain": [0.2, 0.2], "hybrid": [0.4, 0.4]}
    summary = summary_of(tmp_path / "run", forces=forces)
    summary = summary.model_copy(update={"null_model": {"test": errors(0.3)}})  # the same energies as the networks
    optim = {"weight_force": 50.0, "weight_energy": 0.0}
    found = untrained_networks(summary, optim)
    assert [(u.arm, u.label, u.networks, u.of, u.error) for u in found] == [
        ("baseline", "forces", ("baseline",), 2, 0.297), ("hybrid", "forces", ("hybrid", "hybrid-2"), 2, 0.4),
    ]  # fmt: skip
    told = summary.model_copy(update={"untrained": found})
    assert recommendation(told).network == "baseline-2" and not recommendation(told).untrained
    assert "baseline (1 of 2 networks) is untrained: its force error" in first_sentences(told)[0]
    with_energies = untrained_networks(summary, {"weight_energy": 1.0})
    assert [u.arm for u in with_energies if u.label == "energy"] == list(LOSSES)
    assert untrained_networks(summary.model_copy(update={"null_model": {}}), optim) == ()
    nothing_else = summary.model_copy(update={"untrained": with_energies})
    assert recommendation(nothing_else).untrained and recommendation(nothing_else).network == "baseline"


def test_the_file_is_opened_as_any_other_and_the_status_says_it_first(tmp_path):
    folder = tmp_path / "run"
    summary = summary_of(folder)
    save_potential(folder / "baseline.pt", EAMInteraction(["Si", "O"], cutoff=4.0, n_basis=2))
    chosen = recommendation(summary)
    write_recommended(folder, chosen)
    assert load_potential(folder / "potential.pt").cutoff == 4.0
    summary.model_copy(update={"recommended": chosen}).write(folder)
    assert read_run(folder).summary.recommended == chosen
    assert format_status(run_status(folder)).startswith("Use potential.pt: baseline, with the lowest validation loss (")

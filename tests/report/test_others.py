"""Reports of runs with reasons, arms and stages that this package does not know."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import ClassVar

import yaml

from mdl_physpre.dynamics.verdicts.verdict import Count, Verdict
from mdl_physpre.report.measurements import _checkpoints
from mdl_physpre.report.output.write import write_report
from mdl_physpre.report.status import run_status
from mdl_physpre.report.tables.text import ensemble_and_temperature, format_summary
from mdl_physpre.runs import layout
from mdl_physpre.runs.read import read_run
from mdl_physpre.runs.summary import ArmResult
from mdl_physpre.training.arms import Part
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.utils import settings
from tests.helpers.made_up_runs import make_run, verdict


class Warm(Part):
    """A part of somebody else: a training of its own before finetuning, with a setting that has no default."""

    name = "warm"
    stages: ClassVar[tuple[str, ...]] = ("warm_up",)

    class Settings(settings.Settings):
        source: str
        max_epochs: int = 5

    def settings_of(self, stage: str, settings: TrainingSettings) -> TrainingSettings:
        return settings.changed(max_epochs=self.settings.max_epochs) if stage in self.stages else settings


def melted(index: int, step: int) -> Verdict:
    """A verdict with a reason that an observer of somebody else gives."""
    known = verdict(index, step)
    failure = known.failures[0].model_copy(update={"reason": "own_melting"})
    checks = {**known.checks, "overlap": "passed", "own_melting": "failed"}
    return known.model_copy(update={"failures": (failure,), "checks": checks})


def test_an_unknown_reason_is_shown_by_its_name(tmp_path: Path) -> None:
    folder = make_run(tmp_path, {"baseline": [[melted(0, 300), verdict(1, None)]]})
    summary = read_run(folder).summary
    (network,) = summary.arms["baseline"].networks
    assert network.dynamics is not None
    counts = network.dynamics.counts
    reasons = {**counts.by_reason, "own_melting": Count(count=1, n=2, interval=(0.1, 0.9))}
    dynamics = network.dynamics.model_copy(update={"counts": counts.model_copy(update={"by_reason": reasons})})
    summary.arms["baseline"] = ArmResult(networks=(network.model_copy(update={"dynamics": dynamics}),))
    summary.write(folder)
    write_report(folder)
    page = (folder / layout.REPORT).read_text()
    assert "step 300: own melting" in page and "own melting 1" in page and "could not be drawn" not in page
    with open(folder / layout.REPORT_FILES / "table-1-stability.csv", newline="") as file:
        assert {row["reason"]: row["count"] for row in csv.DictReader(file)}["own_melting"] == "1"
    assert "own_melting 1" in format_summary(summary)


def test_an_arm_with_a_stage_of_its_own(tmp_path: Path) -> None:
    folder = make_run(tmp_path, {"baseline": [[verdict(0, None)]], "warm": [[verdict(0, 300)]]})
    config = yaml.safe_load((folder / layout.CONFIG).read_text())
    config["physpre"] |= {"arms": ["baseline", f"{__name__}:Warm"], "warm": {"source": "x", "max_epochs": 3}}
    (folder / layout.CONFIG).write_text(yaml.safe_dump(config))
    own = folder / layout.NETWORKS / "warm"
    for stage in ("finetune", "warm_up"):
        (own / stage).mkdir()
        (own / stage / "best.pt").write_bytes(b"")
        (own / stage / "log.csv").write_text("epoch,seconds,validation_loss,train_loss,lr\n0,2.0,1.0,1.0,0.1\n")
    summary = read_run(folder).summary
    network = summary.arms["warm"].networks[0]
    checkpoint = (own / "finetune" / "best.pt").relative_to(folder).as_posix()
    summary.arms["warm"] = ArmResult(networks=(network.model_copy(update={"checkpoint": checkpoint}),))
    summary.write(folder)
    found = _checkpoints(read_run(folder))
    assert found == {"warm": folder / checkpoint, "warm, before finetuning": own / "warm_up" / "best.pt"}
    for path in found.values():
        path.unlink()
    write_report(folder)
    page = (folder / layout.REPORT).read_text()
    assert "warm, warm_up: lowest validation loss 1" in page and "could not be drawn" not in page
    training = next(one for one in run_status(folder).stages if one.stage == f"{layout.NETWORKS}/warm")
    assert training.progress == "warm_up: epoch 1 of 3, finetune: epoch 1 of 10"


def test_a_temperature_that_changes_is_told() -> None:
    settings = {"ensemble": "nvt", "temperature": 300.0}
    assert ensemble_and_temperature(settings) == "NVT at 300 K"
    assert ensemble_and_temperature(settings | {"temperature_end": 300.0}) == "NVT at 300 K"
    assert ensemble_and_temperature(settings | {"temperature_end": 900.0}) == "NVT heated from 300 to 900 K"
    assert ensemble_and_temperature(settings | {"temperature_end": 0.0}) == "NVT cooled from 300 to 0 K"

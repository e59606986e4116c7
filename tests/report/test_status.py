"""How far a run is, from its files alone."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from mdl_physpre.errors import DataError
from mdl_physpre.report.status import StageStatus, duration, format_status, run_status
from mdl_physpre.runs.layout import NETWORKS
from tests.helpers.made_up_runs import make_run, verdict

BASELINE, PRETRAIN = (f"{NETWORKS}/{arm}" for arm in ("baseline", "pretrain"))


def stage(folder: Path, name: str, seconds: float | None = None, **result) -> Path:
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "stage.json").write_text('{"key": "k"}')
    if seconds is not None:
        (place / "done.json").write_text(json.dumps({"key": "k", "result": {**result, "seconds": seconds}}))
    return place


def spent(seconds: float) -> dict[str, float]:
    return {"epochs": 1, "steps": 1, "gradients": 1, "structures": 1, "seconds": seconds}


def log(place: Path, epochs: int, seconds: float) -> None:
    place.mkdir(parents=True, exist_ok=True)
    rows = "\n".join(f"{k},{seconds},4" for k in range(epochs))
    (place / "log.csv").write_text(f"epoch,seconds,steps\n{rows}\n")


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """Teacher and baseline done, pretraining ended, finetuning of pretrain in its 30th epoch, its dynamics to come."""
    config = {
        "task": {"identifier": "begun", "seed": 1},
        "optim": {"max_epochs": 100},
        "physpre": {
            "arms": ["baseline", "pretrain"],
            "pretrain": {"max_epochs": 40},
            "dynamics": {"n_structures": 5, "steps": 1000},
        },
    }
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config))
    stage(tmp_path, "1-eam", 12.0, table=[], errors={})
    stage(tmp_path, "2-pretraining-set", 3.0, structures=10)
    stage(tmp_path, BASELINE, 50.0, training={"finetune": spent(200.0)})
    stage(tmp_path, f"{BASELINE}/dynamics", 90.0)
    trained = stage(tmp_path, PRETRAIN)
    log(trained / "pretrain", 40, 3.0)
    log(trained / "finetune", 30, 2.0)
    return tmp_path


def test_what_is_left_is_told_from_what_was_done(begun: Path) -> None:
    found = run_status(begun)
    by_name = {one.stage: one for one in found.stages}
    assert list(by_name) == [
        "1-eam", "2-pretraining-set", BASELINE, f"{BASELINE}/dynamics", PRETRAIN, f"{PRETRAIN}/dynamics",
    ]  # fmt: skip
    assert by_name[BASELINE].seconds == 200.0, "of all its starts, not of the last alone"
    training = by_name[PRETRAIN]
    assert training.state == "stopped" and training.seconds == pytest.approx(180.0)
    assert training.progress == "pretrain: epoch 40 of 40, finetune: epoch 30 of 100"
    assert training.left == pytest.approx(70 * 2.0)
    assert by_name[f"{PRETRAIN}/dynamics"] == StageStatus(stage=f"{PRETRAIN}/dynamics", state="waiting", left=90.0)
    assert found.left == pytest.approx(230.0) and found.unknown == 0
    text = format_status(found)
    assert "begun: not running, 4 of 6 stages done" in text and "still about 4 min" in text


def test_a_training_by_steps_is_told_in_steps(begun: Path) -> None:
    config = yaml.safe_load((begun / "config.yml").read_text())
    config["optim"]["max_steps"] = 200
    (begun / "config.yml").write_text(yaml.safe_dump(config))
    training = next(one for one in run_status(begun).stages if one.stage == PRETRAIN)
    assert training.progress == "pretrain: epoch 40 of 40, finetune: step 120 of 200"
    assert training.left == pytest.approx(80 * 2.0 / 4)


def test_a_simulation_in_progress_and_a_process_that_runs(begun: Path) -> None:
    log(begun / PRETRAIN / "finetune", 100, 2.0)
    stage(begun, PRETRAIN, 1.0, training={"pretrain": spent(120.0), "finetune": spent(200.0)})
    place = stage(begun, f"{PRETRAIN}/dynamics")
    plain = json.dumps({"step": 400, "active": [0, 2, 3], "seconds_per_step": 0.5})
    np.savez(place / "state.npz", key=np.array("k"), plain=np.array(plain))
    with open(begun / ".lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = run_status(begun)
    last = found.stages[-1]
    assert found.running is True and last.state == "running"
    assert last.progress == "step 400 of 1,000, 3 structures left" and last.left == pytest.approx(300.0)
    assert run_status(begun).stages[-1].state == "stopped"


def test_several_networks_and_what_is_not_known(begun: Path) -> None:
    config = yaml.safe_load((begun / "config.yml").read_text())
    config["physpre"]["n_networks"] = 2
    (begun / "config.yml").write_text(yaml.safe_dump(config))
    found = run_status(begun)
    assert [one.stage for one in found.stages][-4:] == [
        f"{BASELINE}-2", f"{BASELINE}-2/dynamics", f"{PRETRAIN}-2", f"{PRETRAIN}-2/dynamics",
    ]  # fmt: skip
    assert found.stages[-2].left == pytest.approx(40 * 3.0 + 100 * 2.0), "from the first network of the arm"
    (begun / BASELINE / "dynamics" / "done.json").unlink()
    found = run_status(begun)
    assert found.unknown == 4
    assert "4 stages of which nothing is known yet" in format_status(found)


def test_a_finished_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", {"baseline": [[verdict(0, None)]]})
    stage(folder, BASELINE, 5.0)
    stage(folder, f"{BASELINE}/dynamics", 5.0)
    assert format_status(run_status(folder)).startswith("made up: every stage is done")
    with pytest.raises(DataError, match="holds no run"):
        run_status(tmp_path)


def test_durations_in_words() -> None:
    assert [duration(s) for s in (5, 89, 600, 7500)] == ["5 s", "89 s", "10 min", "2 h 05 min"]

"""A whole small run: both arms, killed at several points and started again."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from mdl_physpre import load_potential, save_potential, write_structures
from mdl_physpre.cli.main import app
from mdl_physpre.errors import ConfigError, DataError, WouldDelete
from mdl_physpre.potentials.backbones.cgcnn.network import CGCNN
from mdl_physpre.runs.read import read_run, read_summary
from mdl_physpre.structures.labels import get_labels, set_labels
from mdl_physpre.structures.read import read_structures
from mdl_physpre.workflow.run import fit_only, run
from tests.helpers import small_runs
from tests.helpers.small_runs import called
from tests.helpers.without_times import without_times

CONFIG = small_runs.CONFIG + "  report: {{formats: []}}\n"


@pytest.fixture(scope="module")
def config(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.yml"
    path.write_text(CONFIG.format(data=data))
    return path


def test_a_run_has_both_arms_side_by_side(finished):
    folder, summary = finished
    stored = read_summary(folder)
    assert stored == summary
    baseline, pretrain = (stored.arms[name] for name in ("baseline", "pretrain"))
    for arm in (baseline, pretrain):
        assert arm.errors["test"].forces_mae > 0
        assert arm.errors["test"].counts["forces"] == 4
        assert arm.dynamics.counts.n == 3
    assert pretrain.errors != baseline.errors
    assert stored.data["train"].structures == 16
    assert stored.pretraining_set.structures == 32
    assert baseline.training["finetune"].steps == pretrain.training["finetune"].steps == 24
    chosen = stored.recommended
    assert (folder / "potential.pt").read_bytes() == (folder / chosen.checkpoint).read_bytes()
    assert stored.null_model["test"].counts["forces"] == 4 and set(stored.null_model) == {"val", "test"}
    assert "Use potential.pt: " in (folder / "log.txt").read_text()
    done = json.loads((folder / "3-networks" / "pretrain" / "done.json").read_text())
    assert done["cost"]["processor_seconds"] > 0 and done["cost"]["peak_memory_mb"] > 50


def test_a_finished_run_does_nothing_again(finished, config):
    folder, summary = finished
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("done.json")}
    assert run(config, out=folder).arms == summary.arms
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("done.json")} == before


def test_only_what_changed_is_done_again(finished, config):
    folder, _ = finished
    before = {p.parent.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("done.json")}
    with pytest.raises(WouldDelete, match=r"dynamics: holds results of another run.*\n  settings.temperature"):
        run(config, ["physpre.dynamics.temperature=310"], out=folder)
    assert {p.parent.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("done.json")} == before
    assert read_run(folder).config["physpre"]["dynamics"]["temperature"] != 310 and (folder / "summary.json").exists()
    run(config, ["physpre.dynamics.temperature=310"], out=folder, overwrite=True)
    after = {p.parent.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("done.json")}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"3-networks/baseline/dynamics", "3-networks/pretrain/dynamics"}
    run(config, out=folder, overwrite=True)


def test_what_is_added_needs_no_leave(finished, config, data, tmp_path):
    """A longer training goes on from its last epoch; a further test set and a further network leave the others."""
    folder = shutil.copytree(finished[0], tmp_path / "run")
    first = read_run(folder)
    log = (folder / "3-networks/baseline/finetune/log.csv").read_text()
    epochs = first.config["optim"]["max_epochs"] + 1
    longer = [f"optim.max_epochs={epochs}", "physpre.arms=[baseline]", f"dataset.extra_tests={{again: {data}}}"]
    summary = run(config, longer, out=folder)
    assert (folder / "3-networks/baseline/finetune/log.csv").read_text().startswith(log.rstrip("\n"))
    assert summary.arms["baseline"].networks[0].training["finetune"].epochs == epochs
    assert "again" in summary.arms["baseline"].networks[0].errors
    before = (folder / "3-networks/baseline/done.json").stat().st_mtime_ns
    run(config, [*longer, "physpre.n_networks=2"], out=folder)
    assert (folder / "3-networks/baseline/done.json").stat().st_mtime_ns == before
    with pytest.raises(WouldDelete, match=f"finetune.max_epochs: {epochs} there, {epochs - 1} here"):
        run(config, longer[1:], out=folder)


def test_an_oracle_sees_the_dynamics_of_every_network(finished, config, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    by = ["physpre.dynamics.oracle=calculator:ase.calculators.lj.LennardJones?sigma=1.8&epsilon=0.05&rc=4.0"]
    by += ["physpre.dynamics.oracle_frames=6", "physpre.report.formats=[html, csv]"]
    summary = run(config, by, out=folder, overwrite=True)
    for name in ("baseline", "pretrain"):
        found = summary.arms[name].dynamics.oracle
        assert found.wrong.n == 3 and found.means.forces_mae > 0.01 and found.rows == ()
        stored = json.loads((folder / "3-networks" / name / "dynamics" / "oracle_errors.json").read_text())
        assert len(stored["rows"]) >= found.means.frames > 0
    assert read_summary(folder) == summary and not read_run(folder).missing
    page = (folder / "report.html").read_text()
    assert "wrong by the oracle, of those not failed" in page and "finds wrong" in page
    rows = (folder / "report" / "oracle-errors.csv").read_text().splitlines()
    assert rows[1].startswith("baseline,0.0,120.0,")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("done.json")}
    run(config, by, out=folder)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("done.json")} == before
    run(
        config, [*by, "physpre.dynamics.oracle_bound=0.9"], out=folder, overwrite=True
    )  # frames alone are evaluated again
    after = {p.parent.parent.name for p in before if p.stat().st_mtime_ns != before[p]}
    assert after == {"baseline", "pretrain"}
    assert {p.parent.name for p in before if p.stat().st_mtime_ns != before[p]} == {"oracle"}
    without = run(config, out=folder, overwrite=True).arms["baseline"].dynamics  # no oracle, no word of it
    assert without.oracle is None and without == finished[1].arms["baseline"].dynamics.model_copy(
        update={"seconds": without.seconds}
    )
    with pytest.raises(DataError, match="the oracle .* raises for every structure at the start"):
        run(config, ["physpre.dynamics.oracle=calculator:ase.calculators.emt.EMT"], out=tmp_path / "other")
    assert not (tmp_path / "other" / "1-eam").exists()


def test_an_oracle_simulates_the_same_structures_itself(finished, config, tmp_path):
    """The first network as the oracle: nothing is wrong with it, and it moves as it does."""
    folder = shutil.copytree(finished[0], tmp_path / "run")
    by = [f"physpre.dynamics.oracle={folder / '3-networks' / 'baseline' / 'finetune' / 'best.pt'}"]
    by += [
        "physpre.dynamics.oracle_trajectory=true",
        "physpre.dynamics.temperature=50",
        "physpre.report.formats=[html, csv]",
    ]
    summary = run(config, by, out=folder, overwrite=True)
    baseline, pretrain = (summary.arms[name].dynamics.oracle for name in ("baseline", "pretrain"))
    assert baseline.means.forces_rmse < 1e-5 < pretrain.means.forces_rmse
    assert baseline.wrong.count == 0 and not read_run(folder).missing
    rows = [row.split(",") for row in (folder / "report" / "oracle-motion.csv").read_text().splitlines()[1:]]
    assert {row[0] for row in rows} == {"baseline", "pretrain"}
    for arm, structures, _, ratio, overlap in rows:
        assert int(structures) > 0
        assert (float(ratio) == pytest.approx(1, abs=1e-6)) == (arm == "baseline")
        assert (float(overlap) == pytest.approx(1, abs=1e-6)) == (arm == "baseline")
    page = (folder / "report.html").read_text()
    assert "Radial distribution functions of baseline, pretrain and of oracle" in page
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("done.json")}
    run(config, by, out=folder)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("done.json")} == before


def test_what_does_not_change_a_result_is_not_done_again(finished, config):
    folder, _ = finished
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("done.json")}
    elsewhere = ["task.device=cpu", "task.compile=false"]
    run(config, ["optim.loggers=[]", *elsewhere, "physpre.dynamics.checkpoint_steps=7"], out=folder)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("done.json")} == before
    run(config, out=folder)


def test_the_pretrained_arm_alone_and_online(finished, config, tmp_path):
    """Fresh perturbed structures in every epoch: another pretraining, the same configuration otherwise."""
    _, both = finished
    changes = ["physpre.arms=[pretrain]", "physpre.dynamics.n_structures=0"]
    alone = run(config, changes, out=tmp_path / "alone")
    assert alone.arms["pretrain"].errors == both.arms["pretrain"].errors
    online = run(config, [*changes, "physpre.pretrain.online=true"], out=tmp_path / "online")
    first, second = (found.arms["pretrain"] for found in (online, alone))
    assert first.training["pretrain"].structures == second.training["pretrain"].structures
    assert first.errors_before_finetuning["test"].forces_mae != second.errors_before_finetuning["test"].forces_mae


@pytest.mark.parametrize("start", [run, fit_only])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model.cutof=3", "no hyperparameter 'cutof': did you mean 'cutoff'"),
        ("model.name=CGCN", "unknown backbone 'CGCN'"),
    ],
)
def test_a_network_that_cannot_be_built_is_said_before_the_fit(config, tmp_path, start, change, words):
    with pytest.raises(ConfigError, match=words):
        start(config, [change], out=tmp_path / "run")
    assert not list(tmp_path.rglob("1-eam"))


def test_a_given_teacher_takes_the_zero_of_energy_of_the_data(finished, config, tmp_path):
    folder, _ = finished
    eam = load_potential(folder / "1-eam" / "eam.pt")
    before = eam.E0.detach().clone()
    with torch.no_grad():
        eam.E0.add_(torch.tensor([300.0, -500.0]))
    save_potential(tmp_path / "elsewhere.pt", eam)
    changes = [f"physpre.eam.checkpoint={tmp_path / 'elsewhere.pt'}", "physpre.dynamics.n_structures=0"]
    done = run(config, [*changes, "physpre.arms=[pretrain]"], out=tmp_path / "run")
    assert done.eam.errors["test"].energy_mae < 5.0
    used = load_potential(tmp_path / "run" / "1-eam" / "eam.pt")
    assert abs(float((used.E0.detach() - before).sum())) < 5.0  # one Mg for each O: only their sum is known
    with pytest.raises(ConfigError, match="gone.pt: no such file"):
        run(config, [f"physpre.eam.checkpoint={tmp_path / 'gone.pt'}"], out=tmp_path / "none")


def test_a_checkpoint_that_is_no_eam_beside_a_hybrid_is_said_before_anything_is_trained(config, tmp_path):
    network = CGCNN(elements=["Mg", "O"], cutoff=4.0, dim1=4, dim2=4, gc_count=1, edge_dim=4)
    save_potential(tmp_path / "cgcnn.pt", network)
    changes = ["physpre.arms=[baseline,hybrid]", f"physpre.eam={{checkpoint: {tmp_path / 'cgcnn.pt'}}}"]
    with pytest.raises(ConfigError, match=r"physpre.eam.checkpoint: .*cgcnn.pt holds a CGCNN"):
        run(config, changes, out=tmp_path / "run")
    assert not (tmp_path / "run" / "3-networks").exists()
    # as the teacher of an arm that is no hybrid it is welcome, and a hybrid that comes later is still found out
    few = ["optim.max_epochs=1", "physpre.pretrain.max_epochs=1", "physpre.dynamics.n_structures=0"]
    run(config, [changes[1], *few, "physpre.arms=[pretrain]"], out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"physpre.eam.checkpoint: .*cgcnn.pt holds a CGCNN"):
        run(config, [changes[1], *few, "physpre.arms=[pretrain,hybrid]"], out=tmp_path / "run")


@pytest.fixture(scope="module")
def forces_alone(data, config):
    """The same structures with forces alone, and a configuration for them."""
    structures = read_structures(data)
    for atoms in structures:
        set_labels(atoms, forces=get_labels(atoms).forces)
    write_structures(data.with_name("forces.extxyz"), structures)
    return [
        f"dataset.src={data.with_name('forces.extxyz')}",
        "optim.weight_energy=0",
        "optim.weight_stress=0",
        "physpre.dynamics={n_structures: 1, steps: 5}",
        "physpre.report.formats=[html, csv]",
    ]


def test_forces_alone(forces_alone, config, tmp_path):
    summary = run(config, [*forces_alone, "physpre.arms=[baseline, pretrain, hybrid]"], out=tmp_path / "run")
    for arm in ("baseline", "pretrain", "hybrid"):
        errors = summary.arms[arm].errors["test"]
        assert errors.forces_mae > 0 and errors.energy_mae is None
        assert summary.arms[arm].dynamics.counts.n == 1
    assert "carries an energy: the energy reference is zero" in (tmp_path / "run" / "log.txt").read_text()
    assert not load_potential(tmp_path / "run" / summary.arms["pretrain"].networks[0].checkpoint).reference.as_dict()
    assert (tmp_path / "run" / "report.html").exists()


def test_forces_alone_beside_a_calculator(forces_alone, config, tmp_path):
    """Its energies have a zero of their own, which stays."""
    calculator = "{calculator: ase.calculators.lj.LennardJones, arguments: {sigma: 1.5, rc: 5.0}, processes: 1}"
    changes = ["physpre.arms=[pretrain]", f"physpre.teacher={calculator}"]
    summary = run(config, [*forces_alone, *changes], out=tmp_path / "run")
    assert summary.teacher.zero_of_energy == {"energies": {}, "structures": 0, "before": None, "after": None}
    assert summary.arms["pretrain"].errors["test"].forces_mae > 0
    assert "the teacher keeps its own zero of energy" in (tmp_path / "run" / "log.txt").read_text()


STOPS = (
    "1-eam/stage.json",
    "2-pretraining-set/stage.json",
    "3-networks/baseline/finetune/last.ckpt",
    "3-networks/pretrain/pretrain/last.ckpt",
    "3-networks/pretrain/dynamics/stage.json",
)


@pytest.mark.parametrize("stop", STOPS)
def test_killed_and_started_again_gives_the_same(stop, finished, config, tmp_path):
    """SIGKILL as soon as a file appears; the next start must end with the summary of the run that was never stopped."""
    folder, _ = finished
    target = tmp_path / "run"
    command = [sys.executable, "-m", "mdl_physpre.cli.main", "-q", "run", str(config), "--out", str(target)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 240
    while not (target / stop).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert process.poll() is None, process.stderr.read().decode()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (target / "summary.json").exists()
    run(config, out=target)
    stored = [json.loads((f / "summary.json").read_text()) for f in (folder, target)]
    assert without_times(stored[1]) == without_times(stored[0])


def test_a_stopped_run_has_the_figures_of_the_finished_one(finished, tmp_path):
    """Without its summary, a run is read from its stages: to the same figures."""
    folder, _ = finished
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    stopped = read_run(tmp_path / "run")
    assert not stopped.finished and not stopped.missing
    at_the_end = {name: getattr(read_summary(folder), name) for name in ("pairs", "recommended")}
    assert stopped.summary.model_copy(update=at_the_end) == read_summary(folder)
    (tmp_path / "run" / "3-networks" / "pretrain" / "errors" / "done.json").unlink()
    earlier = read_run(tmp_path / "run")
    assert earlier.summary.arms["baseline"] == stopped.summary.arms["baseline"]
    assert not earlier.networks("pretrain") and earlier.missing[0] == "pretrain: not trained and tested to the end"


@pytest.mark.parametrize("command", [["run", "CONFIG", "--out", "FOLDER"], ["report", "FOLDER"], ["status", "FOLDER"]])
def test_a_run_of_an_earlier_version_is_refused_with_what_to_do(command, finished, config, tmp_path):
    folder, _ = finished
    shutil.copytree(folder, tmp_path / "old")
    (tmp_path / "old" / "3-networks").rename(tmp_path / "old" / "3-train")
    arguments = [{"CONFIG": str(config), "FOLDER": str(tmp_path / "old")}.get(word, word) for word in command]
    wrong = CliRunner().invoke(app, arguments)
    assert isinstance(wrong.exception, DataError)
    assert re.search(
        r"old: holds a run of an earlier version .*3-train.*run its config.yml again", str(wrong.exception)
    )


def test_a_folder_of_another_run_is_left_alone(finished, config, tmp_path):
    folder, _ = finished
    other = tmp_path / "other.yml"
    other.write_text(config.read_text())
    with pytest.raises(ConfigError, match="holds another run"):
        run(other, out=folder)
    strange = tmp_path / "photos"
    strange.mkdir()
    (strange / "cat.jpg").write_text("meow")
    with pytest.raises(ConfigError, match="not of a run"):
        run(config, out=strange)
    assert (strange / "cat.jpg").read_text() == "meow"


def test_a_weight_on_a_missing_label_is_an_error(config, data, tmp_path):
    stripped = tmp_path / "no_stress.extxyz"
    stripped.write_text(re.sub(r' stress="[^"]*"', "", data.read_text()))
    with pytest.raises((ConfigError, DataError), match="stress"):
        run(config, [f"dataset.src={stripped}", "physpre.arms=[baseline]"], out=tmp_path / "run")


def test_an_empty_split_is_an_error(config, tmp_path):
    with pytest.raises(DataError):
        run(config, ["dataset.split.test=24"], out=tmp_path / "run")


def test_commands_end_to_end(finished, data, tmp_path):
    """convert, inspect, perturb, label, evaluate, md, each as a user calls it."""
    folder, _ = finished
    model = str(folder / "3-networks" / "pretrain" / "finetune" / "best.pt")
    calls = [
        (["convert", str(data), str(tmp_path / "a.json")], "24"),
        (["inspect", str(data)], "Mg"),
        (["perturb", str(data), str(tmp_path / "p.extxyz"), "--n-aug", "2"], "48 structures"),
        (["label", str(tmp_path / "p.extxyz"), str(tmp_path / "l.extxyz"), "--teacher", model], "48 structures"),
        (["evaluate", model, str(tmp_path / "l.extxyz"), "--json", str(tmp_path / "e.json")], "total"),
        (["md", model, str(data), "--steps", "20", "--n-structures", "2"], "broken"),
    ]
    for arguments, words in calls:
        assert words in called(*arguments)
    errors = json.loads((tmp_path / "e.json").read_text())
    assert errors["forces_mae"] < 1e-4  # the potential's own labels


def test_control_c_ends_with_a_word(config, tmp_path):
    command = [sys.executable, "-m", "mdl_physpre.cli.main", "run", str(config), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [*command, "optim.max_epochs=100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    training = tmp_path / "run" / "3-networks" / "baseline" / "finetune" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not training.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.rstrip().endswith("go on where they were") and "Traceback" not in errors


def test_errors_are_one_line_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "mdl_physpre.cli.main", "run", str(tmp_path / "none.yml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr

"""MatDeepLearn with its training in several processes mended: two of them, over gloo, in a copy of the real host."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mdl_physpre import open_potential
from mdl_physpre.errors import ConfigError
from mdl_physpre.hosts.patching import change, inspect, patches_for
from mdl_physpre.structures.formats.matdeeplearn_json import item_from_atoms
from tests.helpers.matdeeplearn_runs import CUTOFF, HOST, ROOT, configuration, crystals, environment, needs_host

pytestmark = needs_host


@pytest.fixture(scope="module")
def mended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert ROOT is not None
    copy = tmp_path_factory.mktemp("host")
    shutil.copytree(ROOT / "matdeeplearn", copy / "matdeeplearn", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "main.py", copy / "main.py")
    for parallel in (False, True):  # both, one beside the other
        change("MatDeepLearn", copy, patches_for(HOST.package, parallel))
    return copy


def run(config: dict[str, Any], folder: Path, root: Path, processes: int) -> subprocess.CompletedProcess[str]:
    """The host's main.py, started by torchrun."""
    (folder / "given.yml").write_text(yaml.safe_dump(config))
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *start, str(root / "main.py"), "--config", str(folder / "given.yml")]
    given = {k: v for k, v in environment(root).items() if k not in ("RANK", "WORLD_SIZE", "MASTER_ADDR")}
    given = {**given, "MATDEEPLEARN_HOME": str(root)} if "MATDEEPLEARN_HOME" in os.environ else given
    return subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=400)


def states(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    (job,) = (folder / "results").iterdir()
    files = {s: job / "pretrain" / s / "checkpoint_0" / "best_checkpoint.pt" for s in ("pretrain", "finetune")}
    assert all((job / "pretrain" / s / "done.json").is_file() for s in files) and (job / "log.txt").is_file()
    return {s: open_potential(file).state_dict() for s, file in files.items()}


def test_two_processes_take_the_steps_of_one(tmp_path: Path, mended: Path) -> None:
    """Both stages; half of the structures each, in every step, with MatDeepLearn's rule for the learning rate."""
    found = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        lr, batch = 2e-3 / processes, 32 // processes
        config = configuration(folder)
        config["task"] |= {"parallel": processes > 1, "write_output": ["test"]}
        config["optim"] |= {"lr": lr, "batch_size": batch, "refit_reference": True}
        config["dataset"]["split"] = {"test": 2, "val": 2}
        config["physpre"]["perturbation"]["originals"] = False
        config["physpre"]["pretrain"] |= {"lr": lr, "batch_size": batch}
        done = run(config, folder, mended, processes)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert done.stdout.count("physpre evaluate, physpre doctor and physpre md take these") == 1
        found[processes] = states(folder)
    for stage, weights in found[1].items():
        for name, value in weights.items():
            assert torch.allclose(value, found[2][stage][name], atol=2e-5), (stage, name)


def test_the_hosts_own_trainer_in_two_processes(tmp_path: Path, mended: Path) -> None:
    """Its data prepared by one of them; the learning rate, which the first lowers, is that of both."""
    import json

    (tmp_path / "data.json").write_text(json.dumps([item_from_atoms(a, k) for k, a in enumerate(crystals())]))
    flags = {"gradient": True, "otf_edge_index": True, "otf_edge_attr": True, "otf_node_attr": False}
    graph = {"edge_calc_method": "ocp", "preprocess_edges": False, "preprocess_edge_features": False,
             "preprocess_node_features": True, "cutoff_radius": CUTOFF, "n_neighbors": 250, "num_offsets": 2,
             "node_dim": 100, "edge_dim": 50, "self_loop": True, "node_representation": "onehot",
             "all_neighbors": True}  # fmt: skip
    config = {
        "trainer": "property",
        "task": {"run_mode": "train", "identifier": "own", "parallel": True, "seed": 1, "save_dir": None,
                 "continue_job": False, "write_output": ["val"], "output_frequency": 0, "model_save_frequency": 1},
        "model": {"name": "CGCNN", "dim1": 8, "dim2": 8, "gc_count": 1, "post_fc_count": 1, "pool": "global_add_pool",
                  "batch_norm": True, "model_ensemble": 1, **flags},
        "optim": {"max_epochs": 4, "lr": 1e-3, "batch_size": 2, "verbosity": 1, "clip_grad_norm": 10,
                  "loss": {"loss_type": "ForceStressLoss", "loss_args": {"weight_energy": 0.01, "weight_force": 1,
                                                                         "weight_stress": 1}},
                  "optimizer": {"optimizer_type": "AdamW"},
                  "scheduler": {"scheduler_type": "StepLR", "scheduler_args": {"step_size": 1, "gamma": 0.5}}},
        "dataset": {"name": "own", "processed": False, "src": "data.json", "target_path": None, "pt_path": ".",
                    "prediction_level": "graph", "additional_attributes": ["forces", "stress"], "verbose": False,
                    "transforms": [{"name": "GetY", "args": {"index": -1}}], "preprocess_params": graph,
                    "train_ratio": 0.6, "val_ratio": 0.2, "test_ratio": 0.2},
    }  # fmt: skip
    done = run(config, tmp_path, mended, 2)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rates = [line.split("Learning Rate: ")[1].split(",")[0] for line in done.stdout.splitlines() if "Rate: " in line]
    assert rates == ["0.002000", "0.001000", "0.000500", "0.000250"]  # twice the given one: two processes
    (job,) = (tmp_path / "results").iterdir()
    assert (job / "checkpoint_0" / "best_checkpoint.pt").is_file() and (job / "log.txt").is_file()
    assert not list(tmp_path.glob("log_*"))


def test_without_the_patch_or_torchrun_it_is_said_before_training(tmp_path: Path, mended: Path) -> None:
    from tests.helpers.matdeeplearn_runs import run_here

    config = configuration(tmp_path)
    config["task"]["parallel"] = True
    if not (ROOT / "matdeeplearn" / "common" / "parallel.py").exists():  # type: ignore[operator]
        with pytest.raises(ConfigError, match="physpre hosts patch matdeeplearn --parallel mends it"):
            run_here(config)
    done = run(config, tmp_path, mended, 1)
    assert done.returncode == 1 and "torchrun --nproc_per_node=N main.py" in done.stderr
    assert not list(tmp_path.glob("results/*"))
    with pytest.raises(ConfigError, match="predictions are made in one process"):
        run_here({**config, "task": {**config["task"], "run_mode": "predict"}})


def test_the_patch_goes_in_and_out(tmp_path: Path, mended: Path) -> None:
    copy = tmp_path / "host"
    shutil.copytree(mended, copy)
    patches = patches_for(HOST.package, parallel=True)
    assert inspect(copy, patches).state == "patched"
    change("MatDeepLearn", copy, patches, revert=True)
    assert inspect(copy, patches).state == "unpatched"
    assert not (copy / "matdeeplearn" / "common" / "parallel.py").exists()

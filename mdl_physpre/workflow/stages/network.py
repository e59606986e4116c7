"""What is done with one network: it is trained, tested and simulated; and what several networks of an arm say together.

Networks of an arm differ in their seed alone: their initial weights, the order of structures in training, and the
velocities at the start of the dynamics. Data, embedded-atom potential and pretraining set are the same.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from ase import Atoms

from mdl_physpre.analysis.errors import prediction_errors
from mdl_physpre.dynamics.running.simulate import simulate, summarise
from mdl_physpre.dynamics.verdicts.statistics import summarise_networks
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.runs.stage import Stage, decisive
from mdl_physpre.structures.supercell import enlarge
from mdl_physpre.training.arms import eam_is_needed, parse_arm, parse_arms
from mdl_physpre.utils.devices import device_of_parameters
from mdl_physpre.utils.processes import Piece, run_in_processes
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.data import RunData, load_data
from mdl_physpre.workflow.setup import device_of, threads
from mdl_physpre.workflow.stages.force_angles import force_angles_stage, pooled_angles
from mdl_physpre.workflow.stages.training import training_stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Network:
    """One network of an arm."""

    arm: str
    number: int  # from 1
    seed: int

    @property
    def name(self) -> str:
        """``baseline``, ``baseline-2``, …: the name of its folders."""
        return self.arm if self.number == 1 else f"{self.arm}-{self.number}"


def networks_of(config: Config) -> list[Network]:
    """All networks of a run, the first of each arm first: comparisons of the arms come early."""
    numbers = range(1, config.physpre.n_networks + 1)
    return [Network(arm, k, config.task.seed + k - 1) for k in numbers for arm in config.physpre.arms]


def network_stages(
    folder: Path, config: Config, data: RunData, network: Network, pretraining_key: str
) -> dict[str, Any]:
    """3 and 4: a network is trained, tested and simulated, on one device."""
    trained = folder / "3-train" / network.name
    device = device_of(config, networks_of(config).index(network))
    potential, key = training_stage(folder, config, data, network.arm, pretraining_key, network.seed, trained, device)
    with_eam = eam_is_needed(parse_arms(config.physpre.arms), config.physpre.teacher)
    return {
        "seed": network.seed,
        **errors_stage(trained, data, network.arm, potential, key),
        **(force_angles_stage(folder, trained, data, potential, key) if with_eam else {}),
        "dynamics": dynamics_stage(folder, config, data, network, potential, key),
    }


def networks_in_processes(folder: Path, config: Config, networks: Sequence[Network], pretraining_key: str) -> None:
    """Do the stages of networks in ``task.processes`` processes; afterwards :func:`network_stages` finds them done."""
    pieces = [Piece(network.name, (str(folder), config, network, pretraining_key)) for network in networks]
    run_in_processes(_in_process, pieces, config.task.processes)


def _in_process(folder: str, config: Config, network: Network, pretraining_key: str) -> None:
    logging.getLogger(load_data.__module__).setLevel(logging.WARNING)  # the first process has said it
    with threads(config.task.threads):
        network_stages(Path(folder), config, load_data(config), network, pretraining_key)


def errors_of(folder: Path, potential: Potential, data: RunData, depends_on: dict[str, Any]) -> dict[str, Any]:
    """Errors on each test set, kept in a stage of their own."""
    stage = Stage(folder, {**depends_on, "extra_tests": data.extra_key})
    result = stage.result()
    if result is None:
        stage.begin()
        result = stage.finish(
            {name: prediction_errors(potential, structures) for name, structures in data.test_sets.items()}
        )
    return {name: result[name] for name in data.test_sets}


def errors_stage(trained: Path, data: RunData, arm: str, potential: Potential, key: str) -> dict[str, Any]:
    """Errors of the network trained in a folder, and of what it was before finetuning where it was pretrained."""
    done = json.loads((trained / "done.json").read_text())["result"]
    found: dict[str, Any] = {
        "errors": errors_of(trained.with_name(f"{trained.name}-errors"), potential, data, {"arm": key}),
        "training": {"stages": done["stages"], "budget": done["budget"]},
        "checkpoint": done["checkpoint"],
    }
    if parse_arm(arm).pretrain:
        before = load_potential(trained / "pretrain" / "best.pt", device_of_parameters(potential))
        own = trained.with_name(f"{trained.name}-errors-before-finetuning")
        found["errors_before_finetuning"] = errors_of(own, before, data, {"arm": key})
    return found


def dynamics_stage(
    folder: Path, config: Config, data: RunData, network: Network, potential: Potential, key: str
) -> dict[str, Any] | None:
    """4: molecular dynamics of test structures, the same for each network, each judged while it runs."""
    structures = dynamics_structures(config, data)
    if not structures:
        return None
    compiled = config.task.compiles_on(str(device_of_parameters(potential)))
    settings = config.dynamics_settings().changed(seed=network.seed, compile=compiled)
    stage = Stage(
        folder / "4-dynamics" / network.name,
        {
            "arm": key,
            "settings": decisive(settings),
            "structures": [len(atoms) for atoms in structures],
            "seed": config.task.seed,
        },
    )
    result = stage.result()
    if result is None:
        logger.info("molecular dynamics, %s: %d structures, %d steps", network.name, len(structures), settings.steps)
        stage.begin()
        verdicts = simulate(potential, structures, settings, out=stage.folder)
        curve = [[v.first_failing_step, v.status] for v in verdicts]
        found = {"summary": summarise(verdicts).plain(), "failing_steps": curve, "settings": settings.model_dump()}
        result = stage.finish(found)
    return {
        **result["summary"],
        "failing_steps": result["failing_steps"],
        "settings": result["settings"],
        "seconds": result["seconds"],
    }


def dynamics_structures(config: Config, data: RunData) -> list[Atoms]:
    """``n_structures`` test structures, drawn at random by seed; all where there are fewer."""
    wanted = min(config.physpre.dynamics.n_structures, len(data.test))
    picked = np.random.default_rng([config.task.seed, 4]).permutation(len(data.test))[:wanted]
    return [enlarge(data.test[k], config.physpre.dynamics.min_atoms) for k in sorted(picked)]


def arm_summary(folder: Path, arm: str, networks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the networks of an arm say together.

    Returns
    -------
    ``networks``, as :func:`network_stages` gave them; means over them of ``errors``, ``errors_before_finetuning`` and
    ``training``; ``force_angles``, all atoms together (:func:`.force_angles.pooled_angles`);
    ``errors_deviation``, the standard deviations (n − 1) between networks where there are several;
    ``dynamics``, the counts over all of them (:func:`summarise_networks`); and
    ``checkpoint``, that of the first.
    """
    found: dict[str, Any] = {"networks": list(networks), "checkpoint": networks[0]["checkpoint"]}
    for key in ("errors", "errors_before_finetuning", "training"):
        if key in networks[0]:
            found[key] = _combined([n[key] for n in networks], fmean)
    if len(networks) > 1:
        found["errors_deviation"] = _combined([n["errors"] for n in networks], stdev)
    if "force_angles" in networks[0]:
        found["force_angles"] = pooled_angles(networks)
    dynamics = [n["dynamics"] for n in networks]
    if dynamics[0] is None:
        return {**found, "dynamics": None}
    names = [Network(arm, k + 1, n["seed"]).name for k, n in enumerate(networks)]
    verdicts = [json.loads((folder / "4-dynamics" / name / "verdicts.json").read_text())["verdicts"] for name in names]
    found["dynamics"] = {
        **summarise_networks(verdicts),
        "failing_steps": [step for d in dynamics for step in d["failing_steps"]],
        "settings": dynamics[0]["settings"],
        "seconds": sum(d["seconds"] for d in dynamics),
    }
    return found


def _combined(values: Sequence[Any], how: Any) -> Any:
    """Mappings of numbers, number by number; what is the same everywhere, or no number, as it is in the first."""
    first = values[0]
    if isinstance(first, Mapping):
        return {key: _combined([v[key] for v in values], how) for key in first}
    if isinstance(first, bool | int) and all(v == first for v in values):
        return first
    numbers = [v for v in values if isinstance(v, int | float) and math.isfinite(v)]
    return how(numbers) if len(numbers) == len(values) else first

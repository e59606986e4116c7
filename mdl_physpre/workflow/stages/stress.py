"""The last stage of a network: stress tests of test structures, each test a stage of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from ase import Atoms

from mdl_physpre.potentials.base import Potential
from mdl_physpre.runs.layout import Network
from mdl_physpre.runs.stage import Stage, decisive
from mdl_physpre.stress_tests.run import run_stress_tests
from mdl_physpre.utils.devices import device_of_parameters
from mdl_physpre.utils.settings import Settings
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.data import RunData
from mdl_physpre.workflow.stages.oracle import identity_of

logger = logging.getLogger(__name__)


def stress_structures(config: Config, data: RunData) -> list[Atoms]:
    """The test structures that are put to stress tests."""
    section = config.physpre.stress
    return data.drawn_tests(section.n_structures, section.min_atoms, config.task.seed)


def stages_of(
    folder: Path, config: Config, data: RunData, network: Network, key: str, device: str | torch.device
) -> Iterator[tuple[str, Settings, Stage]]:
    """Each test of a network, trained in the stage of this key, with its settings and its stage."""
    section = config.physpre.stress
    sizes = [len(atoms) for atoms in stress_structures(config, data)]
    for name, chosen in section.chosen().items():
        settings = of_network(chosen, network.seed, config.task.compiles_on(str(device)))
        depends: dict[str, Any] = {"trained": key, "test": name, "settings": decisive(settings), "structures": sizes}
        if section.oracle is not None:
            depends["oracle"] = [*identity_of(section.oracle), section.oracle_frames, section.oracle_bound]
        depends["seed"] = config.task.seed
        yield name, settings, Stage(network.stress_folder(folder, name), depends, follows=("trained",))


def stress_stage(folder: Path, config: Config, data: RunData, network: Network, potential: Potential, key: str) -> None:
    """3, stress: where test structures, the same for each network, break.

    A test that is added, or whose settings change, leaves what the others have found.
    """
    section, device = config.physpre.stress, device_of_parameters(potential)
    structures = stress_structures(config, data)
    for name, settings, stage in stages_of(folder, config, data, network, key, device):
        if stage.done:
            continue
        logger.info("stress test %s, %s: %d structures", name, network.name, len(structures))
        stage.begin()
        out, oracle = stage.folder.parent, section.oracle
        result = run_stress_tests(potential, structures, {name: settings}, out, oracle=oracle, along=section)[name]
        stage.finish(result.model_copy(update={"oracle": result.oracle and result.oracle.summary()}).plain())


def of_network(settings: Settings, seed: int, compiled: bool) -> Settings:
    """Settings of a test with the seed of a network, and compiled, where it knows these and they are not given."""
    own: dict[str, Any] = {"seed": seed, "compile": compiled}
    more = {key: value for key, value in own.items() if key in type(settings).model_fields}
    return settings.changed(**{key: value for key, value in more.items() if key not in settings.model_fields_set})

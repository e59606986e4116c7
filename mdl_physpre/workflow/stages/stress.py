"""The last stage of a network: stress tests of test structures, each test a stage of its own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mdl_physpre.dynamics.oracle import open_oracle
from mdl_physpre.potentials.base import Potential
from mdl_physpre.runs.layout import Network
from mdl_physpre.runs.stage import Stage, decisive
from mdl_physpre.stress_tests.oracle import with_oracle
from mdl_physpre.stress_tests.run import run_stress_tests
from mdl_physpre.utils.devices import device_of_parameters
from mdl_physpre.utils.settings import Settings
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.data import RunData
from mdl_physpre.workflow.stages.oracle import identity_of

logger = logging.getLogger(__name__)


def stress_stage(folder: Path, config: Config, data: RunData, network: Network, potential: Potential, key: str) -> None:
    """3, stress: where test structures, the same for each network, break.

    A test that is added, or whose settings change, leaves what the others have found.
    """
    section = config.physpre.stress
    structures = data.drawn_tests(section.n_structures, section.min_atoms, config.task.seed)
    compiled = config.task.compiles_on(str(device_of_parameters(potential)))
    for name, chosen in section.chosen().items():
        settings = of_network(chosen, network.seed, compiled)
        sizes = [len(atoms) for atoms in structures]
        depends = {"trained": key, "test": name, "settings": decisive(settings), "structures": sizes}
        if section.oracle is not None:
            depends["oracle"] = [*identity_of(section.oracle), section.oracle_frames, section.oracle_bound]
        stage = Stage(network.stress_folder(folder, name), depends | {"seed": config.task.seed})
        if stage.done:
            continue
        logger.info("stress test %s, %s: %d structures", name, network.name, len(structures))
        stage.begin()
        result = run_stress_tests(potential, structures, {name: settings}, stage.folder.parent)[name]
        if section.oracle is not None:
            oracle = open_oracle(section.oracle, structures, device=device_of_parameters(potential))
            found = with_oracle(result, stage.folder, oracle, section)
            result = found.model_copy(update={"oracle": found.oracle and found.oracle.summary()})
        stage.finish(result.plain())


def of_network(settings: Settings, seed: int, compiled: bool) -> Settings:
    """Settings of a test with the seed of a network, and compiled, where it knows these and they are not given."""
    own: dict[str, Any] = {"seed": seed, "compile": compiled}
    more = {key: value for key, value in own.items() if key in type(settings).model_fields}
    return settings.changed(**{key: value for key, value in more.items() if key not in settings.model_fields_set})

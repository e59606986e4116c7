"""How long a run will take, stage by stage, before it starts: counted steps times the time of a few trial steps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from mdl_physpre.report.status import duration
from mdl_physpre.runs import layout
from mdl_physpre.runs.layout import Plan, plan_of
from mdl_physpre.utils.devices import threads
from mdl_physpre.utils.record import Record
from mdl_physpre.utils.text_table import MISSING, text_table
from mdl_physpre.workflow import trials
from mdl_physpre.workflow.config.file import load_config
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.data import RunData
from mdl_physpre.workflow.estimated_stages import StageEstimate, StageEstimates
from mdl_physpre.workflow.setup import data_of_run, folder_of_run, refuse_foreign_folder

logger = logging.getLogger(__name__)


class RunEstimate(Record):
    """What is known of a run beforehand, of the stages that are not done. processes : that train at the same time."""

    stages: tuple[StageEstimate, ...]
    processes: int = 1

    @property
    def seconds(self) -> float:
        """Of all stages of which it is known, with networks shared out evenly among the processes."""
        at_once = {one.stage: self.processes if one.stage.startswith(layout.NETWORKS) else 1 for one in self.stages}
        return sum((one.seconds or 0.0) * one.networks / at_once[one.stage] for one in self.stages)


def estimate_run(
    config: Config | str | Path, overrides: Sequence[str] = (), out: str | Path | None = None
) -> RunEstimate:
    """How long :func:`~mdl_physpre.workflow.run.run` will take, with the same arguments. Nothing is written.

    A few steps of each stage are tried on a few of the structures, with networks that are not trained. What stops
    early (a fit that has converged, early stopping, structures that break) takes less; a busy machine takes more.

    Raises
    ------
    ConfigError, DataError : as :func:`~mdl_physpre.workflow.run.run`, for what it looks at before it begins.
    """
    if not isinstance(config, Config):
        config = load_config(config, overrides)
    folder = folder_of_run(out, config)
    refuse_foreign_folder(folder, config)
    with threads(config.task.threads):
        config, data = data_of_run(None, config)
        return estimated(folder, config, data, plan_of(config.model_dump()))


def estimated(folder: Path, config: Config, data: RunData, plan: Plan) -> RunEstimate:
    """The same, of a run in a folder, with data and a configuration that suits them."""
    with trials.trying():
        stages = StageEstimates(folder, config, data, plan).all()
    return RunEstimate(stages=tuple(stages), processes=min(config.task.processes, len(plan.networks)))


def tell_length(folder: Path, config: Config, data: RunData, plan: Plan) -> None:
    """Log how long what is left of a run will take; nothing where every stage is done."""
    found = estimated(folder, config, data, plan)
    if found.stages:
        logger.info("%s", format_estimate(found))


def format_estimate(estimate: RunEstimate) -> str:
    """An estimate as text; nothing where no stage is left to do."""
    if not estimate.stages:
        return "every stage is done"
    rows = [["to do", "what", "networks", "each", "memory"]]
    for one in estimate.stages:
        each = MISSING if one.seconds is None else f"about {duration(one.seconds)}"
        memory = MISSING if one.memory is None else f"{one.memory / 1e9:.2f} GB"
        rows.append([one.stage, one.work, str(one.networks), each, memory])
    together = f"together about {duration(estimate.seconds)}"
    if estimate.processes > 1:
        together += f" with {estimate.processes} processes"
    if unknown := sum(one.seconds is None for one in estimate.stages):
        together += f", and {unknown} stages of which nothing is known beforehand"
    told = "by a few trial steps on this machine, as busy as it is now; what stops early takes less"
    return "\n".join([text_table(rows, words=2), f"{together}: {told}"])

"""A whole run: EAM or teacher, pretraining set, networks, report.

Each stage has a folder and is done once its ``done.json`` stands. Called again, a run goes on where it stopped, and
redoes only what changed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from mdl_physpre.runs.layout import EAM_FILE, FITTED_TEACHER, plan_of
from mdl_physpre.runs.results import FittedEAM, TeacherResult
from mdl_physpre.runs.summary import Summary
from mdl_physpre.training.ranks import leading
from mdl_physpre.utils.overwrite import overwriting
from mdl_physpre.workflow.config.file import load_config
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.estimate import tell_length
from mdl_physpre.workflow.reports import Reports
from mdl_physpre.workflow.setup import data_of_run, device_of, working_in
from mdl_physpre.workflow.stages.committee import committee_stage
from mdl_physpre.workflow.stages.eam import eam_stage
from mdl_physpre.workflow.stages.network import dynamics_structures, network_results
from mdl_physpre.workflow.stages.oracle import oracle_trajectory_stage, try_oracles
from mdl_physpre.workflow.stages.pretraining_set import pretraining_set_stage
from mdl_physpre.workflow.stages.teacher import teacher_stage

logger = logging.getLogger(__name__)


def run(
    config: Config | str | Path, overrides: Sequence[str] = (), out: str | Path | None = None, overwrite: bool = False
) -> Summary:
    """Run every stage of a configuration that is not done yet.

    What is added (arms, networks, test sets, stress tests, epochs) leaves what is done.

    Parameters
    ----------
    config : a :class:`Config`, or the path of a configuration file.
    overrides : ``section.key=value``, put into the file's values.
    out : folder of the run; ``runs/IDENTIFIER`` where ``None``.
    overwrite : delete results in it that were made with other settings or data.

    Returns
    -------
    What the run found, as in ``summary.json``. Empty in a process that Slurm started to help with training.

    Raises
    ------
    ConfigError, DataError, FitError, TrainingError : each with what to do about it.
    WouldDelete : results of other settings or data stand in the folder, which is left as it was.
    """
    if not isinstance(config, Config):
        config = load_config(config, overrides)
    with leading(config.task.devices) as leads, overwriting(overwrite):
        return _run(config, out) if leads else Summary()


def _run(config: Config, out: str | Path | None) -> Summary:
    """The method, step by step (Figure 4 of the paper)."""
    with working_in(out, config) as folder:
        config, data = data_of_run(folder, config)
        plan = plan_of(config.model_dump())
        tell_length(folder, config, data, plan)
        try_oracles(folder, config, data, plan)
        eam = eam_stage(folder, config, data, for_hybrids=plan.hybrids) if plan.eam else None
        teacher = teacher_stage(folder, config, data) if plan.teacher else None
        pretraining_set = pretraining_set_stage(folder, config, data) if plan.pretraining_set else None
        summary = Summary(
            data=data.counts(), eam=eam, teacher=teacher, pretraining_set=pretraining_set, null_model=data.null_model
        )
        reports = Reports(folder, config, data, plan)
        for network in network_results(folder, config, data, plan):
            summary = summary.with_networks(network)
            reports.refresh(summary)
        for arm in summary.arms:
            found = committee_stage(folder, data, plan, arm, device_of(config))
            summary = summary.with_committee(arm, found)
        if plan.oracle_trajectory:
            oracle_trajectory_stage(folder, config, data, plan, dynamics_structures(config, data))
        return reports.finish(summary)


def fit_only(
    config: str | Path, overrides: Sequence[str] = (), out: str | Path | None = None, overwrite: bool = False
) -> FittedEAM | TeacherResult:
    """The first stage of a run alone: the embedded-atom potential, or another teacher that is fitted. A later
    :func:`run` finds it done."""
    loaded = load_config(config, overrides)
    with working_in(out, loaded) as folder, overwriting(overwrite):
        loaded, data = data_of_run(folder, loaded)
        if loaded.physpre.teacher is not None and loaded.physpre.teacher.fit:
            teacher = teacher_stage(folder, loaded, data)
            logger.info("potential: %s", folder / FITTED_TEACHER)
            return teacher
        found = eam_stage(folder, loaded, data, for_hybrids=plan_of(loaded.model_dump()).hybrids)
        logger.info("potential: %s", folder / EAM_FILE)
    return found

"""A whole run: fit the EAM, make the pretraining set, train each arm, test it, simulate it, report.

Each stage has a folder and is done once its ``done.json`` stands. Called again, a run goes on where it stopped, and
redoes only what changed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mdl_physpre.potentials.backbones.registry import backbone_class
from mdl_physpre.report.comparison import arms_with_first
from mdl_physpre.report.tables.text import format_summary
from mdl_physpre.runs.stage import write_json
from mdl_physpre.training.arms import eam_is_needed, parse_arms
from mdl_physpre.training.ranks import leading
from mdl_physpre.workflow.config.file import load_config
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.data import load_data
from mdl_physpre.workflow.reports import Reports
from mdl_physpre.workflow.setup import check_devices, record_setup, working_in
from mdl_physpre.workflow.stages.network import (
    Network,
    arm_summary,
    network_stages,
    networks_in_processes,
    networks_of,
)
from mdl_physpre.workflow.stages.saved_teacher import EAM
from mdl_physpre.workflow.stages.teacher import fit_stage, pretraining_set_stage, teacher_stage

logger = logging.getLogger(__name__)


def run(config: Config | str | Path, overrides: Sequence[str] = (), out: str | Path | None = None) -> dict[str, Any]:
    """Run every stage of a configuration that is not done yet.

    Parameters
    ----------
    config : a :class:`Config`, or the path of a configuration file.
    overrides : ``section.key=value``, put into the file's values.
    out : folder of the run; ``runs/IDENTIFIER`` where ``None``.

    Returns
    -------
    dict : the content of ``summary.json``: ``data``, ``eam`` or ``teacher``, ``pretraining_set``, and for each arm
        ``errors`` by test set, ``dynamics`` (counts of verdicts) and ``training`` (what it spent), over all its
        networks, and ``networks``, the same for each. Empty in a process that Slurm started to help with training.

    Raises
    ------
    ConfigError, DataError, FitError, TrainingError : each with what to do about it.
    """
    if not isinstance(config, Config):
        config = load_config(config, overrides)
    backbone_class(config.model.name)  # a wrong name is better known now than after the fit
    with leading(config.task.devices) as leads:
        return _run(config, out) if leads else {}


def _run(config: Config, out: str | Path | None) -> dict[str, Any]:
    with working_in(out, config) as folder:
        device = check_devices(config)
        data = load_data(config)
        record_setup(folder, config, data, device)
        summary: dict[str, Any] = {"data": data.summary(), "arms": list(config.physpre.arms)}
        arms = parse_arms(config.physpre.arms)
        pretraining_key = ""
        pretrained = any(arm.uses_pretraining_set for arm in arms)
        if eam_is_needed(arms, config.physpre.teacher) and not (pretrained and config.physpre.teacher is None):
            fit_stage(folder, config, data, summary)  # else it is the teacher, which is next
        if pretrained:
            teacher = teacher_stage(folder, config, data, summary)
            pretraining_key = pretraining_set_stage(folder, config, data, teacher, summary)
        networks = networks_of(config)
        if config.task.processes > 1:
            networks_in_processes(folder, config, networks, pretraining_key)
        results: dict[Network, dict[str, Any]] = {}
        reports = Reports(folder, config, data)
        for network in networks:
            results[network] = network_stages(folder, config, data, network, pretraining_key)
            for arm in config.physpre.arms:
                own = [results[n] for n in networks if n.arm == arm and n in results]
                summary[arm] = arm_summary(folder, arm, own) if own else {}
            if len(results) < len(networks):
                reports.refresh(summary)
        finish(folder, summary, reports)
    return summary


def fit_only(config: str | Path, overrides: Sequence[str] = (), out: str | Path | None = None) -> dict[str, Any]:
    """The first stage of a run alone: the embedded-atom potential. A later :func:`run` finds it done."""
    loaded = load_config(config, overrides)
    with working_in(out, loaded) as folder:
        device = check_devices(loaded)
        data = load_data(loaded)
        record_setup(folder, loaded, data, device)
        summary: dict[str, Any] = {"data": data.summary()}
        fit_stage(folder, loaded, data, summary)
        logger.info("potential: %s", folder / EAM)
    return summary["eam"]


def finish(folder: Path, summary: dict[str, Any], reports: Reports) -> None:
    """``summary.json``, the tables in the log, and the report."""
    summary["pairs"] = arms_with_first(folder, summary)
    write_json(folder / "summary.json", summary)
    logger.info("%s", format_summary(summary))
    for path in reports.write():
        logger.info("report: %s", path)

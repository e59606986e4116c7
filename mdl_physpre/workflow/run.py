"""A whole run: fit the EAM, make the pretraining set, train each arm, test it, simulate it, report.

Each stage has a folder and is done once its ``done.json`` stands. Called again, a run goes on where it stopped, and
redoes only what changed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.checkpoints import backbone_class, load_potential, save_potential
from mdl_physpre.pretraining.eam_fit import fit_eam
from mdl_physpre.pretraining.pretraining_set import format_report, make_pretraining_set
from mdl_physpre.pretraining.teacher import label
from mdl_physpre.report.comparison import arms_with_first
from mdl_physpre.report.figures import draw_figures
from mdl_physpre.report.tables import format_summary, report_markdown
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.structures.write import write_structures
from mdl_physpre.training.arms import parse_arms
from mdl_physpre.training.energy_zero import refit_reference
from mdl_physpre.workflow.config import Config
from mdl_physpre.workflow.config_file import load_config
from mdl_physpre.workflow.data import RunData, load_data
from mdl_physpre.workflow.network_stages import (
    arm_summary,
    errors_of,
    network_stages,
    networks_in_processes,
    networks_of,
)
from mdl_physpre.workflow.setup import record_setup, working_in
from mdl_physpre.workflow.stages import Stage, hash_of_file, write_json, write_text

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
    dict : the content of ``summary.json``: ``data``, ``eam``, ``pretraining_set``, and for each arm ``errors`` by test
        set, ``dynamics`` (counts of verdicts) and ``training`` (what it spent), over all its networks, and
        ``networks``, the same for each.

    Raises
    ------
    ConfigError, DataError, FitError, TrainingError : each with what to do about it.
    """
    if not isinstance(config, Config):
        config = load_config(config, overrides)
    backbone_class(config.model.name)  # a wrong name is better known now than after the fit
    with working_in(out, config) as folder:
        data = load_data(config)
        record_setup(folder, config)
        summary: dict[str, Any] = {"data": data.summary(), "arms": list(config.physpre.arms)}
        arms = parse_arms(config.physpre.arms)
        pretraining_key = ""
        if any(arm.needs_eam for arm in arms):
            eam = fit_stage(folder, config, data, summary)
        if any(arm.pretrain for arm in arms):
            pretraining_key = pretraining_set_stage(folder, config, data, eam, summary)
        networks = networks_of(config)
        if config.task.processes > 1:
            networks_in_processes(folder, config, networks, pretraining_key)
        results = {network: network_stages(folder, config, data, network, pretraining_key) for network in networks}
        for arm in config.physpre.arms:
            summary[arm] = arm_summary(folder, arm, [results[n] for n in networks if n.arm == arm])
        report(folder, config, summary)
    return summary


def fit_only(config: str | Path, overrides: Sequence[str] = (), out: str | Path | None = None) -> dict[str, Any]:
    """The first stage of a run alone: the embedded-atom potential. A later :func:`run` finds it done."""
    loaded = load_config(config, overrides)
    with working_in(out, loaded) as folder:
        data = load_data(loaded)
        record_setup(folder, loaded)
        summary: dict[str, Any] = {"data": data.summary()}
        fit_stage(folder, loaded, data, summary)
        logger.info("potential: %s", folder / "1-eam" / "eam.pt")
    return summary["eam"]


def fit_stage(folder: Path, config: Config, data: RunData, summary: dict[str, Any]) -> Potential:
    """1: the embedded-atom potential, fitted to the training structures alone, or loaded."""
    settings = config.physpre.eam
    source = hash_of_file(Path(settings.checkpoint)) if settings.checkpoint else ""
    weights = config.optim.loss.loss_args.model_dump()
    stage = Stage(
        folder / "1-eam",
        {
            "data": data.key,
            "eam": settings.model_dump(),
            "source": source,
            "seed": config.task.seed,
            "weights": weights,
        },
    )
    result = stage.result()
    if result is None:
        stage.begin()
        if settings.checkpoint:
            potential: Potential = load_potential(settings.checkpoint)
            # fitted to other data, it may have another zero of energy, which the network would have to unlearn
            refit_reference(potential, *(GraphDataset(s, potential.cutoff) for s in (data.train, data.val)))
            save_potential(stage.folder / "eam.pt", potential)
            result = {"text": f"loaded from {settings.checkpoint}", "table": [], "errors": {}}
        else:
            stresses = summary["data"]["train"]["labels"]["stress"] > 0
            fit = fit_eam(
                data.train,
                data.val,
                elements=data.elements,
                cutoff=settings.cutoff,
                n_basis=settings.n_basis,
                init=settings.init,
                signed_embedding=settings.signed_embedding,
                route=settings.route,
                epochs=settings.epochs,
                lr=settings.lr,
                batch_size=settings.batch_size,
                seed=config.task.seed,
                loss_weights=(weights["weight_energy"], weights["weight_force"], weights["weight_stress"] * stresses),
            )
            save_potential(stage.folder / "eam.pt", fit.potential)
            write_json(stage.folder / "history.json", fit.history)
            write_text(stage.folder / "fit.txt", fit.text + "\n")
            result = {"text": fit.text, "table": fit.table, "errors": fit.errors}
        result = stage.finish(result)
    logger.info("embedded-atom potential\n%s", result["text"])
    potential = load_potential(stage.folder / "eam.pt")
    tests = errors_of(folder / "1-eam-errors", potential, data, {"eam": stage.key, "data": data.key})
    summary["eam"] = {
        "table": result["table"],
        "fit_errors": result["errors"],
        "errors": tests,
        "seconds": result["seconds"],
    }
    return potential


def pretraining_set_stage(folder: Path, config: Config, data: RunData, eam: Potential, summary: dict[str, Any]) -> str:
    """2: training and validation structures perturbed and labelled by the EAM. Test structures never are."""
    stage = Stage(
        folder / "2-pretraining-set",
        {
            "eam": hash_of_file(folder / "1-eam" / "eam.pt"),
            "data": data.key,
            "seed": config.task.seed,
            "settings": config.physpre.perturbation.model_dump(),
        },
    )
    result = stage.result()
    if result is None:
        stage.begin()
        settings, seed = config.perturbation_settings(), config.task.seed
        made = make_pretraining_set(data.train, settings, eam, seed)
        write_structures(stage.folder / "train.extxyz", made.structures)
        reports = {"training": made.report}
        if config.physpre.perturbation.validation:
            made_val = make_pretraining_set(data.val, settings, eam, seed)
            val, reports["validation"] = made_val.structures, made_val.report
        else:
            val = label(data.val, eam)
        write_structures(stage.folder / "val.extxyz", val)
        texts = [f"{name} set\n{format_report(found)}\n" for name, found in reports.items()]
        write_text(stage.folder / "report.txt", "\n".join(texts))
        write_json(stage.folder / "report.json", reports)
        result = stage.finish(
            {
                "structures": len(made.structures),
                "validation": len(val),
                "rejected": {name: found["rejected"] for name, found in reports.items()},
            }
        )
    summary["pretraining_set"] = result
    return stage.key


def report(folder: Path, config: Config, summary: dict[str, Any]) -> None:
    """Summary, tables and figures."""
    summary["pairs"] = arms_with_first(folder, summary)
    drawn = [path.name for path in draw_figures(folder, summary)]
    write_text(folder / "report.md", report_markdown(config.task.identifier or folder.name, summary, drawn))
    write_json(folder / "summary.json", summary)
    logger.info("%s", format_summary(summary))
    logger.info("report: %s", folder / "report.md")

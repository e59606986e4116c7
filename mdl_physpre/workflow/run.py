"""A whole run: fit the EAM, make the pretraining set, train each arm, test it, simulate it, report.

Each stage has a folder and is done once its ``done.json`` stands. Called again, a run goes on where it stopped, and
redoes only what changed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mdl_physpre.analysis.errors import prediction_errors
from mdl_physpre.dynamics.simulation import simulate, summarise
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.checkpoints import backbone_class, load_potential, save_potential
from mdl_physpre.pretraining.eam_fit import fit_eam
from mdl_physpre.pretraining.pretraining_set import format_report, make_pretraining_set
from mdl_physpre.pretraining.teacher import label
from mdl_physpre.report.comparison import paired_with_first, read_simulation
from mdl_physpre.report.figures import draw_figures
from mdl_physpre.report.tables import format_summary, report_markdown
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.structures.supercell import enlarge
from mdl_physpre.structures.write import write_structures
from mdl_physpre.training.arms import parse_arm, parse_arms
from mdl_physpre.training.energy_zero import refit_reference
from mdl_physpre.workflow.config import Config
from mdl_physpre.workflow.config_file import load_config
from mdl_physpre.workflow.data import RunData, load_data
from mdl_physpre.workflow.setup import record_setup, working_in
from mdl_physpre.workflow.stages import Stage, decisive, hash_of_file, write_json, write_text
from mdl_physpre.workflow.training_stage import training_stage

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
        set, ``dynamics`` (counts of verdicts) and ``training`` (what it spent).

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
        for arm in config.physpre.arms:
            summary[arm] = {}
            potential, key = training_stage(folder, config, data, arm, pretraining_key)
            summary[arm].update(errors_stage(folder, config, data, arm, potential, key))
            summary[arm]["dynamics"] = dynamics_stage(folder, config, data, arm, potential, key)
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


def errors_stage(
    folder: Path, config: Config, data: RunData, arm: str, potential: Potential, key: str
) -> dict[str, Any]:
    """Errors of an arm on each test set, and of its network before finetuning where it was pretrained."""
    trained = Stage(folder / "3-train" / arm, {})
    done = json.loads((trained.folder / "done.json").read_text())["result"]
    found: dict[str, Any] = {
        "errors": errors_of(folder / "3-train" / f"{arm}-errors", potential, data, {"arm": key}),
        "training": {"stages": done["stages"], "budget": done["budget"]},
        "checkpoint": done["checkpoint"],
    }
    if parse_arm(arm).pretrain:
        before = load_potential(trained.folder / "pretrain" / "best.pt")
        found["errors_before_finetuning"] = errors_of(
            folder / "3-train" / f"{arm}-errors-before-finetuning", before, data, {"arm": key}
        )
    return found


def dynamics_stage(
    folder: Path, config: Config, data: RunData, arm: str, potential: Potential, key: str
) -> dict[str, Any] | None:
    """4: molecular dynamics of test structures, the same for each arm, each judged while it runs."""
    structures = dynamics_structures(config, data)
    if not structures:
        return None
    settings = config.dynamics_settings()
    stage = Stage(
        folder / "4-dynamics" / arm,
        {
            "arm": key,
            "settings": decisive(settings),
            "structures": [len(atoms) for atoms in structures],
            "seed": config.task.seed,
        },
    )
    result = stage.result()
    if result is None:
        logger.info("molecular dynamics, arm %s: %d structures, %d steps", arm, len(structures), settings.steps)
        stage.begin()
        verdicts = simulate(potential, structures, settings, out=stage.folder)
        curve = [[v["first_failing_step"], v["status"]] for v in verdicts]
        result = stage.finish({"summary": summarise(verdicts), "failing_steps": curve, "settings": asdict(settings)})
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


def report(folder: Path, config: Config, summary: dict[str, Any]) -> None:
    """Summary, tables and figures."""
    simulated = [arm for arm in summary["arms"] if summary[arm].get("dynamics")]
    verdicts = [read_simulation(folder / "4-dynamics" / arm / "verdicts.json", arm) for arm in simulated]
    summary["pairs"] = paired_with_first(verdicts) if verdicts else []
    drawn = [path.name for path in draw_figures(folder, summary)]
    write_text(folder / "report.md", report_markdown(config.task.identifier or folder.name, summary, drawn))
    write_json(folder / "summary.json", summary)
    logger.info("%s", format_summary(summary))
    logger.info("report: %s", folder / "report.md")

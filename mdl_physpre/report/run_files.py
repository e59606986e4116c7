"""What the folder of a run holds, read for a report: finished or not, and what is missing."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.training.arms import parse_arms

EAM, SET, TRAIN, DYNAMICS = "1-eam", "2-pretraining-set", "3-train", "4-dynamics"
BEFORE = "-errors-before-finetuning"


@dataclass
class Run:
    """A run as its files tell it.

    Attributes
    ----------
    summary : as in ``summary.json``; of an unfinished run the parts that are there. Every arm has an entry.
    finished : whether every stage is done.
    missing : sentences on what is not there.
    simulations : arm → name of the network → what its ``verdicts.json`` holds, with ``folder``.
    logs : arm → (network, stage) → rows of ``log.csv``.
    pretraining_set : ``report.json`` of the pretraining set.
    stages : every stage folder by its path in the run, with what its ``done.json`` and ``stage.json`` say.
    """

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    summary: dict[str, Any]
    finished: bool
    missing: list[str] = field(default_factory=list)
    simulations: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    logs: dict[str, dict[tuple[str, str], list[dict[str, float]]]] = field(default_factory=dict)
    pretraining_set: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.config.get("task", {}).get("identifier") or self.folder.name)

    @property
    def arms(self) -> list[str]:
        return list(self.summary["arms"])

    def networks(self, arm: str) -> list[Mapping[str, Any]]:
        """The networks of an arm; one entry, the arm itself, where they are not told apart."""
        found = self.summary.get(arm) or {}
        return list(found.get("networks") or ([found] if found.get("errors") or found.get("checkpoint") else []))

    def simulated_arms(self) -> list[str]:
        return [arm for arm in self.arms if self.simulations.get(arm)]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is none or it is damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_run(folder: str | Path, summary: Mapping[str, Any] | None = None) -> Run:
    """Read a run's folder.

    Parameters
    ----------
    folder : of ``physpre run``.
    summary : of a run in progress, whose finished parts it holds; read or put together from the stages where ``None``.

    Raises
    ------
    DataError : the folder is no run's.
    """
    folder = Path(folder)
    try:
        config = yaml.safe_load((folder / "config.yml").read_text())
        arms = list(config["physpre"]["arms"])
        parse_arms(arms)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ConfigError) as error:
        what = error.strerror if isinstance(error, OSError) else f"config.yml: {error}"
        raise DataError(f"{folder}: holds no run ({what}); give a folder that physpre run has made") from None
    stages = _stages(folder)
    whole = dict(summary) if summary is not None else read_json(folder / "summary.json")
    finished = summary is None and "arms" in whole
    if not whole:
        whole = _from_stages(stages, arms)
    whole["arms"] = arms
    for arm in arms:
        whole.setdefault(arm, {})
    run = Run(folder, config, read_json(folder / "environment.json"), whole, finished, stages=stages)
    if summary is None or "pretraining_set" in whole:
        run.pretraining_set = read_json(folder / SET / "report.json")
    for arm in arms:
        if summary is None or whole[arm].get("dynamics"):
            run.simulations[arm] = _simulations(folder / DYNAMICS / arm)
        if summary is None or whole[arm].get("training") or whole[arm].get("networks"):
            run.logs[arm] = _logs(folder / TRAIN / arm)
    run.missing = _missing(run)
    run.finished = finished or (summary is not None and not run.missing)
    return run


def _stages(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted({*folder.glob("[0-9]-*/**/stage.json"), *folder.glob("[0-9]-*/**/done.json")}):
        name = path.parent.relative_to(folder).as_posix()
        found[name] = {"begun": read_json(path.parent / "stage.json"), "done": read_json(path.parent / "done.json")}
    return found


def _result(stages: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """The result of a stage; without its time for the stages whose results are named by test sets."""
    return dict(stages.get(name, {}).get("done", {}).get("result") or {})


def _from_stages(stages: Mapping[str, Mapping[str, Any]], arms: list[str]) -> dict[str, Any]:
    """As much of a summary as the finished stages give."""
    whole: dict[str, Any] = {"arms": arms}

    def errors(name: str) -> dict[str, Any]:
        return {k: v for k, v in _result(stages, name).items() if k != "seconds"}

    fit = _result(stages, EAM)
    if fit:
        whole["eam"] = {
            "table": fit.get("table"), "fit_errors": fit.get("errors"), "errors": errors("1-eam-errors"),
            "seconds": fit.get("seconds"),
        }  # fmt: skip
    made = _result(stages, SET)
    if made:
        whole["pretraining_set"] = made
    for arm in arms:
        own: dict[str, Any] = {}
        trained = _result(stages, f"{TRAIN}/{arm}")
        if trained:
            own["training"] = {"stages": trained.get("stages"), "budget": trained.get("budget")}
            own["checkpoint"] = trained.get("checkpoint")
        for key, name in (("errors", f"{arm}-errors"), ("errors_before_finetuning", f"{arm}{BEFORE}")):
            found = errors(f"{TRAIN}/{name}")
            if found:
                own[key] = found
        simulated = _result(stages, f"{DYNAMICS}/{arm}")
        if simulated:
            own["dynamics"] = {**simulated["summary"], "settings": simulated.get("settings")}
            own["dynamics"]["seconds"] = simulated.get("seconds")
        whole[arm] = own
    return whole


def _simulations(folder: Path) -> dict[str, dict[str, Any]]:
    """``verdicts.json`` of each network of an arm, by its folder inside the arm's; "" where it has none of its own."""
    found = {}
    for path in sorted(folder.rglob("verdicts.json")):
        name = path.parent.relative_to(folder).as_posix()
        if name.split("/")[-1] == "reference" or name.startswith("parts"):
            continue
        content = read_json(path)
        if "verdicts" in content:
            found["" if name == "." else name] = {**content, "folder": path.parent}
    return found


def _logs(folder: Path) -> dict[tuple[str, str], list[dict[str, float]]]:
    found = {}
    for path in sorted(folder.rglob("log.csv"), key=lambda p: p.stat().st_mtime):
        network = path.parent.parent.relative_to(folder).as_posix()
        with open(path, newline="") as file:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        if rows:
            found["" if network == "." else network, path.parent.name] = rows
    return found


def _missing(run: Run) -> list[str]:
    """What a complete run would have."""
    found = []
    arms = parse_arms(run.arms)
    if any(arm.needs_eam for arm in arms) and "eam" not in run.summary:
        found.append("the embedded-atom potential is not fitted")
    if any(arm.pretrain for arm in arms) and "pretraining_set" not in run.summary:
        found.append("the pretraining set is not made")
    wants_dynamics = bool(run.config["physpre"].get("dynamics", {}).get("n_structures", 0))
    for name in run.arms:
        own = run.summary[name]
        if not own.get("checkpoint") and not own.get("networks"):
            found.append(f"{name}: not trained to the end")
        elif not own.get("errors") and not own.get("networks"):
            found.append(f"{name}: errors on the test sets are not computed")
        if wants_dynamics and not own.get("dynamics"):
            found.append(f"{name}: molecular dynamics is not finished")
    return found

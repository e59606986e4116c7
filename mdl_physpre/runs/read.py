"""What the folder of a run holds, read for a report: finished or not, and what is missing."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mdl_physpre.dynamics.running.storage import FORMAT
from mdl_physpre.dynamics.verdicts.statistics import summarise_networks
from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.training.arms import eam_is_needed, parse_arms

EAM, TEACHER, SET, TRAIN, DYNAMICS = "1-eam", "1-teacher", "2-pretraining-set", "3-train", "4-dynamics"
DATA_FILE = "data.json"  # hashes and counts of the data, written when a run begins
BEFORE, ANGLES = "-errors-before-finetuning", "-force-angles"


@dataclass
class Run:
    """A run as its files tell it.

    Attributes
    ----------
    summary : as in ``summary.json``; of an unfinished run the parts that are there. Every arm has an entry.
    finished : whether every stage is done.
    missing : sentences on what is not there.
    simulations : arm → name of the network (``ARM``, ``ARM-2``, …) → what its ``verdicts.json`` holds, with ``folder``.
    logs : arm → (name of the network, stage) → rows of ``log.csv``.
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

    @property
    def n_networks(self) -> int:
        """How many networks each arm shall have."""
        return int(self.config["physpre"].get("n_networks") or 1)

    def networks(self, arm: str) -> list[Mapping[str, Any]]:
        """The networks of an arm that are there; one, the arm itself, where they are not told apart."""
        found = self.summary.get(arm) or {}
        return list(found.get("networks") or ([found] if found.get("errors") or found.get("checkpoint") else []))

    def simulated(self) -> dict[str, dict[str, Any]]:
        """All simulations by the names of their networks, those of the first networks first."""
        each = [list(own.items()) for own in self.simulations.values()]
        longest = max((len(own) for own in each), default=0)
        return {name: found for k in range(longest) for own in each for name, found in own[k : k + 1]}


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
        whole = _from_stages(folder, config, stages, arms)
    whole["arms"] = arms
    if "data" not in whole and (sets := read_json(folder / DATA_FILE).get("sets")):
        whole["data"] = sets
    for arm in arms:
        whole.setdefault(arm, {})
    run = Run(folder, config, read_json(folder / "environment.json"), whole, finished, stages=stages)
    if summary is None or "pretraining_set" in whole:
        run.pretraining_set = read_json(folder / SET / "report.json")
    for arm in arms:
        names = network_names(arm, max(run.n_networks, len(run.networks(arm))))
        if summary is not None:
            names = names[: len(run.networks(arm))]
        run.simulations[arm] = {n: found for n in names if (found := _simulation(folder / DYNAMICS / n))}
        run.logs[arm] = {key: rows for n in names for key, rows in _logs(folder / TRAIN / n).items()}
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


def network_names(arm: str, n: int) -> list[str]:
    """Names of the folders of an arm's networks: ``ARM``, ``ARM-2``, …"""
    return [arm if k == 1 else f"{arm}-{k}" for k in range(1, n + 1)]


def _from_stages(
    folder: Path, config: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]], arms: list[str]
) -> dict[str, Any]:
    """As much of a summary as the finished stages give."""
    whole: dict[str, Any] = {"arms": arms}

    def errors(name: str) -> dict[str, Any]:
        return {k: v for k, v in _result(stages, name).items() if k != "seconds"}

    fit = _result(stages, EAM)
    if fit:
        tests = errors("1-eam-errors")
        whole["eam"] = {"table": fit["table"], "fit_errors": fit["errors"], "errors": tests, "seconds": fit["seconds"]}
    zero = _result(stages, TEACHER)
    if zero:
        whole["teacher"] = {"zero_of_energy": zero, "errors": errors("1-teacher-errors"), "seconds": zero["seconds"]}
    made = _result(stages, SET)
    if made:
        whole["pretraining_set"] = made
    for arm in arms:
        networks = []
        names = network_names(arm, int(config["physpre"].get("n_networks") or 1))
        for k, name in enumerate(names):
            trained, tested = _result(stages, f"{TRAIN}/{name}"), errors(f"{TRAIN}/{name}-errors")
            if not trained or not tested:
                break
            own: dict[str, Any] = {"seed": config["task"]["seed"] + k, "errors": tested}
            own["training"] = {"stages": trained["stages"], "budget": trained["budget"]}
            own["checkpoint"] = trained["checkpoint"]
            for key, ending in (("errors_before_finetuning", BEFORE), ("force_angles", ANGLES)):
                found = errors(f"{TRAIN}/{name}{ending}")
                if found:
                    own[key] = found
            simulated = _result(stages, f"{DYNAMICS}/{name}")
            if simulated:
                own["dynamics"] = {**simulated["summary"], "settings": simulated.get("settings")}
                own["dynamics"]["seconds"] = simulated["seconds"]
            networks.append(own)
        whole[arm] = {}
        if networks:
            whole[arm] = {**networks[0], "networks": networks}
            whole[arm]["dynamics"] = _combined_dynamics(folder, names, networks)
    return whole


def _combined_dynamics(folder: Path, names: list[str], networks: list[dict[str, Any]]) -> dict[str, Any] | None:
    stored = [_simulation(folder / DYNAMICS / name) for name, own in zip(names, networks) if own.get("dynamics")]
    verdicts = [found["verdicts"] for found in stored if found]
    if not verdicts:
        return None
    first = next(own["dynamics"] for own in networks if own.get("dynamics"))
    return {**summarise_networks(verdicts), "settings": first["settings"]}


def _simulation(folder: Path) -> dict[str, Any]:
    """``verdicts.json`` of a network; empty where there is none, or one of an older format."""
    content = read_json(folder / "verdicts.json")
    return {**content, "folder": folder} if content.get("format") == FORMAT else {}


def _logs(folder: Path) -> dict[tuple[str, str], list[dict[str, float]]]:
    found = {}
    for path in folder.glob("*/log.csv"):
        with open(path, newline="") as file:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        if rows:
            found[folder.name, path.parent.name] = rows
    return found


def _missing(run: Run) -> list[str]:
    """What a complete run would have."""
    found = []
    arms = parse_arms(run.arms)
    if eam_is_needed(arms, run.config["physpre"].get("teacher")) and "eam" not in run.summary:
        found.append("the embedded-atom potential is not fitted")
    if any(arm.pretrain for arm in arms) and "pretraining_set" not in run.summary:
        found.append("the pretraining set is not made")
    wants_dynamics = bool(run.config["physpre"].get("dynamics", {}).get("n_structures", 0))
    for arm in run.arms:
        networks, wanted = run.networks(arm), run.n_networks
        of = f" ({len(networks)} of {wanted} networks)" if wanted > 1 else ""
        if len(networks) < wanted:
            found.append(f"{arm}: not trained and tested to the end{of}")
        simulated = sum(bool(own.get("dynamics")) for own in networks)
        if wants_dynamics and simulated < wanted:
            of = f" ({simulated} of {wanted} networks)" if wanted > 1 else ""
            found.append(f"{arm}: molecular dynamics is not finished{of}")
        elif simulated and len(run.simulations[arm]) < simulated:
            found.append(f"{arm}: verdicts.json is missing, or of another version of mdl-physpre; simulate again")
    return found

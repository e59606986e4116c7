"""What the folder of a run holds: finished or not, and what is missing."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mdl_physpre.dynamics.running.storage import FORMAT
from mdl_physpre.dynamics.verdicts.survival import Survival, survival_curve
from mdl_physpre.dynamics.verdicts.verdict import Verdict
from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.pretraining.set_report import SetReport
from mdl_physpre.runs import layout
from mdl_physpre.runs.layout import Network, Plan, plan_of, refuse_earlier_layout
from mdl_physpre.runs.recommend import untrained_networks
from mdl_physpre.runs.results import Spent, spent_with_total
from mdl_physpre.runs.stage import BEGUN, DONE, read_json, stage_result
from mdl_physpre.runs.summary import ArmResult, NetworkResult, Summary, summary_of_stages


@dataclass(frozen=True)
class Simulation:
    """Molecular dynamics with one network, as its ``verdicts.json`` has it.

    settings : as :class:`~mdl_physpre.dynamics.DynamicsSettings` has them.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    verdicts: tuple[Verdict, ...]

    @cached_property
    def survival(self) -> Survival:
        """Of all structures."""
        return survival_curve(self.verdicts)


def read_simulation(path: Path, name: str) -> Simulation:
    """One simulation from its ``verdicts.json``. Raises DataError for a missing or damaged file."""
    try:
        stored = json.loads(path.read_text())
        verdicts = tuple(Verdict.model_validate(v) for v in stored["verdicts"])
        return Simulation(name, path.parent, stored["settings"], verdicts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as verdicts ({error}); simulate again") from None


def simulation_files(folder: Path) -> list[Path]:
    """``verdicts.json`` in a folder of ``physpre md --out``, of a network, or of each network of a run.

    Raises DataError where the run is of an earlier version.
    """
    for own in (folder / layout.VERDICTS, folder / layout.DYNAMICS / layout.VERDICTS):
        if own.is_file():
            return [own]
    refuse_earlier_layout(folder)
    return sorted(folder.glob(f"{layout.NETWORKS}/*/{layout.DYNAMICS}/{layout.VERDICTS}"))


@dataclass
class Run:
    """A run as its files tell it.

    Attributes
    ----------
    config : ``config.yml``. environment : ``environment.json``.
    plan : the stages and networks that the run shall have.
    summary : of an unfinished run the parts that are there. Every arm has an entry.
    finished : whether every stage is done.
    missing : sentences on what is not there.
    simulations : arm → name of the network (``ARM``, ``ARM-2``, …) → its simulation, where that is finished.
    logs : arm → (name of the network, stage) → rows of ``log.csv``.
    pretraining_set : ``report.json`` of the pretraining set.
    stages : every stage folder by its path in the run, with what its ``done.json`` and ``stage.json`` say.
    """

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    plan: Plan
    summary: Summary
    finished: bool
    missing: list[str] = field(default_factory=list)
    simulations: dict[str, dict[str, Simulation]] = field(default_factory=dict)
    logs: dict[str, dict[tuple[str, str], list[dict[str, float]]]] = field(default_factory=dict)
    pretraining_set: dict[str, SetReport] = field(default_factory=dict)
    stages: dict[str, StageFiles] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its identifier, or that of its folder."""
        return str(self.config.get("task", {}).get("identifier") or self.folder.name)

    @property
    def arms(self) -> list[str]:
        """Names of the arms, in the order of the configuration."""
        return [arm.name for arm in self.plan.arms]

    @property
    def n_networks(self) -> int:
        """How many networks each arm shall have."""
        return len(self.plan.networks) // len(self.plan.arms)

    def networks(self, arm: str) -> tuple[NetworkResult, ...]:
        """The networks of an arm that are trained and tested."""
        return self.summary.arms[arm].networks

    def simulated(self) -> dict[str, Simulation]:
        """All simulations by the names of their networks, those of the first networks first."""
        found = {name: one for own in self.simulations.values() for name, one in own.items()}
        return {network.name: found[network.name] for network in self.plan.networks if network.name in found}


@dataclass(frozen=True)
class StageFiles:
    """What a stage has written: when it began, its key; when it was done, its result and what that took."""

    begun: bool
    done: bool
    result: dict[str, Any]
    cost: dict[str, Any]

    @property
    def spent(self) -> Spent | None:
        """What a training took with all its starts; ``None`` for another stage, and for one that is not done."""
        stages = {name: Spent.model_validate(own) for name, own in self.result.get("training", {}).items()}
        return spent_with_total(stages).get("total")


def read_run(folder: str | Path, summary: Summary | None = None) -> Run:
    """Read a run's folder.

    Parameters
    ----------
    folder : of ``physpre run``.
    summary : of a run in progress, whose finished parts it holds; read or put together from the stages where ``None``.

    Raises
    ------
    DataError : the folder is no run's, or that of an earlier version.
    """
    folder = Path(folder)
    config, plan = read_plan(folder)
    stored = read_summary(folder) if summary is None else None
    found = summary or stored or summary_of_stages(folder, plan)
    found = found.model_copy(update={"arms": {a.name: found.arms.get(a.name, ArmResult()) for a in plan.arms}})
    if stored is None:
        found = found.model_copy(update={"untrained": untrained_networks(found, config.get("optim", {}))})
    run = Run(folder, config, read_json(folder / layout.ENVIRONMENT), plan, found, stored is not None)
    run.stages = _stages(folder)
    if found.pretraining_set is not None:
        stored_reports = read_json(folder / layout.PRETRAINING_SET / "report.json")
        run.pretraining_set = {name: SetReport.model_validate(one) for name, one in stored_reports.items()}
    for arm in run.arms:
        own = plan.of_arm(arm)
        if summary is not None:  # what lies there of later networks may be of other settings
            own = own[: len(run.networks(arm))]
        run.simulations[arm] = {n.name: one for n in own if (one := _simulation(folder, n))}
        run.logs[arm] = {key: rows for n in own for key, rows in _logs(n.folder(folder)).items()}
    run.missing = _missing(run)
    run.finished = run.finished or (summary is not None and not run.missing)
    return run


def read_plan(folder: Path) -> tuple[dict[str, Any], Plan]:
    """``config.yml`` of a run, and what the run has to do by it. Raises DataError as :func:`read_run`."""
    refuse_earlier_layout(folder)
    try:
        config = yaml.safe_load((folder / layout.CONFIG).read_text())
        return config, plan_of(config)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ConfigError) as error:
        what = error.strerror if isinstance(error, OSError) else f"config.yml: {error}"
        raise DataError(f"{folder}: holds no run ({what}); give a folder that physpre run has made") from None


def read_summary(folder: Path) -> Summary | None:
    """``summary.json`` of a finished run; ``None`` where there is none.

    Raises
    ------
    DataError : it is damaged, or of an earlier version.
    """
    path = folder / layout.SUMMARY
    if not path.is_file():
        return None
    try:
        return Summary.model_validate_json(path.read_text())
    except (ValidationError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read as the summary of a run ({str(error).splitlines()[0]}); "
            "delete it, and the same physpre run writes it again"
        ) from None


def _stages(folder: Path) -> dict[str, StageFiles]:
    paths = {path.parent for name in (BEGUN, DONE) for path in folder.glob(f"[0-9]-*/**/{name}")}
    found = {}
    for path in sorted(paths):
        done = read_json(path / DONE)
        name = path.relative_to(folder).as_posix()
        begun = bool(read_json(path / BEGUN))
        found[name] = StageFiles(begun, bool(done), done.get("result") or {}, done.get("cost") or {})
    return found


def _simulation(folder: Path, network: Network) -> Simulation | None:
    """The simulation of a network; ``None`` where there is none, or one of an older format."""
    path = network.folder(folder) / layout.DYNAMICS / layout.VERDICTS
    return read_simulation(path, network.name) if read_json(path).get("format") == FORMAT else None


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
    if run.plan.eam and run.summary.eam is None:
        found.append("the embedded-atom potential is not fitted")
    if run.plan.pretraining_set and run.summary.pretraining_set is None:
        found.append("the pretraining set is not made")
    for arm in run.arms:
        results, wanted = run.networks(arm), run.n_networks

        def of(count: int, wanted: int = wanted) -> str:
            return f" ({count} of {wanted} networks)" if wanted > 1 else ""

        if len(results) < wanted:
            found.append(f"{arm}: not trained and tested to the end{of(len(results))}")
        simulated = sum(result.dynamics is not None for result in results)
        if run.plan.dynamics and simulated < wanted:
            found.append(f"{arm}: molecular dynamics is not finished{of(simulated)}")
        elif run.plan.oracle and any(result.dynamics and result.dynamics.oracle is None for result in results):
            found.append(f"{arm}: the dynamics are not compared with the oracle")
        elif len(run.simulations[arm]) < simulated:
            found.append(f"{arm}: verdicts.json is missing, or of another version of mdl-physpre; simulate again")
        for name in run.plan.stress:
            tested = sum(name in result.stress for result in results)
            if tested < wanted:
                found.append(f"{arm}: stress test {name} is not finished{of(tested)}")
    if run.plan.oracle_trajectory and not stage_result(run.folder / layout.ORACLE_RUN / layout.MOTION):
        found.append("the dynamics of the oracle itself are not finished")
    return found

"""What of a run is done, what runs, and how long the rest will take, from the files that it keeps up to date."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from mdl_physpre.report.tables.text import MISSING, text_table
from mdl_physpre.runs.read import DYNAMICS, EAM, SET, TEACHER, TRAIN, Run, network_names, read_run
from mdl_physpre.training.arms import FINETUNE, eam_is_needed, parse_arm, parse_arms

LATEST = 20  # epochs whose mean length stands for those to come


def run_status(folder: str | Path) -> dict[str, Any]:
    """The state of every stage.

    Returns
    -------
    ``name``; ``running`` (whether a process works in the folder; ``None`` where the system cannot tell); ``stages``,
    each with ``stage``, ``state`` (``done``, ``running``, ``stopped`` or ``waiting``), ``progress`` in words,
    ``seconds`` spent and ``left`` (estimated; ``None``: not known); ``left``, the sum of those known, and ``unknown``,
    how many stages are not in it.

    Raises
    ------
    DataError : the folder is no run's.
    """
    run = read_run(folder)
    running = _locked(run.folder / ".lock")
    arms = parse_arms(run.arms)
    teacher = run.config["physpre"].get("teacher")
    stages = [_stage(run, EAM, running)] if eam_is_needed(arms, teacher) else []
    stages += [_stage(run, TEACHER, running)] if teacher and any(arm.uses_pretraining_set for arm in arms) else []
    stages += [_stage(run, SET, running)] if any(arm.uses_pretraining_set for arm in arms) else []
    dynamics = bool(run.config["physpre"].get("dynamics", {}).get("n_structures", 0))
    for k in range(run.n_networks):
        for arm in run.arms:
            name = network_names(arm, run.n_networks)[k]
            stages.append(_training(run, arm, name, running))
            stages += [_dynamics(run, name, running)] if dynamics else []
    open_ = [one for one in stages if one["state"] != "done"]
    known = [one["left"] for one in open_ if one["left"] is not None]
    return {
        "name": run.name,
        "running": running,
        "stages": stages,
        "left": sum(known) if known or not open_ else None,
        "unknown": len(open_) - len(known),
    }


def _locked(path: Path) -> bool | None:
    """Whether a process holds the lock of a run."""
    try:
        import fcntl

        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except (ImportError, OSError):  # no advisory locks on this system, or on this file system
        return None


def _stage(run: Run, name: str, running: bool | None) -> dict[str, Any]:
    found = run.stages.get(name, {})
    done, begun = bool(found.get("done")), bool(found.get("begun"))
    state = "done" if done else "waiting" if not begun else "running" if running else "stopped"
    seconds = (found.get("done", {}).get("result") or {}).get("seconds")
    return {"stage": name, "state": state, "progress": "", "seconds": seconds, "left": 0.0 if done else None}


def _training(run: Run, arm: str, name: str, running: bool | None) -> dict[str, Any]:
    found = _stage(run, f"{TRAIN}/{name}", running)
    budget = (run.stages.get(found["stage"], {}).get("done", {}).get("result") or {}).get("budget") or {}
    if found["state"] == "done":
        found["seconds"] = budget.get("total", {}).get("seconds", found["seconds"])
        return found
    parts: list[str] = []
    left, spent = 0.0, 0.0
    unknown = False
    for part in (*parse_arm(arm).stages, FINETUNE):
        epochs = _epochs(run, part)
        rows = run.logs.get(arm, {}).get((name, part), [])
        spent += sum(row.get("seconds", 0.0) for row in rows)
        pace = _pace(rows) or _pace_of_others(run, part)
        if rows or (found["state"] != "waiting" and not parts):
            parts.append(f"{part}: epoch {len(rows)} of {epochs}")
        unknown |= pace is None
        left += (pace or 0.0) * max(epochs - len(rows), 0)
    return {**found, "progress": ", ".join(parts), "seconds": spent or None, "left": None if unknown else left}


def _epochs(run: Run, part: str) -> int:
    own = run.config["physpre"].get("pretrain", {}).get("max_epochs") if part == "pretrain" else None
    return int(own or run.config["optim"]["max_epochs"])


def _pace(rows: list[dict[str, float]]) -> float | None:
    lengths = [row["seconds"] for row in rows[-LATEST:] if "seconds" in row]
    return fmean(lengths) if lengths else None


def _pace_of_others(run: Run, part: str) -> float | None:
    """Seconds of an epoch of the same stage in other networks."""
    found = [p for own in run.logs.values() for (_, stage), rows in own.items() if stage == part and (p := _pace(rows))]
    return fmean(found) if found else None


def _dynamics(run: Run, name: str, running: bool | None) -> dict[str, Any]:
    found = _stage(run, f"{DYNAMICS}/{name}", running)
    steps = run.config["physpre"]["dynamics"]["steps"]
    if found["state"] == "done":
        return found
    others = [
        stage["done"]["result"]["seconds"]
        for other, stage in run.stages.items()
        if other.startswith(f"{DYNAMICS}/") and (stage["done"].get("result") or {}).get("seconds")
    ]
    found["left"] = fmean(others) if others else None
    state = _state(run.folder / DYNAMICS / name / "state.npz")
    if state:
        found["progress"] = f"step {state['step']:,} of {steps:,}, {len(state['active'])} structures left"
        pace = state.get("seconds_per_step")
        found["left"] = found["left"] if pace is None else pace * (steps - state["step"])
    return found


def _state(path: Path) -> Mapping[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return json.loads(str(stored["plain"]))
    except (OSError, ValueError, KeyError, EOFError):
        return {}


def format_status(status: Mapping[str, Any]) -> str:
    """The state of a run as text."""
    rows = [["stage", "state", "progress", "time", "still"]]
    for one in status["stages"]:
        still = "" if one["state"] == "done" else MISSING if one["left"] is None else f"about {duration(one['left'])}"
        spent = "" if one["seconds"] is None else duration(one["seconds"])
        rows.append([one["stage"], one["state"], one["progress"], spent, still])
    states = [one["state"] for one in status["stages"]]
    lines = [text_table(rows, words=3)]
    if all(state == "done" for state in states):
        return "\n".join([f"{status['name']}: every stage is done", *lines])
    head = {True: "running", False: "not running", None: "not finished"}[status["running"]]
    lines.insert(0, f"{status['name']}: {head}, {states.count('done')} of {len(states)} stages done")
    if status["left"] is not None:
        at_least = f" and {status['unknown']} stages of which nothing is known yet" if status["unknown"] else ""
        lines.append(f"still about {duration(status['left'])}{at_least}")
    if status["running"] is False:
        lines.append("the same physpre run goes on where it stopped")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"

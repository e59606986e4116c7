"""One run over several processes: the structures are divided, each process simulates its part, the results are merged.

Random numbers depend on the seed and a structure's place in the whole list, so that a structure takes the same path
whatever process it is in, up to the rounding of sums over other batches.

The processes are spawned, so that they work with a GPU, too. Each has a folder of its own, ``parts/K-of-N`` in the
folder of the run, and stores its state there. If one dies, the others finish, and the same call goes on from there;
if the first process dies, so do the others. A run goes on with as many processes as it began with.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from mdl_physpre.dynamics.running.rdf_sampling import read_rdfs, write_rdfs
from mdl_physpre.dynamics.running.simulate import check_input, simulate
from mdl_physpre.dynamics.running.storage import (
    DIVISION,
    FAILING,
    LOCK_WAIT,
    PARTS,
    RDFS,
    SPEED,
    STATE,
    TRAJECTORIES,
    clear,
    read_verdicts,
    run_key,
    write_atomically,
    write_speed,
    write_verdicts,
)
from mdl_physpre.dynamics.settings import PER_STRUCTURE, DynamicsSettings, settings_of_each
from mdl_physpre.dynamics.verdicts.verdict import Verdict
from mdl_physpre.errors import ConfigError, PhyspreError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.utils.processes import end_with_parent, run_lock

logger = logging.getLogger(__name__)


def divide(work: Sequence[float], n: int) -> list[list[int]]:
    """Divide pieces of work among ``n`` processes: the largest first, each to whoever has least. None is left empty."""
    parts: list[list[int]] = [[] for _ in range(max(1, min(n, len(work))))]
    loads = [0.0] * len(parts)
    for k in sorted(range(len(work)), key=lambda k: (-work[k], k)):
        least = min(range(len(parts)), key=lambda p: (loads[p], len(parts[p]), p))
        parts[least].append(k)
        loads[least] += work[k]
    return [sorted(part) for part in parts]


def simulate_parallel(
    potential: Potential,
    structures: Sequence[Atoms],
    settings: DynamicsSettings | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    *,
    processes: int = 2,
    devices: Sequence[str] | None = None,
    threads: int | None = None,
    per_structure: Mapping[str, Sequence[Any]] | None = None,
    indices: Sequence[int] | None = None,
) -> list[Verdict]:
    """:func:`mdl_physpre.dynamics.running.simulate.simulate` in several processes.

    In a script it must be called under ``if __name__ == "__main__":``, because the processes import the script.

    Parameters
    ----------
    processes : their number; never more than structures.
    devices : where the processes compute ("cuda:0", "cuda:1", …), taken in turn; that of the potential where ``None``.
    threads : of each process; the cores divided by the number of processes where ``None``.

    Other parameters and what is returned are as in ``simulate``.

    Raises
    ------
    ConfigError : a potential that cannot be sent to another process; and as in ``simulate``.
    DataError : as in ``simulate``.
    PhyspreError : a process died or raised an error; the others have finished and their results are kept, so that the
        same call takes up what is left. The potential raised an error at the start for every structure. Another run
        works in the folder.
    """
    settings, structures = settings or DynamicsSettings(), list(structures)
    if processes < 1 or (threads is not None and threads < 1) or (devices is not None and not devices):
        raise ConfigError(f"processes is {processes}, threads is {threads}, devices is {devices}; give at least one")
    each = settings_of_each(settings, len(structures), per_structure)
    places, ids = check_input(potential, structures, settings, out, indices)
    options: dict[str, Any] = {"per_structure": per_structure, "indices": indices, "raise_at_start": False}
    key = run_key(potential, structures, ids, each, places)
    number = min(processes, len(structures))
    number = number if number > 1 or devices else 0  # 0: in this process
    begun = None if out is None else _begun_with(Path(out), key)
    if begun is not None and begun != number:
        logger.info("%s goes on with as many processes as it began with, %d", out, max(1, begun))
        number = begun
    if number == 0:
        if devices:
            potential = potential.to(devices[0])
        verdicts = simulate(potential, structures, settings, out, progress, **options)
        if _none_began(verdicts) and out is not None:
            with run_lock(Path(out), LOCK_WAIT):
                clear(Path(out))
        return _checked(verdicts)
    with ExitStack() as stack:
        if out is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = Path(out)
            finished = read_verdicts(folder, key)
            if finished is not None:
                return finished
            stack.enter_context(run_lock(folder, LOCK_WAIT))
            if (finished := read_verdicts(folder, key)) is not None:  # another process was at it
                return finished
            if _begun_with(folder, key) != number:
                clear(folder)
        parts = divide([len(a) * s.steps for a, s in zip(structures, each, strict=True)], number)
        (folder / PARTS).mkdir(exist_ok=True)
        write_atomically(folder / PARTS / DIVISION, json.dumps({"key": key, "processes": len(parts)}).encode())
        tasks: list[dict[str, Any]] = []
        for place, part in enumerate(parts):
            own = {name: [getattr(each[k], name) for k in part] for name in PER_STRUCTURE}
            task = {
                "structures": [_bare(structures[k]) for k in part], "settings": settings, "per_structure": own,
                "out": folder / PARTS / f"{place}-of-{len(parts)}", "indices": [places[k] for k in part],
                "device": devices[place % len(devices)] if devices else None, "progress": progress and place == 0,
                "threads": threads or max(1, cores() // len(parts)), "raise_at_start": False,
            }  # fmt: skip
            tasks.append(task)
        results = _run(potential, tasks)
        by_place = {k: v for part, own in zip(parts, results, strict=True) for k, v in zip(part, own, strict=True)}
        verdicts = [by_place[k] for k in range(len(structures))]
        if _none_began(verdicts):
            clear(folder)
        elif out is not None:
            _merge(folder, key, [task["out"] for task in tasks], parts, ids)
            write_verdicts(folder, key, settings, each, verdicts)
            shutil.rmtree(folder / PARTS, ignore_errors=True)
    return _checked(verdicts)


def _begun_with(folder: Path, key: str) -> int | None:
    """Number of processes whose states of this run lie in the folder, 0 where it is the state of a run without parts;
    None where there are none."""
    with suppress(OSError, ValueError, KeyError, EOFError), np.load(folder / STATE, allow_pickle=False) as stored:
        if str(stored["key"]) == key:
            return 0
    with suppress(OSError, ValueError, KeyError, TypeError):
        stored_division = json.loads((folder / PARTS / DIVISION).read_text())
        if stored_division["key"] == key:
            return int(stored_division["processes"])
    return None


def _none_began(verdicts: list[Verdict]) -> bool:
    """Whether the potential raised for every structure at the start: then it is the potential's fault."""
    return bool(verdicts) and all(v.reasons[:1] == ("potential_error",) and not v.steps_run for v in verdicts)


def _checked(verdicts: list[Verdict]) -> list[Verdict]:
    if _none_began(verdicts):
        raise PhyspreError(f"for every structure {verdicts[0].failures[0].text}")
    return verdicts


def _bare(atoms: Atoms) -> Atoms:
    """A copy without calculator and without ``info`` but the name: what a process needs, and can be sent."""
    copy = atoms.copy()
    copy.info = {key: value for key, value in atoms.info.items() if key == "structure_id"}
    return copy


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(potential: Potential, tasks: list[dict[str, Any]]) -> list[list[Verdict]]:
    """The verdicts of all tasks, each in a process of its own."""
    try:
        sent = [pickle.dumps((potential, task)) for task in tasks]
    except Exception as error:
        raise ConfigError(
            f"the potential cannot be sent to another process ({type(error).__name__}: {error}); define its class in a "
            "module, give a calculator as a function that builds it, or simulate in one process"
        ) from error
    context, running = get_context("spawn"), []
    try:
        for content in sent:
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(theirs, content))
            process.start()
            theirs.close()
            running.append((process, mine))
        answers = [_answer(connection) for _, connection in running]
        for process, _ in running:
            process.join()
    except BaseException:
        for process, _ in running:
            process.terminate()
        raise
    wrong = []
    for number, ((process, _), task, (kind, value)) in enumerate(zip(running, tasks, answers, strict=True)):
        if kind != "verdicts":
            said = value if kind == "error" else f"died (exit code {process.exitcode}; −9 is often a lack of memory)"
            wrong.append(f"process {number + 1} of {len(tasks)}, with structures {_few(task['indices'])}, {said}")
    if wrong:
        advice = "The others have finished; with a folder for results the same call goes on from there"
        raise PhyspreError("; ".join(wrong) + ". " + advice)
    return [value for _, value in answers]


def _answer(connection: Connection) -> tuple[str, Any]:
    try:
        return connection.recv()
    except EOFError:
        return "died", None


def _few(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices[:5])) + (", …" if len(indices) > 5 else "")


def _work(connection: Connection, sent: bytes) -> None:
    """What a process does."""
    end_with_parent()
    try:
        potential, task = pickle.loads(sent)
        torch.set_num_threads(task.pop("threads"))
        device = task.pop("device")
        if device is not None:
            potential = potential.to(device)
        connection.send(("verdicts", simulate(potential, **task)))
    except Exception as error:
        logger.debug("the process ends", exc_info=True)
        connection.send(("error", f"raised {type(error).__name__}: {error}"))
    finally:
        connection.close()


def _merge(folder: Path, key: str, outs: list[Path], parts: list[list[int]], ids: list[str]) -> None:
    """Trajectories, radial distribution functions and speed of the parts, in the folder of the run."""
    results: list[Any] = [None] * len(ids)
    speeds: list[dict[str, Any]] = []
    for out, part in zip(outs, parts, strict=True):
        for frames in (TRAJECTORIES, FAILING):
            if (out / frames).exists():
                (folder / frames).mkdir(exist_ok=True)
                for path in sorted((out / frames).iterdir()):
                    os.replace(path, folder / frames / path.name)
        if (out / SPEED).exists():
            speeds.append(json.loads((out / SPEED).read_text()))
        if (out / RDFS).exists():
            for k, result in zip(part, read_rdfs(out).structures, strict=True):
                results[k] = result
    if all(result is not None for result in results):
        write_rdfs(folder, key, ids, results)
    if speeds:
        steps, seconds = (max(s[name] for s in speeds) for name in ("steps", "seconds"))
        atom_steps, rebuilds = (sum(s[name] for s in speeds) for name in ("atom_steps", "neighbour_lists_built"))
        write_speed(folder, steps, atom_steps, seconds, rebuilds)

"""One run over several processes: the structures are divided, each process simulates its part, the results are merged.

Random numbers depend on the seed and a structure's place in the whole list, so that a structure takes the same path
whatever process it is in, up to the rounding of sums over other batches.

Each process has a folder of its own, ``parts/K-of-N`` in the folder of the run, and stores its state there. If one
dies, the others finish, and the same call goes on from there; if the first process dies, so do the others. A run goes
on with as many processes as it began with.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from mdl_physpre.analysis.radial_distribution import RDF
from mdl_physpre.dynamics.running.description import begin_anew, description, finished_or_alone
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
    run_key,
    write_speed,
    write_verdicts,
)
from mdl_physpre.dynamics.settings import PER_STRUCTURE, DynamicsSettings, settings_of_each
from mdl_physpre.dynamics.verdicts.verdict import Verdict
from mdl_physpre.errors import ConfigError, PhyspreError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.utils.files import write_bytes
from mdl_physpre.utils.overwrite import overwriting
from mdl_physpre.utils.processes import Piece, available_cores, run_in_processes, run_lock

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
    overwrite: bool = False,
) -> list[Verdict]:
    """:func:`mdl_physpre.dynamics.running.simulate.simulate` in several processes.

    In a script it must be called under ``if __name__ == "__main__":``, because the processes import the script.
    Parameters that are not listed here, and what is returned, are as in ``simulate``.

    Parameters
    ----------
    devices : where the processes compute ("cuda:0", "cuda:1", …), taken in turn; that of the potential where ``None``.
    processes, threads : their number, never more than structures; of each, by the number of cores where ``None``.

    Raises
    ------
    ConfigError : a potential that cannot be sent to another process; and as in ``simulate``, as is DataError.
    PhyspreError : a process died or raised an error: the same call takes up what is left; or one did for every start.
    """
    settings, structures = settings or DynamicsSettings(), list(structures)
    each = settings_of_each(settings, len(structures), per_structure)
    places, ids = check_input(potential, structures, settings, out, indices)
    key = run_key(potential, structures, ids, each, places)
    number = _number(processes, devices, threads, len(structures), out, key)
    with ExitStack() as stack, overwriting(overwrite):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()) if out is None else out)
        if number == 0:  # in this process
            potential = potential.to(devices[0]) if devices else potential
            options: dict[str, Any] = {"per_structure": per_structure, "indices": indices, "raise_at_start": False}
            verdicts = simulate(potential, structures, settings, out, progress, **options)
            if out is not None and not _any_began(verdicts):
                stack.enter_context(run_lock(folder, LOCK_WAIT))
        else:
            now = description(potential, structures, settings, each)
            if finished := stack.enter_context(finished_or_alone(folder, key, now)):
                return finished
            if _begun_with(folder, key) != number:
                begin_anew(folder, key, now)
            tasks = _tasks(folder, number, structures, settings, each, places, devices, threads, progress)
            write_bytes(folder / PARTS / DIVISION, json.dumps({"key": key, "processes": len(tasks)}).encode())
            done = [verdict for part in _run(potential, tasks) for verdict in part]
            verdicts = sorted(done, key=lambda verdict: places.index(verdict.index))
            if out is not None and _any_began(verdicts):
                _merge(folder, key, tasks, places, ids)
                write_verdicts(folder, key, settings, each, verdicts)
                shutil.rmtree(folder / PARTS, ignore_errors=True)
        if not _any_began(verdicts):
            clear(folder)
            raise PhyspreError(f"for every structure {verdicts[0].failures[0].text}")
    return verdicts


def _number(
    processes: int,
    devices: Sequence[str] | None,
    threads: int | None,
    n_structures: int,
    out: str | Path | None,
    key: str,
) -> int:
    """So many processes as the run began with, or as are asked for; 0: none beside this one."""
    if processes < 1 or (threads is not None and threads < 1) or (devices is not None and not devices):
        raise ConfigError(f"processes is {processes}, threads is {threads}, devices is {devices}; give at least one")
    asked = min(processes, n_structures)
    asked = asked if asked > 1 or devices else 0
    begun = None if out is None else _begun_with(Path(out), key)
    if begun is None or begun == asked:
        return asked
    logger.info("%s goes on with as many processes as it began with, %d", out, max(1, begun))
    return begun


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


def _any_began(verdicts: list[Verdict]) -> bool:
    """False where the potential raised for every structure at the start: then it is the potential's fault."""
    return not verdicts or any(v.steps_run or v.reasons[:1] != ("potential_error",) for v in verdicts)


def _tasks(
    folder: Path,
    number: int,
    structures: Sequence[Atoms],
    settings: DynamicsSettings,
    each: Sequence[DynamicsSettings],
    places: Sequence[int],
    devices: Sequence[str] | None,
    threads: int | None,
    progress: bool,
) -> list[dict[str, Any]]:
    """What ``simulate`` is given in each process, with ``device`` and ``threads``."""
    parts = divide([len(a) * s.steps for a, s in zip(structures, each, strict=True)], number)
    return [
        {
            "structures": [_bare(structures[k]) for k in part], "settings": settings,
            "per_structure": {name: [getattr(each[k], name) for k in part] for name in PER_STRUCTURE},
            "out": folder / PARTS / f"{place}-of-{len(parts)}", "indices": [places[k] for k in part],
            "device": devices[place % len(devices)] if devices else None, "progress": progress and place == 0,
            "threads": threads or max(1, available_cores() // len(parts)), "raise_at_start": False,
        }
        for place, part in enumerate(parts)
    ]  # fmt: skip


def _bare(atoms: Atoms) -> Atoms:
    """A copy without calculator, and of ``info`` only texts and numbers: what a process needs, and can be sent."""
    copy = atoms.copy()
    plain = (str, int, float, np.number, np.bool_, np.ndarray)
    copy.info = {key: value for key, value in atoms.info.items() if isinstance(value, plain)}
    return copy


def _run(potential: Potential, tasks: list[dict[str, Any]]) -> list[list[Verdict]]:
    """The verdicts of all tasks, each in a process of its own."""
    pieces = []
    for number, task in enumerate(tasks, 1):
        first = ", ".join(map(str, task["indices"][:5])) + (", …" if len(task["indices"]) > 5 else "")
        name = f"process {number} of {len(tasks)}, with structures {first}"
        pieces.append(Piece(name, (potential, task), bars=task["progress"]))
    try:
        return run_in_processes(_simulate, pieces, len(pieces))
    except ConfigError:
        raise
    except PhyspreError as error:
        advice = "The others have finished; with a folder for results the same call goes on from there"
        raise PhyspreError(f"{error}. {advice}") from None


def _simulate(potential: Potential, task: dict[str, Any]) -> list[Verdict]:
    """What a process does."""
    torch.set_num_threads(task.pop("threads"))
    device = task.pop("device")
    return simulate(potential if device is None else potential.to(device), **task)


def _merge(folder: Path, key: str, tasks: list[dict[str, Any]], places: Sequence[int], ids: list[str]) -> None:
    """Trajectories, radial distribution functions and speed of the parts, in the folder of the run."""
    results: dict[int, RDF] = {}
    speeds: list[dict[str, Any]] = []
    for task in tasks:
        out = task["out"]
        for frames in (TRAJECTORIES, FAILING):
            if (out / frames).exists():
                (folder / frames).mkdir(exist_ok=True)
                for path in sorted((out / frames).iterdir()):
                    os.replace(path, folder / frames / path.name)
        if (out / SPEED).exists():
            speeds.append(json.loads((out / SPEED).read_text()))
        if (out / RDFS).exists():
            results |= zip(task["indices"], read_rdfs(out).structures, strict=True)
    if len(results) == len(places):
        write_rdfs(folder, key, ids, [results[place] for place in places])
    if speeds:
        steps, seconds = (max(s[name] for s in speeds) for name in ("steps", "seconds"))
        atom_steps, rebuilds = (sum(s[name] for s in speeds) for name in ("atom_steps", "neighbour_lists_built"))
        write_speed(folder, steps, atom_steps, seconds, rebuilds)

"""What the simulation in a folder is, so that another one there is told apart and not deleted without being asked."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mdl_physpre.dynamics.running.storage import (
    DESCRIPTION,
    DIVISION,
    LOCK_WAIT,
    PARTS,
    STATE,
    VERDICTS,
    WORK,
    clear,
    read_verdicts,
    run_key,
)
from mdl_physpre.dynamics.settings import PER_STRUCTURE, DynamicsSettings
from mdl_physpre.dynamics.verdicts.verdict import Verdict
from mdl_physpre.potentials.base import Potential
from mdl_physpre.structures.graph import content_hash
from mdl_physpre.utils.files import write_bytes
from mdl_physpre.utils.overwrite import refuse_to_delete
from mdl_physpre.utils.processes import run_lock


def description(
    potential: Potential, structures: Sequence[Atoms], settings: DynamicsSettings, each: Sequence[DynamicsSettings]
) -> dict[str, Any]:
    """What a run is, in words that can be compared with those of another."""
    own = {name: [getattr(s, name) for s in each] for name in PER_STRUCTURE}
    return {
        "settings": json.loads(settings.model_dump_json(exclude=set(WORK))),
        "of single structures": {name: values for name, values in own.items() if len(set(values)) > 1},
        **described(potential, structures),
    }


def described(potential: Potential, structures: Sequence[Atoms]) -> dict[str, str]:
    """Name of the potential and number of structures, each with the beginning of a hash."""
    name, key = getattr(potential, "name", type(potential).__name__), run_key(potential, [], [], [], [])
    return {"potential": f"{name}, {key[:8]}", "structures": f"{len(structures)}, {content_hash(structures)[:8]}"}


def refuse_another(out: Path, key: str, now: Mapping[str, Any]) -> None:
    """Raise WouldDelete where a folder holds results of another run, unless they may be deleted."""
    before = _read_json(out / DESCRIPTION)
    if not (verdicts := _read_json(out / VERDICTS)) and not any((out / n).exists() for n in (STATE, PARTS)):
        return
    known = verdicts.get("key") or before.get("key") or _read_json(out / PARTS / DIVISION).get("key")
    if known is None:
        with contextlib.suppress(OSError, ValueError, KeyError, EOFError), np.load(out / STATE) as stored:
            known = str(stored["key"])
    if known not in (None, key):
        given = before.get("run") or ({"settings": verdicts["settings"]} if "settings" in verdicts else None)
        refuse_to_delete(out, "a simulation", given, now)


def begin_anew(out: Path, key: str, now: Mapping[str, Any]) -> None:
    """Clear the folder, and write what :func:`description` says of the run that begins there: ``simulation.json``."""
    clear(out)
    write_bytes(out / DESCRIPTION, (json.dumps({"key": key, "run": now}, indent=1) + "\n").encode())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextlib.contextmanager
def finished_or_alone(out: Path, key: str, now: Mapping[str, Any]) -> Iterator[list[Verdict] | None]:
    """Stored verdicts of the same run; else ``None``, and no other process works in the folder within the block.

    ``now`` is the :func:`description` of the run. Raises PhyspreError where another process does, and WouldDelete where
    results of another run would be deleted.
    """
    finished = read_verdicts(out, key)
    if finished is not None:
        yield finished
        return
    with run_lock(out, LOCK_WAIT):
        refuse_another(out, key, now)
        yield read_verdicts(out, key)  # another process may have been at it until now

"""Stress tests of a potential, one after another, each in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ase import Atoms
from pydantic import BaseModel

from mdl_physpre.dynamics.oracle import OracleSettings, open_oracle
from mdl_physpre.dynamics.running.description import described
from mdl_physpre.dynamics.running.storage import LOCK_WAIT, WORK, run_key
from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.stress_tests.kinds import StressTest, make_test
from mdl_physpre.stress_tests.oracle import with_frames, with_oracle
from mdl_physpre.stress_tests.result import StressResult
from mdl_physpre.structures.graph import content_hash
from mdl_physpre.utils.devices import device_of_parameters
from mdl_physpre.utils.files import write_text
from mdl_physpre.utils.overwrite import overwriting, refuse_to_delete
from mdl_physpre.utils.processes import run_lock

logger = logging.getLogger(__name__)
RESULT, BEGUN = "result.json", "begun.json"


def run_stress_tests(
    potential: Potential,
    structures: Sequence[Atoms],
    tests: Mapping[str, BaseModel | Mapping[str, Any] | None],
    out: str | Path | None = None,
    progress: bool = True,
    overwrite: bool = False,
    oracle: Potential | str | Path | None = None,
    along: OracleSettings | None = None,
) -> dict[str, StressResult]:
    """Where each structure breaks, in each of several tests.

    Parameters
    ----------
    potential : forces come from it, on its device and in its precision.
    structures : where each test begins; ``info["structure_id"]`` names them.
    tests : name of a test, or its import path ``package.module:Class`` → its settings; ``None``: its defaults.
    out : folder, in which each test has its own. A finished test of the same potential, structures and settings is
        read, an unfinished one continued.
    overwrite : delete what any other test left there.
    oracle : a reference, or the name of one, that evaluates frames along each test, see ``StressResult.oracle``.
    along : how many frames, and the bound beyond which a structure is wrong by it.

    Returns
    -------
    The results by the names of the tests, in their order.

    Raises
    ------
    ConfigError : an unknown test, or a setting that cannot be used, by its key; before any work. CheckpointError : an
        oracle that cannot be opened.
    WouldDelete : ``out`` holds results of other potentials, structures or settings; it says what differs.
    DataError : a structure that a test is not for, such as a molecule that is to be compressed, or an oracle that
        raises for every structure; before any work.
    PhyspreError : another process works in the folder; whatever a test raises.
    """
    chosen = {name: make_test(name, settings) for name, settings in tests.items()}
    if oracle is not None:
        name = str(getattr(oracle, "name", type(oracle).__name__)) if isinstance(oracle, Potential) else str(oracle)
        along = (along or OracleSettings()).changed(oracle=(along and along.oracle) or name)
        if not isinstance(oracle, Potential):
            oracle = open_oracle(oracle, structures, device=device_of_parameters(potential))
        chosen = {name: type(test)(with_frames(test.settings, along)) for name, test in chosen.items()}
    with TemporaryDirectory() as temporary:
        folder = Path(out) if out is not None else None if oracle is None else Path(temporary)
        results = _results(chosen, potential, structures, folder, progress, overwrite)
        if oracle is None or along is None or folder is None:
            return results
        return {n: with_oracle(result, folder / folder_of(n), oracle, along) for n, result in results.items()}


def _results(
    chosen: Mapping[str, StressTest],
    potential: Potential,
    structures: Sequence[Atoms],
    out: Path | None,
    progress: bool,
    overwrite: bool,
) -> dict[str, StressResult]:
    for name, test in chosen.items():
        test.check(structures)
        if out is None and getattr(test.settings, "frames", False):
            raise ConfigError(f"{name}.frames is set, but there is no folder to write frames to")
    if out is None:
        return {name: _do(name, test, potential, structures, None, progress) for name, test in chosen.items()}
    keys = {name: _key(name, test, potential, structures) for name, test in chosen.items()}
    folders = {name: out / folder_of(name) for name in chosen}
    done = {name: _read(folders[name], key) for name, key in keys.items()}
    if all(done.values()):
        return {name: result for name, result in done.items() if result is not None}
    with run_lock(out, LOCK_WAIT):
        with overwriting(overwrite):  # before any work
            for name, test in chosen.items():
                _refuse_another(folders[name], keys[name], _description(test, potential, structures))
        return {
            name: _continued(name, test, potential, structures, folders[name], keys[name], progress)
            for name, test in chosen.items()
        }


def folder_of(name: str) -> str:
    """The name of the folder of a test: its own, with nothing in it that a path cannot have."""
    return re.sub(r"[^\w.-]+", "-", name)


def _continued(
    name: str,
    test: StressTest,
    potential: Potential,
    structures: Sequence[Atoms],
    folder: Path,
    key: str,
    progress: bool,
) -> StressResult:
    done = _read(folder, key)
    if done is not None:
        return done
    _begin(folder, key, _description(test, potential, structures))
    with overwriting():  # what a test simulates there is its own
        result = _do(name, test, potential, structures, folder, progress)
    _write(folder / RESULT, {"key": key, "result": result.plain()})
    return result


def _do(
    name: str, test: StressTest, potential: Potential, structures: Sequence[Atoms], folder: Path | None, progress: bool
) -> StressResult:
    logger.info("stress test %s of %d structures", name, len(structures))
    start = time.monotonic()
    points = test.run(potential, structures, folder, progress)
    return StressResult(
        test=name,
        quantity=test.quantity,
        unit=test.unit,
        points=tuple(points),
        settings=test.settings.model_dump(mode="json"),
        seconds=time.monotonic() - start,
    )


def _key(name: str, test: StressTest, potential: Potential, structures: Sequence[Atoms]) -> str:
    """A hash of all that a result depends on: potential with its parameters, structures, test and settings."""
    places = list(range(len(structures)))
    ids = [str(atoms.info.get("structure_id", k)) for k, atoms in enumerate(structures)]
    simulated = run_key(potential, structures, ids, [], places)
    settings = {key: value for key, value in test.settings.asked("json").items() if key not in WORK}
    return content_hash([], name, simulated, json.dumps(settings, sort_keys=True))


def _read(folder: Path, key: str) -> StressResult | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads((folder / RESULT).read_text())
        if stored["key"] == key:
            logger.info("%s: this test has been done; its result is read", folder)
            return StressResult.model_validate(stored["result"])
    return None


def _description(test: StressTest, potential: Potential, structures: Sequence[Atoms]) -> dict[str, Any]:
    """What a test is, in words that can be compared with those of another."""
    return {"settings": test.settings.asked("json"), **described(potential, structures)}


def _refuse_another(folder: Path, key: str, now: Mapping[str, Any]) -> None:
    """Raise WouldDelete where a folder holds what another test found, unless it may be deleted."""
    with contextlib.suppress(OSError, ValueError):
        begun = json.loads((folder / BEGUN).read_text())
        left = any(path.name not in (BEGUN, "stage.json") for path in folder.iterdir())
        if left and begun.get("key") not in (None, key):
            refuse_to_delete(folder, "a stress test", begun.get("test"), now)


def _begin(folder: Path, key: str, now: Mapping[str, Any]) -> None:
    """Keep what a stopped test of the same key left, and clear away what another one made."""
    (folder / RESULT).unlink(missing_ok=True)
    before = None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        before = json.loads((folder / BEGUN).read_text())["key"]
    if before not in (None, key):
        logger.info("%s: potential, structures or settings changed; the test is done anew", folder)
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / BEGUN, {"key": key, "test": now})


def _write(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")

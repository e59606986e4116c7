"""Stages of a run: a folder each, done when its ``done.json`` stands, redone when what it depends on has changed."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from mdl_physpre.errors import DataError
from mdl_physpre.utils.files import write_text
from mdl_physpre.utils.memory import PeakMemory
from mdl_physpre.utils.overwrite import differences, refuse_to_delete
from mdl_physpre.utils.record import Record, without_nan
from mdl_physpre.utils.settings import Settings

logger = logging.getLogger(__name__)
AnyRecord = TypeVar("AnyRecord", bound=Record)
BEGUN, DONE = "stage.json", "done.json"


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all; numbers that are not finite become ``null``, as JSON has none.

    Raises DataError as :func:`~mdl_physpre.utils.files.replacing`.
    """
    plain = without_nan(json.loads(json.dumps(content, default=_plain)))
    write_text(path, json.dumps(plain, indent=2, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    for method in ("plain", "tolist", "item", "isoformat"):  # of records, arrays, numbers, dates
        if hasattr(value, method):
            return getattr(value, method)()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is none or it is damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def hash_of(content: Any) -> str:
    """A hash of anything that can be written as JSON."""
    text = json.dumps(content, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_of_file(path: Path) -> str:
    """A hash of the bytes of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def decisive(settings: Any) -> dict[str, Any]:
    """What a result depends on of settings: not how often it is stored, what logs it, or where it runs.

    Of settings that came ``LATER``, those that ask for nothing are left out, so that older results are known again.
    """
    where = ("loggers", "device", "devices", "compile", "recompute_edges")
    values = settings.asked() if isinstance(settings, Settings) else asdict(settings)
    return {k: v for k, v in values.items() if k not in where and not k.startswith("checkpoint_")}


def stage_result(folder: Path) -> dict[str, Any]:
    """The result of the stage in a folder, whatever it depended on; empty where it is not done."""
    return dict(read_json(folder / DONE).get("result") or {})


def record_of(kind: type[AnyRecord], content: Mapping[str, Any], folder: Path, **elsewhere: Path) -> AnyRecord:
    """A record of what the stage in ``folder`` found; its keys named in ``elsewhere`` are of the stages there.

    Raises DataError, with file and key, where one lacks a key or holds something else than belongs there.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        file = elsewhere.get(str(first["loc"][0]), folder) / DONE
        raise DataError(
            f"{file}: {key}: {first['msg']}; the file is damaged, or of another version. Delete it, and the same "
            "physpre run does this stage again"
        ) from None


def holds_results(folder: Path) -> bool:
    """Whether a stage, or one in a folder within it, is done, or a training or simulation has come some way."""
    return any(next(folder.rglob(name), None) is not None for name in (DONE, "*.ckpt", "state.npz", "verdicts.json"))


def stage_key(folder: Path) -> str:
    """The key of the stage that is done in a folder; empty where none is."""
    return str(read_json(folder / DONE).get("key", ""))


class Stage:
    """One stage: ``folder``, and ``key``, the hash of everything that its result depends on.

    >>> stage = Stage(run / "1-eam", {"settings": ..., "data": ...})
    >>> if not stage.done:
    ...     stage.begin()
    ...     stage.finish({"loss": ...})

    Parameters
    ----------
    folder : of the stage.
    depends_on : everything that its result depends on.
    free : its results follow quickly from those of other stages, and may be deleted for new ones without a word.
    follows : keys of ``depends_on`` that stand for stages which have had their own say.
    grows : keys, ``part.key``, whose growth lets the stage go on from what it has.
    """

    def __init__(
        self,
        folder: Path,
        depends_on: Mapping[str, Any],
        *,
        free: bool = False,
        follows: Sequence[str] = (),
        grows: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.depends_on = json.loads(json.dumps(dict(depends_on), default=_plain))
        self.key = hash_of(dict(depends_on))
        self.free, self.follows, self.grows = free, follows, grows

    @property
    def done(self) -> bool:
        """Whether it is done, for this key."""
        return stage_key(self.folder) == self.key

    def result(self) -> dict[str, Any] | None:
        """What the stage gave, or ``None`` where it is not done for this key."""
        return stage_result(self.folder) if self.done else None

    def check(self) -> None:
        """Raise WouldDelete where to begin would delete results of other settings or inputs."""
        begun = read_json(self.folder / BEGUN)
        if self.free or begun.get("key") == self.key or not holds_results(self.folder):
            return
        before = begun.get("depends_on")
        if isinstance(before, dict):
            own = [{k: v for k, v in d.items() if k not in self.follows} for d in (before, self.depends_on)]
            if self._grows(before) or not differences(own[0], own[1]):
                return
        refuse_to_delete(self.folder, "results", before, self.depends_on)

    def _grows(self, before: Any) -> bool:
        """Whether nothing but what may grow has changed since, and that has grown."""
        if not self.grows or not isinstance(before, dict):
            return False
        then, now = json.loads(json.dumps(before)), json.loads(json.dumps(self.depends_on))
        for key in self.grows:
            part, _, name = key.partition(".")
            one, other = (d.get(part, {}).pop(name, None) for d in (then, now))
            if one != other and (one is None or (other is not None and other < one)):
                return False
        return then == now

    def begin(self) -> None:
        """Keep what a stopped run of the same key left; clear away what another key made.

        Raises WouldDelete as :meth:`check`.
        """
        self.check()
        begun = read_json(self.folder / BEGUN)
        if self.folder.exists() and begun.get("key") != self.key:
            if self._grows(begun.get("depends_on")):
                logger.info("%s: goes on, for longer than before", self.folder)
            else:
                logger.info("%s: its settings or inputs changed; it is done anew", self.folder)
                (self.folder / DONE).unlink(missing_ok=True)  # first, so that half a stage never counts as done
                shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / DONE).unlink(missing_ok=True)
        write_json(self.folder / BEGUN, {"key": self.key, "depends_on": self.depends_on})
        self._start, self._processor = time.monotonic(), time.process_time()
        self._peak = PeakMemory()

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Write ``done.json``, last of all, with the seconds and the memory it took since it was last started."""
        result = {**result, "seconds": round(time.monotonic() - self._start, 2)}
        peaks = {"peak_memory_mb": self._peak.of_process(), "peak_gpu_memory_mb": self._peak.of_gpus()}
        cost = {"processor_seconds": round(time.process_time() - self._processor, 2)}
        cost |= {name: round(peak / 1e6, 1) for name, peak in peaks.items() if peak is not None}
        write_json(self.folder / DONE, {"key": self.key, "result": result, "cost": cost})
        return stage_result(self.folder)  # as a later start will find it

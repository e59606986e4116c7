"""Stages of a run: a folder each, done when its ``done.json`` stands, redone when what it depends on has changed."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mdl_physpre.errors import PhyspreError

logger = logging.getLogger(__name__)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises
    ------
    PhyspreError : the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise PhyspreError(f"{path}: cannot be written: {error.strerror}; free space or give another --out") from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all; numbers that are not finite become ``null``, which JSON has."""
    text = json.dumps(_without_nan(json.loads(json.dumps(content, default=_plain))), indent=2, allow_nan=False)
    write_text(path, text + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    for method in ("tolist", "item", "isoformat"):
        if hasattr(value, method):
            return getattr(value, method)()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


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
    """What a result depends on of settings: not how often it is stored, what logs it, or where it runs."""
    values = settings.model_dump() if isinstance(settings, BaseModel) else asdict(settings)
    where = ("loggers", "device", "devices", "compile", "recompute_edges")
    return {k: v for k, v in values.items() if k not in where and not k.startswith("checkpoint_")}


class Stage:
    """One stage: ``folder``, and ``key``, the hash of everything that its result depends on.

    >>> stage = Stage(run / "1-eam", {"settings": ..., "data": ...})
    >>> result = stage.result()
    >>> if result is None:
    ...     with stage.work():
    ...         result = stage.finish({"loss": ...})
    """

    def __init__(self, folder: Path, depends_on: Mapping[str, Any]) -> None:
        self.folder = folder
        self.key = hash_of(dict(depends_on))

    @property
    def name(self) -> str:
        return self.folder.name

    def result(self) -> dict[str, Any] | None:
        """What the stage gave, or ``None`` where it is not done for this key."""
        done = _read_json(self.folder / "done.json")
        return done["result"] if done is not None and done.get("key") == self.key else None

    def begin(self) -> None:
        """Keep what a stopped run of the same key left; clear away what another key made."""
        started = _read_json(self.folder / "stage.json")
        if self.folder.exists() and (started is None or started.get("key") != self.key):
            logger.info("%s: its settings or inputs changed; it is done anew", self.folder)
            (self.folder / "done.json").unlink(missing_ok=True)  # first, so that half a stage never counts as done
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "done.json").unlink(missing_ok=True)
        write_json(self.folder / "stage.json", {"key": self.key})
        self._start, self._processor = time.monotonic(), time.process_time()
        reset_peak_memory()

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Write ``done.json``, last of all, with the seconds and the memory it took since it was last started."""
        result = {**result, "seconds": round(time.monotonic() - self._start, 2)}
        cost = {"processor_seconds": round(time.process_time() - self._processor, 2), **peak_memory()}
        write_json(self.folder / "done.json", {"key": self.key, "result": result, "cost": cost})
        return json.loads((self.folder / "done.json").read_text())["result"]  # as a later start will find it


def reset_peak_memory() -> None:
    """Count the largest memory of this process from here on, where the system can (Linux; GPU by PyTorch)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        for k in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(k)


def peak_memory() -> dict[str, float]:
    """Largest memory of this process since :func:`reset_peak_memory`, 10⁶ bytes; empty where it is not known."""
    found = {}
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
        found["peak_memory_mb"] = round(int(kilobytes) * 1024 / 1e6, 1)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        largest = max(torch.cuda.max_memory_allocated(k) for k in range(torch.cuda.device_count()))
        found["peak_gpu_memory_mb"] = round(largest / 1e6, 1)
    return found


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None

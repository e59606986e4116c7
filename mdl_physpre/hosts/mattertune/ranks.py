"""Training with several processes: the first prepares, the others wait until it has, and read.

Lightning starts the same command again for every other device, once the first process begins to train; torchrun and
SLURM start all processes at once.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from mdl_physpre.runs.stage import read_json, write_json

logger = logging.getLogger(__name__)

VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""In which those that start processes tell each its number; 0 or nothing in the first of all."""
PREPARED = "prepared.json"
START = "start.json"


def is_first() -> bool:
    """Whether this is the only process of the run, or the first of several."""
    return all(os.environ.get(name, "0") in ("", "0") for name in VARIABLES)


def begin_preparing(folder: Path) -> None:
    """Say that what the folder holds is not to be trusted yet."""
    for file in (folder / PREPARED, *folder.glob(f"*/{START}")):
        file.unlink(missing_ok=True)


def end_preparing(folder: Path, key: str) -> None:
    """Let the other processes begin; ``key`` is a hash of what was prepared."""
    write_json(folder / PREPARED, {"key": key})


def wait_until_prepared(folder: Path, key: str) -> None:
    """Wait until the first process has called :func:`end_preparing` with this key.

    From now on this process ends when the one that started it is gone.
    """
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    told = False
    while read_json(folder / PREPARED).get("key") != key:
        if not told:
            logger.info("%s: waiting for the first process, which prepares", folder)
        told = True
        time.sleep(0.2)


def said_by_first(folder: Path, say: Callable[[], str]) -> str:
    """What the first process says of a training in this folder; the others wait until it has."""
    if is_first():
        word = say()
        write_json(folder / START, {"from": word})
        return word
    while "from" not in (found := read_json(folder / START)):
        time.sleep(0.2)
    return str(found["from"])


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)

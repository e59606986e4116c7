"""What the benchmarks share: data, a table on the terminal, JSON, and a word on the machine."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from ase import Atoms
from torch import Tensor

from mdl_physpre.structures.read import read_structures


def labelled_structures(name: str) -> list[Atoms]:
    """Structures, with their labels, of a file in the folder that ``PHYSPRE_DATA`` names."""
    folder = os.environ.get("PHYSPRE_DATA")
    if not folder or not (Path(folder) / name).exists():
        sys.exit(f"set PHYSPRE_DATA to the folder that holds {name}")
    return read_structures(Path(folder) / name)


def data_structures(name: str, count: int | None = None) -> list[Atoms]:
    """The same without labels, repeated up to a count, with numbers for names."""
    structures = labelled_structures(name)
    if count is not None:
        structures = [structures[k % len(structures)].copy() for k in range(count)]
    for k, atoms in enumerate(structures):
        atoms.calc = None
        atoms.info["structure_id"] = str(k)
    return structures


class PeakMemory:
    """A context that samples the memory of this process every 2 ms; ``added`` is the most above the start, in bytes."""

    def __init__(self) -> None:
        self.before = resident_bytes()
        self.added = 0

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.added = max(self.added, resident_bytes() - self.before)
            time.sleep(0.002)

    def __enter__(self) -> PeakMemory:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()


def resident_bytes() -> int:
    """Memory that this process holds; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def training_loss(energies: Tensor, forces: Tensor, stress: Tensor) -> Tensor:
    """A loss with the paper's weights, against labels near zero."""
    return 0.01 * energies.abs().mean() + 50 * (forces - 0.01).abs().mean() + 50 * (stress - 0.01).abs().mean()


def children_seconds() -> float:
    """Processor time of the processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Rows under their keys, numbers to three figures."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_text(row.get(key, "")) for key in keys] for row in rows]
    widths = [max(len(key), *(len(line[k]) for line in cells)) for k, key in enumerate(keys)]
    print(f"\n{title}\n")
    for line in [keys, ["-" * w for w in widths], *cells]:
        print("  ".join(text.ljust(w) for text, w in zip(line, widths)).rstrip())


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write_json(path: str | None, content: dict[str, Any]) -> None:
    """Write the figures where a path is given."""
    if path:
        Path(path).write_text(json.dumps(content, indent=1) + "\n")


def environment() -> dict[str, Any]:
    """Versions, threads, cores and load of the machine."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "processor": platform.processor() or platform.machine(),
    }

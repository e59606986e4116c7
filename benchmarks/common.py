"""What the benchmarks share: data, a table on the terminal, JSON, and a word on the machine."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

from ase import Atoms

from mdl_physpre.structures.read import read_structures


def data_structures(name: str, count: int | None = None) -> list[Atoms]:
    """Structures of a file in the folder that ``PHYSPRE_DATA`` names, repeated up to a count."""
    folder = os.environ.get("PHYSPRE_DATA")
    if not folder or not (Path(folder) / name).exists():
        sys.exit(f"set PHYSPRE_DATA to the folder that holds {name}")
    structures = read_structures(Path(folder) / name)
    if count is not None:
        structures = [structures[k % len(structures)].copy() for k in range(count)]
    for k, atoms in enumerate(structures):
        atoms.calc = None
        atoms.info["structure_id"] = str(k)
    return structures


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
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "processor": platform.processor() or platform.machine(),
    }

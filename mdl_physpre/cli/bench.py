"""The command ``physpre bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench(
    device: Annotated[
        list[str] | None, typer.Option(help="cpu, cuda:0, …; repeat. The CPU and each kind of GPU if not given.")
    ] = None,
    backbone: Annotated[
        list[str] | None, typer.Option(help="cgcnn, torchmd_et or m3gnet; repeat. All if not given.")
    ] = None,
    cutoff: Annotated[list[float] | None, typer.Option(help="Å; repeat. 5 and 8 if not given.")] = None,
    seconds: Annotated[float, typer.Option(help="For all together.")] = 150.0,
    out: Annotated[Path | None, typer.Option(help="Write all figures to this file (JSON).")] = None,
) -> None:
    """Measure what this machine reaches.

    Training, memory and molecular dynamics of each backbone in the paper's size, on each device. Needs no data.
    """
    from mdl_physpre.runs.stage import write_json
    from mdl_physpre.workflow.benchmark import benchmark, format_benchmark

    result = benchmark(device or None, seconds, backbone or None, cutoff or None)
    print(format_benchmark(result))
    if out:
        write_json(out, result)

"""What this machine reaches: training, memory and molecular dynamics of each backbone, on each device."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Sequence
from typing import Any

import torch

from mdl_physpre import __version__
from mdl_physpre.errors import ConfigError, nearest
from mdl_physpre.potentials.backbones.registry import backbone_class
from mdl_physpre.potentials.base import AtomicPotential
from mdl_physpre.potentials.compiled import CompiledPotential
from mdl_physpre.utils.devices import available_device
from mdl_physpre.utils.progress import progress
from mdl_physpre.utils.text_table import text_table
from mdl_physpre.workflow.throughput import dynamics_rate, silica_like, training_rate

BACKBONES = {"cgcnn": "CGCNN", "torchmd_et": "torchmd_et", "m3gnet": "M3GNet"}
CUTOFFS = (5.0, 8.0)
SECONDS = 150.0
LEAST = 0.2  # seconds for one case, however little time there is
COLUMNS = {
    "device": "device", "backbone": "backbone", "cutoff": "cutoff, Å", "mode": "mode",
    "training_structures_per_s": "training, structures/s", "batch_size": "batch", "memory_gb": "memory, GB",
    "dynamics_atom_steps_per_s": "dynamics, atom-steps/s", "structures": "structures",
}  # fmt: skip


def benchmark(
    devices: Sequence[str] | None = None,
    seconds: float = SECONDS,
    backbones: Sequence[str] | None = None,
    cutoffs: Sequence[float] | None = None,
    *,
    hyperparameters: dict[str, dict[str, Any]] | None = None,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Measure training and molecular dynamics of untrained backbones in the paper's size, float32.

    On 72-atom cells like quartz, made here. The time is shared among the cases; of several numbers of structures at
    once the best is told. A case that fails is told with its error, and the others go on.

    Parameters
    ----------
    devices : names; the CPU and one GPU of each kind where ``None``.
    seconds : for all together. With very few, each case still takes what three steps take.
    backbones : ``cgcnn``, ``torchmd_et``, ``m3gnet``; all where ``None``.
    cutoffs : Å; 5 and 8 where ``None``, M3GNet at the smallest alone, as it counts triplets.
    hyperparameters : changes of the paper's, by backbone.
    show_progress : show progress.

    Returns
    -------
    A dict for JSON: ``version``, ``torch``, ``threads``, ``devices`` (name of each), ``structure``, ``seconds`` and
    ``rows``, one for each device, backbone, cutoff and mode (``eager``, ``compiled``), with
    ``training_structures_per_s`` at ``batch_size`` with ``memory_gb`` (10⁹ bytes) at the peak, and
    ``dynamics_atom_steps_per_s`` at ``structures``; or with ``error``.

    Raises
    ------
    ConfigError : a device that is not there, a backbone that is not known, a time or cutoff that is not above 0.
    """
    found = {str(d): d for d in ([available_device(d) for d in devices] if devices is not None else each_device())}
    cases = _cases(list(found.values()), seconds, backbones, cutoffs)
    start, rows = time.monotonic(), []
    shown = progress(cases, len(cases), "benchmark") if show_progress else cases
    for k, (device, name, cutoff, mode) in enumerate(shown):
        left = seconds - (time.monotonic() - start)
        row: dict[str, Any] = {"device": str(device), "backbone": name, "cutoff": cutoff, "mode": mode}
        if mode == "compiled" and left < seconds / 10:
            row["error"] = f"left out: no time left of {seconds:g} s"
        else:
            share = max(LEAST, left / (len(cases) - k))
            row |= measure_case(device, name, cutoff, mode, share, (hyperparameters or {}).get(name, {}))
        rows.append(row)
    return {
        "version": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "devices": {name: device_name(device) for name, device in found.items()},
        "structure": f"{len(silica_like(1)[0])} atoms like quartz",
        "seconds": time.monotonic() - start,
        "rows": rows,
    }


def _cases(
    devices: Sequence[torch.device], seconds: float, backbones: Sequence[str] | None, cutoffs: Sequence[float] | None
) -> list[tuple[torch.device, str, float, str]]:
    """Device, backbone, cutoff and mode of each row. Raises ConfigError as :func:`benchmark`."""
    chosen = list(BACKBONES) if backbones is None else list(backbones)
    for name in chosen:
        if name not in BACKBONES:
            raise ConfigError(f"there is no benchmark of {name!r}; {nearest(name, BACKBONES)}")
    distances = CUTOFFS if cutoffs is None else tuple(float(c) for c in cutoffs)
    for what, value in (("seconds", seconds), *(("a cutoff", c) for c in distances)):
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{what} is {value}; it must be a number above 0")
    return [
        (device, name, cutoff, mode)
        for mode in ("eager", "compiled")  # compiling takes long, so it comes last
        for device in devices
        for name in chosen
        for cutoff in (distances if name != "m3gnet" else (min(distances),))
        if mode == "eager" or compiles_on(device)
    ]


def measure_case(
    device: torch.device, name: str, cutoff: float, mode: str, seconds: float, changes: dict[str, Any]
) -> dict[str, Any]:
    """Figures of one row, or its error. ``seconds`` are divided between training and dynamics."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            potential = backbone_class(BACKBONES[name])(elements=["Si", "O"], cutoff=cutoff, **changes)  # type: ignore[call-arg]
        potential = potential.float().to(device)
        start = time.monotonic()
        used = compiled(potential) if mode == "compiled" else potential
        training = training_rate(used, device, seconds / 2, trained=potential)
        dynamics = dynamics_rate(used, device, max(LEAST, seconds - (time.monotonic() - start)))
    except Exception as error:  # one case that a machine cannot do is no reason to say nothing of the others
        return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"}
    return {
        "training_structures_per_s": training.per_second,
        "batch_size": training.at_once,
        "memory_gb": None if math.isnan(training.memory) else training.memory / 1e9,
        "dynamics_atom_steps_per_s": dynamics.per_second,
        "structures": dynamics.at_once,
    }


def compiles_on(device: torch.device) -> bool:
    """Whether potentials are compiled on this device, where it is left to the device."""
    return device.type == "cuda"


def compiled(potential: AtomicPotential) -> AtomicPotential:
    """The potential with its evaluation compiled; what was compiled before is forgotten, as its number is limited."""
    torch.compiler.reset()
    return CompiledPotential(potential)


def each_device() -> list[torch.device]:
    """The CPU, and the first GPU of each kind."""
    kinds: dict[str, torch.device] = {}
    for k in range(torch.cuda.device_count()):
        kinds.setdefault(torch.cuda.get_device_name(k), torch.device("cuda", k))
    return [torch.device("cpu"), *kinds.values()]


def device_name(device: torch.device) -> str:
    """What a device is called: the model of a GPU, threads and processor of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"{threads} thread{'s' if threads > 1 else ''} of {platform.processor() or platform.machine()}"
    return device.type


def format_benchmark(result: dict[str, Any]) -> str:
    """The table of :func:`benchmark`, and what it was measured on."""
    rows = [list(COLUMNS.values()), *([_cell(row.get(key)) for key in COLUMNS] for row in result["rows"])]
    lines = text_table(rows, words=4).splitlines()
    for k, row in enumerate(result["rows"], start=2):
        if "error" in row:
            lines[k] = f"{lines[k].rstrip()}  {row['error']}"
    machines = "; ".join(f"{name}: {what}" for name, what in result["devices"].items())
    machine = f"{result['structure']}, float32, torch {result['torch']}, {result['seconds']:.0f} s. {machines}"
    return "\n".join([*lines, "", machine])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)

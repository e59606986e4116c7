"""What surrounds the stages of a run: its folder, its lock and log, and a record of configuration and environment."""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from mdl_physpre import __version__
from mdl_physpre.errors import ConfigError, WouldDelete
from mdl_physpre.potentials.backbones.registry import backbone_class, build_backbone
from mdl_physpre.potentials.base import Backbone
from mdl_physpre.runs import layout
from mdl_physpre.runs.layout import refuse_earlier_layout
from mdl_physpre.runs.stage import hash_of, read_json, write_json
from mdl_physpre.training.checks import check_precision, training_device
from mdl_physpre.utils.devices import device_in_turn, threads
from mdl_physpre.utils.files import write_bytes, write_text
from mdl_physpre.utils.processes import run_lock
from mdl_physpre.workflow.by_data import suited
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.config.start import starting_network
from mdl_physpre.workflow.data import RunData, load_data
from mdl_physpre.workflow.doubts import doubts, unconverged

logger = logging.getLogger(__name__)
REPORTS = ("report.html", "report.pdf", "report/*.svg", "report/*.png", "report/*.csv")
REPORT_PATTERNS = (layout.SUMMARY, layout.POTENTIAL, *REPORTS)


@contextmanager
def working_in(out: str | Path | None, config: Config) -> Iterator[Path]:
    """The folder of a run (``runs/IDENTIFIER`` where ``out`` is ``None``), locked and logged to.

    Raises
    ------
    ConfigError : the folder holds something else.
    DataError : it holds a run of an earlier version.
    PhyspreError : another process works there, or it cannot be written.
    """
    folder = folder_of_run(out, config)
    refuse_foreign_folder(folder, config)
    with run_lock(folder), log_to(folder / layout.LOG), threads(config.task.threads), kept_if_refused(folder):
        yield folder


def folder_of_run(out: str | Path | None, config: Config) -> Path:
    """Where a run is: ``out``, or ``runs/IDENTIFIER`` where that is ``None``."""
    return Path(out) if out is not None else Path("runs") / (config.task.identifier or "run")


@contextmanager
def kept_if_refused(folder: Path) -> Iterator[None]:
    """The records and the report of a folder as they were, where WouldDelete is raised within the block."""
    names = (layout.CONFIG, layout.DATA, layout.ENVIRONMENT, *REPORT_PATTERNS)
    kept = {path: path.read_bytes() for name in names for path in folder.glob(name)}
    try:
        yield
    except WouldDelete:
        for path, content in kept.items():
            write_bytes(path, content)
        raise


def refuse_foreign_folder(folder: Path, config: Config) -> None:
    """Raise ConfigError where ``folder`` holds something else than this run; a run is known by its identifier."""
    if folder.is_file():
        raise ConfigError(f"{folder}: is a file; give a folder as --out")
    if not folder.exists() or all(p.name == layout.LOG or p.name.startswith(".") for p in folder.iterdir()):
        return
    refuse_earlier_layout(folder)
    try:
        was = yaml.safe_load((folder / layout.CONFIG).read_text())["task"]["identifier"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        raise ConfigError(f"{folder}: holds files that are not of a run; give an empty folder as --out") from None
    if was != config.task.identifier:
        raise ConfigError(
            f"{folder}: holds another run ({was!r} there, {config.task.identifier!r} here); give another --out"
        )


def device_of(config: Config, number: int = 0) -> torch.device:
    """Where the network of this number computes, from 0, and everything that is not of a network.

    Raises ConfigError where ``task.device`` is not there.
    """
    try:
        return device_in_turn(config.task.device, number)
    except ConfigError as error:
        raise ConfigError(f"task.device: {error}") from None


def check_devices(config: Config) -> torch.device:
    """:func:`device_of` the run, after a look at all that training asks of it: better now than after the fit.

    Raises ConfigError for a device that is not there, too few of them, or a precision that does nothing there.
    """
    device = device_of(config)
    training_device(config.training_settings())
    check_precision(config.optim.precision, device)
    where = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
    logger.info("computing on %s", where)
    return device


def data_of_run(folder: Path | None, config: Config, *, with_network: bool = True) -> tuple[Config, RunData]:
    """The data of a run, after a look at devices and network, and the configuration that suits them (:func:`suited`).

    A record of configuration, data and machine is written to the folder, where one is given. Raises ConfigError where
    the network, if there is to be one, cannot be built: better known now than after the fit.
    """
    device = check_devices(config)
    if with_network:
        backbone_class(config.model.name)
    data = load_data(config)
    config, decided = suited(config, data.train, data.val)
    for sentence in decided:
        logger.info("recipe: %s: %s", config.recipe, sentence)
    if with_network:
        with torch.random.fork_rng(devices=[]):
            network_of(config, data)
    said = doubts(config, data)
    for sentence in said:
        logger.warning("%s", sentence)
    if folder is not None:
        record_setup(folder, config, data, device, [*said, *unconverged(data)])
    return config, data


def network_of(config: Config, data: RunData) -> Backbone:
    """A new network for the elements of the data, or the one to start from.

    Raises ConfigError for a name or hyperparameter that is unknown, or as :func:`starting_network`.
    """
    model = config.model
    if model.start_from is not None:
        return starting_network(model.start_from, data.elements)
    return build_backbone(model.name, elements=data.elements, cutoff=model.cutoff, **model.hyperparameters)


def record_setup(folder: Path, config: Config, data: RunData, device: torch.device, said: Sequence[str] = ()) -> None:
    """``config.yml``, resolved, ``environment.json`` and ``data.json``; a report of another set-up is taken away."""
    dumped = json.loads(config.model_dump_json())
    text = yaml.safe_dump(dumped, sort_keys=False)
    written = folder / layout.CONFIG
    known: dict[str, Any] = {**data.hashes(), "sets": {name: counts.plain() for name, counts in data.counts().items()}}
    known["null_model"] = {name: errors.plain() for name, errors in data.null_model.items()}
    other_data = read_json(folder / layout.DATA) not in ({}, known)
    if written.exists() and (written.read_text() != text or other_data):
        for pattern in REPORT_PATTERNS:
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)
    write_text(written, text)
    write_json(folder / layout.DATA, known)
    packages: dict[str, str | None] = {}
    for name in ("torch", "torch-geometric", "ase", "pymatgen", "numpy", "lightning"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    write_json(
        folder / layout.ENVIRONMENT,
        {
            "mdl_physpre": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "processor": _processor(),
            "memory_gb": _memory(),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "packages": packages,
            "threads": torch.get_num_threads(),
            "config": hash_of(dumped),
            "device": str(device),
            "cuda": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "doubts": list(said),
            "started": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        },
    )


def _processor() -> str:
    """Name of the processor and how many cores there are."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def _memory() -> float | None:
    """Memory of the machine, 10⁹ bytes."""
    with suppress(AttributeError, ValueError, OSError):
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    return None


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Copy the package's log to a file."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger("mdl_physpre")
    root.addHandler(handler)
    if root.level == logging.NOTSET:
        root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()

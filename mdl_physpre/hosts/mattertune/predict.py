"""``mattertune predict``: energies, forces and stress by any checkpoint of MatterTune."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mdl_physpre.errors import ConfigError
from mdl_physpre.hosts.mattertune.checkpoints import load_host_model
from mdl_physpre.structures.labels import set_labels


def predict(
    checkpoint: str | Path, structures: Sequence[Atoms], *, device: str = "cpu", batch_size: int = 16
) -> list[Atoms]:
    """Copies of structures with the predictions of a MatterTune checkpoint in place of their labels.

    Energies in eV, forces in eV/Å, stress in eV/Å³; other properties of the model go to ``info`` under their names.
    Raises CheckpointError, HostError, ConfigError (an unknown device).
    """
    model = load_host_model(checkpoint)
    options: dict[str, Any] = {"accelerator": "cpu"}
    if device != "cpu":
        kind, _, number = device.partition(":")
        if kind not in ("cuda", "mps") or not (number or "0").isdigit():
            raise ConfigError(f"--device {device}: expected cpu, cuda, cuda:1 or mps")
        options = {"accelerator": "gpu" if kind == "cuda" else kind, "devices": [int(number or 0)]}
    return predicted(model, structures, options, batch_size)


def predicted(
    model: Any, structures: Sequence[Atoms], options: Mapping[str, Any] | None = None, batch_size: int = 16
) -> list[Atoms]:
    """As :func:`predict`, by a module of the host; ``options`` are those of Lightning's trainer, the CPU by default."""
    options = dict(options or {"accelerator": "cpu"}, devices=(options or {}).get("devices", 1))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's own
        found = model.property_predictor(options).predict(list(structures), batch_size=batch_size)
    kinds = {prop.name: prop.type for prop in model.hparams.properties}
    return [_labelled(atoms, values, kinds) for atoms, values in zip(structures, found)]


def _labelled(atoms: Atoms, values: dict[str, Any], kinds: dict[str, str]) -> Atoms:
    copy = atoms.copy()
    copy.calc = None
    labels: dict[str, Any] = {}
    for name, value in values.items():
        array = np.asarray(value, dtype=float)
        kind = kinds.get(name)
        if kind == "energy":
            labels["energy"] = float(array.reshape(()))
        elif kind == "forces":
            labels["forces"] = array
        elif kind == "stresses":
            labels["stress"] = array if np.isfinite(array).all() else None
        elif kind is not None:
            copy.info[name] = array.tolist()
    return set_labels(copy, **labels)

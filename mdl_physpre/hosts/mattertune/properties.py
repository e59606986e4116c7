"""Properties and normalizers of a MatterTune configuration, as the backbone reads them. Imports the host."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase.stress import full_3x3_to_voigt_6_stress
from mattertune.finetune.properties import EnergyPropertyConfig, ForcesPropertyConfig, StressesPropertyConfig

from mdl_physpre.errors import ConfigError


class StressOfRecentASE(StressesPropertyConfig):
    """The host imports the conversion to Voigt order from where ASE 3.29 does not have it."""

    def prepare_value_for_ase_calculator(self, value: Any) -> Any:
        return full_3x3_to_voigt_6_stress(np.asarray(value).reshape(3, 3))


def property_names(properties: Iterable[Any]) -> tuple[str, str | None, str | None]:
    """Names of energy, forces and stress. Raises ConfigError for others, and where there is no energy."""
    names: dict[type, str] = {}
    for prop in properties:
        kind = next((k for k in (EnergyPropertyConfig, ForcesPropertyConfig, StressesPropertyConfig)
                     if isinstance(prop, k)), None)  # fmt: skip
        if kind is None:
            raise ConfigError(
                f"model.properties: {prop.name!r} is a {prop.type}; physpre-m3gnet gives energy, forces and stresses"
            )
        if not getattr(prop, "conservative", True):
            raise ConfigError(
                f"model.properties: {prop.name!r} has conservative: false; physpre-m3gnet gives derivatives of the "
                "energy only, set conservative: true"
            )
        names[kind] = prop.name
    if EnergyPropertyConfig not in names:
        raise ConfigError("model.properties lacks the energy, from which physpre-m3gnet derives all else")
    return names[EnergyPropertyConfig], names.get(ForcesPropertyConfig), names.get(StressesPropertyConfig)


def inline_references(normalizers: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Normalizers with the energies of elements in place of the name of the file that holds them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, entries in normalizers.items():
        found[name] = [dict(entry) for entry in entries]
        for entry in found[name]:
            if isinstance(entry.get("per_atom_references"), str):
                stored = json.loads(Path(entry["per_atom_references"]).read_text())
                entry["per_atom_references"] = {int(z): float(energy) for z, energy in stored.items()}
    return found

"""Units of labels other than eV, Å and eV/Å³."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ase import Atoms, units

from mdl_physpre.errors import ConfigError, nearest
from mdl_physpre.structures.labels import LABELS, get_labels, set_labels

UNITS: dict[str, float] = {
    "eV": 1.0,
    "meV": 1e-3,
    "Hartree": units.Hartree,
    "Ha": units.Hartree,
    "Rydberg": units.Rydberg,
    "Ry": units.Rydberg,
    "kcal/mol": units.kcal / units.mol,
    "kJ/mol": units.kJ / units.mol,
    "Å": 1.0,
    "Ang": 1.0,
    "A": 1.0,
    "Angstrom": 1.0,
    "Bohr": units.Bohr,
    "nm": units.nm,
    "Pa": units.Pascal,
    "MPa": 1e6 * units.Pascal,
    "GPa": units.GPa,
    "bar": units.bar,
    "kbar": 1e3 * units.bar,
    "kB": 1e3 * units.bar,
}
"""Energies in eV, lengths in Å, pressures in eV/Å³, as ASE has them (CODATA)."""


def factor(unit: str) -> float:
    """What a number in ``unit`` is multiplied by: ``kbar``, ``Hartree/Bohr``, ``Ry/Bohr^3``, ``-GPa``, ….

    A minus sign stands for the other sign (a pressure, compression positive, in place of a stress).

    Raises
    ------
    ConfigError : a unit that is not known, with the nearest that is.
    """
    text = unit.strip()
    sign = -1.0 if text.startswith("-") else 1.0
    text = text.lstrip("-+ ").replace("³", "^3").replace("**", "^")
    value = sign
    if text in UNITS:
        return sign * UNITS[text]
    molar = next((name for name in ("kcal/mol", "kJ/mol") if text.startswith(name)), None)
    parts = [molar, *text[len(molar) :].lstrip("/").split("/")] if molar else text.split("/")
    for place, part in enumerate(p for p in parts if p):
        name, _, power = part.partition("^")
        names = {known.lower(): known for known in UNITS}
        if name.lower() not in names or not re.fullmatch(r"\d*", power):
            raise ConfigError(f"unit {unit!r}: {name!r} is not known; {nearest(name, UNITS)}")
        exact = name if name in UNITS else names[name.lower()]
        value *= UNITS[exact] ** (int(power or 1) * (-1 if place else 1))
    return value


def check_units(given: Mapping[str, str]) -> dict[str, float]:
    """The factor of each label; raises ConfigError for what is no label or no unit."""
    for label in given:
        if label not in LABELS:
            raise ConfigError(f"units: unknown label {label!r}; {nearest(label, LABELS)}")
    return {label: factor(unit) for label, unit in given.items()}


def convert_labels(structures: Sequence[Atoms], factors: Mapping[str, float]) -> None:
    """Multiply the labels of each structure by their factors, in place."""
    for atoms in structures if factors else ():
        labels = get_labels(atoms)
        changed = {
            name: value * factors.get(name, 1.0) for name in LABELS if (value := getattr(labels, name)) is not None
        }
        others = {k: v for k, v in atoms.calc.results.items() if k not in LABELS} if atoms.calc is not None else {}
        set_labels(atoms, **changed)
        if others and atoms.calc is not None:
            atoms.calc.results.update(others)

"""JSON files of FitSNAP: a comment line, and ``Dataset: {Data: […]}`` with the units of its labels.

Stress is that of DFT codes, compression positive, in the unit that ``StressStyle`` names; energies and lengths are eV
and Å.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mdl_physpre.errors import DataError
from mdl_physpre.structures.formats.base import Format
from mdl_physpre.structures.units import factor
from mdl_physpre.utils.files import open_text, read_text

STYLES = {"kB": "kbar", "kbar": "kbar", "bar": "bar", "GPa": "GPa"}
EXPECTED = {"EnergyStyle": "electronvolt", "PositionsStyle": "angstrom", "LatticeStyle": "angstrom",
            "ForcesStyle": "electronvoltperangstrom", "AtomTypeStyle": "chemicalsymbol"}  # fmt: skip


class FitSNAPJSON(Format):
    """One configuration for each file, as FitSNAP reads them."""

    title = "a configuration of FitSNAP"
    endings = (".json",)

    def recognises(self, path: Path) -> bool:
        """By its comment line, or its first key."""
        with open_text(path) as file:
            head = file.read(200).lstrip()
        return head.startswith("#") or head.replace(" ", "").replace("\n", "").startswith('{"Dataset"')

    def read(self, path: Path) -> list[Atoms]:
        """Raises DataError for another layout or unit; names the key."""
        text = read_text(path)
        body = "\n".join(line for line in text.split("\n") if not line.lstrip().startswith("#"))
        try:
            dataset = json.loads(body)["Dataset"]
            items = list(dataset["Data"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: no Dataset with Data, as FitSNAP has it ({error})") from None
        for style, unit in EXPECTED.items():
            given = str(dataset.get(style, unit))
            if given.lower() != unit:
                raise DataError(f"{path}: {style} is {given!r}; only {unit} is read. Convert the file")
        return [self._structure(item, dataset, f"{path}: item {k}") for k, item in enumerate(items)]

    def _structure(self, item: Any, dataset: Any, where: str) -> Atoms:
        try:
            atoms = Atoms(item["AtomTypes"], positions=item["Positions"], cell=item["Lattice"], pbc=True)
            if "Energy" in item:
                atoms.info["energy"] = float(item["Energy"])
            if "Forces" in item:
                atoms.arrays["forces"] = np.array(item["Forces"], dtype=float).reshape(len(atoms), 3)
            if "Stress" in item:
                style = str(dataset.get("StressStyle", "bar"))
                if style not in STYLES:
                    raise DataError(f"{where}: StressStyle is {style!r}; expected one of {', '.join(STYLES)}")
                atoms.info["stress"] = -factor(STYLES[style]) * np.array(item["Stress"], dtype=float).reshape(3, 3)
        except (KeyError, TypeError, ValueError) as error:
            expected = "expected AtomTypes, Positions, Lattice, with Energy, Forces and Stress in numbers"
            raise DataError(f"{where}: {type(error).__name__}: {error}; {expected}") from None
        return atoms

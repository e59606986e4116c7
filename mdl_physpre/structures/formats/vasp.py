"""Results of VASP by ASE's readers, with a mark on the steps whose electrons did not converge."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ase import Atoms

from mdl_physpre.structures.formats.base import Format
from mdl_physpre.structures.formats.by_ase import read_by_ase
from mdl_physpre.structures.state import UNCONVERGED
from mdl_physpre.utils.files import open_text

NELM = re.compile(r"^\s*NELM\s*=\s*(\d+)")
STEP_ENDS = "FREE ENERGIE OF THE ION-ELECTRON SYSTEM"


class VASP(Format):
    """``info["unconverged"]`` marks steps that ended with NELM electronic iterations and without EDIFF."""

    title = "results of VASP"
    endings = ("OUTCAR", "vasprun.xml")

    def fits(self, path: Path) -> bool:
        name = path.name.lower().removesuffix(".gz")
        return "outcar" in name or (name.startswith("vasprun") and name.endswith(".xml"))

    def read(self, path: Path) -> list[Atoms]:
        """Raises DataError where ASE cannot read the file."""
        xml = ".xml" in path.name.lower()
        structures = read_by_ase(path, "vasp-xml" if xml else "vasp-out")
        with open_text(path) as file:
            converged = list(of_vasprun(file) if xml else of_outcar(file))
        for atoms, found in zip(structures, converged):
            if not found:
                atoms.info[UNCONVERGED] = True
        return structures


def of_outcar(lines: Any) -> Iterator[bool]:
    """Whether each ionic step of an OUTCAR says that EDIFF was reached; before VASP 6 silence says that it was not."""
    most, iterations, reached, missed = 1, 0, False, False
    for line in lines:
        if found := NELM.match(line):
            most = int(found[1])
        elif "aborting loop because EDIFF is reached" in line:
            reached = True
        elif "EDIFF was not reached" in line:
            missed = True
        elif "Iteration" in line:
            iterations += 1
        elif STEP_ENDS in line:
            yield not missed and (reached or iterations < most)
            iterations, reached, missed = 0, False, False


def of_vasprun(file: Any) -> Iterator[bool]:
    """Whether each ionic step of a vasprun.xml ended before NELM iterations, or with a change of less than EDIFF."""
    most, least = 0, 0.0
    try:
        for _, element in ElementTree.iterparse(file):
            if element.tag == "i" and element.get("name") == "NELM":
                most = int(element.text or 0)
            elif element.tag == "i" and element.get("name") == "EDIFF":
                least = float(element.text or 0)
            elif element.tag == "calculation":
                energies = [_number(step.find("energy/i[@name='e_fr_energy']")) for step in element.findall("scstep")]
                at_rest = len(energies) > 1 and abs(energies[-1] - energies[-2]) < least
                yield not most or len(energies) < most or at_rest
                element.clear()
    except (ElementTree.ParseError, ValueError):  # cut short: ASE has read the steps before, and has its say
        return


def _number(element: Any) -> float:
    return float("nan") if element is None else float(element.text)

"""The energies that a potential was trained on: by composition, and beyond what composition alone explains.

Molecular dynamics tells by them where a structure has fallen into a well that is not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.formula import Formula

from mdl_physpre.errors import CheckpointError
from mdl_physpre.potentials.energy_reference import composition_matrix, fit_energy_reference
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.utils.record import Record

SPANNED = 1e-6  # atoms of an atom; what a composition may lie beside a mixture of those in the data


class EnergyRange(Record):
    """Lowest and highest energy of some structures, eV/atom, and how many there are."""

    lowest: float
    highest: float
    structures: int


class TrainingEnergies(Record):
    """Potential energies per atom of the structures that a potential was trained on, eV/atom, as in the data.

    compositions : by reduced formula, in Hill's order of the elements (``O2Si``).
    reference : energies E0 of the elements, eV by symbol, fitted to the same structures: what composition explains.
    beyond_reference : E − Σ_i E0(z_i) per atom, of all of them; for compositions that were not in the data.
    """

    compositions: dict[str, EnergyRange]
    reference: dict[str, float]
    beyond_reference: EnergyRange

    @classmethod
    def of(cls, structures: Sequence[Atoms]) -> TrainingEnergies | None:
        """Those of labelled structures; ``None`` where none carries an energy."""
        known = [(atoms, energy) for atoms in structures if (energy := get_labels(atoms).energy) is not None]
        known = [(atoms, energy) for atoms, energy in known if len(atoms) and np.isfinite(energy)]
        if not known:
            return None
        reference = fit_energy_reference([atoms for atoms, _ in known]).energies.numpy()
        by_formula: dict[str, list[float]] = {}
        beyond = []
        for atoms, energy in known:
            by_formula.setdefault(reduced_formula(atoms), []).append(energy / len(atoms))
            beyond.append((energy - float(reference[atoms.numbers].sum())) / len(atoms))
        symbols = {symbol: int(z) for atoms, _ in known for symbol, z in zip(atoms.symbols, atoms.numbers)}
        return cls(
            compositions={formula: _range(energies) for formula, energies in sorted(by_formula.items())},
            reference={symbol: float(reference[z]) for symbol, z in sorted(symbols.items(), key=lambda one: one[1])},
            beyond_reference=_range(beyond),
        )

    @classmethod
    def read(cls, values: Any, where: str | Path) -> TrainingEnergies:
        """From plain values in a file. Raises CheckpointError where they are none of its kind."""
        try:
            return cls.model_validate(values)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{where}: its training_energies cannot be read: {reason}") from None

    def lowest(self, atoms: Atoms) -> float | None:
        """The lowest energy per atom, eV, that the data know for a composition.

        Of one that was not in the data, the energy of the elements and the lowest energy beyond it of all structures.
        ``None`` where that says nothing: the composition is no mixture of those in the data, so that the data do not
        determine what its elements weigh.
        """
        known = self.compositions.get(reduced_formula(atoms))
        if known is not None:
            return known.lowest
        if not self.spans(atoms):
            return None
        elements = sum(self.reference[symbol] for symbol in atoms.symbols) / len(atoms)
        return float(elements + self.beyond_reference.lowest)

    def spans(self, atoms: Atoms) -> bool:
        """Whether the composition is a linear combination of those in the data."""
        if not set(atoms.symbols) <= self.reference.keys():
            return False
        known = [Atoms(list(Formula(formula))) for formula in self.compositions]
        elements = sorted({int(z) for one in known for z in one.numbers})
        shares = composition_matrix([*known, atoms], elements)
        shares /= shares.sum(axis=1, keepdims=True)
        mixture = np.linalg.lstsq(shares[:-1].T, shares[-1], rcond=None)[0]
        return bool(np.abs(shares[:-1].T @ mixture - shares[-1]).max() < SPANNED)

    def text(self, most: int = 5) -> str:
        """``O2Si −8.91 to −7.73 eV/atom (40 structures)``, of at most so many compositions."""
        parts = [
            f"{formula} {r.lowest:.4g} to {r.highest:.4g} eV/atom ({r.structures} structure{'s' * (r.structures > 1)})"
            for formula, r in list(self.compositions.items())[:most]
        ]
        more, beyond = len(self.compositions) - most, self.beyond_reference
        if more > 0:
            of_all = f"{beyond.lowest:.4g} to {beyond.highest:.4g} eV/atom beyond the energies of the elements"
            parts.append(f"and {more} more compositions; all {beyond.structures} structures: {of_all}")
        return ", ".join(parts).replace("-", "−")


def reduced_formula(atoms: Atoms) -> str:
    """The composition in smallest whole numbers, in Hill's order: ``O2Si``."""
    return str(atoms.symbols.formula.reduce()[0].format("hill"))


def _range(energies: Iterable[float]) -> EnergyRange:
    values = [float(e) for e in energies]
    return EnergyRange(lowest=min(values), highest=max(values), structures=len(values))

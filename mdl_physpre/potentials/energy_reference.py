"""Energy reference: what composition alone explains of a total energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from torch import Tensor, nn

from mdl_physpre.errors import DataError
from mdl_physpre.structures.labels import get_labels, set_labels

N_ELEMENTS = 119
RANK = 1e-8  # of the largest singular value: what is smaller is nothing


class EnergyReference(nn.Module):
    """E_ref = Σ_i E0(z_i), with fixed E0 for each element.

    A network that is trained on E − E_ref learns what composition does not explain. Pretraining and finetuning share
    one reference, fitted to the DFT training data, so that both stages have the same zero of energy.

    Parameters
    ----------
    energies : eV by atomic number; elements that are not named get zero.
    """

    energies: Tensor

    def __init__(self, energies: dict[int, float] | None = None) -> None:
        super().__init__()
        table = torch.zeros(N_ELEMENTS, dtype=torch.float64)
        for z, value in (energies or {}).items():
            table[int(z)] = float(value)
        self.register_buffer("energies", table)

    def forward(self, z: Tensor) -> Tensor:
        """E0 of each atom, (n_atoms,), eV."""
        return self.energies.index_select(0, z)

    def as_dict(self) -> dict[int, float]:
        """The elements that have a non-zero reference, eV by atomic number."""
        return {z: float(e) for z, e in enumerate(self.energies.tolist()) if float(e) != 0.0}


def composition_matrix(structures: Sequence[Atoms], elements: Sequence[int]) -> np.ndarray:
    """Number of atoms of each element in each structure, (n_structures, n_elements)."""
    return np.array([[np.count_nonzero(a.numbers == z) for z in elements] for a in structures], dtype=float)


def fit_energy_reference(structures: Sequence[Atoms], isolated: Mapping[str, float] | None = None) -> EnergyReference:
    """Least-squares fit of total energies to composition; where it is not unique, the one nearest to isolated atoms.

    E0_z = E_isolated,z + Δ_z,   Δ = argmin Σ_b [(E_b − Σ_z n_bz (E_isolated,z + Δ_z))/n_b]², of minimum norm

    Each structure weighs 1/n_atoms, so that the error per atom is what is minimised. What all structures leave open,
    such as how SiO2 shares its energy between Si and O, is decided by the isolated atoms, or by the minimum norm of E0
    where none are given.

    isolated : their energies in eV, by symbol.

    Raises
    ------
    DataError : no structure carries an energy.
    """
    energies = [get_labels(a).energy for a in structures]
    labelled = [a for a, e in zip(structures, energies) if e is not None]
    if not labelled:
        raise DataError(f"none of {len(structures)} structures carries an energy; a reference cannot be fitted")
    elements = sorted({int(z) for a in labelled for z in a.numbers})
    weight = 1.0 / np.array([len(a) for a in labelled])
    matrix = composition_matrix(labelled, elements) * weight[:, None]
    start = np.array([(isolated or {}).get(chemical_symbols[z], 0.0) for z in elements])
    target = np.array([e for e in energies if e is not None]) * weight - matrix @ start
    solution = start + np.linalg.lstsq(matrix, target, rcond=RANK)[0]
    return EnergyReference({z: float(e) for z, e in zip(elements, solution)})


def inseparable_elements(structures: Sequence[Atoms]) -> list[str]:
    """Elements whose E0 a fit to composition cannot tell apart, by atomic number: they vary together in all structures.

    Silicon and oxygen, where every structure is (SiO2)n; none in structures of one element.
    """
    elements = sorted({int(z) for a in structures for z in a.numbers})
    matrix = composition_matrix(structures, elements) / np.array([[len(a)] for a in structures])
    _, values, rows = np.linalg.svd(matrix)
    rank = int((values > RANK * values[0]).sum())
    open_parts = np.abs(rows[rank:]).max(axis=0, initial=0.0)  # of each element in what composition leaves open
    return [chemical_symbols[z] for z, part in zip(elements, open_parts) if part > 1e-6]


def composition_shift(structures: Sequence[Atoms], errors: np.ndarray) -> Tensor:
    """Δ_z, (119,), eV, that composition explains of errors of energy: argmin Σ_b [(e_b − Σ_z n_bz Δ_z)/n_b]².

    ``errors`` (n_structures,), eV, are labels less predictions, NaN where there is none.
    """
    known = [set_labels(a.copy(), energy=float(e)) for a, e in zip(structures, errors) if np.isfinite(e)]
    return fit_energy_reference(known).energies

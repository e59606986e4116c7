"""The zero of energy of a teacher, fitted to the labels that the network is finetuned on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials.base import Backbone, Potential
from mdl_physpre.potentials.energy_reference import composition_shift
from mdl_physpre.pretraining.labelling import compute_labels, without_failures
from mdl_physpre.structures.labels import get_labels

logger = logging.getLogger(__name__)


def fit_teacher_zero(
    teacher: Potential, structures: Sequence[Atoms], *, workers: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """Shift the energies of the elements of a teacher to labels, as far as composition explains the difference.

    E0_z ← E0_z + Δ_z, Δ = argmin Σ_b [(E_b − E_teacher,b − Σ_z n_bz Δ_z)/n_b]²

    Two methods of calculation have two zeros of energy. A network that learnt one would have to unlearn it for the
    other. Forces and stress do not change.

    Parameters
    ----------
    teacher : with energies of the elements, as :func:`~mdl_physpre.pretraining.make_teacher` gives it; it is changed.
    structures : with labels of energy; those without are left out.
    workers, progress : as in :func:`~mdl_physpre.label`.

    Returns
    -------
    ``energies``, Δ by symbol, eV; ``structures``, how many had a label; ``before`` and ``after``, mean absolute errors,
    meV/atom.

    Raises
    ------
    DataError : no structure with an energy, or one that the teacher cannot calculate.
    ConfigError : a teacher without energies of the elements.
    """
    if not isinstance(teacher, Backbone):
        raise ConfigError(f"a {type(teacher).__name__} has no energies of the elements; take it from make_teacher")
    known = [atoms for atoms in structures if get_labels(atoms).energy is not None]
    if not known:
        raise DataError(f"none of {len(structures)} structures carries an energy, to which a teacher's is shifted")
    found = compute_labels(known, teacher, workers=workers, progress=progress)
    labels = without_failures(known, found, "zero of energy of the teacher")
    energies = [np.nan if one is None or one.energy is None else one.energy for one in labels]
    errors = np.array([float(get_labels(a).energy or 0.0) for a in known]) - np.array(energies)
    shift = composition_shift(known, errors)
    teacher.shift_reference(shift)
    left = errors - np.array([float(shift[a.numbers].sum()) for a in known])
    sizes = np.array([len(a) for a in known])
    before, after = (float(1000 * np.nanmean(np.abs(e) / sizes)) for e in (errors, left))
    logger.info("zero of energy of the teacher: mean absolute error %.4g → %.4g meV/atom", before, after)
    elements = sorted({int(z) for a in known for z in a.numbers})
    return {
        "energies": {chemical_symbols[z]: float(shift[z]) for z in elements},
        "structures": int(np.isfinite(errors).sum()),
        "before": before,
        "after": after,
    }

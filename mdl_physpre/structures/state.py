"""What a structure is besides its atoms and their places, and what calculators read: charges, spins, moments, tags."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms

LABEL_WORDS = ("energy", "force", "stress", "virial")
PER_ATOM = ("initial_charges", "initial_magmoms", "tags")
WHOLE = ("charge", "total_charge", "spin", "total_spin", "multiplicity", "spin_multiplicity", "magmom")
"""Keys of ``arrays`` and ``info`` that tell an electronic state, whatever the file they came from calls them."""

UNCONVERGED = "unconverged"
CONVERGED = ("converged", "scf_converged", "electronic_converged", "converged_electronic", "is_converged")


def is_unconverged(atoms: Atoms) -> bool:
    """Whether ``info`` says that the electrons of a calculation did not converge."""
    said = {str(key).lower(): value for key, value in atoms.info.items()}
    return bool(_true(said.get(UNCONVERGED))) or any(_true(said.get(key)) is False for key in CONVERGED)


def _true(value: Any) -> bool | None:
    """What a flag says in whatever spelling; ``None`` for anything else."""
    return {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}.get(str(value).lower())


def is_label(key: str) -> bool:
    """Whether a key of ``info`` or ``arrays`` names a label."""
    return any(word in str(key).lower() for word in LABEL_WORDS)


def state_of(atoms: Atoms) -> dict[str, Any]:
    """All that ``info`` and ``arrays`` hold besides labels, the structure's name, elements, positions and momenta."""
    info = {f"info {k}": v for k, v in atoms.info.items() if k != "structure_id" and not is_label(k)}
    places = ("numbers", "positions", "momenta")
    return info | {f"arrays {k}": v for k, v in atoms.arrays.items() if k not in places and not is_label(k)}


def same_state(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two of :func:`state_of` hold the same; what cannot be compared is taken to differ."""
    if one.keys() != other.keys():
        return False
    try:
        return all(v is other[k] or bool(np.array_equal(v, other[k])) for k, v in one.items())
    except Exception:  # of values of any kind
        return False


def repeated(atoms: Atoms, times: Any) -> Atoms:
    """``atoms.repeat(times)``, with as many charges as cells."""
    made: Atoms = atoms.repeat(times)
    made.info = of_copies(atoms.info, len(made) // max(1, len(atoms)))
    return made


def of_copies(info: dict[str, Any], n: int) -> dict[str, Any]:
    """``info`` of so many copies of a structure: they have n times its charge."""
    charges = [k for k in info if str(k).lower() in ("charge", "total_charge")]
    return info | {k: n * info[k] for k in charges if isinstance(info[k], (int, float, np.number))}


def put_state(made: Atoms, origin: Atoms) -> Atoms:
    """``made`` itself, given ``info`` and arrays of another structure of the same atoms; labels and momenta aside."""
    made.info |= {key: value for key, value in origin.info.items() if not is_label(key)}
    for key, values in origin.arrays.items():
        if key not in ("numbers", "positions", "momenta") and not is_label(key):
            made.set_array(key, values)
    return made


def electronic_state(atoms: Atoms) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Those of ``info`` and ``arrays`` that tell an electronic state or are tags, for copies with other positions."""
    info = {key: value for key, value in atoms.info.items() if str(key).lower() in WHOLE}
    return info, {key: atoms.arrays[key] for key in PER_ATOM if key in atoms.arrays}

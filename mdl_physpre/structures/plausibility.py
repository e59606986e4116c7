"""Whether labels can be in the units that they are taken to be in: energies, forces and stress tell on each other.

Between frames that are near each other the work of the forces is the change of the energy, E₂ − E₁ ≈ −½ Σ_i (F₁ᵢ + F₂ᵢ)
· (x₂ᵢ − x₁ᵢ), to a few per cent. For all others a pair potential fitted to the forces says what energies and stress
should be, to a factor of two or three (:mod:`~mdl_physpre.structures.pair_fit`). A number in another unit is off by
more: 27 for Hartree, 160 for GPa, 1602 for kbar, −1 for a pressure in place of a stress. And |σ| V is an energy of at
most some tens of eV per atom up to 1 TPa.

Where the labels say so clearly, the unit that fits is named; where they say nothing, nothing is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms

from mdl_physpre.errors import DataError
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.structures.pair_fit import PairFit, fit_pairs
from mdl_physpre.structures.units import factor

MOST_ENERGY = 150.0  # eV per atom in |σ|V: 1 TPa in 20 Å³ per atom are 125
USUAL_ENERGY = 0.3  # eV per atom in |σ|V: 5 GPa in 10 Å³
LARGEST_STEP = 0.15  # Å, root mean square displacement between frames that count as near
FEWEST_PAIRS = 5
CLEAR = 0.7  # correlation with the pair potential from which on its word counts
SURE, MANY = 0.85, 20  # correlation and structures from which on its word counts on a sign
FAR = 4.0  # a factor beyond which a unit explains nothing
ROUGH = 10.0  # the same where |σ|V alone is known
STRESS_UNITS = ("eV/Å^3", "GPa", "kbar", "bar", "MPa", "Pa", "Hartree/Bohr^3", "Ry/Bohr^3")
FORCE_UNITS = {
    "Hartree/Bohr": "Hartree", "Ry/Bohr": "Ry", "Hartree/Å": "Hartree", "kcal/mol/Å": "kcal/mol", "kJ/mol/Å": "kJ/mol"
}  # fmt: skip
"""Units of forces, and of the energies that go with them."""
CONVERT = "Convert: dataset.units={{{0}}} in a configuration, --unit {1} in convert and inspect"
MIXED = {
    "energy is in Hartree, forces in eV/Å": ({"energy": "Hartree"}, 1 / factor("Hartree")),
    "energy is in Hartree, forces in Hartree/Bohr": (
        {"energy": "Hartree", "forces": "Hartree/Bohr"},
        factor("Hartree/Bohr") / factor("Hartree"),
    ),
    "energy is in eV, forces in Hartree/Bohr": ({"forces": "Hartree/Bohr"}, factor("Hartree/Bohr")),
    "energy is in kcal/mol, forces in eV/Å": ({"energy": "kcal/mol"}, 1 / factor("kcal/mol")),
    "energy is in Rydberg, forces in eV/Å": ({"energy": "Ry"}, 1 / factor("Ry")),
    "energy is in kJ/mol, forces in eV/Å": ({"energy": "kJ/mol"}, 1 / factor("kJ/mol")),
    "energy is in meV, forces in eV/Å": ({"energy": "meV"}, 1e3),
    "energy is in eV, forces in kcal/mol/Å": ({"forces": "kcal/mol/Å"}, factor("kcal/mol")),
    "forces are gradients of the energy, of the other sign": ({"forces": "-eV/Å"}, -1.0),
}
"""What is mixed up, the units that mend it, and energy differences over the work of the forces as they then come."""


def check_units_of_labels(structures: Sequence[Atoms], source: str) -> None:
    """Raise where labels cannot be in eV, eV/Å and eV/Å³ with tension positive.

    Raises
    ------
    DataError : names the label, what was found, the unit that fits, and the setting that converts it.
    """
    _check_near_frames(structures, source)
    fit = fit_pairs(structures)
    if fit is not None and fit.force_share > 0.3:
        _check_energies(fit, source)
    _check_stress(structures, fit, source)


def _check_near_frames(structures: Sequence[Atoms], source: str) -> None:
    differences, works = _near_frames(structures)
    if len(works) < FEWEST_PAIRS or _correlation(works, differences) ** 2 < 0.8:
        return
    slope = float(works @ differences / (works @ works))
    if not 0.6 < slope < 1.5:
        said = f"between {len(works)} pairs of frames near each other the energy changes by {slope:.3g} times the work"
        _refuse_energies(source, f"{said} of the forces", slope, _median_size(structures), 0.3)


def _near_frames(structures: Sequence[Atoms]) -> tuple[np.ndarray, np.ndarray]:
    """Differences of energy between frames that follow each other closely in one cell, and the work of the forces."""
    differences, works = [], []
    for one, two in zip(structures, structures[1:]):
        if not np.array_equal(one.numbers, two.numbers) or np.abs(one.cell[:] - two.cell[:]).max() > 1e-6:
            continue
        a, b = get_labels(one), get_labels(two)
        if a.energy is None or b.energy is None or a.forces is None or b.forces is None:
            continue
        step = two.positions - one.positions
        if one.pbc.all():  # frames may be wrapped
            step -= np.round(one.cell.scaled_positions(step)) @ one.cell[:]
        if 0 < np.sqrt((step**2).sum(1).mean()) < LARGEST_STEP:
            differences.append(b.energy - a.energy)
            works.append(-0.5 * float(((a.forces + b.forces) * step).sum()))
    return np.array(differences), np.array(works)


def _check_energies(fit: PairFit, source: str) -> None:
    """Energies against those of the pair potential, what composition explains of both taken out."""
    energies = {k: e / len(a) for k, a in enumerate(fit.structures) if (e := get_labels(a).energy) is not None}
    known, labels = list(energies), np.array(list(energies.values()))
    if len(known) < 10:
        return
    composition = fit.composition[known]
    hat = composition @ np.linalg.pinv(composition)
    found, expected = labels - hat @ labels, fit.energies[known] - hat @ fit.energies[known]
    if _correlation(expected, found) < SURE or fit.force_share < CLEAR:
        return  # a wrong sign is not claimed: forces say little of an energy that hangs on the volume alone
    size = float(np.sqrt((found @ found) / (expected @ expected)))
    if not 1 / 6 < size < 6:
        said = f"energies differ between structures by {size:.3g} times what the forces explain"
        _refuse_energies(source, said, size, _median_size(fit.structures), 0.7)


def _median_size(structures: Sequence[Atoms]) -> float:
    return float(np.median([len(atoms) for atoms in structures]))


def _refuse_energies(source: str, reason: str, slope: float, n_atoms: float, known_to: float) -> None:
    """DataError, if some mix-up of units explains the slope, or energies per atom do.

    known_to : the logarithm of the factor to which the slope is known; all that explain it as well are named.
    """
    mixed = {**MIXED, "energies are per atom": ({}, 1 / n_atoms)}
    off = {what: abs(np.log(slope / value)) for what, (_, value) in mixed.items() if slope / value > 0}
    best = min(off.values(), default=np.inf)
    if best < 1.0:
        likely = sorted((what for what in off if off[what] < best + known_to), key=lambda what: off[what])
        said = ", or as if ".join(likely)
        raise DataError(f"{source}: {reason}, as if {said}. {' Or: '.join(_advice(mixed[w][0]) for w in likely)}")


def _check_stress(structures: Sequence[Atoms], fit: PairFit | None, source: str) -> None:
    labelled = [(a, s) for a in structures if len(a) and (s := get_labels(a).stress) is not None]
    if not labelled:
        return
    energies = np.array([np.abs(s).max() * a.cell.volume / len(a) for a, s in labelled])
    found = None if fit is None else _against_pairs(fit)
    if found is not None and not found[1]:
        unit, far = _explains(found[0])
        if unit == STRESS_UNITS[0] and far < FAR:
            return
        found = None if unit == STRESS_UNITS[0] or far > FAR else found
    if found is not None:
        size, is_virial = found
        reason = f"it is about {size:.2g} times what the forces explain"
    else:
        if np.median(energies) < MOST_ENERGY and energies.max() < 10 * MOST_ENERGY:
            return
        size, is_virial = float(np.median(energies)) / USUAL_ENERGY, False
        reason = f"times volume it is {np.median(energies):.3g} eV per atom (median; 1 TPa gives some tens)"
    virial = "name it as that, dataset.keys={virial: NAME} or --key virial=NAME"
    likely = [f"It looks like a virial in eV: {virial}"] if is_virial else []
    likely += _likely(size, found is not None)
    if not is_virial:
        likely.append(f"If it is a virial in eV: {virial}")
    raise DataError(
        f"{source}: the stress of {len(labelled)} structures cannot be in eV/Å³ with tension positive: {reason}. "
        + ". ".join(likely)
    )


def _likely(size: float, compared: bool) -> list[str]:
    """Which units make a stress so many times too large, the likeliest first; beside it forces may be in others."""
    sign, found = "-" if size < 0 else "", []
    for name in STRESS_UNITS:
        far = _factor_between(size * factor(name), 1.0)
        if far > _off(size) and (compared or far > ROUGH):
            continue
        other = ", of the other sign (a pressure, compression positive)" if sign else ""
        either = "" if compared else f"; where compression is positive, -{name}"
        said = f"as if it were in {name}{other}. {_advice({'stress': sign + name})}{either}"
        found.append((far, said))
    off = {name: _factor_between(size, factor(name)) for name in FORCE_UNITS} if compared and size > 0 else {}
    for name, far in off.items():
        if far < min(FAR, 1.5 * min(off.values())):
            advice = _advice({"energy": FORCE_UNITS[name], "forces": name})
            found.append((far, f"as if it were right, and forces in {name}. {advice}"))
    first, *others = [said for _, said in sorted(found)]
    return [f"It looks {first}", *(f"Or {other}" for other in others)]


def _against_pairs(fit: PairFit) -> tuple[float, bool] | None:
    """The stress over that of the pair potential, and whether it is rather a virial; ``None``: unclear."""
    labelled = [(k, a, s) for k, a in enumerate(fit.structures) if (s := get_labels(a).stress) is not None]
    rows = [(s, fit.stress[k], a.cell.volume, k) for k, a, s in labelled]
    if len(rows) < 10:
        return None
    labels, expected, volumes = (np.array(column) for column in zip(*[row[:3] for row in rows]))
    composition = fit.composition[[row[3] for row in rows]]
    is_virial = _compared(-labels / volumes[:, None, None], expected, composition)
    is_stress = _compared(labels, expected, composition)
    if is_virial is not None and 0.1 < is_virial[1] < 10:
        off = is_stress is None or not 0.1 < is_stress[1] < 10
        if off and (is_stress is None or is_virial[0] > is_stress[0] + 0.01):
            return (-is_virial[1] * float(np.median(volumes)) if is_stress is None else is_stress[1]), True
    return None if is_stress is None else (is_stress[1], False)


def _compared(labels: np.ndarray, expected: np.ndarray, composition: np.ndarray) -> tuple[float, float] | None:
    """How well labels follow the pair potential, 0 to 1, and how large they are beside it, with their sign.

    Two parts are compared: the isotropic one, less its mean and what composition explains, and the rest. ``None``
    where neither follows, where the two disagree in sign, or where they say another sign and are not sure.
    """
    hat = composition @ np.linalg.pinv(composition)
    parts = []
    for tensor in (labels, expected):
        mean = np.trace(tensor, axis1=1, axis2=2) / 3
        parts.append((mean - hat @ mean, (tensor - mean[:, None, None] * np.eye(3)).ravel()))
    found = []
    for label, fitted in zip(*parts):
        if fitted.any():
            found.append((_correlation(fitted, label), float(np.sqrt((label @ label) / (fitted @ fitted)))))
    rs = [r for r, _ in found] or [0.0]
    r, size = max(found, key=lambda pair: abs(pair[0]), default=(0.0, 0.0))
    if abs(r) < CLEAR or (r > 0 and min(rs) < -0.2):
        return None
    if r < 0 and (len(labels) < MANY or r > -SURE or max(rs) > -0.4):
        return None
    return abs(r), float(np.sign(r)) * size


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    length = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / length if length > 0 else 0.0


def _nearest_unit(size: float) -> str:
    """The unit in which a stress of 1 eV/Å³ is nearest to ``size``, with the sign."""
    unit = min(STRESS_UNITS, key=lambda name: abs(np.log(abs(size) * factor(name))))
    return f"{'-' if size < 0 else ''}{unit}"


def _explains(size: float) -> tuple[str, float]:
    """The nearest unit of stress, with the sign, and the factor from it or, if that is less, from one of forces."""
    if not size:
        return STRESS_UNITS[0], np.inf
    forces = [_factor_between(size, factor(name)) for name in FORCE_UNITS] if size > 0 else []
    unit = _nearest_unit(size)
    return unit, min(_off(size), *(forces if unit != STRESS_UNITS[0] else ()), np.inf)


def _off(size: float) -> float:
    """The factor between ``size`` and that of the nearest unit."""
    return min(_factor_between(size * factor(name), 1.0) for name in STRESS_UNITS)


def _factor_between(a: float, b: float) -> float:
    return float(np.exp(abs(np.log(abs(a / b)))))


def _advice(units: Mapping[str, str]) -> str:
    if not units:
        return "Give totals: energies times the number of atoms"
    pairs = ", ".join(f"{label}: {unit}" for label, unit in units.items())
    return CONVERT.format(pairs, " --unit ".join(f"{label}={unit}" for label, unit in units.items()))

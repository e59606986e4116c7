"""Potential checks: each has a name, a verdict and a number, before any molecular dynamics.

``docs/potential_checks.md`` says what each check is, what its number means, and how to read a failure.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, chemical_symbols

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potential_checks.atoms import (
    close_pair_check,
    lone_atom_check,
    no_neighbours_checks,
    pair_curve_checks,
    periodic_atom_check,
)
from mdl_physpre.potential_checks.derivatives import derivative_checks, finite_check, smoothness_checks
from mdl_physpre.potential_checks.subject import (
    FAILED,
    MAX_ELEMENTS,
    NOT_APPLICABLE,
    PASSED,
    WARNING,
    Check,
    Subject,
    verdict_on,
)
from mdl_physpre.potential_checks.symmetry import (
    determinism_checks,
    far_copies_check,
    net_force_check,
    precision_check,
    supercell_checks,
    symmetry_checks,
)
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.eam.covalent_radii import covalent_radius
from mdl_physpre.structures.state import put_state
from mdl_physpre.utils.progress import progress as show_progress
from mdl_physpre.utils.text_table import aligned

logger = logging.getLogger(__name__)

CHECKS: dict[str, Callable[[Subject], Iterator[Check]]] = {
    "finite numbers": finite_check,
    "determinism": determinism_checks,
    "symmetry": symmetry_checks,
    "net force": net_force_check,
    "derivatives": derivative_checks,
    "smoothness": smoothness_checks,
    "supercell": supercell_checks,
    "two far copies": far_copies_check,
    "one atom alone": lone_atom_check,
    "one atom in a periodic cell": periodic_atom_check,
    "no neighbours": no_neighbours_checks,
    "two atoms at 0.3 Å": close_pair_check,
    "pair curves": pair_curve_checks,
    "precision": precision_check,
}
"""Groups of checks; each yields its results, and one that raises is reported under the name of its group."""

RATTLE = 0.05  # Å: perfect crystals have no forces to check
MAX_STRUCTURES, LARGE = 4, 100  # structures that are looked at, and atoms above which others are preferred


def examine(
    potential: Potential,
    structures: Sequence[Atoms] | None = None,
    *,
    cutoff: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> list[Check]:
    """Check a potential: invariances, derivatives, smoothness, extensivity, smallest systems, pair curves, determinism.

    Parameters
    ----------
    potential : stays as it is. It is examined in double precision where it can be converted; otherwise in its own, with
        bounds that fit.
    structures : up to four of them are used, small ones that hold all elements, rattled by 0.05 Å. Where ``None``,
        rattled face-centred and rock-salt crystals of the potential's elements, and a cluster.
    cutoff : Å, of a calculator or TorchSim model, which does not say; without it, smoothness is not checked.
        Ignored for a potential that says.
    seed : of rotations, displacements and samples.
    progress : show how far it is.

    Returns
    -------
    The checks, in order. A check that raises is ``failed``, with what it raised; one that cannot be done (no stress, no
    periodic structure, no known cutoff, something that is not implemented) is ``n/a``, with the reason. Where stress
    raises, that holds for the checks of stress alone.

    Raises
    ------
    DataError : no structures for a potential that takes any element or more than eight; an element that it does not
        know.
    ConfigError : a cutoff that is not positive and finite.
    """
    if cutoff is not None and not (cutoff > 0 and math.isfinite(cutoff)):
        raise ConfigError(f"the cutoff is {cutoff:g} Å; give a distance above 0, or none where it is not known")
    chosen = default_structures(potential) if structures is None else _choose(structures)
    rng = np.random.default_rng(seed)
    for atoms in chosen:
        atoms.rattle(RATTLE, rng=rng)
    training = potential.training
    potential.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            return _examine(potential, chosen, cutoff, seed, progress)
    finally:
        potential.train(training)


def _examine(
    potential: Potential, structures: list[Atoms], cutoff: float | None, seed: int, progress: bool
) -> list[Check]:
    try:
        subject = Subject(potential, structures, cutoff, seed)
    except DataError:
        raise
    except Exception as error:
        logger.debug("the potential cannot be evaluated", exc_info=True)
        return [Check("energies and forces", FAILED, text=f"raised {type(error).__name__}: {error}")]
    checks: list[Check] = []
    groups = list(CHECKS.items())
    for name, group in show_progress(groups, description="checks") if progress else groups:
        try:
            checks.extend(group(subject))
        except Exception as error:
            logger.debug("%s raised", name, exc_info=True)
            verdict, reason = verdict_on(error)
            checks.append(Check(name, verdict, text=reason))
    return checks


def default_structures(potential: Potential) -> list[Atoms]:
    known = potential.elements
    if known is None or len(known) > MAX_ELEMENTS:
        which = "any element" if known is None else f"{len(known)} elements"
        raise DataError(f"the potential takes {which}: give structures with the elements that it is to be examined on")
    elements = [chemical_symbols[z] for z in sorted(known)]
    made = []
    for symbol in elements:
        bond = 2 * covalent_radius(atomic_numbers[symbol])
        made.append(bulk(symbol, "fcc", a=1.1 * bond * np.sqrt(2), cubic=True))
    for a, b in zip(elements, elements[1:]):
        bond = covalent_radius(atomic_numbers[a]) + covalent_radius(atomic_numbers[b])
        made.append(bulk(a + b, "rocksalt", a=2.2 * bond))
    cluster = made[-1].repeat((2, 1, 1))
    return [*made, Atoms(cluster.numbers, cluster.positions)]


def _choose(structures: Sequence[Atoms]) -> list[Atoms]:
    """Copies of up to four structures: those that bring new elements first, then small ones."""
    filled = [put_state(Atoms(a.numbers, a.positions, cell=a.cell, pbc=a.pbc), a) for a in structures if len(a)]
    if not filled:
        raise DataError("there are no structures with atoms to examine the potential on")
    order = sorted(range(len(filled)), key=lambda k: (len(filled[k]) > LARGE or len(filled[k]) < 2, k))
    chosen: list[int] = []
    seen: set[int] = set()
    for k in order:
        new = set(filled[k].numbers.tolist()) - seen
        if new and len(chosen) < MAX_STRUCTURES:
            chosen.append(k)
            seen |= new
    for k in order:
        if len(chosen) < MAX_STRUCTURES and k not in chosen:
            chosen.append(k)
    return [filled[k] for k in sorted(chosen)]


def any_failed(checks: Sequence[Check]) -> bool:
    """Whether a check failed; warnings do not count."""
    return any(check.verdict == FAILED for check in checks)


def checks_as_dict(checks: Sequence[Check]) -> dict[str, Any]:
    """Plain values for JSON: ``counts`` by verdict, and ``checks``."""
    return {"counts": dict(Counter(c.verdict for c in checks)), "checks": [asdict(check) for check in checks]}


def format_checks(checks: Sequence[Check]) -> str:
    """A line for each check: verdict, name, number, bound, and what the number is; then the counts."""
    rows = []
    for check in checks:
        number = "" if check.number is None else f"{check.number:.3g} {check.unit}"
        bound = "" if check.bound is None else f"{'≥' if check.at_least else '≤'} {check.bound:.3g}"
        rows.append((check.verdict, check.name, number, bound, check.text))
    counts = Counter(check.verdict for check in checks)
    told = [f"{counts[v]} {v}" for v in (PASSED, FAILED, WARNING, NOT_APPLICABLE) if counts[v]]
    return "\n".join([*aligned(rows, words=5), "", ", ".join(told)])

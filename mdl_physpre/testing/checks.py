"""Checks that a potential of your own should pass, for its tests; with pytest or without.

Each takes a :class:`~mdl_physpre.potentials.Potential`, and structures where those of :func:`check_potential` do not
fit. It returns ``None``, or raises AssertionError with what was found and what was expected. The potential is examined
in double precision and stays as it is. ``mdl_physpre.potential_checks.examine`` (command ``physpre doctor``) measures
the same on a trained potential, and reports where this raises.
"""

from __future__ import annotations

from mdl_physpre.potentials.base import AtomicPotential, Backbone, Potential
from mdl_physpre.testing.comparison import (
    Structures,
    chosen_structures,
)
from mdl_physpre.testing.interfaces import (
    check_ase_calculator,
    check_gradients_for_training,
    check_reference_energies,
    check_save_and_load,
    check_unknown_element,
)
from mdl_physpre.testing.physics import (
    check_batches,
    check_edges_beyond_cutoff,
    check_extensive,
    check_forces,
    check_invariances,
    check_no_edges,
    check_smooth_at_cutoff,
    check_stress,
    check_what_is_asked,
)


def check_potential(potential: Potential, structures: Structures | None = None) -> None:
    """Every check of this module that applies.

    Parameters
    ----------
    potential : with parameters that give forces well above rounding. Not every check applies to every potential: one
        without stress, without a cutoff, without training or without ``hyperparameters`` passes those by.
    structures : small ones, out of equilibrium, some of them periodic. Where ``None``, rattled crystals of the
        potential's elements and a cluster.

    Raises
    ------
    AssertionError : a check does not hold.
    DataError : no structures for a potential that takes any element, or more than eight.
    """
    chosen = chosen_structures(potential, structures)
    for check in (check_forces, check_stress, check_invariances, check_extensive, check_batches, check_no_edges,
                  check_what_is_asked, check_edges_beyond_cutoff, check_ase_calculator):  # fmt: skip
        check(potential, chosen)
    check_unknown_element(potential)
    if potential.cutoff > 0:
        check_smooth_at_cutoff(potential, chosen)
    if isinstance(potential, AtomicPotential) and any(p.requires_grad for p in potential.parameters()):
        check_gradients_for_training(potential, chosen)
    if isinstance(potential, Backbone):
        check_reference_energies(potential, chosen)
    if type(potential).hyperparameters is not Potential.hyperparameters:
        check_save_and_load(potential, chosen)

"""From a name, a class or a function to a teacher: a potential, or a callable that returns an ASE calculator."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from ase import Atoms

from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.adapters.from_ase import CalculatorPotential
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.open import names_a_potential, open_potential, source_of
from mdl_physpre.potentials.sum import SumPotential
from mdl_physpre.potentials.zbl import ZBL, radii_text, repulsion_radii, short_range_repulsion
from mdl_physpre.utils.devices import put_on
from mdl_physpre.utils.registry import Registry

logger = logging.getLogger(__name__)
TEACHERS = Registry("teacher", "mdl_physpre.teachers", object, {})  # callables, by entry point or import path
CalculatorFactory: TypeAlias = Callable[[], Any]
Teacher: TypeAlias = "Potential | Callable[..., Any] | str"
# What a calculator may raise: one that was written as a program of its own leaves by SystemExit where it gives up.
CALCULATOR_ERRORS = (Exception, SystemExit)


def make_teacher(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    short_range: str | None = None,
    short_range_radii: Mapping[str, float] | None = None,
    structures: Sequence[Atoms] | None = None,
    device: str | torch.device = "cpu",
) -> SumPotential:
    """A teacher by name, with short-range repulsion if wanted, and energies of the elements that can be fitted.

    Parameters
    ----------
    name : a checkpoint file in any format that is read here; ``RUN/ARM`` or ``committee:a.pt,b.pt``, whose mean it
        is; ``calculator:package.module.Class?key=value`` or ``torchsim:…``; a name registered in the entry-point group
        ``mdl_physpre.teachers``; or an import path. Behind the last two stands a callable that returns a potential or
        an ASE calculator.
    arguments : of a calculator, or of the callable.
    short_range, short_range_radii : ``zbl`` adds the repulsion of nuclei (:class:`~mdl_physpre.potentials.ZBL`), which
        the teacher itself must not have yet.
    structures : DFT structures; the repulsion of a pair without a radius ends at the shortest distance that it has in
        them. At the covalent distance without them.
    device : of a network; a calculator or TorchSim model computes where it was built.

    Raises
    ------
    ConfigError : nothing of that name, arguments that it does not take, an unknown short_range, a device that is
        not there.
    CheckpointError : a file that no format recognises.
    """
    if names_a_potential(name):
        base = open_potential(name, arguments)
    else:
        target, found = _by_name(name), resolve_teacher(name, arguments)
        told = ", ".join(f"{key}={value!r}" for key, value in sorted((arguments or {}).items()))
        identity = f"{target.__module__}.{getattr(target, '__qualname__', name)}({told})"
        base = found if isinstance(found, Potential) else CalculatorPotential(found, identity, source_of(target, name))
    # among the parts: that of a hybrid belongs to its embedded-atom potential
    if short_range and any(isinstance(part, ZBL) for part in base.modules()):
        raise ConfigError(f"teacher {name}: has a short-range repulsion already; leave short_range out")
    repulsion = short_range_repulsion(short_range, short_range_radii, base.elements, structures)
    if repulsion is not None and (radii := repulsion_radii(repulsion)):
        logger.info("teacher %s: repulsion of the nuclei (ZBL) up to %s", name, radii_text(radii))
    return put_on(SumPotential(base=base, repulsion=repulsion), device)


def resolve_teacher(teacher: Teacher, kwargs: Mapping[str, Any] | None = None) -> Potential | CalculatorFactory:
    """A potential, or a callable without arguments that returns an ASE calculator; arguments as in
    :func:`mdl_physpre.label`.

    Raises
    ------
    ConfigError : nothing of that name, or arguments that it does not take.
    """
    if isinstance(teacher, str):
        if names_a_potential(teacher):
            teacher, kwargs = open_potential(teacher, kwargs), None
        else:
            teacher = _by_name(teacher)
    if isinstance(teacher, Potential):
        if kwargs:
            raise ConfigError(f"teacher: a potential that is already built takes no arguments, found {sorted(kwargs)}")
        # calculators are asked one structure after another, each process with its own
        return teacher.factory if isinstance(teacher, CalculatorPotential) else teacher
    if not callable(teacher):
        raise ConfigError(
            f"teacher: found {type(teacher).__name__}, expected a potential, a callable that returns an ASE calculator "
            "(not the calculator itself), or a name"
        )
    factory = partial(teacher, **kwargs) if kwargs else teacher
    try:
        built = factory()
    except CALCULATOR_ERRORS as error:
        name = getattr(teacher, "__name__", teacher)
        raise ConfigError(f"teacher {name} cannot be built: {type(error).__name__}: {error}") from error
    if isinstance(built, Potential):
        return built
    if not hasattr(built, "get_property"):
        raise ConfigError(
            f"teacher: {teacher!r} returned {type(built).__name__}, expected a potential or an ASE calculator"
        )
    return factory


def _by_name(name: str) -> Any:
    try:
        return TEACHERS.load(name)
    except ConfigError as error:
        raise ConfigError(f"{error}; no such checkpoint file either") from error

"""What the operators on edges that are written in C share: which derivatives are wanted of them.

Automatic differentiation asks an operator for its gradient twice in a training step: for forces, in positions and cell
and what depends on them, and for the loss, in what depends on parameters. It does not say which of the two it is, and
to compute both each time would cost half as much again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_of_thread = threading.local()


@contextmanager
def _stage(name: str) -> Iterator[None]:
    before = getattr(_of_thread, "stage", None)
    _of_thread.stage = name
    try:
        yield
    finally:
        _of_thread.stage = before


def energies_for_derivatives(in_parameters: bool = True) -> Any:
    """A context for energies of which derivatives in geometry will be taken inside :func:`derivatives_in_geometry`.

    ``in_parameters`` says whether derivatives in parameters will follow.
    """
    return _stage("energies" if in_parameters else "energies at fixed parameters")


def in_evaluate() -> bool:
    """Whether it has been told which derivatives will be wanted; elsewhere they may be of any order."""
    return getattr(_of_thread, "stage", None) is not None


def parameters_are_fixed() -> bool:
    """Whether it has been told that no derivatives in parameters will be wanted."""
    return getattr(_of_thread, "stage", None) == "energies at fixed parameters"


def derivatives_in_geometry() -> Any:
    """A context in which operators give gradients in positions and node values alone."""
    return _stage("geometry")


def remember_stage(ctx: Any) -> None:
    """Keep what :func:`wanted` needs to know of the time when an operator was called."""
    ctx.told = getattr(_of_thread, "stage", None) is not None


def wanted(ctx: Any) -> tuple[bool, bool]:
    """Whether gradients in geometry and in parameters are wanted; both where nobody has told."""
    geometry = getattr(_of_thread, "stage", None) == "geometry"
    return not ctx.told or geometry, not ctx.told or not geometry

"""What the operators on edges that are written in C share: which derivatives are wanted of them.

Automatic differentiation asks an operator for its gradient twice in a training step: for forces, in positions and cell
and what depends on them, and for the loss, in what depends on parameters. It does not say which of the two it is, and
to compute both each time would cost half as much again. So :func:`~mdl_physpre.evaluate` says it, and operators in C
are used there alone; elsewhere derivatives may be of any order, and tensor operations have them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

_of_thread = threading.local()


@contextmanager
def _stage(name: str) -> Iterator[None]:
    before = getattr(_of_thread, "stage", None)
    _of_thread.stage = name
    try:
        yield
    finally:
        _of_thread.stage = before


def energies_for_derivatives(of_parameters: bool) -> Any:
    """A context for energies of which derivatives in geometry will be taken inside :func:`derivatives_in_geometry`.

    ``of_parameters``: whether those in parameters will be taken afterwards.
    """
    return nullcontext() if torch.compiler.is_compiling() else _stage("training" if of_parameters else "prediction")


def in_evaluate() -> bool:
    """Whether it is known which derivatives will be wanted; elsewhere they may be of any order."""
    return getattr(_of_thread, "stage", None) is not None


def predicting() -> bool:
    """Whether nobody will ask for derivatives in parameters."""
    return not torch.compiler.is_compiling() and getattr(_of_thread, "stage", None) == "prediction"


def derivatives_in_geometry() -> Any:
    """A context in which operators give gradients in positions and node values alone."""
    return _stage("geometry")


def in_geometry() -> bool:
    """Whether an operator is asked for its gradient in positions and node values, not in parameters and node values."""
    return getattr(_of_thread, "stage", None) == "geometry"

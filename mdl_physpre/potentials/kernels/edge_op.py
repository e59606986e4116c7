"""What the operators on edges that are written in C share: how torch knows them, and which derivatives are wanted.

Automatic differentiation asks an operator for its gradient twice in a training step: for forces, in positions and cell
and what depends on them, and for the loss, in what depends on parameters. It does not say which of the two it is, and
to compute both each time would cost half as much again. So :func:`~mdl_physpre.evaluate` says it, and operators in C
are used there alone; elsewhere derivatives may be of any order, and tensor operations have them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, get_type_hints

import torch
from torch import Tensor

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


_KINDS: dict[Any, str] = {Tensor: "Tensor", Tensor | None: "Tensor?", int: "int", float: "float", bool: "bool"}
_names: dict[Any, tuple[list[str], Sequence[str]]] = {}
"""Names of the arguments of each operator, and of those that its results are like."""


def arguments_of(fields: type) -> str:
    """Arguments of an operator, as torch writes them, from a named tuple: ``Tensor nodes, Tensor? vec, int heads``."""
    return ", ".join(f"{_KINDS[kind]} {name}" for name, kind in get_type_hints(fields).items())


def operator(name: str, arguments: str, like: Sequence[str] = (), results: int = 0) -> Callable[[Any], Any]:
    """Registers a function as an operator on the CPU.

    Parameters
    ----------
    name : after ``mdl_physpre::``.
    arguments : their types and names, as torch writes them.
    like : arguments whose shapes the results have, one for each; where one is None, the result is empty. For other
        shapes give the number of ``results``, and register a fake version.
    """
    schema = f"({arguments}) -> ({', '.join(['Tensor'] * (results or len(like)))})"
    names = [argument.split()[-1] for argument in arguments.split(", ")]

    def fake(*given: Any) -> tuple[Tensor, ...]:
        shapes = [given[names.index(one)] for one in like]
        return tuple(shapes[0].new_empty(0 if t is None else t.shape) for t in shapes)

    def register(function: Callable[..., Any]) -> Any:
        known = torch.library.custom_op(
            f"mdl_physpre::{name}", function, mutates_args=(), device_types="cpu", schema=schema
        )
        if like:
            known.register_fake(fake)
        _names[known] = (names, like)
        return known

    return register


def register_gradients(of: Any, in_positions: Any, in_parameters: Any = None, kept: Sequence[int] = ()) -> None:
    """Gradients of an operator are those that other operators give, from its adjoints and arguments.

    Results of these are gradients in the arguments that they are like. Where there are two, the first is asked inside
    :func:`derivatives_in_geometry`, the second elsewhere. Results of numbers ``kept`` have no gradient of their own,
    and are given after the adjoints of the others.
    """

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        given = [*(output[k] for k in kept), *inputs]
        ctx.save_for_backward(*(t if isinstance(t, Tensor) else None for t in given))
        ctx.others = [None if isinstance(t, Tensor) else t for t in given]
        ctx.mark_non_differentiable(*given[: len(kept)])

    def backward(ctx: Any, *adjoints: Tensor) -> tuple[Tensor | None, ...]:
        given = [other if t is None else t for t, other in zip(ctx.saved_tensors, ctx.others)]
        wanted = [adjoint for k, adjoint in enumerate(adjoints) if k not in kept]
        gradient = in_positions if in_parameters is None or in_geometry() else in_parameters
        found = dict(zip(_names[gradient][1], gradient(*wanted, *given)))
        return tuple(None if t is None else found.get(name) for name, t in zip(_names[of][0], given[len(kept) :]))

    of.register_autograd(backward, setup_context=keep)

"""Checks of the hyperparameters of networks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ase.data import atomic_numbers, chemical_symbols

from mdl_physpre.errors import ConfigError


def atomic_number(element: int | str, largest: int = len(chemical_symbols) - 1, where: str = "") -> int:
    """Atomic number of an element given by number or symbol.

    Raises ConfigError, beginning with ``where``, for one that is unknown or beyond ``largest``.
    """
    number = atomic_numbers.get(element) if isinstance(element, str) else int(element)
    if number is None or not 1 <= number <= largest:
        raise ConfigError(
            f"{where}{element!r} is no element; expected a symbol or number of H to {chemical_symbols[largest]} "
            f"({largest})"
        )
    return number


def element_numbers(elements: Iterable[int | str] | None, largest: int, network: str) -> tuple[int, ...] | None:
    """Atomic numbers, ascending, of elements given by number or by symbol; ``None`` where all are known.

    Raises ConfigError for one that is unknown or beyond ``largest``, and for none at all.
    """
    if elements is None:
        return None
    numbers = {atomic_number(element, largest, f"{network}: elements: ") for element in elements}
    if not numbers:
        raise ConfigError(f"{network}: elements is empty; name at least one, or give None to accept all")
    return tuple(sorted(numbers))


def refuse_unsupported(network: str, supported: Mapping[str, tuple[Any, str]], given: Mapping[str, Any]) -> None:
    """Raise ConfigError, with the reason, for a key that has another value than the one that is supported."""
    for name, value in given.items():
        only, reason = supported[name]
        if value != only:
            raise ConfigError(f"{network}: {name} is {value!r}; only {only!r} is supported ({reason})")


def require_positive(network: str, **given: float) -> None:
    """Raise ConfigError for a number that is not positive and finite."""
    for name, value in given.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{network}: {name} is {value}, expected more than 0")


def require_at_least(network: str, least: int, **given: int) -> None:
    """Raise ConfigError for a number below ``least``."""
    for name, value in given.items():
        if value < least:
            raise ConfigError(f"{network}: {name} is {value}, expected at least {least}")

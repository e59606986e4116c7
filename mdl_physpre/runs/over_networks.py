"""Results of several networks taken together, number by number."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from mdl_physpre.utils.record import Record

AnyRecord = TypeVar("AnyRecord", bound=Record)


def over_networks(
    results: Sequence[Mapping[str, AnyRecord]], record: type[AnyRecord], how: Callable[[Sequence[float]], float]
) -> dict[str, AnyRecord]:
    """Records of several networks by name, taken together number by number."""
    return {
        name: record.model_validate(_combined([found[name].model_dump() for found in results], how))
        for name in (results[0] if results else ())
    }


def _combined(values: Sequence[Any], how: Callable[[Sequence[float]], float]) -> Any:
    """Mappings of numbers, number by number; what is the same everywhere, or no number, as it is in the first."""
    first = values[0]
    if isinstance(first, Mapping):
        return {key: _combined([v[key] for v in values], how) for key in first}
    if isinstance(first, bool | int) and all(v == first for v in values):
        return first
    numbers = [v for v in values if isinstance(v, int | float) and math.isfinite(v)]
    return how(numbers) if len(numbers) == len(values) else first

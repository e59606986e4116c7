"""Tables as aligned text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

MISSING = "–"


def shown(value: Any, form: str) -> str:
    """A number as text; "–" where there is none, "NaN" and "inf" where it is not finite."""
    if value is None:
        return MISSING
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf"
    return form.format(value)


def aligned(rows: Sequence[Sequence[str]], words: int = 1) -> list[str]:
    """Rows as lines of aligned columns; the first ``words`` columns are not numbers and stand to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(v.ljust(w) if k < words else v.rjust(w) for k, (v, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    ]


def text_table(rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """As :func:`aligned`, in one text, with a rule below the first row, the headings."""
    first, *lines = aligned(rows, words)
    rule = "  ".join("-" * max(map(len, column)) for column in zip(*rows))
    return "\n".join([first, rule, *lines])

"""Results as types that are written as JSON and read back."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A result, written as JSON (``plain``) and read back (``model_validate``).

    Numbers that are not finite become ``None`` in JSON, which has no NaN. Keys that a file has beside the fields are
    passed over: newer versions may write more.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True)

    def plain(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        plain: dict[str, Any] = without_nan(self.model_dump(mode="json", by_alias=True))
        return plain


def without_nan(value: Any) -> Any:
    """``value`` with ``None`` for numbers that are not finite: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""What two runs of the same have in common."""

from __future__ import annotations

from typing import Any


def without_times(content: Any) -> Any:
    """Nested lists and dictionaries without the seconds that something took."""
    if isinstance(content, dict):
        return {key: without_times(value) for key, value in content.items() if key != "seconds"}
    return [without_times(value) for value in content] if isinstance(content, list) else content

"""Results of another run are not deleted unless that is asked for, and what differs is said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from mdl_physpre.errors import WouldDelete

_allowed: ContextVar[bool] = ContextVar("overwriting", default=False)
SHOWN = 12  # differences in one message


@contextmanager
def overwriting(allowed: bool = True) -> Iterator[None]:
    """Within the block, and in functions called there, results of other runs may be deleted."""
    token = _allowed.set(allowed or _allowed.get())
    try:
        yield
    finally:
        _allowed.reset(token)


def may_overwrite() -> bool:
    """Whether results of other runs may be deleted."""
    return _allowed.get()


def refuse_to_delete(folder: Path, what: str, before: Any, now: Mapping[str, Any]) -> None:
    """Raise WouldDelete, with what differs, unless within :func:`overwriting`.

    Parameters
    ----------
    what : that would be deleted, in words.
    before, now : what the results depend on: nested mappings. Anything else for ``before``: not known.
    """
    if may_overwrite():
        return
    known = isinstance(before, Mapping)
    found = differences(before, now) if known else []
    other = "masses, charges, names or the like of the structures" if known else "something that was not noted down"
    said = "".join(f"\n  {one}" for one in found[:SHOWN]) or f"\n  {other}"
    more = f"\n  and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise WouldDelete(
        f"{folder}: holds {what} of another run, which would be deleted. It differs in{said}{more}\n"
        "Give another --out, or delete it: --overwrite (overwrite=True)"
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> list[str]:
    """``key.key: 1 there, 2 here`` for each value of nested mappings that is not the same."""
    found = []
    for key in dict.fromkeys([*before, *now]):
        one, other, name = before.get(key), now.get(key), f"{within}{key}"
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differences(one, other, f"{name}.")
        elif _plain(one) != _plain(other):
            found.append(f"{name}: {_shown(one)} there, {_shown(other)} here")
    return found


def _plain(value: Any) -> Any:
    """Sequences as JSON gives them back."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return value


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"

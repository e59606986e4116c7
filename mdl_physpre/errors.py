"""Errors that a user can act on. The command line prints their message alone, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PhyspreError(Exception):
    """Base class: the message says where, what was found, what was expected, and what to do."""


class DataError(PhyspreError):
    """Structures, labels or files that cannot be used as they are."""


class ConfigError(PhyspreError):
    """A configuration key or value that is unknown, mistyped or contradictory."""


class WouldDelete(ConfigError):
    """Results of another run stand where this one is to write."""


class CheckpointError(PhyspreError):
    """A checkpoint that is damaged, foreign, of another version, or unsafe."""


class FitError(PhyspreError):
    """A fit of the embedded-atom potential that diverged or had nothing to work on."""


class TrainingError(PhyspreError):
    """A training that cannot go on."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A half sentence that names what was probably meant, or lists what is known."""
    names = sorted(str(k) for k in known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(names)

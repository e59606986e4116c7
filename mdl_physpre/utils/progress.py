"""Progress of long work: a bar on a terminal, a plain log line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")
logger = logging.getLogger(__name__)

QUIET_FOR = 2.0  # seconds: shorter work shows nothing
LINE_EVERY = 30.0  # seconds between plain lines
_bars = True


def without_bars() -> None:
    """From now on, plain lines in this process: several that share a terminal cannot each draw a bar on it."""
    global _bars
    _bars = False


def shows_bars() -> bool:
    """Whether progress is a bar on a terminal here."""
    return _bars and sys.stderr.isatty()


def progress(iterable: Iterable[T], total: int | None = None, description: str = "") -> Iterator[T]:
    """Yield from ``iterable`` and show how far it is, once it has taken longer than two seconds.

    Parameters
    ----------
    iterable : the items to go through.
    total : their number; taken from ``len(iterable)`` where it has one.
    description : what is being done, in a few words.
    """
    if total is None:
        total = len(iterable) if isinstance(iterable, Sized) else None
    if shows_bars():
        yield from _bar(iterable, total, description)
    else:
        yield from _lines(iterable, total, description)


def _bar(iterable: Iterable[T], total: int | None, description: str) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    start = time.monotonic()
    bar, task = None, None
    try:
        for done, item in enumerate(iterable):
            if bar is None and time.monotonic() - start > QUIET_FOR:
                bar = Progress(*columns, console=Console(stderr=True), transient=True)
                bar.start()
                task = bar.add_task(description, total=total)
            if bar is not None and task is not None:
                bar.update(task, completed=done)
            yield item
    finally:
        if bar is not None:
            bar.stop()


def _lines(iterable: Iterable[T], total: int | None, description: str) -> Iterator[T]:
    last = time.monotonic()
    for done, item in enumerate(iterable):
        now = time.monotonic()
        if now - last > LINE_EVERY:
            last = now
            logger.info("%s: %d%s", description, done, f" of {total}" if total else "")
        yield item

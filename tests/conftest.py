"""What holds for every test."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest

# A suite started in a shell's background inherits "ignore Ctrl-C", and so would every program that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def package_log_as_before() -> Iterator[None]:
    """Undo what a command called inside a test set up: its handler writes to a stream that ends with that test."""
    logger = logging.getLogger("mdl_physpre")
    handlers, propagate, level = list(logger.handlers), logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)
